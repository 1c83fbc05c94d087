# SPDX-License-Identifier: MIT
"""struct inet_diag_sockid (linux/inet_diag.h), the part that requests and replies have in common."""

from __future__ import annotations

from collections import namedtuple
from struct import Struct

from .address import V4_MAPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .netlink import Buffer

AF_INET = 2
AF_INET6 = 10

ADDRESSES = Struct(
    ">"
    "H"  # idiag_sport
    "H"  # idiag_dport
    "16s"  # idiag_src: 16 bytes, or 4 and zeros after them
    "16s"  # idiag_dst, likewise
)
HANDLE = Struct(
    "="
    "I"  # idiag_if: the interface the socket is bound to, 0 for none
    "I"  # idiag_cookie[0], the low half: see sock_diag_save_cookie()
    "I"  # idiag_cookie[1], the high half
)
SIZE = ADDRESSES.size + HANDLE.size

ADDRESS_SIZE = ADDRESSES.size + 4
"""How much of it the kernel looks a socket up by: ports, addresses, interface."""

NO_COOKIE = 0xFFFFFFFFFFFFFFFF
"""INET_DIAG_NOCOOKIE in both halves: the kernel compares no cookie. All zeros is a cookie like any other."""


class SocketId(namedtuple("SocketId", "sport dport src dst interface cookie")):
    """The identity of one socket. Addresses are packed, 4 or 16 bytes; the cookie is a u64."""

    __slots__ = ()
    sport: int
    dport: int
    src: bytes
    dst: bytes
    interface: int
    cookie: int


ANY = SocketId(0, 0, bytes(4), bytes(4), 0, NO_COOKIE)
"""The id of a request that names no socket. A dump uses nothing of an id but the ports."""


def encode_id(id: SocketId) -> bytes:
    """48 bytes. Raises ValueError for an address that is neither 4 nor 16 bytes long."""
    for address in (id.src, id.dst):
        if len(address) not in (4, 16):
            raise ValueError(f"a packed address has 4 or 16 bytes, not {len(address)}")
    return ADDRESSES.pack(id.sport, id.dport, id.src, id.dst) + HANDLE.pack(
        id.interface, id.cookie & 0xFFFFFFFF, id.cookie >> 32
    )


def any_cookie(id_bytes: bytes) -> bytes:
    """The same address, and whatever cookie."""
    return id_bytes[:ADDRESS_SIZE] + bytes([0xFF] * 8)


def swapped(id_bytes: bytes) -> bytes:
    """The same with source and destination exchanged."""
    return id_bytes[2:4] + id_bytes[:2] + id_bytes[20:36] + id_bytes[4:20] + id_bytes[36:]


def unmapped_id(family: int, id_bytes: bytes) -> tuple[int, bytes]:
    """(AF_INET, the v4 form) of an id whose both addresses are v4-mapped; any other unchanged."""
    src, dst = id_bytes[4:20], id_bytes[20:36]
    if family == AF_INET or not src[:12] == dst[:12] == V4_MAPPED:
        return family, id_bytes
    return AF_INET, id_bytes[:4] + src[12:] + bytes(12) + dst[12:] + bytes(12) + id_bytes[36:]


def decode_id(buffer: Buffer, offset: int, family: int) -> SocketId:
    """The SIZE bytes at `offset`; the family says how long the addresses are."""
    sport, dport, src, dst = ADDRESSES.unpack_from(buffer, offset)
    interface, low, high = HANDLE.unpack_from(buffer, offset + ADDRESSES.size)
    length = 4 if family == AF_INET else 16
    return SocketId(sport, dport, src[:length], dst[:length], interface, low | high << 32)
