# SPDX-License-Identifier: MIT
"""Connections that hang (stalled) or do nothing (idle), by the kernel's timers and struct tcp_info (linux/tcp.h)."""

from __future__ import annotations

from ..states import TcpState
from ..wire.request import IPPROTO_TCP
from .property_conditions import MatchedInPython

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..wire.records import TcpInfo
    from ..wire.reply import InetSocket

_RETRANSMIT, _KEEPALIVE, _ZERO_WINDOW_PROBE = 1, 2, 4  # idiag_timer
_OPENING = (TcpState.SYN_SENT, TcpState.SYN_RECV)
_SENDING = (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)
_CONNECTED = (*_SENDING, TcpState.FIN_WAIT1, TcpState.FIN_WAIT2, TcpState.CLOSING, TcpState.LAST_ACK)
_LONGEST_PAUSE = 120_000  # TCP_RTO_MAX, in milliseconds


class _ByTcpInfo(MatchedInPython):
    """On struct tcp_info, for at least so many milliseconds. Without it in the row nothing is known."""

    __slots__ = ()
    _word = ""
    needs_info = True
    ms: int

    def __init__(self, ms: int) -> None:
        self._set(ms=ms)

    def evaluate(self, socket: InetSocket) -> bool | None:
        info: TcpInfo | None = socket.attributes.get("info")
        if info is None or info.last_ack_recv is None:  # the last of the fields that are read
            return None
        return self._matches(socket, info)

    def _matches(self, socket: InetSocket, info: TcpInfo) -> bool:
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self._word} {self.ms}ms" if self.ms % 1000 else f"{self._word} {self.ms // 1000}s"


class Stalled(_ByTcpInfo):
    """Something that was sent has not been acknowledged for so long; in doubt not."""

    __slots__ = ("ms",)
    _word = "stalled"

    def evaluate(self, socket: InetSocket) -> bool | None:
        if not socket.timer and socket.protocol == IPPROTO_TCP:
            return False  # nothing is outstanding
        return super().evaluate(socket)

    def _matches(self, socket: InetSocket, info: TcpInfo) -> bool:
        return _unanswered_ms(socket, info) >= max(self.ms, 1)


class Idle(_ByTcpInfo):
    """Connected, and neither sent nor received data for so long. Each retransmission counts as sending."""

    __slots__ = ("ms",)
    _word = "idle"

    def _matches(self, socket: InetSocket, info: TcpInfo) -> bool:
        return socket.state in _CONNECTED and min(info.last_data_sent, info.last_data_recv) >= self.ms


def _unanswered_ms(socket: InetSocket, info: TcpInfo) -> int:
    """For how long the peer has owed an answer, 0 if it owes none. Never more than that, but for a SYN or FIN in the
    last interval that TCP_USER_TIMEOUT leaves it.
    """
    since_ack: int = info.last_ack_recv
    if socket.timer == _KEEPALIVE:
        return min(_since_first_keepalive(socket), since_ack)
    if socket.timer == _ZERO_WINDOW_PROBE:
        return min(_since_first_probe(socket, info), since_ack)
    if socket.timer != _RETRANSMIT or not info.unacked:
        return 0
    if socket.state in _OPENING:  # there was no acknowledgement, and its time was never set
        return _since_first_sent(socket, info)
    if socket.state in _SENDING and since_ack <= info.last_data_sent:
        return 0  # whatever it was that the peer has answered last, it came after the last that was sent
    return min(_since_first_sent(socket, info), since_ack)


def _since_first_sent(socket: InetSocket, info: TcpInfo) -> int:
    """Each retransmission doubles the timeout (tcp_retransmit_timer()), so that what was waited before is the present
    timeout less the first one. Of the doublings only those count that came with retransmissions since the peer has last
    acknowledged something new: without timestamps the others stay until its time is measured again.
    """
    backoff: int = min(socket.retransmits, info.backoff)
    timeout: int = info.rto // 1000
    first: int = (info.rto >> backoff) // 1000
    waited: int = max(0, timeout - socket.expires_ms)
    since_data: int = info.last_data_sent
    if socket.state == TcpState.SYN_SENT:  # the first of these come without backoff (tcp_syn_linear_timeouts)
        return timeout - first + max(0, socket.retransmits - backoff) * first + waited
    if socket.retransmits:
        # Under TCP_USER_TIMEOUT the timer is shorter than the timeout; last_data_sent restarts at a retransmission.
        return timeout - first + (min(waited, since_data) if socket.state in _SENDING else waited)
    # The timer may be that of a tail loss probe, which says less. A FIN does not count as data.
    return since_data if socket.state in _SENDING else 0


def _since_first_probe(socket: InetSocket, info: TcpInfo) -> int:
    """Of the probes that are not answered: of a live peer none, however long its window stays closed. The pause doubles
    with each (tcp_probe0_when()); the one that began with the last of them has not ended.
    """
    first: int = info.rto // 1000
    backoff: int = info.backoff
    pauses = (min(first << max(0, backoff - before), _LONGEST_PAUSE) for before in range(socket.retransmits))
    return max(0, sum(pauses) - socket.expires_ms)


def _since_first_keepalive(socket: InetSocket) -> int:
    """Of those that are not answered, of which one may be lost. Their interval (TCP_KEEPINTVL) is not in the row: it is
    a second at least, and what is left of it.
    """
    return max(0, socket.retransmits - 1) * max(socket.expires_ms, 1000)
