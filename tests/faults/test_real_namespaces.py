"""Namespaces that vanish while they are searched, on the real kernel: skipped with the reason, the others are done."""

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
from socklb.kernel import discovery, processes

from ..sockets import Sockets, cookie_of, left_behind, pending_error
from .calls import verdicts_in

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
BACKENDS = [Backend(ADDRESS, PORT, "udp")]
COUNT = 6


class Place(NamedTuple):
    """A network namespace with one process and one client in it."""

    pid: int
    namespace: NetworkNamespace
    client: socket.socket

    def vanish(self) -> None:
        """Its process ends, and the client, which this process holds, is all that is left."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def places(network: None) -> Iterator[list[Place]]:
    with ExitStack() as stack, Sockets() as sockets:
        made = []
        for _ in range(COUNT):
            client = sockets.udp(ADDRESS, PORT)
            pid = stack.enter_context(left_behind())
            made.append(Place(pid, NetworkNamespace.from_pid(pid), client))
        yield made


@pytest.fixture(params=[1, 2, 4], ids=lambda count: f"{count}-at-once")
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many namespaces are searched at once."""
    count: int = request.param
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))
    return count


def check(report: Any, places: list[Place], vanished: list[Place], *, exactly: bool = False) -> int:
    """Those that vanished are skipped with the reason, in each of the others its client is destroyed; how many are
    skipped. A place may vanish after it was searched, unless all did before (`exactly`).
    """
    skipped = {one.path: one.reason for one in report.skipped_namespaces}
    left = [place for place in places if place.namespace.path not in skipped]
    assert set(skipped.values()) <= {"vanished"}
    assert report.errors == {}
    assert (skipped.keys() & {place.namespace.path for place in places}) <= {place.namespace.path for place in vanished}
    assert verdicts_in(report) == {cookie_of(place.client): "destroyed" for place in left}
    assert [pending_error(place.client) for place in places] == ["ECONNABORTED" if p in left else "" for p in places]
    assert not exactly or len(left) == len(places) - len(vanished)
    return len(places) - len(left)


def terminate(places: list[Place], **options: Any) -> Any:
    return terminate_connections(BACKENDS, namespaces=[place.namespace for place in places], **options)


class TestDeletedDuringTheSearch:
    def test_before_it_begins(self, places: list[Place], at_once: int) -> None:
        vanished = places[1::2]
        for place in vanished:
            place.vanish()
        check(terminate(places), places, vanished, exactly=True)

    def test_after_the_first(self, places: list[Place], at_once: int) -> None:
        vanished = places[2:]

        def progress(done: int, total: int, namespace: NetworkNamespace) -> None:
            if done == 1:
                for place in vanished:
                    place.vanish()

        skipped = check(terminate(places, progress=progress), places, vanished)
        assert skipped > len(vanished) - at_once, "others may have been at work by then"

    @pytest.mark.parametrize("seed", range(3))
    def test_at_any_time(self, places: list[Place], at_once: int, seed: int) -> None:
        chance = Random(seed)
        vanished = [place for place in places if chance.random() < 0.5]
        ender = threading.Thread(target=lambda: [place.vanish() for place in vanished])
        ender.start()
        try:
            report = terminate(places)
        finally:
            ender.join()
        check(report, places, vanished)

    def test_between_the_list_of_processes_and_the_look_at_one(
        self, places: list[Place], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usual, vanished = processes.list_directory, places[1::2]

        def listed(directory: str) -> list[str]:
            entries = usual(directory)
            if directory == "/proc":
                for place in vanished:
                    place.vanish()
            return entries

        monkeypatch.setattr(discovery, "list_directory", listed)
        check(terminate_connections(BACKENDS), places, vanished, exactly=True)
