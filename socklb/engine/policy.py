# SPDX-License-Identifier: MIT
"""Who may die: sockets that match but must not be destroyed, and filters that are too wide to destroy by."""

from __future__ import annotations

from errno import EOPNOTSUPP

from ..errors import NotSupported
from ..filters import SocketFilter
from ..filters.bounds import unbounded
from ..states import TcpState
from ..wire.request import IPPROTO_TCP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..wire.reply import InetSocket
    from .session import OwnSession

OWN_SESSION = "own session"
LISTENING = "listening"
NOT_CONNECTED = "not connected"
NO_OWNER = "no owner"
LIMIT = "limit"

_CLOSING = (TcpState.FIN_WAIT1, TcpState.CLOSING, TcpState.LAST_ACK)


def why_spared(
    socket: InetSocket, filter: SocketFilter, session: OwnSession, unconnected: bool, keeps_orphans: Callable[[], bool]
) -> str:
    """The reason to spare a socket that the filter matches, "" to destroy it.

    A filter whose states name LISTEN lifts "listening", `unconnected` lifts "not connected" (UDP without a peer),
    nothing lifts "own session". "no owner": it is closing, nobody holds it, and `keeps_orphans` says that this kernel
    would stop its timer and keep it.
    """
    if session.has(socket):
        return OWN_SESSION
    if socket.protocol == IPPROTO_TCP:
        if socket.state == TcpState.LISTEN and not filter.names_listen:
            return LISTENING
        if socket.state in _CLOSING and not socket.inode and keeps_orphans():
            return NO_OWNER
    elif socket.state != TcpState.ESTABLISHED and not unconnected:
        return NOT_CONNECTED
    return ""


def check_filters(filters: Iterable[SocketFilter], allow_unbounded: bool) -> None:
    """Raise TypeError for what is not a filter, UnboundedFilter for one that bounds nothing unless allowed, and
    NotSupported for one that asks of UDP what the kernel tells of TCP alone.
    """
    for filter in filters:
        if not isinstance(filter, SocketFilter):
            raise TypeError(f"filter is a SocketFilter, not {filter!r}")
        if not allow_unbounded and not filter.is_bounded:
            raise unbounded(f"the filter '{filter}'", "allow unbounded filters")
        if filter.is_unknowable:
            raise NotSupported(
                EOPNOTSUPP, f"'{filter}': 'stalled' and 'idle' are for TCP, UDP sockets have no acknowledgements"
            )


def check_limit(limit: int | None) -> None:
    """Raise TypeError or ValueError for a limit that is not a number of sockets."""
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit is an int or None, not {limit!r}")
    if limit < 1:
        raise ValueError(f"limit {limit} is below 1; to destroy nothing, use a dry run")
