"""What hangs, on the kernel: peers that have stopped to answer are real sockets that get no more packets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic

import pytest

from socklb import InetSocket, SocketFilter, destroy_sockets, dst, find_sockets, idle, src, stalled
from socklb.filters import Condition

from ..sockets import Sockets, deafen, eventually, family_of, pending_error

pytestmark = pytest.mark.kernel

ADDRESSES = ("127.0.0.2", "::1", "::ffff:127.0.0.3")
TICK = 0.02  # the kernel counts in jiffies of up to 10 ms


class Clients:
    """Connections to one address and port, by what was done to them, and since when."""

    def __init__(self, sockets: Sockets, address: str) -> None:
        self._sockets, self.address = sockets, address
        self.ends: dict[str, socket.socket] = {}
        self._ports: dict[int, str] = {}
        self._since: dict[str, float] = {}

    def pair(self, name: str) -> tuple[socket.socket, socket.socket]:
        client, server = self._sockets.tcp(self.address, 5432)
        self._note(name, client)
        return client, server

    def _note(self, name: str, client: socket.socket) -> None:
        self.ends[name], self._ports[client.getsockname()[1]], self._since[name] = client, name, monotonic()

    def make_stuck(self) -> None:
        client, server = self.pair("data")
        deafen(server)
        client.send(b"x")
        for name in ("a FIN", "a FIN without an owner"):
            client, server = self.pair(name)
            deafen(server)
            client.shutdown(socket.SHUT_WR)
        client.close()
        listener = self._sockets.listen(self.address, 0)
        deafen(listener)
        client = self._sockets.make(family_of(self.address), socket.SOCK_STREAM)
        client.setblocking(False)
        client.connect_ex((self.address, listener.getsockname()[1]))
        self._note("a SYN", client)
        deafen(self._with_closed_window("a closed window")[1])
        client, server = self.pair("keepalives")
        self._ask_each_second(client)
        deafen(server)

    def make_healthy(self) -> None:
        self.pair("nothing to say")
        self._with_closed_window("a closed window, of a live peer")
        client, _ = self.pair("answered keepalives")
        self._ask_each_second(client)

    def _with_closed_window(self, name: str) -> tuple[socket.socket, socket.socket]:
        client, server = self.pair(name)
        client.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                client.send(bytes(1 << 16))
        eventually(lambda: any(row.timer == 4 for row in self.rows(name)), "a zero-window probe")
        return client, server

    @staticmethod
    def _ask_each_second(client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)

    def rows(self, *names: str) -> Iterator[InetSocket]:
        for row in find_sockets(SocketFilter("tcp", dst(self.address)), extensions=["info"]):
            if self._ports.get(row.sport) in names:
                yield row

    def matched(self, condition: Condition) -> set[str]:
        rows = find_sockets(SocketFilter("tcp", dst(self.address) & condition))
        return {self._ports[row.sport] for row in rows if row.sport in self._ports}

    def none_is_overestimated(self) -> None:
        for row in self.rows(*self.ends):
            name = self._ports[row.sport]
            elapsed = monotonic() - self._since[name] + TICK
            assert not stalled(elapsed).matches(row), (name, row, row.attributes)


def test_what_hangs_is_found_and_destroyed_and_nobody_else(sockets: Sockets) -> None:
    """Never by more than it has hung, and each within a few seconds: data, SYN, FIN, probes and keepalives."""
    several = [Clients(sockets, address) for address in ADDRESSES]
    for clients in several:
        clients.make_stuck()
    stuck = [{*clients.ends} for clients in several]
    for clients in several:
        clients.make_healthy()

    def all_are_found() -> bool:
        for clients in several:
            clients.none_is_overestimated()
        return all(clients.matched(stalled(2)) >= names for clients, names in zip(several, stuck))

    eventually(all_are_found, "each of them is stalled for 2 s")
    for clients, names in zip(several, stuck):
        report = destroy_sockets(SocketFilter("tcp", dst(clients.address) & stalled(2)))
        kept = sum(outcome.reason == "no owner" for outcome in report.outcomes)  # before Linux 6.1: the FIN without one
        assert (report.destroyed + kept, report.matched) == (len(names),) * 2, report.outcomes
        for name, client in clients.ends.items():
            assert client.fileno() < 0 or pending_error(client) == ("ECONNABORTED" if name in names else ""), name


def test_idle_is_who_neither_sends_nor_receives(sockets: Sockets) -> None:
    clients = Clients(sockets, "127.0.0.2")
    clients.pair("idle")
    talking = clients.pair("talking")

    def one_alone_is_idle() -> bool:
        for end, other in (talking, talking[::-1]):
            end.send(b"x")
            other.recv(1)
        return clients.matched(idle(1)) == {"idle"}

    eventually(one_alone_is_idle, "it is idle for 1 s, and the other is not")
    assert clients.matched(idle(1) & ~idle(3600)) >= {"idle"}
    assert not clients.matched(idle(3600))


def test_twins_that_hide_each_other_are_decided_too(sockets: Sockets) -> None:
    """Look-ups find but one of them."""
    for _ in range(3):
        sockets.listen("127.0.0.2", 9000, reuse_port=True)
    awake = SocketFilter("tcp", src("127.0.0.2", 9000) & ~idle(1), states=["listening"])
    assert len(list(find_sockets(awake))) == 3
    assert destroy_sockets(awake).destroyed == 3
