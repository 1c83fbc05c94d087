"""Every TCP state that can be made: what finds it, what destroying it answers, and what its owner and its peer get.

Where the peer gets nothing: the kernel sends a RST from ESTABLISHED, SYN_RECV, FIN_WAIT1, FIN_WAIT2 and CLOSE_WAIT
alone (tcp_need_reset()), and from no request or mini-socket.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import NamedTuple, Optional

import pytest

from socklb import InetSocket, SocketFilter, TcpState, destroy_sockets, dport, dst, find_sockets, sport, src
from socklb.filters import Condition

from .. import this_kernel
from ..sockets import Sockets, cookie_of, error_of, eventually, pending_error, socket_of, state_of, talk

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
CLIENT = dst(ADDRESS, PORT)  # the row of the side that connected
SERVER = src(ADDRESS, PORT)  # the row of the side that was connected to

AT_ONCE = "at once"  # a RST goes out
WHEN_IT_SENDS = "when it sends"  # no RST goes out, but the peer's next segment is answered with one
NEVER = "never"  # the peer has nothing to send any more, and waits

Ends = tuple[Optional[socket.socket], Optional[socket.socket]]  # the owner of the row, its peer


class Case(NamedTuple):
    """How a row of this state is made, which row it is, and what destroying it does."""

    state: TcpState  # what the row says
    make: Callable[[Sockets], Ends]
    where: Condition
    named: TcpState  # the state that finds it when asked for
    by_default: bool = True  # whether the default filter finds it
    reset: str = NEVER  # when the peer is,
    error: str = ""  # and with which error

    def find(self) -> InetSocket:
        """The one row that matches."""
        (row,) = find_sockets(SocketFilter("tcp", self.where, states=[self.named]))
        return row

    def destroy(self) -> list[tuple[int, str, str]]:
        """(cookie, verdict, reason) of each socket that matched."""
        report = destroy_sockets(SocketFilter("tcp", self.where, states=[self.named]))
        return [(socket_of(outcome).cookie, outcome.verdict, outcome.reason) for outcome in report.outcomes]


def ends(maker: str, owner: int | None, peer: int | None) -> Callable[[Sockets], Ends]:
    """A maker that gives a pair, and which of the two is the owner and which the peer."""

    def make(sockets: Sockets) -> Ends:
        pair = getattr(sockets, maker)(ADDRESS, PORT)
        return (None if owner is None else pair[owner]), (None if peer is None else pair[peer])

    return make


def syn_sent(sockets: Sockets) -> Ends:
    return sockets.syn_sent(ADDRESS, PORT), None


S = TcpState
CASES = {
    "client": Case(S.ESTABLISHED, ends("tcp", 0, 1), CLIENT, S.ESTABLISHED, True, AT_ONCE, "ECONNRESET"),
    "server": Case(S.ESTABLISHED, ends("tcp", 1, 0), SERVER, S.ESTABLISHED, True, AT_ONCE, "ECONNRESET"),
    "syn-sent": Case(S.SYN_SENT, syn_sent, CLIENT, S.SYN_SENT),
    "request socket by SYN_RECV": Case(
        S.SYN_RECV, ends("syn_recv", None, 0), SERVER, S.SYN_RECV, True, WHEN_IT_SENDS, "ECONNRESET"
    ),
    "request socket by NEW_SYN_RECV": Case(
        S.SYN_RECV, ends("syn_recv", None, 0), SERVER, S.NEW_SYN_RECV, True, WHEN_IT_SENDS, "ECONNRESET"
    ),
    "fin-wait-1": Case(S.FIN_WAIT1, ends("fin_wait1", 0, 1), CLIENT, S.FIN_WAIT1, True, AT_ONCE, "ECONNRESET"),
    # A RST in CLOSE_WAIT becomes EPIPE (tcp_reset()).
    "fin-wait-2": Case(S.FIN_WAIT2, ends("fin_wait2", 0, 1), CLIENT, S.FIN_WAIT2, True, AT_ONCE, "EPIPE"),
    "close-wait": Case(S.CLOSE_WAIT, ends("fin_wait2", 1, 0), SERVER, S.CLOSE_WAIT, True, AT_ONCE, "ECONNRESET"),
    "last-ack": Case(S.LAST_ACK, ends("last_ack", 0, 1), CLIENT, S.LAST_ACK),
    "closing": Case(S.CLOSING, ends("closing", 0, 1), CLIENT, S.CLOSING),
    "time-wait": Case(S.TIME_WAIT, ends("time_wait", None, None), CLIENT, S.TIME_WAIT, False),
    "orphaned fin-wait-2": Case(
        S.FIN_WAIT2, ends("orphaned_fin_wait2", None, 1), CLIENT, S.TIME_WAIT, False, WHEN_IT_SENDS, "EPIPE"
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def every_cookie() -> set[int]:
    return {row.cookie for row in find_sockets(SocketFilter("tcp", states="all"))}


@each_case
class TestEachState:
    def test_finding_it(self, sockets: Sockets, case: Case) -> None:
        """STATE_FILTER_TCP: every state but CLOSE, TIME_WAIT and BOUND_INACTIVE.

        Request sockets answer to bit 3 and to bit 12, and report state 3. TIME_WAIT mini-sockets whose substate is
        FIN_WAIT2 come with bit 5 alone.
        """
        owner, _ = case.make(sockets)
        row = case.find()
        assert row.state is case.state
        assert row.is_time_wait == (case.named == S.TIME_WAIT)
        if owner is None:
            assert row.inode == 0
        else:
            assert (row.cookie, row.state, row.inode > 0) == (cookie_of(owner), state_of(owner), True)
        by_default = {row.cookie for row in find_sockets(SocketFilter("tcp", dport(PORT) | sport(PORT)))}
        assert (row.cookie in by_default) == case.by_default

    def test_destroying_it(self, sockets: Sockets, case: Case) -> None:
        """It is removed, and no other but the peer's. The owner gets ECONNABORTED once, then end of file and EPIPE."""
        owner, peer = case.make(sockets)
        cookie, before = case.find().cookie, every_cookie()
        state = 0 if peer is None else state_of(peer)
        if case.named == S.TIME_WAIT and not this_kernel.destroys_mini_sockets():
            assert case.destroy() == [(cookie, "failed", "the kernel does not destroy it in this state")]
            assert before == every_cookie()
            return
        assert case.destroy() == [(cookie, "destroyed", "")]
        eventually(lambda: len(before - every_cookie()) == 1 + (case.reset == AT_ONCE), "the peer's end")
        assert cookie not in every_cookie()
        if owner is not None:
            assert [pending_error(owner) for _ in range(2)] == ["ECONNABORTED", ""]
            assert owner.recv(1) == b""
            assert error_of(lambda: owner.send(b"x")) == "EPIPE"
        if peer is not None:
            if case.reset == WHEN_IT_SENDS:
                assert state_of(peer) == state
                peer.send(b"x")
            if case.reset != NEVER:
                eventually(lambda: state_of(peer) == S.CLOSE, "a reset")
            assert pending_error(peer) == case.error


