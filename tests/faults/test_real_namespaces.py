"""Namespaces that vanish while they are searched, on the real kernel: no failure, and the others are done."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from random import Random
from typing import Any, NamedTuple

import pytest

from socklb import Backend, NetworkNamespace, terminate_connections
from socklb.kernel import processes

from ..sockets import Sockets, cookie_of, left_behind, pending_error
from .calls import verdicts_in

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "10.9.0.2", 9000
BACKENDS = [Backend(ADDRESS, PORT, "udp")]
COUNT = 6


class Netns(NamedTuple):
    """A network namespace with one process and one client in it."""

    pid: int
    namespace: NetworkNamespace
    client: socket.socket

    def vanish(self) -> None:
        """Its process ends, and the client, which this process holds, is all that is left."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def namespaces(network: None) -> Iterator[list[Netns]]:
    with ExitStack() as stack, Sockets() as sockets:
        made = []
        for _ in range(COUNT):
            client = sockets.udp(ADDRESS, PORT)
            pid = stack.enter_context(left_behind())
            made.append(Netns(pid, NetworkNamespace.from_pid(pid), client))
        yield made


@pytest.fixture(params=[1, 2, 4], ids=lambda count: f"{count}-at-once")
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many namespaces are searched at once."""
    count: int = request.param
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))
    return count


def check(report: Any, namespaces: list[Netns], vanished: list[Netns], *, exactly: bool = False) -> int:
    """Those that vanished are no failure, in each of the others its client is destroyed. One may vanish after it was
    searched, unless all did before (`exactly`). How many were not searched.
    """
    left = [netns for netns in namespaces if netns.namespace in report.namespaces]
    gone = [netns for netns in namespaces if netns not in left]
    assert (report.unsearched, report.errors) == ([], {})
    assert set(gone) <= set(vanished)
    assert verdicts_in(report) == {cookie_of(netns.client): "destroyed" for netns in left}
    assert {pending_error(netns.client) for netns in left} <= {"ECONNABORTED"}
    assert {pending_error(netns.client) for netns in gone} <= {""}
    assert not exactly or len(gone) == len(vanished)
    return len(gone)


def terminate(namespaces: list[Netns], **options: Any) -> Any:
    return terminate_connections(BACKENDS, namespaces=[netns.namespace for netns in namespaces], **options)


class TestDeletedDuringTheSearch:
    def test_before_it_begins(self, namespaces: list[Netns], at_once: int) -> None:
        vanished = namespaces[1::2]
        for netns in vanished:
            netns.vanish()
        check(terminate(namespaces), namespaces, vanished, exactly=True)

    def test_after_the_first(self, namespaces: list[Netns], at_once: int) -> None:
        vanished = namespaces[2:]

        def progress(done: int, total: int, namespace: NetworkNamespace) -> None:
            if done == 1:
                for netns in vanished:
                    netns.vanish()

        skipped = check(terminate(namespaces, progress=progress), namespaces, vanished)
        assert skipped > len(vanished) - at_once, "others may have been at work by then"

    @pytest.mark.parametrize("seed", range(3))
    def test_at_any_time(self, namespaces: list[Netns], at_once: int, seed: int) -> None:
        chance = Random(seed)
        vanished = [netns for netns in namespaces if chance.random() < 0.5]
        ender = threading.Thread(target=lambda: [netns.vanish() for netns in vanished])
        ender.start()
        try:
            report = terminate(namespaces)
        finally:
            ender.join()
        check(report, namespaces, vanished)

    def test_between_the_list_of_processes_and_the_look_at_one(
        self, namespaces: list[Netns], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usual, vanished = processes.list_directory, namespaces[1::2]

        def listed(directory: str) -> list[str]:
            entries = usual(directory)
            if directory == "/proc":
                for netns in vanished:
                    netns.vanish()
            return entries

        monkeypatch.setattr(processes, "list_directory", listed)
        check(terminate_connections(BACKENDS), namespaces, vanished, exactly=True)
