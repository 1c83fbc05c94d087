"""Namespaces that go away while they are walked, on the real kernel: skipped with the reason, the others are done."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random
from typing import Any, NamedTuple

import pytest

from socklb import KernelError, NetworkNamespace, SocketFilter, destroy_sockets, dst, find_sockets
from socklb.filters.backend import Backend
from socklb.kernel import discovery
from socklb.kernel.namespaces import NamespaceVanished
from socklb.termination import terminate_connections

from ..fake_kernel import verdicts
from ..sockets import Sockets, cookie_of, left_behind, pending_error

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
BACKENDS = [Backend(ADDRESS, PORT, "udp")]
UDP = SocketFilter("udp", dst(ADDRESS, PORT))
COUNT = 6


class Place(NamedTuple):
    """A network namespace with one process and one client in it."""

    pid: int
    namespace: NetworkNamespace
    client: socket.socket

    def vanish(self) -> None:
        """Its process ends; the client of this one is in no directory."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    @property
    def is_dead(self) -> bool:
        return pending_error(self.client) == "ECONNABORTED"


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
    """How many namespaces are walked at once."""
    count: int = request.param
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))
    return count


def look(report: Any, places: list[Place], vanished: list[Place]) -> None:
    """Those that vanished are skipped with the reason; in each of the others its client is dead."""
    skipped = {one.path: one.reason for one in report.skipped_namespaces}
    left = [place for place in places if place.namespace.path not in skipped]
    assert skipped.keys() <= {place.namespace.path for place in vanished}
    assert set(skipped.values()) <= {"vanished"}
    assert report.errors == {}
    assert report.namespaces.keys() == {place.namespace for place in left}
    for place in left:
        assert verdicts(report.namespaces[place.namespace]) == {cookie_of(place.client): "destroyed"}
    assert [place.is_dead for place in places] == [place in left for place in places]
    assert report.sums() == {"matched": len(left), "destroyed": len(left), "gone": 0, "skipped": 0, "failed": 0}


class TestDeletedDuringTheWalk:
    def test_before_it_begins(self, places: list[Place], at_once: int) -> None:
        vanished = places[1::2]
        for place in vanished:
            place.vanish()
        report = terminate_connections(BACKENDS, namespaces=[place.namespace for place in places])
        assert len(report.skipped_namespaces) == len(vanished)
        look(report, places, vanished)

    def test_after_the_first(self, places: list[Place], at_once: int) -> None:
        vanished = places[2:]

        def progress(done: int, total: int, namespace: NetworkNamespace) -> None:
            if done == 1:
                for place in vanished:
                    place.vanish()

        report = terminate_connections(BACKENDS, namespaces=[place.namespace for place in places], progress=progress)
        # Others may have been at work by then.
        assert len(report.skipped_namespaces) in range(len(vanished) - at_once + 1, len(vanished) + 1)
        look(report, places, vanished)

    @pytest.mark.parametrize("seed", range(5))
    def test_at_any_time(self, places: list[Place], at_once: int, seed: int) -> None:
        chance = Random(seed)
        vanished = [place for place in places if chance.random() < 0.5]
        ender = threading.Thread(target=lambda: [place.vanish() for place in vanished])
        ender.start()
        try:
            report = terminate_connections(BACKENDS, namespaces=[place.namespace for place in places])
        finally:
            ender.join()
        look(report, places, vanished)

    @pytest.mark.parametrize(
        "call",
        [
            lambda namespace: list(find_sockets(UDP, namespace=namespace)),
            lambda namespace: destroy_sockets(UDP, namespace=namespace),
        ],
        ids=["find", "destroy"],
    )
    def test_asked_for_alone_it_is_an_error(
        self, places: list[Place], call: Callable[[NetworkNamespace], object]
    ) -> None:
        places[0].vanish()
        with pytest.raises(KernelError, match="vanished") as caught:
            call(places[0].namespace)
        assert type(caught.value) is NamespaceVanished


class TestProcessesEndWhileTheyAreLookedAt:
    """Between listing and opening: skipped, and no error."""

    def test_between_the_list_of_proc_and_the_look(self, places: list[Place], monkeypatch: pytest.MonkeyPatch) -> None:
        usual = discovery._entries
        vanished = places[1::2]

        def listed(directory: str) -> list[str]:
            entries = usual(directory)
            if directory == "/proc":
                for place in vanished:
                    place.vanish()
            return entries

        monkeypatch.setattr(discovery, "_entries", listed)
        report = terminate_connections(BACKENDS)
        paths = {one.path for one in report.skipped_namespaces}
        assert {place.namespace.path for place in vanished} <= paths
        assert [place.is_dead for place in places] == [place not in vanished for place in places]
        assert report.errors == {}
        assert report.matched == report.destroyed == COUNT - len(vanished)

    def test_between_the_look_and_the_opening(self, places: list[Place]) -> None:
        found = NetworkNamespace.discover()
        vanished = places[::2]
        for place in vanished:
            place.vanish()
        report = terminate_connections(BACKENDS, namespaces=found)
        assert {one.path for one in report.skipped_namespaces} == {place.namespace.path for place in vanished}
        assert [place.is_dead for place in places] == [place not in vanished for place in places]
        assert report.errors == {}
