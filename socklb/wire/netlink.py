# SPDX-License-Identifier: MIT
"""The framing of every netlink message: nlmsghdr, nlattr, NLMSG_ERROR, NLMSG_DONE (linux/netlink.h)."""

from __future__ import annotations

from collections import namedtuple
from struct import Struct

from ..errors import MalformedMessage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Union

    Buffer = Union[bytes, bytearray, memoryview]

NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4

NLM_F_REQUEST = 0x01
NLM_F_MULTI = 0x02
NLM_F_ACK = 0x04
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP_FILTERED = 0x20
NLM_F_DUMP = 0x300
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

NLMSGERR_ATTR_MSG = 1

NLA_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

NLMSGHDR = Struct(
    "="
    "I"  # nlmsg_len: header and payload, without the padding after it
    "H"  # nlmsg_type
    "H"  # nlmsg_flags
    "I"  # nlmsg_seq
    "I"  # nlmsg_pid: the port of the socket that sent the request
)
NLATTR = Struct(
    "="
    "H"  # nla_len: header and payload, without the padding after it
    "H"  # nla_type, its two highest bits are flags
)
_ERRNO = Struct("=i")


def align(length: int) -> int:
    """NLMSG_ALIGN and NLA_ALIGN: the next multiple of four."""
    return (length + 3) & ~3


# ---------------------------------------------------------------------------------------------- messages


def encode_message(type: int, flags: int, sequence: int, payload: Buffer, port: int = 0) -> bytes:
    """Header, payload, and padding so that another message can follow."""
    length = NLMSGHDR.size + len(payload)
    return NLMSGHDR.pack(length, type, flags, sequence, port) + payload + bytes(-length & 3)


def iter_messages(buffer: Buffer, size: int) -> Iterator[tuple[int, int, int, int, int, int]]:
    """(type, flags, sequence, port, start, end) of each message in the first `size` bytes: its header, and the offsets
    in the buffer at which its payload starts and ends. Raises MalformedMessage at one that is cut or does not advance.
    """
    unpack_from, header_size = NLMSGHDR.unpack_from, NLMSGHDR.size
    offset = 0
    while offset < size:
        if size - offset < header_size:
            raise MalformedMessage(
                "cut netlink header", offset=offset, expected=f"{header_size} bytes", got=f"{size - offset}"
            )
        length, type_, flags, sequence, port = unpack_from(buffer, offset)
        end = offset + length
        if length < header_size or end > size:
            raise MalformedMessage(
                "netlink message length", offset=offset, expected=f"{header_size}..{size - offset}", got=length
            )
        yield type_, flags, sequence, port, offset + header_size, end
        offset = (end + 3) & ~3


# -------------------------------------------------------------------------------------------- attributes


def encode_attribute(type: int, payload: Buffer) -> bytes:
    """Header, payload and padding of one attribute. Raises ValueError if it exceeds the 16 bits of nla_len."""
    length = NLATTR.size + len(payload)
    if length > 0xFFFF:
        raise ValueError(f"attribute {type} has {len(payload)} bytes; at most {0xFFFF - NLATTR.size} fit")
    return NLATTR.pack(length, type) + bytes(payload) + bytes(align(length) - length)


