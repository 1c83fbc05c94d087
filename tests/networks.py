"""Network namespaces of a test's own, that live as long as the test needs them, and sockets in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Thread
from typing import TypeVar

from socklb import NetworkNamespace
from socklb.kernel.namespaces import run_in_netns

from . import world
from .sockets import Sockets, no_thread_lingers

T = TypeVar("T")


def in_thread(function: Callable[[], T]) -> T:
    """What a function returns in a thread of its own, so that a move to another namespace is the thread's alone."""
    results: list[T] = []
    thread = Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    no_thread_lingers()
    return results[0]


def _fresh() -> int:
    world.new_network()
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


class Network:
    """A namespace, and a maker of sockets in it."""

    def __init__(self, namespace: NetworkNamespace, sockets: Sockets) -> None:
        self.namespace, self.sockets = namespace, sockets

    def make(self, function: Callable[[Sockets], T]) -> T:
        """What a function makes of the maker, inside."""
        return self.run(lambda: function(self.sockets))

    def run(self, function: Callable[[], T]) -> T:
        """What a function returns, inside."""
        returned = run_in_netns(self.namespace, function)
        no_thread_lingers()
        return returned


@contextmanager
def networks(count: int) -> Iterator[list[Network]]:
    """So many fresh network namespaces, loopback up, named net0, net1, ..."""
    with ExitStack() as stack:
        made = []
        for number in range(count):
            descriptor = in_thread(_fresh)
            stack.callback(os.close, descriptor)
            namespace = NetworkNamespace.from_path(f"/proc/self/fd/{descriptor}", name=f"net{number}")
            made.append(Network(namespace, stack.enter_context(Sockets())))
        yield made


@contextmanager
def pinned(path: str, name: str) -> Iterator[str]:
    """A namespace has this name meanwhile, as `ip netns` gives it; the path of the pin."""
    directory = "/run/netns"  # of the test world's own
    os.makedirs(directory, exist_ok=True)
    pin = os.path.join(directory, name)
    os.close(os.open(pin, os.O_CREAT | os.O_EXCL))
    try:
        world.bind(path, pin)
        try:
            yield pin
        finally:
            world.unmount(pin)
    finally:
        os.unlink(pin)


@contextmanager
def pinned_networks(*names: str) -> Iterator[list[Network]]:
    """Fresh network namespaces that have these names, so that any process can enter them."""
    with networks(len(names)) as made, ExitStack() as stack:
        for net, name in zip(made, names):
            net.namespace = NetworkNamespace.from_path(stack.enter_context(pinned(net.namespace.path, name)))
        yield made
