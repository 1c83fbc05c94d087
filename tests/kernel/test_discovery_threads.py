"""Namespaces that only a thread is in: one that moved, while the first thread of its process stayed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread, get_native_id
from typing import Any

import pytest

from socklb import NetworkNamespace, SocketFilter, destroy_sockets, dst
from socklb.kernel import discovery
from socklb.kernel.discovery import discover_namespaces, unsearched
from socklb.kernel.namespaces import run_in_netns
from socklb.kernel.processes import numbers

from .. import world
from ..children import Child
from ..sockets import Sockets, eventually, no_thread_lingers, pending_error, without_privilege
from .test_discovery import inhabitant, names, paths_of, the

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("network")]


class Moved:
    """A thread that lives in a namespace of its own: its id, its path, and the namespace."""

    def __init__(self, sockets: Sockets | None = None) -> None:
        self._ready, self._ended = Event(), Event()
        self._sockets = sockets
        self._thread = Thread(target=self._live)
        self._thread.start()
        self._ready.wait()

    def _live(self) -> None:
        try:
            world.new_network()
            self.tid = get_native_id()
            self.path = f"/proc/{os.getpid()}/task/{self.tid}/ns/net"
            Path(f"/proc/self/task/{self.tid}/comm").write_text("mover")
            self.namespace = NetworkNamespace.current()
            if self._sockets is not None:
                self.client = self._sockets.udp("127.0.0.2", 9000)
        finally:
            self._ready.set()
        self._ended.wait()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        no_thread_lingers()


@contextmanager
def moved(sockets: Sockets | None = None) -> Iterator[Moved]:
    thread = Moved(sockets)
    try:
        yield thread
    finally:
        thread.end()


class TestThreads:
    def test_one_that_only_a_thread_is_in_is_found_and_named_by_it(self) -> None:
        with moved() as thread:
            found = discover_namespaces()
            assert list(found) == [NetworkNamespace.current(), thread.namespace]
            assert names(found) == ["current", f"tid {thread.tid} (mover)"]
            assert found.refused == ()
            assert paths_of(found[1]) == [thread.path]
            assert run_in_netns(found[1], NetworkNamespace.current) == thread.namespace

    def test_its_sockets_are_destroyed(self) -> None:
        with Sockets() as sockets, moved(sockets) as thread:
            report = destroy_sockets(SocketFilter("udp", dst("127.0.0.2", 9000)), namespaces="all")
            assert (report.destroyed, report.errors) == (1, {})
            assert pending_error(thread.client) == "ECONNABORTED"

    def test_a_process_comes_before_a_thread(self) -> None:
        with moved() as thread, inhabitant(thread.namespace) as process:
            found = the(discover_namespaces(), thread.namespace)
            assert found.name == f"pid {process.pid} (cat)"
            assert paths_of(found) == [f"/proc/{process.pid}/ns/net", thread.path]

    def test_the_first_thread_is_not_looked_at_twice(self) -> None:
        with moved():
            own = discover_namespaces()[0]
        assert not [path for path in paths_of(own)[1:] if path.startswith(f"/proc/{os.getpid()}/task/")]

    def test_a_thread_that_ends_between_listing_and_looking(self, monkeypatch: pytest.MonkeyPatch) -> None:
        usual = numbers
        with moved() as stays, moved() as thread:

            def listed(directory: str) -> list[int]:
                found = usual(directory)
                if directory.endswith("/task") and thread.tid in found:
                    thread.end()
                return found

            monkeypatch.setattr(discovery, "numbers", listed)
            found = discover_namespaces()
            assert names(found) == ["current", f"tid {stays.tid} (mover)"]
        assert found.refused == ()


@contextmanager
def waiting_threads(count: int) -> Iterator[None]:
    ended = Event()
    threads = [Thread(target=ended.wait) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


class TestCost:
    """Each candidate is looked at once, and threads only if they are asked for."""

    @pytest.fixture
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        paths: list[str] = []
        usual = os.stat

        def stat(path: str, **options: Any) -> os.stat_result:
            paths.append(str(path))
            return usual(path, **options)

        monkeypatch.setattr(os, "stat", stat)
        return paths

    def test_one_stat_a_thread(self, looks: list[str]) -> None:
        counts = []
        for threads in (1, 51):
            with waiting_threads(threads):
                looks.clear()
                discover_namespaces()
                counts.append(len(looks))
            no_thread_lingers()
        assert counts[1] - counts[0] <= 50

    def test_threads_are_left_out_where_they_are_not_asked_for(self, looks: list[str]) -> None:
        with moved() as thread:
            looks.clear()
            found = discover_namespaces(threads=False)
            assert {path for path in looks if "/task/" in path} == {found[0].path}
            assert list(found) == [NetworkNamespace.current()]
            assert list(discover_namespaces()) == [NetworkNamespace.current(), thread.namespace]


def live_with_a_moved_thread(pipe: Connection) -> None:
    """In a child: send the thread's id and stay until the pipe is closed; or let the first thread end, if so asked."""

    def wait() -> None:
        with suppress(EOFError):
            pipe.recv()
        os._exit(0)

    with moved() as thread:
        pipe.send(thread.tid)
        if pipe.recv() == "end the first thread":
            Thread(target=wait).start()
            ctypes.CDLL(None).pthread_exit(None)


class TestThreadsOfOthers:
    @pytest.fixture
    def other(self) -> Iterator[Child]:
        with Child(live_with_a_moved_thread) as child:
            yield child

    def test_a_process_whose_first_thread_has_ended(self, other: Child) -> None:
        """It looks like one that has ended itself, but the others live on."""
        tid = other.receive()
        other.send("end the first thread")
        state = Path(f"/proc/{other.pid}/stat")
        eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "Z", "a zombie")
        found = discover_namespaces()
        assert names(found) == ["current", f"tid {tid} (mover)"]
        assert found.refused == ()

    def test_where_threads_of_a_process_are_that_may_not_be_looked_at(self, other: Child) -> None:
        """Its first thread is where the search was, and the other one is not."""

        def missed() -> list[tuple[str, int]]:
            found = discover_namespaces()
            return [(one.path, one.count) for one in unsearched(found.refused, found)]

        path = f"/proc/{other.pid}/task/{other.receive()}/ns/net"
        assert without_privilege(missed) == [(path, 1)]
