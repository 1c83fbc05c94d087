"""A thousand network namespaces, a few sockets in each, and many processes: one pass over the host."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from socket import socket
from typing import Any
from unittest import mock

from socklb import Backend, NetworkNamespace, discover_namespaces, terminate_connections
from socklb.kernel.diag import DiagSocket
from socklb.kernel.namespaces import run_in_netns

from ..children import Child, allow_descriptors
from ..networks import networks
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
    room = allow_descriptors() // (sockets + 1)
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child(partial(_hold, min(room, count - first), sockets // 2, processes)))
            for first in range(0, count, room)
        ]
        yield [NetworkNamespace.from_pid(pid) for child in children for pid in child.receive()]


def _hold(count: int, connections: int, processes: int, pipe: Connection) -> None:
    """The processes are no forks of this one: a kernel that watches its memory (CONFIG_DAMON) looks at all who share a
    page, and takes a whole processor for so many.
    """
    reader, _writer = os.pipe()  # they end with this one

    def spawn() -> list[int]:
        stdin = [(os.POSIX_SPAWN_DUP2, reader, 0)]
        return [os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=stdin) for _ in range(processes)]

    def populate() -> list[Sequence[socket]]:
        listener = listen(("127.0.0.1", 9000))
        return [connect(listener, listener.getsockname()) for _ in range(connections)]

    with networks(count) as nets:
        pids = [net.run(spawn)[0] for net in nets]
        kept = [net.run(populate) for net in nets]
        pipe.send(pids)
        pipe.recv()
        del kept


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
