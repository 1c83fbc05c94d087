# SPDX-License-Identifier: MIT
"""Addresses: packed (4 or 16 bytes) or as ipaddress objects, v4-mapped ones as the v4 addresses that they are."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    IPAddress = Union[IPv4Address, IPv6Address]

V4_MAPPED = bytes(10) + b"\xff\xff"
"""The first 12 bytes of a v4-mapped v6 address, ::ffff:a.b.c.d (RFC 4291, 2.5.5.2)."""


def unmapped_packed(packed: bytes) -> bytes:
    """A packed v4-mapped address as the 4 bytes of its v4 address; any other unchanged."""
    return packed[12:] if len(packed) == 16 and packed[:12] == V4_MAPPED else packed


def unmapped(address: IPAddress) -> IPAddress:
    """A v4-mapped address as the v4 address that it is; any other unchanged."""
    return (address.version == 6 and address.ipv4_mapped) or address


@lru_cache(maxsize=1024)  # a dump repeats the same few addresses
def from_packed(packed: bytes) -> IPAddress:
    """The ipaddress object for 4 or 16 bytes."""
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def format_address(address: IPAddress) -> str:
    """As text, the same on every Python: a mapped address as ::ffff:a.b.c.d (ipaddress before 3.13: hexadecimal)."""
    if address.version == 6 and address.ipv4_mapped is not None:
        return f"::ffff:{address.ipv4_mapped}"
    return str(address)


def format_endpoint(address: IPAddress, port: int | str) -> str:
    """address:port, a v6 address in brackets."""
    text = format_address(address)
    return f"[{text}]:{port}" if address.version == 6 else f"{text}:{port}"