class TestTimeWait:
    """A filter accepts an `is_time_wait` row only if TIME_WAIT is in its mask.

    FIN_WAIT2 is then added to the request.
    """

    @pytest.mark.parametrize("state", [state for state in S if state != S.TIME_WAIT])
    def test_no_other_state_finds_mini_sockets(self, sockets: Sockets, state: TcpState) -> None:
        sockets.time_wait(ADDRESS, PORT)
        sockets.orphaned_fin_wait2(ADDRESS, PORT)
        assert list(find_sockets(SocketFilter("tcp", CLIENT, states=[state]))) == []

    def test_with_time_wait_in_the_mask_no_real_fin_wait_2_is_hit(self, sockets: Sockets) -> None:
        this_kernel.needs(this_kernel.destroys_mini_sockets, "destroys no mini-sockets", since=(6, 1))
        minis = {sockets.time_wait(ADDRESS, PORT)[1], sockets.orphaned_fin_wait2(ADDRESS, PORT)[0][1]}
        client, server = sockets.fin_wait2(ADDRESS, PORT)
        report = destroy_sockets(SocketFilter("tcp", CLIENT, states=[S.TIME_WAIT]))
        assert {socket_of(outcome).sport for outcome in report.outcomes} == minis
        assert report.destroyed == 2
        server.send(b"still there")
        assert client.recv(11) == b"still there"

    def test_with_both_in_the_mask_all_are_hit(self, sockets: Sockets) -> None:
        this_kernel.needs(this_kernel.destroys_mini_sockets, "destroys no mini-sockets", since=(6, 1))
        sockets.time_wait(ADDRESS, PORT)
        sockets.orphaned_fin_wait2(ADDRESS, PORT)
        sockets.fin_wait2(ADDRESS, PORT)
        assert destroy_sockets(SocketFilter("tcp", CLIENT, states=[S.TIME_WAIT, S.FIN_WAIT2])).destroyed == 3


