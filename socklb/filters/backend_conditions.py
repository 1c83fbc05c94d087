# SPDX-License-Identifier: MIT
"""From the address and port of a backend to what its clients are matched by."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..wire.address import from_packed, unmapped
from .conditions import PORT_MAX, And, Condition, Host, Or, endpoint_of, joined
from .constructors import dport, dst, on_link
from .endpoints import Endpoint
from .peers import Peers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from .constructors import Address


def condition_to_any(backends: Collection[tuple[Address, int, object]]) -> Condition:
    """One of these, whose protocol is the filter's."""
    endpoints = [_endpoint_to(address, port) for address, port, _ in backends]
    on_links = [condition_to(address, port) for (address, port, _), found in zip(backends, endpoints) if found is None]
    peers = [Peers(filter(None, endpoints))] if len(on_links) < len(endpoints) else []
    return joined(Or, [*peers, *on_links])


def _endpoint_to(address: Address, port: int) -> Endpoint | None:
    """What many backends are; None for one on a link. Raises as `condition_to` does."""
    plain = address
    if isinstance(address, str):
        with suppress(ValueError):
            plain = ip_address(address)
    if isinstance(plain, (IPv4Address, IPv6Address)) and type(port) is int and 0 <= port <= PORT_MAX:
        plain = unmapped(plain)
        if plain.version == 4 or not (plain.is_link_local or plain.scope_id):
            return Endpoint(plain.packed, port)
    _, endpoint = endpoint_of(condition_to(address, port))
    return endpoint


def condition_to(address: Address, port: int) -> Condition:
    """One address and one port, on its link: a prefix, or no port, would match more than a backend."""
    plain, _, zone = str(address).partition("%") if isinstance(address, (str, IPv6Address)) else (address, "", "")
    host = dst(plain if zone else address)
    if not (isinstance(host, Host) and host.is_exact):
        raise ValueError(f"the address of a backend must be a single one, not {address}")
    single = from_packed(host.address)
    link = on_link(IPv6Address(f"{single}%{zone}") if zone else single)
    return And(host, dport(port)) if link is None else And(host, dport(port), link)
