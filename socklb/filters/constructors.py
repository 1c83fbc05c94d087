# SPDX-License-Identifier: MIT
"""The words that conditions are made with: src, dst, sport, dport, device, mark, cgroup, autobound."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from .conditions import PORT_MAX, And, Condition, Host, Port
from .traits import Autobound, Cgroup, Device, Mark

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    from .conditions import Network

    Address = Union[str, IPv4Address, IPv6Address, IPv4Network, IPv6Network]

_MAPPED_NETWORK = IPv6Network("::ffff:0:0/96")


def src(address: Address, port: int | None = None) -> Condition:
    """The local address (or prefix) and, if given, the local port."""
    return _endpoint("src", address, port)


def dst(address: Address, port: int | None = None) -> Condition:
    """The peer's address (or prefix) and, if given, the peer's port.

    `dst("10.0.0.0/8")`, `dst("10.0.0.1", 80)`, `dst("2001:db8::/32")`. A v4 address means v4-mapped v6 sockets too,
    and a mapped address means the v4 one. Raises ValueError for what is no address, TypeError for another type.
    """
    return _endpoint("dst", address, port)


def sport(low: int, high: int | None = None) -> Condition:
    """The local port: one, or a range with both ends."""
    return _port_range("src", low, high)


def dport(low: int, high: int | None = None) -> Condition:
    """The peer's port: one, or a range with both ends. Raises ValueError outside 0..65535 or upside down."""
    return _port_range("dst", low, high)


def device(interface: int | str) -> Condition:
    """Bound to this interface, by name or index; a name is looked up in the namespace that is searched."""
    if isinstance(interface, str):
        if not 0 < len(interface.encode(errors="surrogateescape")) < 16:  # IFNAMSIZ
            raise ValueError(f"interface name {interface!r} does not have 1 to 15 bytes")
        return Device(interface)
    return Device(_integer("interface index", interface, 0x7FFFFFFF))


def mark(value: int, mask: int = 0xFFFFFFFF) -> Condition:
    """The bits of SO_MARK under `mask` are `value`. Only a caller with CAP_NET_ADMIN can search for marks."""
    _integer("mark", value, 0xFFFFFFFF)
    _integer("mark mask", mask, 0xFFFFFFFF)
    if value & ~mask:
        raise ValueError(f"mark {value:#x} has bits outside its mask {mask:#x}: no socket can match")
    return Mark(value, mask)


def cgroup(cgroup: int | str) -> Condition:
    """In this cgroup v2, by id or by path (absolute, or below the cgroup2 mount)."""
    if isinstance(cgroup, str):
        if not cgroup:
            raise ValueError("an empty cgroup path")
        return Cgroup(cgroup)
    return Cgroup(_integer("cgroup id", cgroup, 0xFFFFFFFFFFFFFFFF))


def autobound() -> Condition:
    """The system chose the local port. Only the kernel can tell; `SocketFilter.matches` raises ValueError."""
    return Autobound()


def _endpoint(side: str, address: Address, port: int | None) -> Condition:
    host = Host(side, _network(address))
    return host if port is None else And(host, _port_range(side, port, None))


def _network(address: Address) -> Network:
    if not isinstance(address, (str, IPv4Address, IPv6Address, IPv4Network, IPv6Network)):
        raise TypeError(f"an address is a str or an ipaddress object, not {address!r}")
    if getattr(address, "scope_id", None) or (isinstance(address, str) and "%" in address):
        raise ValueError(f"{address}: zones are not supported; name the interface with device()")
    network = ip_network(address, strict=False)
    if network.version == 6 and network.prefixlen >= 96 and network.subnet_of(_MAPPED_NETWORK):
        return IPv4Network((network.network_address.packed[12:], network.prefixlen - 96))
    return network


def _port_range(side: str, low: int, high: int | None) -> Condition:
    _integer("port", low, PORT_MAX)
    if high is None:
        return Port(side, low, low)
    _integer("port", high, PORT_MAX)
    if low > high:
        raise ValueError(f"port range {low}..{high} is upside down")
    return Port(side, low, high)


def _integer(what: str, number: int, highest: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what} is an int, not {number!r}")
    if not 0 <= number <= highest:
        raise ValueError(f"{what} {number} is outside 0..{highest}")
    return number
