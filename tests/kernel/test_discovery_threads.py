"""Namespaces that only a thread is in: a thread that moved, while the first one of its process stayed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread, get_native_id

import pytest

from socklb import Backend, NetworkNamespace, terminate_connections
from socklb.kernel import discovery
from socklb.kernel.discovery import VANISHED, SkippedNamespace, discover, unreadable
from socklb.kernel.namespaces import inside

from .. import world
from ..children import Child
from ..networks import no_thread_lingers
from ..sockets import Sockets, eventually, pending_error, without_privilege
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
            found = discover()
            assert list(found) == [NetworkNamespace.current(), thread.namespace]
            assert names(found) == ["host", f"tid {thread.tid} (mover)"]
            assert found.skipped == []
            assert paths_of(found[1]) == [thread.path]
            assert inside(found[1], NetworkNamespace.current) == thread.namespace

    def test_its_sockets_are_cut(self) -> None:
        with Sockets() as sockets, moved(sockets) as thread:
            report = terminate_connections([Backend("127.0.0.2", 9000, "udp")])
            assert (report.destroyed, report.errors) == (1, {})
            assert pending_error(thread.client) == "ECONNABORTED"

    def test_a_process_is_a_better_known_way_in_than_a_thread(self) -> None:
        with moved() as thread, inhabitant(thread.namespace) as process:
            found = the(discover(), thread.namespace)
            assert found.name == f"pid {process.pid} (cat)"
            assert paths_of(found) == [f"/proc/{process.pid}/ns/net", thread.path]

    def test_the_first_thread_is_not_looked_at_twice(self) -> None:
        with moved():
            own = discover()[0]
        assert len(paths_of(own)) == len({*paths_of(own)})
        assert not [path for path in paths_of(own)[1:] if path.startswith(f"/proc/{os.getpid()}/task/")]

    def test_a_thread_that_ends_between_listing_and_looking(self, monkeypatch: pytest.MonkeyPatch) -> None:
        usual = discovery._numbers
        with moved() as stays, moved() as thread:

            def listed(directory: str) -> list[int]:
                found = usual(directory)
                if directory.endswith("/task") and thread.tid in found:
                    thread.end()
                return found

            monkeypatch.setattr(discovery, "_numbers", listed)
            found = discover()
            assert names(found) == ["host", f"tid {stays.tid} (mover)"]
        assert found.skipped == [SkippedNamespace(thread.path, VANISHED)]
        assert unreadable(found.skipped) == []


def live_with_a_moved_thread(pipe: Connection) -> None:
    """In a child: tell the thread's id and stay until the pipe is closed; or let the first thread end, if so asked."""

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
        tid = other.answer()
        other.tell("end the first thread")
        state = Path(f"/proc/{other.pid}/stat")
        eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "Z", "a zombie")
        found = discover()
        assert names(found) == ["host", f"tid {tid} (mover)"]
        assert found.skipped == [SkippedNamespace(f"/proc/{other.pid}/ns/net", VANISHED)]

    def test_a_process_that_may_not_be_looked_at_is_told_once(self, other: Child) -> None:
        other.answer()
        skipped = without_privilege(lambda: [path for path, _ in discover().skipped])
        assert skipped == [f"/proc/{pid}/ns/net" for pid in sorted((os.getpid(), other.pid))]