class TestListen:
    """LISTEN: closed, accept() fails with EINVAL, connections in its queue are reset, listen() works again."""

    LISTENER = SocketFilter("tcp", SERVER, states=[TcpState.LISTEN])

    def test_it_is_found_by_default(self, sockets: Sockets) -> None:
        listener = sockets.listen(ADDRESS, PORT)
        (row,) = find_sockets(SocketFilter("tcp", SERVER))
        assert (row.cookie, row.state, row.dport) == (cookie_of(listener), S.LISTEN, 0)

    def test_accept_fails_and_what_was_queued_is_reset(self, sockets: Sockets) -> None:
        listener = sockets.listen(ADDRESS, PORT)
        queued = sockets.make(socket.AF_INET, socket.SOCK_STREAM)
        queued.connect((ADDRESS, PORT))
        assert destroy_sockets(self.LISTENER).destroyed == 1
        assert error_of(listener.accept) == "EINVAL"
        assert error_of(lambda: queued.recv(1)) == "ECONNRESET"

    def test_what_was_accepted_lives(self, sockets: Sockets) -> None:
        client, server = sockets.tcp(ADDRESS, PORT)
        assert destroy_sockets(self.LISTENER).destroyed == 1
        talk(client, server)

    def test_it_keeps_its_port_and_can_listen_again(self, sockets: Sockets) -> None:
        """Measured on 6.18: what it then accepts is shut down from birth, for the listener still is (sk_shutdown)."""
        listener = sockets.listen(ADDRESS, PORT)
        cookie = cookie_of(listener)
        destroy_sockets(self.LISTENER)
        assert list(find_sockets(self.LISTENER)) == []
        bound_only = [row.cookie for row in find_sockets(SocketFilter("tcp", SERVER, states=[S.BOUND_INACTIVE]))]
        assert bound_only == [cookie] * this_kernel.lists_bound_only()
        listener.listen()
        client = sockets.make(socket.AF_INET, socket.SOCK_STREAM)
        client.connect((ADDRESS, PORT))
        listener.accept()[0].close()

    def test_a_new_listener_can_take_its_place(self, sockets: Sockets) -> None:
        listener = sockets.listen(ADDRESS, PORT)
        destroy_sockets(self.LISTENER)
        listener.close()
        talk(*sockets.tcp(ADDRESS, PORT))


class TestBoundOnly:
    """A bound, unconnected TCP socket answers to bit 13 alone, reports state 7, and ENOENT when destroyed."""

    @pytest.fixture
    def bound(self, sockets: Sockets) -> socket.socket:
        bound = sockets.make(socket.AF_INET, socket.SOCK_STREAM)
        bound.bind((ADDRESS, PORT))
        return bound

    @pytest.mark.parametrize("state", [state for state in S if state != S.BOUND_INACTIVE])
    def test_no_other_state_finds_it(self, bound: socket.socket, state: TcpState) -> None:
        assert list(find_sockets(SocketFilter("tcp", SERVER, states=[state]))) == []

    def test_named_it_fails_and_stays_as_it_was(self, bound: socket.socket) -> None:
        this_kernel.needs(this_kernel.lists_bound_only, "lists no socket that is only bound", since=(6, 8))
        report = destroy_sockets(SocketFilter("tcp", SERVER, states=[S.BOUND_INACTIVE]))
        (outcome,) = report.outcomes
        assert (socket_of(outcome).cookie, socket_of(outcome).state) == (cookie_of(bound), S.CLOSE)
        assert (outcome.verdict, outcome.error) == ("failed", 2)
        assert "no TCP socket that has no peer" in outcome.reason
        bound.listen()
