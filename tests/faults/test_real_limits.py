"""Real faults on the real kernel: no descriptor left, no room for replies, and no reply at all."""

from __future__ import annotations

import _socket
import errno
import os
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Union

import pytest

from socklb import (
    Backend,
    KernelError,
    NetworkNamespace,
    SocketFilter,
    destroy_sockets,
    device,
    dst,
    find_sockets,
    live_cookies,
    probe,
    terminate_connections,
)
from socklb.kernel import diag, netlink_socket
from socklb.wire.request import SOCK_DESTROY

from ..networks import networks, pinned
from ..sockets import Sockets, cookie_of, in_child, pending_error, talk, without_privilege
from .calls import End, one_pass, value_or_report, verdicts_in

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "10.9.0.2", 9000
UDP = SocketFilter("udp", dst(ADDRESS, PORT))
TCP = SocketFilter("tcp", dst(ADDRESS, PORT))
BACKENDS = [Backend(ADDRESS, PORT, "tcp")]
NO_DESCRIPTOR = End(KernelError, errno.EMFILE)

Some = Union[str, list[NetworkNamespace]]
TERMINATIONS: dict[str, Callable[[Some], Any]] = {
    "terminate": lambda namespaces: terminate_connections(BACKENDS, namespaces=namespaces),
    "loop": lambda namespaces: one_pass(BACKENDS, namespaces),
}
CALLS: dict[str, Callable[[list[NetworkNamespace]], Any]] = {
    "find": lambda here: list(find_sockets(TCP)),
    "live_cookies": lambda here: live_cookies(here),
    "probe": lambda here: probe(),
    "dry run": lambda here: destroy_sockets(TCP, dry_run=True),
    "destroy": lambda here: destroy_sockets(TCP),
    **TERMINATIONS,
}
LISTS, KILLS = ("find", "live_cookies"), ("destroy", *TERMINATIONS)
PIPE = {"loop": 2}  # what wakes it up is open as long as it runs


