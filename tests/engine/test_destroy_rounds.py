"""What answers ENOENT to a destroy, on the real kernel: twins that hide each other, and sockets that are gone."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable

import pytest

from socklb import InetSocket, Report, SocketFilter, TcpState, destroy_sockets, dst, src

from ..sockets import Sockets, cookie_of, error_of, pending_error, socket_of, state_of, talk

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
UDP = SocketFilter("udp", dst(ADDRESS, PORT))


class TestSparedMeanwhile:
    """A socket that was connected when it was found, and is to be spared by the time it would be destroyed."""

    def test_a_udp_socket_that_has_no_peer_any_more_lives(self, sockets: Sockets) -> None:
        client = sockets.make(socket.AF_INET, socket.SOCK_DGRAM)
        report = self._destroy_while("udp", client, lambda: client.bind(("127.0.0.1", 7000)))
        assert [o[1:3] for o in report.outcomes] == [("skipped", "not connected")]
        assert pending_error(client) == ""

    def test_a_tcp_socket_that_listens_now_lives(self, sockets: Sockets) -> None:
        sockets.listen(ADDRESS, PORT)
        client = sockets.make(socket.AF_INET, socket.SOCK_STREAM)

        def listen() -> None:
            client.bind(("127.0.0.1", 7000))
            client.listen()

        report = self._destroy_while("tcp", client, listen)
        assert [o[1:3] for o in report.outcomes] == [("skipped", "listening")]
        client.setblocking(False)
        assert error_of(client.accept) == "EAGAIN"

    def _destroy_while(self, protocol: str, client: socket.socket, act: Callable[[], object]) -> Report:
        """`client` is connected; between finding and destroying it is disconnected, and acts."""
        client.connect((ADDRESS, PORT))
        acts: list[Callable[[], object]] = [act, lambda: _disconnect(client)]

        def predicate(row: InetSocket) -> bool:
            while acts:
                acts.pop()()
            return True

        return destroy_sockets(SocketFilter(protocol, src("127.0.0.1"), predicate=predicate))


def _disconnect(sock: socket.socket) -> None:
    """connect(AF_UNSPEC), for which Python has no words."""
    assert ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16) == 0


class TestTwins:
    """A twin with the same address was found first: try again, as long as the last round destroyed something.

    A cookie answered 0 is never tried again; what is left after a round without progress is failed.
    """

    @pytest.mark.parametrize("count", [2, 7])
    @pytest.mark.parametrize("form", ["{}", "::ffff:{}"], ids=["v4", "mapped"])
    def test_connected_udp_twins_all_die(self, sockets: Sockets, count: int, form: str) -> None:
        twins = [sockets.udp_bound(form.format("127.0.0.1"), 7000, reuse_port=True) for _ in range(count)]
        for twin in twins:
            twin.connect((form.format(ADDRESS), PORT))
        report = destroy_sockets(UDP)
        assert (report.matched, report.destroyed) == (count, count)
        assert [pending_error(twin) for twin in twins] == ["ECONNABORTED"] * count

    def test_a_v4_twin_and_a_mapped_one_both_die(self, sockets: Sockets) -> None:
        twins = [sockets.udp_bound(address, 7000, reuse_port=True) for address in ("127.0.0.1", "::ffff:127.0.0.1")]
        twins[0].connect((ADDRESS, PORT))
        twins[1].connect((f"::ffff:{ADDRESS}", PORT))
        assert destroy_sockets(UDP).destroyed == 2
        assert [pending_error(twin) for twin in twins] == ["ECONNABORTED"] * 2

    @pytest.mark.parametrize("count", [2, 7])
    def test_listening_twins_all_die(self, sockets: Sockets, count: int) -> None:
        twins = [sockets.listen(ADDRESS, PORT, reuse_port=True) for _ in range(count)]
        report = destroy_sockets(SocketFilter("tcp", src(ADDRESS, PORT), states=["listening"]))
        assert (report.matched, report.destroyed) == (count, count)
        assert [error_of(twin.accept) for twin in twins] == ["EINVAL"] * count

    def test_bound_udp_twins_answer_0_for_ever_and_hide_the_others(self, sockets: Sockets) -> None:
        twins = [sockets.udp_bound(ADDRESS, PORT, reuse_port=True) for _ in range(3)]
        report = destroy_sockets(SocketFilter("udp", src(ADDRESS, PORT)), unconnected=True)
        (destroyed,) = [o for o in report.outcomes if o.verdict == "destroyed"]
        failed = {socket_of(o).cookie: (o.verdict, o.reason, o.error) for o in report.outcomes if o is not destroyed}
        assert {cookie: pending_error(twin) for twin, cookie in zip(twins, map(cookie_of, twins))} == {
            socket_of(destroyed).cookie: "ECONNABORTED",
            **dict.fromkeys(failed, ""),
        }
        assert set(failed.values()) == {("failed", "another socket shares its address", 2)}

    @pytest.mark.parametrize("chosen", range(4))
    def test_a_twin_that_does_not_match_is_not_hit_instead(self, sockets: Sockets, chosen: int) -> None:
        """The tuple in the request is looked up and the cookie compared in one step."""
        twins = [sockets.listen(ADDRESS, PORT, reuse_port=True) for _ in range(4)]
        cookie = cookie_of(twins[chosen])
        only = SocketFilter("tcp", src(ADDRESS, PORT), states=["listening"], predicate=lambda s: s.cookie == cookie)
        (outcome,) = destroy_sockets(only).outcomes
        assert outcome.verdict in ("destroyed", "failed")
        closed = [twin for twin in twins if state_of(twin) != TcpState.LISTEN]
        assert closed == ([twins[chosen]] if outcome.verdict == "destroyed" else [])


class TestGone:
    """ENOENT on a destroy says little: dump again. The cookie is gone: `gone`.

    The predicate runs before the kill, so that what it does to a socket happens in between.
    """

    def test_a_socket_that_closed_in_between(self, sockets: Sockets) -> None:
        closing = {cookie_of(made): made for made in (sockets.tcp(ADDRESS, PORT)[0], sockets.udp(ADDRESS, PORT))}
        for made in closing.values():
            if made.type == socket.SOCK_STREAM:  # without the long good-bye of TCP
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        def close(row: InetSocket) -> bool:
            closing[row.cookie].close()
            return True

        report = destroy_sockets([SocketFilter(p, dst(ADDRESS, PORT), predicate=close) for p in ("tcp", "udp")])
        assert [o[1:4] for o in report.outcomes] == [("gone", "", None)] * 2

    def test_among_many_each_gets_its_own_verdict(self, sockets: Sockets) -> None:
        """More than one batch of 64, and more than one gone in each."""
        clients = {cookie_of(client): client for client in (sockets.udp(ADDRESS, PORT) for _ in range(150))}
        leaving = set(list(clients)[::3])

        def leave(row: InetSocket) -> bool:
            if row.cookie in leaving:
                clients[row.cookie].close()
            return True

        report = destroy_sockets(SocketFilter("udp", dst(ADDRESS, PORT), predicate=leave))
        assert {socket_of(o).cookie for o in report.outcomes if o.verdict == "gone"} == leaving
        assert {socket_of(o).cookie for o in report.outcomes if o.verdict == "destroyed"} == clients.keys() - leaving

    def test_a_socket_that_reconnected_to_another_that_matches_is_followed(self, sockets: Sockets) -> None:
        """And the predicate sees what was asked for, then as before."""
        client = sockets.udp(ADDRESS, PORT)

        def reconnect(row: InetSocket) -> bool:
            client.connect(("127.0.0.3", PORT))
            return bool(row.attributes["skmeminfo"].rcvbuf)

        either = SocketFilter("udp", dst(ADDRESS, PORT) | dst("127.0.0.3", PORT), predicate=reconnect)
        report = destroy_sockets(either, extensions=["skmeminfo"])
        assert [(o.verdict, str(socket_of(o).dst)) for o in report.outcomes] == [("destroyed", "127.0.0.3")]

    def test_a_socket_that_reconnected_elsewhere_is_not_hit(self, sockets: Sockets) -> None:
        client, server = sockets.udp(ADDRESS, PORT), sockets.udp_bound("127.0.0.3", PORT)

        def reconnect(row: InetSocket) -> bool:
            client.connect(("127.0.0.3", PORT))
            return True

        report = destroy_sockets(SocketFilter("udp", dst(ADDRESS, PORT), predicate=reconnect))
        assert [o.verdict for o in report.outcomes] == ["gone"]
        talk(client, server)
