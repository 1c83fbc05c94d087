# SPDX-License-Identifier: MIT
"""The functions that make conditions from checked arguments: src, dst, sport, dport, device, mark, cgroup, autobound,
uid, pid, stalled, idle.

All raise ValueError for a value that is out of range or cannot be read, TypeError for one of another type.
"""

from __future__ import annotations

from ..features import standard_module
from ..kernel.processes import process_start_time
from ..wire.address import packed_v4, unmapped
from .conditions import PORT_MAX, And, Condition, Host, Port
from .property_conditions import Autobound, Cgroup, Device, Mark, Pid, Uid
from .stuck import Idle, Stalled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
    from typing import Union

    from ..wire.address import IPAddress

    Address = Union[str, IPv4Address, IPv6Address, IPv4Network, IPv6Network]

_LONGEST = 49 * 86400  # tcp_info has u32s of milliseconds
_ALTIFNAMSIZ = 128  # linux/if.h, the final zero included


def src(address: Address, port: int | None = None) -> Condition:
    """The local address (or prefix) and, if given, the local port."""
    return _endpoint("src", address, port)


def dst(address: Address, port: int | None = None) -> Condition:
    """The peer's address (or prefix) and, if given, the peer's port.

    `dst("10.0.0.0/8")`, `dst("10.0.0.1", 80)`, `dst("2001:db8::/32")`. A v4 address matches v4-mapped v6 sockets too,
    and a mapped address is taken as the v4 one.
    """
    return _endpoint("dst", address, port)


def sport(low: int, high: int | None = None) -> Condition:
    """The local port: one, or a range with both ends included."""
    return _port_range("src", low, high)


def dport(low: int, high: int | None = None) -> Condition:
    """The peer's port: one, or a range with both ends included."""
    return _port_range("dst", low, high)


def device(interface: int | str) -> Condition:
    """Bound to this interface, by index (an int) or by name, which is looked up in the namespace that is searched: an
    alternative name counts, and a text that is no name there, but a number, is an index.
    """
    if isinstance(interface, str):
        if not 0 < len(interface.encode(errors="surrogateescape")) < _ALTIFNAMSIZ:
            raise ValueError(f"interface name {interface!r} does not have 1 to {_ALTIFNAMSIZ - 1} bytes")
        return Device(interface)
    return Device(_integer("interface index", interface, 0x7FFFFFFF))


def on_link(address: IPAddress) -> Condition | None:
    """Bound to the link of a link-local address: its zone, an interface's name or index. None for another address.

    Raises ValueError for a link-local address without one, and for another address with one.
    """
    link = getattr(address, "scope_id", None)
    plain = unmapped(address)  # 169.254.0.0/16 is link-local too, but an ordinary address for everybody
    if not (plain.version == 6 and plain.is_link_local):
        if link:
            raise ValueError(f"{address}: only a link-local address, of fe80::/10, has a link")
        return None
    if not link:
        raise ValueError(f"{address} may be another host on each link: name its link, as in {address}%eth0")
    is_index = link.isascii() and link.isdigit()
    if (is_index and link[0] == "0") or any(character.isspace() or character in "/:" for character in link):
        raise ValueError(f"{str(address)!r}: {link!r} is no interface")  # to index 0 belongs what is bound to none
    return device(int(link) if is_index else link)


def mark(value: int, mask: int = 0xFFFFFFFF) -> Condition:
    """The bits of SO_MARK under `mask` are `value`. Searching by mark needs CAP_NET_ADMIN."""
    _integer("mark", value, 0xFFFFFFFF)
    _integer("mark mask", mask, 0xFFFFFFFF)
    if value & ~mask:
        raise ValueError(f"mark {value:#x} has bits outside its mask {mask:#x}: no socket can match")
    return Mark(value, mask)