def iter_attributes(buffer: Buffer, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(nla_type with its flags, payload) of each attribute between two offsets.

    Raises MalformedMessage at one that is cut or does not advance.
    """
    unpack_from, header_size = NLATTR.unpack_from, NLATTR.size
    while start < end:
        if end - start < header_size:
            raise MalformedMessage(
                "cut netlink attribute", offset=start, expected=f"{header_size} bytes", got=f"{end - start}"
            )
        length, type_ = unpack_from(buffer, start)
        if not header_size <= length <= end - start:
            raise MalformedMessage(
                "netlink attribute length", offset=start, expected=f"{header_size}..{end - start}", got=length
            )
        yield type_, bytes(buffer[start + header_size : start + length])
        start += (length + 3) & ~3


def encode_attributes(pairs: Iterable[tuple[int, Buffer]]) -> bytes:
    """Attributes one after another, each padded so that the next can follow."""
    return b"".join(encode_attribute(type_, payload) for type_, payload in pairs)


# ---------------------------------------------------------------------------- NLMSG_ERROR and NLMSG_DONE


class Ack(namedtuple("Ack", "errno type flags sequence port request attributes length", defaults=(0,))):
    """struct nlmsgerr: errno (0 is success), the header of the request, the request's payload if it is echoed, and
    the extended-ack attributes as (type, payload) pairs. `length` is that of the request, header included, whether it
    is echoed or not; with 0, `encode_ack` computes it.
    """

    __slots__ = ()
    errno: int
    type: int
    flags: int
    sequence: int
    port: int
    request: bytes
    attributes: tuple[tuple[int, bytes], ...]
    length: int

    @property
    def text(self) -> str:
        return _extended_ack_text(self.attributes)


class Done(namedtuple("Done", "errno attributes")):
    """The end of a dump: errno (0 is success) and the extended-ack attributes as (type, payload) pairs."""

    __slots__ = ()
    errno: int
    attributes: tuple[tuple[int, bytes], ...]

    @property
    def text(self) -> str:
        return _extended_ack_text(self.attributes)


def _extended_ack_text(attributes: tuple[tuple[int, bytes], ...]) -> str:
    for type_, payload in attributes:
        if type_ == NLMSGERR_ATTR_MSG:
            return payload.rstrip(b"\0").decode("utf-8", "replace")
    return ""


def encode_ack(ack: Ack) -> tuple[int, bytes]:
    """(message flags, payload) of an NLMSG_ERROR."""
    flags = (0 if ack.request else NLM_F_CAPPED) | (NLM_F_ACK_TLVS if ack.attributes else 0)
    size = len(ack.request)
    header = NLMSGHDR.pack(ack.length or NLMSGHDR.size + size, ack.type, ack.flags, ack.sequence, ack.port)
    echoed = bytes(ack.request) + bytes(align(size) - size)
    return flags, _ERRNO.pack(-ack.errno) + header + echoed + encode_attributes(ack.attributes)


def decode_ack(buffer: Buffer, start: int, end: int, flags: int) -> Ack:
    """The payload of an NLMSG_ERROR between two offsets; `flags` are those of its message.

    One that ends behind the header of the request is capped, whatever its flags say: NLM_F_CAPPED came with Linux 4.12,
    two years after the kernel had begun to cap.
    """
    if end - start < _ERRNO.size + NLMSGHDR.size:
        raise MalformedMessage(
            "cut NLMSG_ERROR", offset=start, expected=f"{_ERRNO.size + NLMSGHDR.size} bytes", got=f"{end - start}"
        )
    code = _decode_errno(buffer, start)
    length, type_, request_flags, sequence, port = NLMSGHDR.unpack_from(buffer, start + _ERRNO.size)
    echo = start + _ERRNO.size + NLMSGHDR.size
    size = 0 if flags & NLM_F_CAPPED or not code or echo == end else length - NLMSGHDR.size
    if not 0 <= size <= end - echo:
        raise MalformedMessage(
            "request echoed by NLMSG_ERROR", offset=echo, expected=f"0..{end - echo} bytes", got=size
        )
    request = bytes(buffer[echo : echo + size])
    attributes = _decode_extended_ack(buffer, echo + align(size), end, flags)
    return Ack(code, type_, request_flags, sequence, port, request, attributes, length)


def encode_done(done: Done) -> tuple[int, bytes]:
    """(message flags, payload) of an NLMSG_DONE."""
    flags = NLM_F_MULTI | (NLM_F_ACK_TLVS if done.attributes else 0)
    return flags, _ERRNO.pack(-done.errno) + encode_attributes(done.attributes)


def decode_done(buffer: Buffer, start: int, end: int, flags: int) -> Done:
    """The payload of an NLMSG_DONE between two offsets; `flags` are those of its message."""
    if end - start < _ERRNO.size:
        raise MalformedMessage("cut NLMSG_DONE", offset=start, expected=f"{_ERRNO.size} bytes", got=f"{end - start}")
    code = _decode_errno(buffer, start)
    return Done(code, _decode_extended_ack(buffer, start + _ERRNO.size, end, flags))


def _decode_errno(buffer: Buffer, start: int) -> int:
    """Errnos are sent negated: from -4095 (MAX_ERRNO, linux/err.h) to 0."""
    (negated,) = _ERRNO.unpack_from(buffer, start)
    if not -4095 <= negated <= 0:
        raise MalformedMessage("errno of a reply", offset=start, expected="-4095..0", got=negated)
    return -int(negated)


def _decode_extended_ack(buffer: Buffer, start: int, end: int, flags: int) -> tuple[tuple[int, bytes], ...]:
    return tuple(iter_attributes(buffer, start, end)) if flags & NLM_F_ACK_TLVS else ()
