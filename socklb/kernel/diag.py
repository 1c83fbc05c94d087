# SPDX-License-Identifier: MIT
"""The netlink socket to the kernel's sock_diag: what is asked of it, and what its errors mean."""

from __future__ import annotations

import _socket
import errno
from functools import partial
from struct import Struct

from ..errors import MalformedMessage, NotSupported, kernel_error
from ..wire.netlink import (
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    NLMSGHDR,
    align,
    decode_ack,
    decode_done,
    iter_messages,
)
from ..wire.request import SOCK_DESTROY, SOCK_DIAG_BY_FAMILY
from .netlink_socket import NetlinkSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..errors import KernelError
    from ..wire.netlink import Ack, Done
    from .netlink_socket import Parsed

NETLINK_SOCK_DIAG = 4


def open_netlink() -> _socket.socket:
    """A NETLINK_SOCK_DIAG socket in the network namespace of the calling thread."""
    return _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)


class DiagSocket(NetlinkSocket):
    """A netlink socket to sock_diag: dumps, look-ups and destroys."""

    lacks = "NETLINK_SOCK_DIAG: CONFIG_INET_DIAG"

    def __init__(self) -> None:
        super().__init__(open_netlink)

    def dump(self, type: int, request: bytes, doing: str, *, may_repeat_rows: bool = False) -> Iterator[list[bytes]]:
        """Dump with a request of this message type; yields the rows of each datagram, as payloads."""
        return self._dump(type, request, partial(_parse_dump, type), doing, may_repeat_rows=may_repeat_rows)

    def look_up(self, requests: Sequence[bytes], doing: str) -> list[bytes | None]:
        """Look up at most BATCH sockets at once: the row of each in order, None where the kernel finds none."""
        return self._look_up(SOCK_DIAG_BY_FAMILY, SOCK_DIAG_BY_FAMILY, requests, doing)

    def destroy(self, requests: Sequence[bytes], doing: str) -> list[int]:
        """Destroy up to BATCH sockets at once; the errno of each in order, 0 for one that was destroyed."""
        return self._order(SOCK_DESTROY, requests, doing)

    def _describe(self, data: bytes) -> str:
        from ..wire.describe import describe  # takes a while to import, and few debug

        return describe(data)

    def _dump_error(self, code: int, doing: str, text: str) -> KernelError:
        """ENOENT at the end of a dump does not mean an empty table: the protocol and family have no diag handler."""
        if code == errno.ENOENT:
            return NotSupported(
                code,
                f"{doing}: this kernel cannot list such sockets: CONFIG_INET_DIAG with CONFIG_INET_UDP_DIAG for UDP "
                "(or: modprobe tcp_diag udp_diag)",
            )
        if code == errno.EOPNOTSUPP:
            return NotSupported(code, f"{doing}: this kernel was built without CONFIG_INET_DIAG")
        return kernel_error(code, doing, text)


def _equal_rows(type: int, reply: bytes, sequence: int) -> list[bytes]:
    """The rows of a datagram that holds rows of one length and nothing else, as most do, taken apart by one call; else
    none.
    """
    if len(reply) < NLMSGHDR.size:
        return []
    length, kind, flags, answered, _ = NLMSGHDR.unpack_from(reply)
    step, size = align(length), length - NLMSGHDR.size
    if kind != type or answered != sequence or flags & NLM_F_DUMP_INTR or size < 0 or len(reply) % step:
        return []
    headers, rows = zip(*Struct(f"{NLMSGHDR.size}s{size}s{step - length}x").iter_unpack(reply))
    return [*rows] if headers.count(headers[0]) == len(headers) else []


def _parse_dump(type: int, reply: bytes, sequence: int) -> Parsed[bytes]:
    """The rows of a datagram, what ended the dump if anything did, and EINTR or ENOBUFS if it was interrupted."""
    rows = _equal_rows(type, reply, sequence)
    if rows:
        return rows, None, 0
    end: Ack | Done | None = None
    interrupted = 0
    for kind, flags, answered, _, start, stop in iter_messages(reply, len(reply)):
        if kind == type and answered == sequence and end is None and not flags & NLM_F_DUMP_INTR:
            rows.append(reply[start:stop])
            continue
        if answered != sequence:
            raise MalformedMessage("sequence of a reply", offset=start, expected=sequence, got=answered)
        if end is not None:
            raise MalformedMessage("message behind the last", offset=start, expected="nothing", got=kind)
        if flags & NLM_F_DUMP_INTR:
            interrupted = errno.EINTR
        if kind == NLMSG_DONE:
            end = decode_done(reply, start, stop, flags)
        elif kind == NLMSG_ERROR:
            end = decode_ack(reply, start, stop, flags)
        elif kind == NLMSG_OVERRUN:
            interrupted = errno.ENOBUFS
        elif kind not in (type, NLMSG_NOOP):
            raise MalformedMessage("type of a reply", offset=start, expected=type, got=kind)
    return rows, end, interrupted
