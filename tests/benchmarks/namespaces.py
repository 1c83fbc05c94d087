"""A thousand network namespaces, a few sockets in each, and many processes: one pass over the host."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

from socklb import Backend, NetworkNamespace, discover_namespaces, terminate_connections
from socklb.kernel.diag import DiagSocket
from socklb.kernel.namespaces import run_in_netns

from .. import world
from ..children import Child
from .crowd import connect, listen
from .timing import Ratio, Subject, best_times, ratios_of
from .walk import walk

SOCKETS, PROCESSES = 90_000, 10_000  # in all
_GONE = Backend("10.9.77.1", 9000, "tcp")  # who has no clients: each namespace is walked, and that is all

_WALKS = "as many kernel walks, one after another"
_PASS = "one pass over all namespaces, discovery within it"
_WITHOUT = f"{_PASS}, conntrack left out"
_DISCOVER = "discovery alone"
_WITHOUT_THREADS = "discovery alone, threads left out: what `watch` does"


def measure_namespaces(count: int, rounds: int) -> tuple[dict[str, float], list[Ratio]]:
    with ExitStack() as stack:
        namespaces = stack.enter_context(_populated(count, SOCKETS // count, PROCESSES // count))
        diags = [stack.enter_context(run_in_netns(namespace, DiagSocket)) for namespace in namespaces]

        def walks() -> None:
            for diag in diags:
                walk(diag)

        def one_pass(conntrack: bool | str = "auto") -> None:
            report = terminate_connections([_GONE], conntrack=conntrack)
            assert {*namespaces} <= report.namespaces.keys()
            assert not report.errors

        subjects = {
            _WALKS: Subject(walks),
            _PASS: Subject(one_pass),
            _WITHOUT: Subject(lambda: one_pass(False)),
            _DISCOVER: Subject(discover_namespaces),
            _WITHOUT_THREADS: Subject(lambda: discover_namespaces(threads=False)),
        }
        best = best_times(subjects, rounds)
        looks = _looks_a_process()
    return best, [
        *ratios_of(best, [(_PASS, _WALKS, 0.65), (_WITHOUT, _WALKS, 0.65)]),
        Ratio("looks into /proc a process, threads left out", looks, 1.01),
    ]


@contextmanager
def _populated(count: int, sockets: int, processes: int) -> Iterator[list[NetworkNamespace]]:
    """So many namespaces, with so many sockets (both ends count) and processes in each."""
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child(lambda pipe: _hold(sockets // 2, processes - 1, pipe))) for _ in range(count)
        ]
        for child in children:
            child.receive()
        yield [NetworkNamespace.from_pid(child.pid) for child in children]


def _hold(connections: int, others: int, pipe: Connection) -> None:
    world.new_network()
    listener = listen(("127.0.0.1", 9000))
    kept = [connect(listener, listener.getsockname()) for _ in range(connections)]
    reader, writer = os.pipe()  # the others end with this one
    for _ in range(others):
        if not os.fork():
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    pipe.send(len(kept))
    pipe.recv()


def _looks_a_process() -> float:
    """Calls that look at a path of a process, while all are discovered, by the number of processes."""
    looks = 0

    def counted(function: Any) -> Any:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal looks
            looks += str(path).startswith("/proc/") and str(path)[6:7].isdigit()
            return function(path, *arguments, **options)

        return call

    with ExitStack() as stack:
        for name in ("stat", "lstat", "open", "readlink", "listdir", "scandir"):
            stack.enter_context(mock.patch.object(os, name, counted(getattr(os, name))))
        stack.enter_context(mock.patch.object(builtins, "open", counted(open)))
        found = discover_namespaces(threads=False)
    return (looks - len(found)) / sum(name.isdigit() for name in os.listdir("/proc"))  # one for the name of each
