"""Conditions on a socket: small values, joined with & | ~ into a tree.

Each says what it means in Python (`matches`), whether it bounds the endpoint (`bounds`), and how it is written in the
language of ss(8) (`str`). Names that depend on a namespace (an interface, a cgroup path) are replaced by their numbers
(`resolved`) before anything is matched.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from ..errors import NotPermitted
from ..wire.reply import format_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol, Union

    from ..wire.reply import InetSocket

    Address = Union[str, IPv4Address, IPv6Address, IPv4Network, IPv6Network]
    Network = Union[IPv4Network, IPv6Network]

    class Names(Protocol):
        """Turns names into numbers, inside the namespace that is searched. Raises ValueError for an unknown one."""

        def interface_index(self, name: str) -> int: ...

        def cgroup_id(self, path: str) -> int: ...


PORT_MAX = 0xFFFF
_V4_MAPPED = bytes(10) + b"\xff\xff"
_MAPPED_NETWORK = IPv6Network("::ffff:0:0/96")


class Condition:
    """The base of every condition. Equal, and of equal hash, when of one kind with equal arguments."""

    __slots__: tuple[str, ...] = ()

    def matches(self, socket: InetSocket) -> bool:
        """Whether the socket is one of those meant."""
        raise NotImplementedError

    def bounds(self, negated: bool = False) -> bool:
        """Whether this, or its negation, names an endpoint, so that a destroy cannot hit everything by mistake."""
        return False

    @property
    def is_resolved(self) -> bool:
        """Whether there is no name in it that depends on a namespace."""
        return True

    def resolved(self, names: Names) -> Condition:
        """The same with every name replaced by its number."""
        return self

    def _arguments(self) -> tuple[Any, ...]:
        return tuple(getattr(self, slot) for slot in self.__slots__)

    def __and__(self, other: Condition) -> Condition:
        return And(self, other) if isinstance(other, Condition) else NotImplemented

    def __or__(self, other: Condition) -> Condition:
        return Or(self, other) if isinstance(other, Condition) else NotImplemented

    def __invert__(self) -> Condition:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a condition has no truth value: join conditions with & | ~, not with and, or, not")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._arguments() == other._arguments()

    def __hash__(self) -> int:
        return hash((type(self), self._arguments()))

    def __repr__(self) -> str:
        arguments = (f"{slot}={getattr(self, slot)!r}" for slot in self.__slots__)
        return f"{type(self).__name__}({', '.join(arguments)})"


class Host(Condition):
    """An address prefix on one side ("src" or "dst"); with v4 prefixes, v4-mapped v6 sockets match too.

    A v6 prefix compares the 128 bits of v6 sockets and never matches a v4 socket (kernel: inet_diag_bc_run()).
    """

    __slots__ = ("network", "side")

    def __init__(self, side: str, network: Network) -> None:
        self.side, self.network = side, network

    def matches(self, socket: InetSocket) -> bool:
        packed = socket.dst_packed if self.side == "dst" else socket.src_packed
        network = self.network
        if len(packed) * 8 != network.max_prefixlen:
            if len(packed) == 4 or packed[:12] != _V4_MAPPED:
                return False
            packed = packed[12:]
        return int.from_bytes(packed, "big") & int(network.netmask) == int(network.network_address)

    def bounds(self, negated: bool = False) -> bool:
        return not negated and self.network.prefixlen > 0

    def __str__(self) -> str:
        address = format_address(self.network.network_address)
        whole = self.network.prefixlen == self.network.max_prefixlen
        return f"{self.side} {address}" if whole else f"{self.side} {address}/{self.network.prefixlen}"


class Port(Condition):
    """A range of ports on one side ("src" or "dst"), both ends included."""

    __slots__ = ("high", "low", "side")

    def __init__(self, side: str, low: int, high: int) -> None:
        self.side, self.low, self.high = side, low, high

    def matches(self, socket: InetSocket) -> bool:
        return self.low <= (socket.dport if self.side == "dst" else socket.sport) <= self.high

    def bounds(self, negated: bool = False) -> bool:
        return not negated and (self.low > 0 or self.high < PORT_MAX)

    def __str__(self) -> str:
        word = self.side[0] + "port"
        if self.low == self.high:
            return f"{word} = {self.low}"
        if self.low == 0:
            return f"{word} <= {self.high}"
        if self.high == PORT_MAX:
            return f"{word} >= {self.low}"
        return f"( {word} >= {self.low} and {word} <= {self.high} )"


class Device(Condition):
    """Bound to an interface (SO_BINDTODEVICE): by index, or by name until that is resolved. 0 is "to none"."""

    __slots__ = ("interface",)

    def __init__(self, interface: int | str) -> None:
        self.interface = interface

    def matches(self, socket: InetSocket) -> bool:
        if isinstance(self.interface, str):
            raise ValueError(f"interface {self.interface!r} has no index yet: it depends on the namespace")
        return socket.interface == self.interface

    @property
    def is_resolved(self) -> bool:
        return not isinstance(self.interface, str)

    def resolved(self, names: Names) -> Condition:
        return Device(names.interface_index(self.interface)) if isinstance(self.interface, str) else self

    def __str__(self) -> str:
        return f"dev = {self.interface}"


class Mark(Condition):
    """SO_MARK: the bits under the mask have this value. The kernel tells marks to CAP_NET_ADMIN alone."""

    __slots__ = ("mask", "value")

    def __init__(self, value: int, mask: int) -> None:
        self.value, self.mask = value, mask

    def matches(self, socket: InetSocket) -> bool:
        mark = socket.attributes.get("mark")
        if mark is None:
            raise NotPermitted(
                1, "matching a mark: the kernel tells marks only to CAP_NET_ADMIN in the namespace's owner"
            )
        return bool(mark & self.mask == self.value)

    def __str__(self) -> str:
        return f"fwmark = {self.value:#x}/{self.mask:#x}"


class Cgroup(Condition):
    """In one cgroup v2: by id, or by path until that is resolved. A socket that tells none is in 0."""

    __slots__ = ("cgroup",)

    def __init__(self, cgroup: int | str) -> None:
        self.cgroup = cgroup

    def matches(self, socket: InetSocket) -> bool:
        if isinstance(self.cgroup, str):
            raise ValueError(f"cgroup {self.cgroup!r} has no id yet: it depends on where it is mounted")
        return bool(socket.attributes.get("cgroup_id", 0) == self.cgroup)

    @property
    def is_resolved(self) -> bool:
        return not isinstance(self.cgroup, str)

    def resolved(self, names: Names) -> Condition:
        return Cgroup(names.cgroup_id(self.cgroup)) if isinstance(self.cgroup, str) else self

    def __str__(self) -> str:
        return f"cgroup = {self.cgroup}"


class _Group(Condition):
    __slots__ = ("parts",)
    _word = ""
    parts: tuple[Condition, ...]

    def __init__(self, *parts: Condition) -> None:
        """Groups of the same kind are flattened: (a & b) & c is a & b & c."""
        flat: list[Condition] = []
        for part in parts:
            if type(part) is type(self):
                flat.extend(part.parts)
            else:
                flat.append(part)
        self.parts = tuple(flat)

    @property
    def is_resolved(self) -> bool:
        return all(part.is_resolved for part in self.parts)

    def resolved(self, names: Names) -> Condition:
        return type(self)(*(part.resolved(names) for part in self.parts))

    def _arguments(self) -> tuple[Any, ...]:
        return self.parts

    def __str__(self) -> str:
        return "( " + f" {self._word} ".join(map(str, self.parts)) + " )"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"


class And(_Group):
    """Every part matches; without parts, every socket does."""

    __slots__ = ()
    _word = "and"

    def matches(self, socket: InetSocket) -> bool:
        return all(part.matches(socket) for part in self.parts)

    def bounds(self, negated: bool = False) -> bool:
        return (all if negated else any)(part.bounds(negated) for part in self.parts)

    def __str__(self) -> str:
        return super().__str__() if self.parts else "dst *"


class Or(_Group):
    """Some part matches; without parts, no socket does."""

    __slots__ = ()
    _word = "or"

    def matches(self, socket: InetSocket) -> bool:
        return any(part.matches(socket) for part in self.parts)

    def bounds(self, negated: bool = False) -> bool:
        return (any if negated else all)(part.bounds(negated) for part in self.parts)

    def __str__(self) -> str:
        return super().__str__() if self.parts else "not dst *"


class Not(Condition):
    """The part does not match."""

    __slots__ = ("part",)

    def __init__(self, part: Condition) -> None:
        self.part = part

    def matches(self, socket: InetSocket) -> bool:
        return not self.part.matches(socket)

    def bounds(self, negated: bool = False) -> bool:
        return self.part.bounds(not negated)

    @property
    def is_resolved(self) -> bool:
        return self.part.is_resolved

    def resolved(self, names: Names) -> Condition:
        return Not(self.part.resolved(names))

    def __str__(self) -> str:
        return f"not {self.part}"


EVERYTHING = And()
"""The condition without a condition."""


# ------------------------------------------------------------------------------------ what users write


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
        if not 0 < len(interface.encode()) < 16:  # IFNAMSIZ
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
