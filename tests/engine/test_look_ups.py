"""A kill is decided by what is at an address just before it, and by a dump that skips nobody; on the real kernel."""

from __future__ import annotations

import ctypes
import socket
import subprocess
from typing import Any

import pytest

from socklb import (
    InetSocket,
    SocketFilter,
    TcpState,
    destroy_sockets,
    dst,
    find_sockets,
    sport,
    src,
)
from socklb.kernel.netlink_socket import BATCH

from ..sockets import Sockets, cookie_of, error_of, pending_error, reset_on_close, socket_of

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000


def disconnect(sock: socket.socket) -> None:
    """connect(AF_UNSPEC), for which Python has no words."""
    assert ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16) == 0


class TestWhatChangedMeanwhile:
    """While an earlier batch is recorded, sockets of a later one become something else, with their port and cookie."""

    COUNT = 2 * BATCH

    def destroyed_while(self, filter: SocketFilter, act: Any) -> dict[int, tuple[str, str]]:
        """Verdict and reason by cookie; `act` is called when the first record is written."""
        acts = [act]

        def audit(record: dict[str, Any]) -> None:
            while acts:
                acts.pop()()

        report = destroy_sockets(filter, audit=audit)
        return {socket_of(outcome).cookie: outcome[1:3] for outcome in report.outcomes}

    @pytest.mark.parametrize(
        ("condition", "verdict"),
        [(dst(ADDRESS, PORT), ("gone", "")), (sport(7000, 7999), ("skipped", "not connected"))],
        ids=["to the backend", "by its own port"],
    )
    def test_a_udp_socket_that_has_no_peer_any_more(
        self, sockets: Sockets, condition: Any, verdict: tuple[str, str]
    ) -> None:
        clients = [sockets.udp_bound("127.0.0.1", 7000 + n) for n in range(self.COUNT)]
        for client in clients:
            client.connect((ADDRESS, PORT))

        def act() -> None:
            for client in clients:
                if not error_of(lambda client=client: client.getpeername()):  # type: ignore[misc]
                    disconnect(client)

        said = self.destroyed_while(SocketFilter("udp", condition), act)
        hit = [client for client in clients if pending_error(client)]
        assert {said[cookie_of(client)] for client in hit} == {("destroyed", "")}
        assert {said[cookie_of(client)] for client in clients if client not in hit} == {verdict}
        assert len(hit) == BATCH

    def test_a_tcp_socket_that_listens_now(self, sockets: Sockets) -> None:
        sockets.listen(ADDRESS, PORT, backlog=512)
        clients = []
        for n in range(self.COUNT):
            client = sockets.make(socket.AF_INET, socket.SOCK_STREAM)
            client.bind(("127.0.0.1", 7000 + n))
            client.connect((ADDRESS, PORT))
            clients.append(client)

        def act() -> None:
            for client in clients:
                if not pending_error(client):
                    disconnect(client)
                    client.listen()

        said = self.destroyed_while(SocketFilter("tcp", sport(7000, 7999)), act)
        assert sorted(verdict for verdict, _ in said.values()) == ["destroyed"] * BATCH + ["skipped"] * BATCH


class TestSkipped:
    """The kernel goes on in a chain by counting: what closes between two datagrams makes it skip as many others."""

    FILTER = src("127.0.0.1", 7000)  # one port is one chain of the UDP table

    @pytest.fixture
    def chain(self, sockets: Sockets) -> dict[int, socket.socket]:
        """By cookie, in the order in which the kernel dumps them: three datagrams, for two may be there at once."""
        made = [sockets.udp_bound("127.0.0.1", 7000, reuse_port=True) for _ in range(960)]
        for n, client in enumerate(made):
            client.connect((ADDRESS, 1024 + n))
        by_cookie = {cookie_of(client): client for client in made}
        return {row.cookie: by_cookie[row.cookie] for row in find_sockets(SocketFilter("udp", self.FILTER))}

    def test_nobody_is(self, chain: dict[int, socket.socket]) -> None:
        """The first hundred close when the first datagram is there."""
        closing = [*chain.values()][:100]

        def close(row: InetSocket) -> bool:
            while closing:
                closing.pop().close()
            return True

        report = destroy_sockets(SocketFilter("udp", self.FILTER, predicate=close))
        destroyed = {socket_of(o).cookie for o in report.outcomes if o.verdict == "destroyed"}
        assert destroyed == {*[*chain][100:]}

    def test_where_nothing_matched_nobody_is_either(self, chain: dict[int, socket.socket]) -> None:
        """Those match that come out of turn: the first dump has skipped them."""
        closing, position = [*chain.values()][:300], {cookie: n for n, cookie in enumerate(chain)}
        highest = 0

        def is_out_of_turn(row: InetSocket) -> bool:
            nonlocal highest
            while closing:
                closing.pop().close()
            highest = max(highest, position[row.cookie])
            return position[row.cookie] < highest

        report = destroy_sockets(SocketFilter("udp", self.FILTER, predicate=is_out_of_turn))
        assert report.matched == report.destroyed > 0


def test_a_half_open_connection_whose_listener_and_client_have_gone(sockets: Sockets) -> None:
    """Nothing else is in the namespace, and no counter of the kernel counts it."""
    client, listener = sockets.syn_recv(ADDRESS, PORT)
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True)  # so that it does not hear of that
    reset_on_close(client)
    for made in (client, listener):
        made.close()
    (found,) = find_sockets(SocketFilter("tcp", src(ADDRESS, PORT)))
    assert (found.state, found.inode) == (TcpState.SYN_RECV, 0)


def test_what_turned_out_gone_gives_its_place_back_to_the_limit(sockets: Sockets) -> None:
    clients = {cookie_of(client): client for client in (sockets.udp(ADDRESS, PORT) for _ in range(6))}
    order = [row.cookie for row in find_sockets(SocketFilter("udp", dst(ADDRESS, PORT)))]

    def predicate(row: InetSocket) -> bool:
        if row.cookie in order[:3]:
            clients[row.cookie].close()
        return True

    report = destroy_sockets(SocketFilter("udp", dst(ADDRESS, PORT), predicate=predicate), limit=2)
    assert (report.destroyed, report.skipped + report.gone) == (2, 4)
    assert [pending_error(clients[cookie]) for cookie in order[3:]].count("ECONNABORTED") == 2
