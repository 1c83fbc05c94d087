# SPDX-License-Identifier: MIT
"""Who is spared: sockets that a filter means and that must not die all the same."""

from __future__ import annotations

from _thread import allocate_lock

from ..states import TcpState
from ..wire.address import unmapped
from ..wire.request import IPPROTO_TCP
from .session import OwnSession, own_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..filters import SocketFilter
    from ..wire.reply import InetSocket

OWN_SESSION = "own session"
LISTENING = "listening"
NOT_CONNECTED = "not connected"
LIMIT = "limit"
DRY_RUN = "dry run"


class Mercy:
    """Tells why a socket is spared, one after another: the limit counts what was not.

    `unconnected` lifts "not connected", a filter whose states name LISTEN lifts "listening", nothing lifts "own
    session". `further` may have other reasons. With a `limit`, so many are not spared and the rest is.
    """

    def __init__(
        self, *, unconnected: bool, limit: int | None, further: Callable[[InetSocket], str] | None = None
    ) -> None:
        if limit is not None:
            if isinstance(limit, bool) or not isinstance(limit, int):
                raise TypeError(f"limit is an int or None, not {limit!r}")
            if limit < 1:
                raise ValueError(f"limit {limit} is below 1; to destroy nothing, use a dry run")
        self._unconnected, self._left, self._further = unconnected, limit, further
        self._lock = allocate_lock()  # several namespaces may be at work at once
        self._session: OwnSession | None = None

    def reason(self, socket: InetSocket, filter: SocketFilter) -> str:
        """Why the socket is spared; "" if it is not, and then it counts for the limit."""
        return self.reason_in_itself(socket, filter) or ("" if self._is_within_limit() else LIMIT)

    def reason_in_itself(self, socket: InetSocket, filter: SocketFilter) -> str:
        """Why the socket is spared whatever the limit; "" if it is not."""
        if self._is_own(socket):
            return OWN_SESSION
        if socket.protocol == IPPROTO_TCP:
            if socket.state == TcpState.LISTEN and not filter.names_listen:
                return LISTENING
        elif socket.state != TcpState.ESTABLISHED and not self._unconnected:
            return NOT_CONNECTED
        return "" if self._further is None else self._further(socket)

    def _is_within_limit(self) -> bool:
        if self._left is None:
            return True
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def _is_own(self, socket: InetSocket) -> bool:
        if self._session is None:
            self._session = own_session()
        if socket.inode and socket.inode in self._session.inodes:
            return True
        if not self._session.tuples:
            return False
        ends = (unmapped(socket.src), socket.sport), (unmapped(socket.dst), socket.dport)
        return ends in self._session.tuples
