# SPDX-License-Identifier: MIT
"""Dumps of conntrack, which may have millions of entries: only those that are wanted are decoded.

The tuples of TCP and UDP have fixed places in a message (ctnetlink_fill_info() writes the original one first):

                                v4                       v6
    original tuple              20, of 52 bytes          20, of 76 bytes     8 more if it has a zone
    reply tuple                 right behind it, of the same sizes
    within a tuple   src        12                       12
                     protocol   32                       56
                     sport      40                       64
                     the end of dport      50            74

What stands before a source is constant, so that a regular expression finds all reply sources of a datagram at C
speed; a datagram in which none is wanted is only walked through. What is found is compared again when it is decoded.
"""

from __future__ import annotations

import errno
import re
import sys
from struct import Struct

from ..errors import MalformedMessage
from ..wire.netlink import (
    NLM_F_DUMP_FILTERED,
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    decode_ack,
    decode_done,
)
from .layout import (
    CTA_IP_V4_SRC,
    CTA_IP_V6_SRC,
    CTA_TUPLE_IP,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    CTA_TUPLE_ZONE,
    CTA_ZONE,
    IPCTNL_MSG_CT_NEW,
    NLA_F_NESTED,
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

        def may_be_in(self, datagram: bytes) -> bool:
            """Whether an entry that is wanted may be in a datagram. If not, it is asked for the unusual ones alone."""

        def wants(self, datagram: bytes, message: int) -> bool:
            """Whether the entry in the message at this offset may be wanted."""

        def takes(self, flow: Flow) -> bool:
            """Whether an entry is."""


_HEADER = Struct("=IHHI").unpack_from  # nlmsghdr without the port
_HEAD = Struct("=HHI").pack
_ENTRY = Struct(
    "=IQ8xH"
).unpack_from  # the same, type, flags and sequence as one number, and the size of the original tuple
_HEADER_SIZE, _ENTRY_SIZE = 16, 22
_HEADER_OF_ZONE, _HEADER_OF_TUPLE_ZONE = (Struct("=HH").pack(6, kind) for kind in (CTA_ZONE, CTA_TUPLE_ZONE))
_SIZES, _SIZES_IN_ZONE = (52, 76), (60, 84)
_ORIGINAL = 20  # behind nlmsghdr and nfgenmsg
_SIZE_OF = Struct("=H").unpack_from


def _beginning(kind: int, source: int, address: int) -> bytes:
    """What a tuple begins with behind its length, which is another one if it has a zone: its type, and the headers of
    its addresses and of the source. In the byte order of the host.
    """
    headers = (4 + 2 * (4 + address), CTA_TUPLE_IP | NLA_F_NESTED), (4 + address, source)
    return Struct("=HHHHH").pack(kind | NLA_F_NESTED, *headers[0], *headers[1])


_REPLY_V4 = _beginning(CTA_TUPLE_REPLY, CTA_IP_V4_SRC, 4)
_REPLY_V6 = _beginning(CTA_TUPLE_REPLY, CTA_IP_V6_SRC, 16)
_SOURCES_V4 = re.compile(re.escape(_REPLY_V4) + b"(.{4})", re.DOTALL).findall
_SOURCES_V6 = re.compile(re.escape(_REPLY_V6) + b"(.{16})", re.DOTALL).findall


class ByBackend:
    """Entries whose replies come from one of these (protocol, packed address, port), and that are translated.

    `may_have_zones`: whether an entry of what was scanned, wanted or not, may be in a zone in its original direction.
    Not looked for if it is True.
    """

    def __init__(self, endpoints: Iterable[tuple[int, bytes, int]], *, may_have_zones: bool = True) -> None:
        self._endpoints = frozenset(endpoints)
        self._keys = {src + bytes([protocol]) + port.to_bytes(2, "big") for protocol, src, port in self._endpoints}
        self.may_have_zones = may_have_zones
        self._v4 = frozenset(src for _, src, _ in self._endpoints if len(src) == 4)
        self._v6 = frozenset(src for _, src, _ in self._endpoints if len(src) == 16)

    def may_be_in(self, datagram: bytes) -> bool:
        self.may_have_zones = self.may_have_zones or _HEADER_OF_ZONE in datagram
        return bool(
            (self._v4 and not self._v4.isdisjoint(_SOURCES_V4(datagram)))
            or (self._v6 and not self._v6.isdisjoint(_SOURCES_V6(datagram)))
        )

    def wants(self, datagram: bytes, message: int) -> bool:
        at = message + _ORIGINAL
        (size,) = _SIZE_OF(datagram, at)
        at += (size + 3) & ~3
        if size in _SIZES_IN_ZONE and datagram[at - 8 : at - 4] == _HEADER_OF_TUPLE_ZONE:  # ICMP has such sizes, too
            self.may_have_zones = True
        begin = datagram[at + 2 : at + 12]
        if begin == _REPLY_V4:
            return datagram[at + 12 : at + 16] + datagram[at + 32 : at + 33] + datagram[at + 40 : at + 42] in self._keys
        if begin == _REPLY_V6:
            return datagram[at + 12 : at + 28] + datagram[at + 56 : at + 57] + datagram[at + 64 : at + 66] in self._keys
        return False

    def takes(self, flow: Flow) -> bool:
        return flow.is_dnated and (flow.protocol, flow.reply.src, flow.reply.sport) in self._endpoints


class ByOriginal:
    """Entries with one of these original tuples, in whatever zone."""

    def __init__(self, originals: Iterable[FlowTuple]) -> None:
        self._originals = frozenset(originals)
        encoded = [encode_tuple(CTA_TUPLE_ORIG, one) for one in self._originals]
        self._keys = {one[12 : 50 if len(one) == 52 else 74] for one in encoded}

    def may_be_in(self, datagram: bytes) -> bool:
        return True

    def wants(self, datagram: bytes, message: int) -> bool:
        at = message + _ORIGINAL
        end = 50 if _SIZE_OF(datagram, at)[0] in (52, 60) else 74
        return datagram[at + 12 : at + end] in self._keys

    def takes(self, flow: Flow) -> bool:
        return flow.original in self._originals


class Dnated:
    """All that are translated."""

    def may_be_in(self, datagram: bytes) -> bool:
        return True

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
    may_be_in = scan.may_be_in(reply)
    while offset < size:
        if not may_be_in and end is None:
            offset = _behind_usual(reply, offset, sequence)
            if offset >= size:
                break
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
            if length >= _ORIGINAL + 4 and scan.wants(reply, offset):
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


def _behind_usual(reply: bytes, offset: int, sequence: int) -> int:
    """The offset behind the entries from this one on, as far as there is nothing unusual about them: another flag, a
    zone, a protocol without ports.
    """
    heads = [_HEAD(IPCTNL_MSG_CT_NEW, NLM_F_MULTI | flag, sequence) for flag in (0, NLM_F_DUMP_FILTERED)]
    usual = [int.from_bytes(head, sys.byteorder) for head in heads]
    size = len(reply)
    while offset <= size - _ENTRY_SIZE:
        length, head, original = _ENTRY(reply, offset)
        if head not in usual or original not in _SIZES or not _ENTRY_SIZE <= length <= size - offset:
            break
        offset += (length + 3) & ~3
    return offset