def cgroup(cgroup: int | str) -> Condition:
    """In this cgroup v2, by id or by path (absolute, or relative to the cgroup2 mount). A path that ends with / is for
    this one and all below it, as they are when the search begins.
    """
    if isinstance(cgroup, str):
        if not cgroup:
            raise ValueError("cgroup path '' is empty")
        return Cgroup(cgroup)
    return Cgroup(_integer("cgroup id", cgroup, 0xFFFFFFFFFFFFFFFF))


def autobound() -> Condition:
    """The kernel chose the local port, from the range of the namespace that is searched, as ss(8) has it. Only the
    kernel can evaluate it; `SocketFilter.matches` raises ValueError.
    """
    return Autobound()


def uid(user: int | str) -> Condition:
    """Owned by this user, by number or by name, as seen from the user namespace of the caller, where 65534 stands for
    all users that have no number in it. Matched in Python.
    """
    if isinstance(user, str):
        try:
            return Uid(standard_module("pwd", "uid NAME").getpwnam(user).pw_uid)
        except (KeyError, ValueError):  # with a NUL in it
            raise ValueError(f"there is no user {user!r}") from None
    return Uid(_integer("uid", user, 0xFFFFFFFE))


def pid(pid: int) -> Condition:
    """Held open by this process, which has this number now, when the search begins; what its children hold is theirs.
    Matched in Python, by the inodes in /proc/PID/fd: where these may not be read, neither this nor its negation matches
    any socket.
    """
    if _integer("pid", pid, 0x7FFFFFFF) == 0:
        raise ValueError("pid 0 is no process")
    return Pid(pid, process_start_time(pid))


def stalled(seconds: float) -> Condition:
    """A TCP connection that hangs: what it sent has not been acknowledged for so long, or what it asks (by zero-window
    probes; by keepalives, from the second one on) has not been answered. The age is a lower bound, made from the timer
    and struct tcp_info. Matched in Python.
    """
    return Stalled(_milliseconds("stalled", seconds))


def idle(seconds: float) -> Condition:
    """A TCP connection that has neither sent nor received data for so long; a retransmission counts as sending.
    Matched in Python.
    """
    return Idle(_milliseconds("idle", seconds))


def _milliseconds(what: str, seconds: float) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{what} takes a number of seconds, not {seconds!r}")
    if not 0 <= seconds <= _LONGEST:
        raise ValueError(f"{what} takes 0 to 49 days, which is as far as the kernel counts, not {seconds} s")
    return round(seconds * 1000)


def _endpoint(side: str, address: Address, port: int | None) -> Condition:
    host = Host(side, *_prefix(address))
    return host if port is None else And(host, _port_range(side, port, None))


def _prefix(address: Address) -> tuple[bytes, int]:
    """Its first address, packed, and its length."""
    v4 = packed_v4(address) if isinstance(address, str) else None
    if v4 is not None:
        return v4, 32
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

    if not isinstance(address, (str, IPv4Address, IPv6Address, IPv4Network, IPv6Network)):
        raise TypeError(f"an address must be a str or an ipaddress object, not {address!r}")
    if getattr(address, "scope_id", None) or (isinstance(address, str) and "%" in address):
        raise ValueError(f"{address}: zones are not supported; name the interface with device()")
    if isinstance(address, (IPv4Address, IPv6Address)):
        return address.packed, address.max_prefixlen
    network = ip_network(address, strict=False)
    return network.network_address.packed, network.prefixlen


def _port_range(side: str, low: int, high: int | None) -> Condition:
    _integer("port", low, PORT_MAX)
    if high is None:
        return Port(side, low, low)
    _integer("port", high, PORT_MAX)
    if low > high:
        raise ValueError(f"port range {low}..{high} is empty: the first is above the last")
    return Port(side, low, high)


def _integer(what: str, number: int, highest: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what} must be an int, not {number!r}")
    if not 0 <= number <= highest:
        raise ValueError(f"{what} {number} is outside 0..{highest}")
    return number
