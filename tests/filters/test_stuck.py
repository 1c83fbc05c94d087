"""For how long a connection has waited for its peer: the arithmetic, by rows as the kernel sends them.

tests/engine/test_stuck.py has the same on the kernel.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import InetSocket, TcpState, idle, stalled
from socklb.wire.records import TcpInfo
from socklb.wire.reply import InetDiagMsg, decode_msg
from socklb.wire.request import IPPROTO_TCP
from socklb.wire.socket_id import AF_INET, SocketId

from ..strategies import make_socket, sockets
from .trees import socket_between

HOUR = 3_600_000  # milliseconds


def row(
    timer: int, expires_ms: int = 0, retransmits: int = 0, *, state: TcpState = TcpState.ESTABLISHED, **info: int
) -> InetSocket:
    id = SocketId(1, 2, bytes(4), bytes(4), 0, 1)
    message = InetDiagMsg(AF_INET, state, timer, retransmits, id, expires_ms, 0, 0, 0, 7)
    return make_socket(message, IPPROTO_TCP, {"info": TcpInfo.of(*(info.get(name, 0) for name in TcpInfo.FIELDS))})


def sent(timer: int = 1, expires_ms: int = 0, retransmits: int = 0, **more: Any) -> InetSocket:
    """Something is outstanding, and the peer was last heard an hour ago."""
    last = {"last_ack_recv": HOUR, "last_data_sent": HOUR - 1, "last_data_recv": HOUR}
    return row(timer, expires_ms, retransmits, **{"unacked": 1, **last, **more})


class TestStalled:
    """`at_least` is the longest duration by which it counts as stalled; 0: it does not at all."""

    @pytest.mark.parametrize(
        ("socket", "at_least"),
        [
            # 200 + 400 + 800 have passed, and 300 of 1,600
            (sent(1, 1300, 3, rto=1_600_000, backoff=3), 1700),
            (sent(1, 1300, 3, rto=1_600_000, backoff=3, last_ack_recv=1000, last_data_sent=999), 1000),
            (sent(1, 1300, 3, rto=1_600_000, backoff=3, unacked=0), 0),
            # TCP_USER_TIMEOUT ends before the timeout would: the last retransmission was 100 ms ago
            (sent(1, 300, 3, rto=1_600_000, backoff=3, last_data_sent=100), 1500),
            (sent(1, 1300, 3, rto=1_600_000, backoff=3, state=TcpState.FIN_WAIT1), 1700),
            # it was retransmitted before the last answer, which came without timestamps: the doublings have stayed
            (sent(1, 6500, 0, rto=6_528_000, backoff=5, last_data_sent=28), 28),
            (sent(1, 12_000, 1, rto=13_056_000, backoff=6, last_data_sent=1056), 7584),
            # its window was closed while this was on its way: it answers each retransmission
            (sent(1, 60_000, 0, rto=120_000_000, backoff=9, last_data_sent=60_000, last_ack_recv=59_990), 0),
            # sent 1 ms ago after an idle hour; or 150 ms ago, and the timer is that of a tail loss probe
            (sent(1, 199, rto=200_000, last_data_sent=1), 1),
            (sent(1, 10, rto=200_000, last_data_sent=150), 150),
            # a FIN, nobody knows since when; it was retransmitted
            (sent(1, 10, rto=200_000, state=TcpState.LAST_ACK), 0),
            (sent(1, 400, 1, rto=400_000, backoff=1, state=TcpState.LAST_ACK), 200),
            # SYNs: four without backoff, two with; what was never acknowledged has no such time
            (sent(1, 3000, 6, rto=4_000_000, backoff=2, state=TcpState.SYN_SENT, last_ack_recv=1), 8000),
            (sent(1, 1000, 0, rto=1_000_000, state=TcpState.SYN_SENT), 0),
            (sent(1, 500, 0, rto=1_000_000, state=TcpState.SYN_RECV, last_data_sent=0), 0),
            # probes of a closed window: 2 of them unanswered, 800 ms ago and 300 of 1,600; none
            (sent(4, 1300, 2, rto=200_000, backoff=3), 1100),
            (sent(4, 1300, 0, rto=200_000, backoff=3), 0),
            (sent(4, 1, 1, rto=200_000, backoff=15), 119_999),
            # keepalives: one may be lost; three seconds apart, or less
            (sent(2, 2999, 3), 5998),
            (sent(2, 0, 3), 2000),
            (sent(2, 2999, 3, last_ack_recv=5000), 5000),
            (sent(2, 2999, 1), 0),
            (sent(0), 0),
            (sent(3, 5000), 0),
        ],
    )
    def test_since_when(self, socket: InetSocket, at_least: int) -> None:
        assert not stalled((at_least + 1) / 1000).matches(socket)
        assert stalled(at_least / 1000).matches(socket) == stalled(0).matches(socket) == (at_least > 0)

    def test_without_a_timer_it_is_known_that_nothing_is_outstanding(self) -> None:
        for timer, known in ((0, False), (1, None)):
            assert stalled(1).evaluate(socket_between("10.0.0.1:1", "10.0.0.2:2", timer=timer)) is known

    @given(sockets(protocol=IPPROTO_TCP), st.binary(max_size=300))
    def test_any_bytes_give_an_answer_or_none(self, socket: InetSocket, info: bytes) -> None:
        socket = make_socket(decode_msg(socket.row), IPPROTO_TCP, {"info": TcpInfo(info)})
        for condition in (stalled(1), idle(1)):
            assert condition.evaluate(socket) in (True, False, None)


class TestIdle:
    @pytest.mark.parametrize("last", [{"last_data_sent": 2000}, {"last_data_recv": 2000}])
    def test_it_is_the_last_data_either_way_that_counts(self, last: dict[str, int]) -> None:
        assert idle(2).matches(sent(0, **last))
        assert not idle(2.001).matches(sent(0, **last))

    def test_what_is_not_connected_is_not_idle(self) -> None:
        states = {state for state in TcpState if idle(0).matches(sent(0, state=state))}
        opening_or_gone = {TcpState.SYN_SENT, TcpState.SYN_RECV, TcpState.NEW_SYN_RECV, TcpState.LISTEN}
        assert {*TcpState} - states == opening_or_gone | {TcpState.CLOSE, TcpState.TIME_WAIT, TcpState.BOUND_INACTIVE}
