# SPDX-License-Identifier: MIT
"""Addresses, packed (4 or 16 bytes) or as ipaddress objects, and the rule for v4-mapped ones.

A v6 socket whose peer is ::ffff:a.b.c.d (RFC 4291, 2.5.5.2) speaks IPv4 to a.b.c.d. The kernel lists it as AF_INET6 and
tests it against v4 conditions as well as v6 ones (inet_diag_bc_run()). The rule, everywhere in this package:

- a mapped address in a condition or a backend is the v4 address, and a mapped prefix of at least /96 the v4 prefix;
- a v4 condition matches v4 sockets and mapped ones;
- a v6 condition compares the 128 bits of any v6 socket, mapped or not: ::/0 matches mapped sockets too;
- a socket keeps the address that the kernel reported.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv6Network
    from typing import Union

    IPAddress = Union[IPv4Address, IPv6Address]
    Network = Union[IPv4Network, IPv6Network]

V4_MAPPED = bytes(10) + b"\xff\xff"
"""The first 12 bytes of a v4-mapped address."""


def unmapped_packed(packed: bytes) -> bytes:
    """A packed v4-mapped address as the 4 bytes of its v4 address; any other unchanged."""
    return packed[12:] if len(packed) == 16 and packed[:12] == V4_MAPPED else packed


def unmapped(address: IPAddress) -> IPAddress:
    """A v4-mapped address as its v4 address; any other unchanged."""
    return (address.version == 6 and address.ipv4_mapped) or address


def unmapped_network(network: Network) -> Network:
    """A prefix of v4-mapped addresses alone (::ffff:0:0/96 or longer) as the v4 prefix; any other unchanged."""
    if network.version == 4 or network.network_address.ipv4_mapped is None:
        return network
    return IPv4Network((int(network.network_address.ipv4_mapped), network.prefixlen - 96))


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