def leave_descriptors(count: int) -> None:
    """In this process so many more files can be opened."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    for one in taken[:count]:
        os.close(one)


class Ending(NamedTuple):
    """How a call ended; how many it reports as destroyed, and of each namespace that it searched how that ended."""

    end: End
    destroyed: int
    namespaces: dict[str, End]


def ending_with(left: int, call: Callable[[], Any]) -> Ending:
    """In a child with so many descriptors left; as many are left afterwards."""

    def run() -> Ending:
        report, end = value_or_report(call)
        again = [os.open(os.devnull, os.O_RDONLY) for _ in range(left)]
        with pytest.raises(OSError, match="Too many open files"):
            again.append(os.open(os.devnull, os.O_RDONLY))
        for one in again:
            os.close(one)
        errors = getattr(report, "errors", {})
        searched = getattr(report, "namespaces", {})
        return Ending(
            end,
            getattr(report, "destroyed", 0),
            {namespace.name: End.of(errors.get(namespace)) for namespace in searched},
        )

    return in_child(run, lambda: leave_descriptors(left))


def check_client(client: socket.socket, server: socket.socket, *, destroyed: bool) -> None:
    if destroyed:
        assert pending_error(client) == "ECONNABORTED"
    else:
        talk(client, server)


class TestNoDescriptorLeft:
    """RLIMIT_NOFILE reached is KernelError(EMFILE), and nothing is destroyed."""

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("left", range(3))
    def test_it_works_or_it_is_an_error(self, sockets: Sockets, name: str, left: int) -> None:
        """A netlink socket is all that a list needs; before a destroy the own session is looked for."""
        client, server = sockets.tcp(ADDRESS, PORT)
        here = [NetworkNamespace.current()]
        ending = ending_with(left + PIPE.get(name, 0), lambda: CALLS[name](here))
        works = left >= (1 if name in LISTS else 2)
        assert ending[:2] == (End() if works else NO_DESCRIPTOR, int(works and name in KILLS))
        check_client(client, server, destroyed=bool(ending.destroyed))

    @pytest.mark.parametrize("left", range(2))
    def test_without_a_pipe_there_is_no_loop(self, network: None, left: int) -> None:
        assert ending_with(left, lambda: TERMINATIONS["loop"]("all")) == (NO_DESCRIPTOR, 0, {})

    @pytest.mark.parametrize("name", TERMINATIONS)
    @pytest.mark.parametrize("left", [0, 1, 2, 4, 7])
    def test_in_every_namespace(self, sockets: Sockets, name: str, left: int) -> None:
        """Which of two at once finds none left is chance; each has its report or its error."""
        client, server = sockets.tcp(ADDRESS, PORT)
        with networks(1) as (other,), pinned(other.namespace.path, "other"):
            end, destroyed, searched = ending_with(left + PIPE.get(name, 0), lambda: TERMINATIONS[name]("all"))
        if left:
            assert end == End()
            assert searched.keys() == {"current", "other"}
            assert set(searched.values()) <= ({End(), NO_DESCRIPTOR} if left < 7 else {End()})
        else:
            assert (end, searched) == (NO_DESCRIPTOR, {})
        # Conntrack is asked after that: then it may be that none is left.
        assert destroyed or searched.get("current") != End()
        check_client(client, server, destroyed=bool(destroyed))

    def test_a_name_that_cannot_be_looked_up_is_no_unknown_one(self, network: None) -> None:
        assert ending_with(0, lambda: list(find_sockets(SocketFilter("tcp", device("lo"))))).end == NO_DESCRIPTOR


class TestTheSmallestBuffer:
    """What finds no room is lost, and reported: a dump is whole, a destroy that may have been done is no success."""

    COUNT = 300

    @pytest.fixture(autouse=True)
    def _smallest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        usual = diag.open_netlink

        def small() -> _socket.socket:
            opened = usual()
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel makes it the least it allows
            return opened

        monkeypatch.setattr(diag, "open_netlink", small)

    @pytest.fixture
    def clients(self, sockets: Sockets) -> dict[int, socket.socket]:
        made = (sockets.udp(ADDRESS, PORT) for _ in range(self.COUNT))
        return {cookie_of(client): client for client in made}

    def test_a_dump_is_whole_and_destroys_that_succeed_need_one_answer_a_batch(
        self, clients: dict[int, socket.socket]
    ) -> None:
        assert sorted(found.cookie for found in find_sockets(UDP)) == sorted(clients)
        assert verdicts_in(destroy_sockets(UDP)) == dict.fromkeys(clients, "destroyed")
        assert {pending_error(client) for client in clients.values()} == {"ECONNABORTED"}

    def test_many_that_fail_end_the_run_with_all_in_the_report(self, clients: dict[int, socket.socket]) -> None:
        """All answer EPERM, and there is no room for 64 such answers."""

        def run() -> tuple[End, dict[int, str]]:
            report, end = value_or_report(lambda: destroy_sockets(UDP))
            return end, verdicts_in(report)

        lost = End(KernelError, errno.ENOBUFS)
        assert without_privilege(run) == (lost, dict.fromkeys(clients, "failed"))
        assert {pending_error(client) for client in clients.values()} == {""}

    def test_of_many_that_are_gone_none_is_reported_as_destroyed(self, clients: dict[int, socket.socket]) -> None:
        """They answer ENOENT, and the living among them are destroyed."""
        leaving = set(list(clients)[::2])

        def leave(row: Any) -> bool:
            if row.cookie in leaving:
                clients[row.cookie].close()
            return True

        filter = SocketFilter("udp", dst(ADDRESS, PORT), predicate=leave)
        report, end = value_or_report(lambda: destroy_sockets(filter))
        assert end in (End(), End(KernelError, errno.ENOBUFS))
        verdicts = verdicts_in(report)
        assert verdicts.keys() == clients.keys()
        for cookie in clients.keys() - leaving:
            assert verdicts[cookie] != "destroyed" or pending_error(clients[cookie]) == "ECONNABORTED"
        assert not {verdicts[cookie] for cookie in leaving} & {"destroyed", "skipped"}


@pytest.mark.parametrize("unheard", ["dumps", "destroys"])
def test_no_reply_is_a_timeout_and_no_hang(sockets: Sockets, monkeypatch: pytest.MonkeyPatch, unheard: str) -> None:
    class Deaf(socket.socket):
        def send(self, data: Any, flags: int = 0) -> int:
            is_destroy = int.from_bytes(data[4:6], sys.byteorder) == SOCK_DESTROY
            return len(data) if is_destroy == (unheard == "destroys") else super().send(data, flags)

    monkeypatch.setattr(netlink_socket, "_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(diag, "open_netlink", lambda: Deaf(socket.AF_NETLINK, socket.SOCK_RAW, diag.NETLINK_SOCK_DIAG))
    client, server = sockets.tcp(ADDRESS, PORT)
    report, end = value_or_report(lambda: destroy_sockets(TCP))
    assert end == End(KernelError, errno.ETIMEDOUT)
    failed = [(one.socket.cookie, one.verdict, one.reason, one.error) for one in report.outcomes]
    why = f"{os.strerror(errno.ETIMEDOUT)}, and perhaps destroyed"
    assert failed == ([] if unheard == "dumps" else [(cookie_of(client), "failed", why, errno.ETIMEDOUT)])
    talk(client, server)
