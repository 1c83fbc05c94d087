# SPDX-License-Identifier: MIT
"""Conditions on a socket: small values, joined with & | ~ into a tree.

Each says what it means in Python (`matches`) and how the kernel is told (`emit`), whether it bounds the endpoint
(`bounds`), and how it is written in the language of ss(8) (`str`). Names that depend on a namespace (an interface, a
cgroup path) are replaced by their numbers (`resolved`) before anything is matched or emitted.
"""

from __future__ import annotations

from ..wire import bytecode as bc
from ..wire.address import V4_MAPPED, format_address
from ..wire.bytecode import ANY_PORT, HostCond, Label
from ..wire.socket_id import AF_INET, AF_INET6
from .endpoints import GE_CODES, HOST_CODES, LE_CODES, Endpoint, EndpointSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network
    from typing import Any, Protocol, Union

    from ..wire.bytecode import Assembler
    from ..wire.reply import InetSocket

    Network = Union[IPv4Network, IPv6Network]

    class Names(Protocol):
        """Turns names into numbers, inside the namespace that is searched. Raises ValueError for an unknown one."""

        def interface_index(self, name: str) -> int: ...

        def cgroup_id(self, path: str) -> int: ...


PORT_MAX = 0xFFFF
_EQ_CODES = {"src": bc.INET_DIAG_BC_S_EQ, "dst": bc.INET_DIAG_BC_D_EQ}


class Condition:
    """The base of every condition. Equal, and of equal hash, when of one kind with equal arguments."""

    __slots__: tuple[str, ...] = ()
    code = bc.INET_DIAG_BC_NOP  # the bytecode that a test cannot do without, if it is one that not every kernel has

    def matches(self, socket: InetSocket) -> bool:
        """Whether the socket is one of those meant."""
        raise NotImplementedError

    def emit(self, program: Assembler, no: Label) -> None:
        """Append what tells the kernel: a match goes on behind it, anything else goes to `no`."""
        raise NotImplementedError

    def expressible(self, lacks: frozenset[int]) -> bool:
        """Whether a kernel that lacks these bytecodes can be told."""
        return self.code not in lacks

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
            if len(packed) == 4 or packed[:12] != V4_MAPPED:
                return False
            packed = packed[12:]
        return int.from_bytes(packed, "big") & int(network.netmask) == int(network.network_address)

    def emit(self, program: Assembler, no: Label, port: int = ANY_PORT) -> None:
        """The kernel takes a port along with an address."""
        network = self.network
        family = AF_INET if network.version == 4 else AF_INET6
        argument = HostCond(family, network.prefixlen, port, network.network_address.packed)
        program.test(HOST_CODES[self.side], argument, no)

    def bounds(self, negated: bool = False) -> bool:
        return not negated and self.network.prefixlen > 0

    def __str__(self) -> str:
        address = format_address(self.network.network_address)
        if self.network.prefixlen < self.network.max_prefixlen:
            return f"{self.side} {address}/{self.network.prefixlen}"
        return f"{self.side} [{address}]" if self.network.version == 6 else f"{self.side} {address}"


class Port(Condition):
    """A range of ports on one side ("src" or "dst"), both ends included."""

    __slots__ = ("high", "low", "side")

    def __init__(self, side: str, low: int, high: int) -> None:
        self.side, self.low, self.high = side, low, high

    def matches(self, socket: InetSocket) -> bool:
        return self.low <= (socket.dport if self.side == "dst" else socket.sport) <= self.high

    def emit(self, program: Assembler, no: Label) -> None:
        if self.is_exact and _EQ_CODES[self.side] not in program.lacks:
            program.test(_EQ_CODES[self.side], self.low, no)
            return
        if self.low > 0:
            program.test(GE_CODES[self.side], self.low, no)
        if self.high < PORT_MAX:
            program.test(LE_CODES[self.side], self.high, no)

    @property
    def is_exact(self) -> bool:
        """Whether it is one port."""
        return self.low == self.high

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

    def emit(self, program: Assembler, no: Label) -> None:
        """One part after another; an exact port is told along with an address of its side."""
        ports = {part.side: part for part in self.parts if isinstance(part, Port) and part.is_exact}
        hosts = {part.side for part in self.parts if isinstance(part, Host)}
        for part in self.parts:
            if isinstance(part, Host) and part.side in ports:
                part.emit(program, no, ports[part.side].low)
            elif not (isinstance(part, Port) and part.side in hosts and part is ports.get(part.side)):
                part.emit(program, no)

    def bounds(self, negated: bool = False) -> bool:
        return (all if negated else any)(part.bounds(negated) for part in self.parts)

    def __str__(self) -> str:
        return super().__str__() if self.parts else "dst *"


class Or(_Group):
    """Some part matches; without parts, no socket does."""

    __slots__ = ("_alternatives",)
    _word = "or"

    def __init__(self, *parts: Condition) -> None:
        super().__init__(*parts)
        self._alternatives = self._gathered()

    def matches(self, socket: InetSocket) -> bool:
        return any(part.matches(socket) for part in self._alternatives)

    def emit(self, program: Assembler, no: Label) -> None:
        end = Label()
        *others, last = self._alternatives or [Not(EVERYTHING)]
        for part in others:
            following = Label()
            part.emit(program, following)
            program.jump(end)
            program.place(following)
        last.emit(program, no)
        program.place(end)

    def _gathered(self) -> list[Condition | EndpointSet]:
        """The parts, with the endpoints of each side among them gathered into one."""
        endpoints: dict[str, list[Endpoint]] = {}
        others: list[Condition | EndpointSet] = []
        for part in self.parts:
            side, endpoint = endpoint_of(part)
            if endpoint is None:
                others.append(part)
            else:
                endpoints.setdefault(side, []).append(endpoint)
        return [EndpointSet(side, several) for side, several in endpoints.items()] + others

    def bounds(self, negated: bool = False) -> bool:
        return (any if negated else all)(part.bounds(negated) for part in self.parts)

    def __str__(self) -> str:
        return super().__str__() if self.parts else "not dst *"


class Not(Condition):
    """The part does not match."""

    __slots__ = ("part",)

    def __init__(self, part: Condition) -> None:
        self.part = part

    def __invert__(self) -> Condition:
        return self.part

    def matches(self, socket: InetSocket) -> bool:
        return not self.part.matches(socket)

    def emit(self, program: Assembler, no: Label) -> None:
        otherwise = Label()
        self.part.emit(program, otherwise)
        program.jump(no)
        program.place(otherwise)

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


def endpoint_of(condition: Condition) -> tuple[str, Endpoint | None]:
    """(side, endpoint) of a condition that is a whole address, or one and a port of its side; else ("", None)."""
    host, port = condition, ANY_PORT
    if isinstance(condition, And) and len(condition.parts) == 2:
        host, exact = condition.parts
        if not (isinstance(host, Host) and isinstance(exact, Port) and exact.is_exact and exact.side == host.side):
            return "", None
        port = exact.low
    if not isinstance(host, Host) or host.network.prefixlen != host.network.max_prefixlen:
        return "", None
    return host.side, Endpoint(host.network.version, int(host.network.network_address), port)
