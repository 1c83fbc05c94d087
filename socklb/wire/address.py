# SPDX-License-Identifier: MIT
"""Addresses, packed (4 or 16 bytes) or as ipaddress objects, and the rule for v4-mapped ones.

A v6 socket whose peer is ::ffff:a.b.c.d (RFC 4291, 2.5.5.2) speaks IPv4 to a.b.c.d. The kernel lists it as AF_INET6 and
tests it against v4 conditions as well as v6 ones (inet_diag_bc_run()). The rule, everywhere in this package:

- a mapped address in a condition or a backend is the v4 address, and a mapped prefix of at least /96 the v4 prefix;
- a v4 condition matches v4 sockets and mapped ones;
- a v6 condition compares the 128 bits of any v6 socket, mapped or not: ::/0 matches mapped sockets too;
- a socket keeps the address that the kernel reported.

ipaddress is imported for what needs it: it takes a tenth of the time that a short command has.
"""

from __future__ import annotations

from functools import lru_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address
    from typing import Union

    IPAddress = Union[IPv4Address, IPv6Address]

V4_MAPPED = bytes(10) + b"\xff\xff"
"""The first 12 bytes of a v4-mapped address."""


def unmapped_packed(packed: bytes) -> bytes:
    """A packed v4-mapped address as the 4 bytes of its v4 address; any other unchanged."""
    return packed[12:] if len(packed) == 16 and packed[:12] == V4_MAPPED else packed


def unmapped(address: IPAddress) -> IPAddress:
    """A v4-mapped address as its v4 address; any other unchanged."""
    return (address.version == 6 and address.ipv4_mapped) or address


def unmapped_prefix(packed: bytes, length: int) -> tuple[bytes, int]:
    """The first address and the length of a prefix of v4-mapped addresses alone (::ffff:0:0/96 or longer) as those of
    the v4 prefix; any other unchanged.
    """
    v4 = unmapped_packed(packed)
    return (packed, length) if v4 == packed else (v4, length - 96)


def packed_v4(text: str) -> bytes | None:
    """The 4 bytes of a v4 address in the usual form; None for all else, which `ipaddress` judges."""
    try:
        packed = bytes(map(int, text.split(".")))
    except ValueError:
        return None
    return packed if len(packed) == 4 and format_address(packed) == text else None


@lru_cache(maxsize=1024)  # a dump repeats the same few addresses
def from_packed(packed: bytes) -> IPAddress:
    """The ipaddress object for 4 or 16 bytes."""
    from ipaddress import IPv4Address, IPv6Address

    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def format_address(address: IPAddress | bytes) -> str:
    """As text, the same on every Python: a mapped address as ::ffff:a.b.c.d (ipaddress before 3.13: hexadecimal)."""
    packed = address if isinstance(address, bytes) else address.packed
    v4 = unmapped_packed(packed)
    if len(v4) == 4:
        text = ".".join(map(str, v4))
        return text if v4 == packed else f"::ffff:{text}"
    return _format_v6(packed) if isinstance(address, bytes) else str(address)


def _format_v6(packed: bytes) -> str:
    """As ipaddress does it: the longest run of zeros, the first of several, is left out."""
    words = [packed[at : at + 2].hex().lstrip("0") or "0" for at in range(0, 16, 2)]
    for length in range(8, 1, -1):
        for start in range(9 - length):
            end = start + length
            if words[start:end] == ["0"] * length:
                return f"{':'.join(words[:start])}::{':'.join(words[end:])}"
    return ":".join(words)


def format_endpoint(address: IPAddress | bytes, port: int | str) -> str:
    """address:port, a v6 address in brackets."""
    text = format_address(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
