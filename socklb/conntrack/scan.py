# SPDX-License-Identifier: MIT
"""Dumps of conntrack, which may have millions of entries: only those that are wanted are decoded.

The tuples of TCP and UDP have fixed places in a message (ctnetlink_fill_info() writes the original one first):

                                v4                       v6
    original tuple              20, of 52 bytes          20, of 76 bytes     8 more if it has a zone
    reply tuple                 right behind it, of the same sizes
    CTA_ZONE                    right behind that, if there is one
    within a tuple
        its source              12                       12
        its protocol            32                       56
        the source port         40                       64
        behind the ports        50                       74
        its zone                52                       76

These places alone are looked at. What they show is compared again when the entry is decoded, for an entry of another
protocol may have anything there.
"""

from __future__ import annotations

import errno
from struct import Struct

from ..errors import MalformedMessage
from ..wire.netlink import (
    NLATTR,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    decode_ack,
    decode_done,
)
from .layout import (
    CTA_TUPLE_ORIG,
    CTA_TUPLE_ZONE,
    CTA_ZONE,
    IPCTNL_MSG_CT_NEW,
    decode_flow,
    encode_tuple,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol, Union

    from ..wire.netlink import Ack, Done
    from .layout import Flow, FlowTuple

    Parsed = tuple[list[Flow], Union[Ack, Done, None], int]

    class Scan(Protocol):
        """What is wanted of a dump."""

        def wants(self, datagram: bytes, message: int) -> bool:
            """Whether the entry in the message at this offset may be wanted."""

        def takes(self, flow: Flow) -> bool:
            """Whether an entry is."""


_HEADER = Struct("=IHHI").unpack_from  # nlmsghdr without the port
_HEADER_SIZE = 16
_ORIGINAL = 20  # behind nlmsghdr and nfgenmsg
_SIZE_OF = Struct("=H").unpack_from
_V6_SIZE, _WITH_ZONE = 76, (60, 84)
_ZONE, _TUPLE_ZONE = (NLATTR.pack(6, kind) for kind in (CTA_ZONE, CTA_TUPLE_ZONE))


class ByBackend:
    """Entries whose replies come from one of these (protocol, packed address, port), and that are translated.

    `has_seen_zones`: whether any entry has a zone of the original direction.
    """

    def __init__(self, endpoints: Iterable[tuple[int, bytes, int]]) -> None:
        self._endpoints = frozenset(endpoints)
        self._addresses = frozenset(src for _, src, _ in self._endpoints)
        self._keys = {src + bytes([protocol]) + port.to_bytes(2, "big") for protocol, src, port in self._endpoints}
        self.has_seen_zones = False

    def wants(self, datagram: bytes, message: int) -> bool:
        (size,) = _SIZE_OF(datagram, message + _ORIGINAL)
        reply = message + _ORIGINAL + size
        if datagram[reply + size : reply + size + 4] == _ZONE or (
            size in _WITH_ZONE and datagram[reply - 8 : reply - 4] == _TUPLE_ZONE
        ):
            self.has_seen_zones = True
        behind_src, protocol = (16, 32) if size < _V6_SIZE else (28, 56)
        src = datagram[reply + 12 : reply + behind_src]
        if src not in self._addresses:
            return False
        at = reply + protocol
        return src + datagram[at : at + 1] + datagram[at + 8 : at + 10] in self._keys

    def takes(self, flow: Flow) -> bool:
        return flow.is_dnated and (flow.protocol, flow.reply.src, flow.reply.sport) in self._endpoints


class ByOriginal:
    """Entries with one of these original tuples, in whatever zone."""

    def __init__(self, originals: Iterable[FlowTuple]) -> None:
        self._originals = frozenset(originals)
        encoded = [encode_tuple(CTA_TUPLE_ORIG, one) for one in self._originals]
        self._keys = {one[12 : 50 if len(one) == 52 else 74] for one in encoded}

    def wants(self, datagram: bytes, message: int) -> bool:
        at = message + _ORIGINAL
        end = 50 if _SIZE_OF(datagram, at)[0] < _V6_SIZE else 74
        return datagram[at + 12 : at + end] in self._keys

    def takes(self, flow: Flow) -> bool:
        return flow.original in self._originals


class Dnated:
    """All that are translated."""

    def wants(self, datagram: bytes, message: int) -> bool:
        return True

    def takes(self, flow: Flow) -> bool:
        return flow.is_dnated


def parse_dump(reply: bytes, sequence: int, scan: Scan) -> Parsed:
    """The wanted entries of a datagram, what ended the dump if anything did, and EINTR or ENOBUFS if it was
    interrupted.
    """
    flows: list[Flow] = []
    end: Ack | Done | None = None
    interrupted, offset, size = 0, 0, len(reply)
    wants = scan.wants
    while offset < size:
        if size - offset < _HEADER_SIZE:
            raise MalformedMessage("cut netlink header", offset=offset, expected="16 bytes", got=f"{size - offset}")
        length, kind, flags, answered = _HEADER(reply, offset)
        stop = offset + length
        if length < _HEADER_SIZE or stop > size:
            raise MalformedMessage("netlink message length", offset=offset, expected=f"16..{size - offset}", got=length)
        if answered != sequence:
            raise MalformedMessage("sequence of a reply", offset=offset, expected=sequence, got=answered)
        if end is not None:
            raise MalformedMessage("message behind the last", offset=offset, expected="nothing", got=kind)
        if flags & NLM_F_DUMP_INTR:
            interrupted = errno.EINTR
        if kind == IPCTNL_MSG_CT_NEW:
            if length >= _ORIGINAL + 4 and wants(reply, offset):
                flow = decode_flow(reply, offset + _HEADER_SIZE, stop)
                if flow is not None and scan.takes(flow):
                    flows.append(flow)
        elif kind == NLMSG_DONE:
            end = decode_done(reply, offset + _HEADER_SIZE, stop, flags)
        elif kind == NLMSG_ERROR:
            end = decode_ack(reply, offset + _HEADER_SIZE, stop, flags)
        elif kind == NLMSG_OVERRUN:
            interrupted = errno.ENOBUFS
        elif kind != NLMSG_NOOP:
            raise MalformedMessage("type of a reply", offset=offset, expected=IPCTNL_MSG_CT_NEW, got=kind)
        offset = (stop + 3) & ~3
    return flows, end, interrupted
