# SPDX-License-Identifier: MIT
"""Conditions on a socket: immutable values, joined with & | ~ into a tree.

A condition is evaluated in Python (`evaluate`) or in the kernel (`emit` appends its bytecode), and is written in the
language of ss(8) (`str`). What depends on the network namespace (an interface's name, a cgroup's path, the range of
`autobound`) must be replaced by numbers (`resolved`) before it is evaluated.
The functions in constructors.py check the arguments; the classes here do not.
"""

from __future__ import annotations

from ..values import Value
from ..wire.address import format_address, unmapped_packed, unmapped_prefix
from ..wire.bytecode import ANY_PORT, HostCond, Label
from ..wire.reply import InetSocket
from ..wire.socket_id import AF_INET, AF_INET6
from .endpoints import GE_OPS, HOST_OPS, LE_OPS, Endpoint, EndpointSet, port_alone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Protocol

    from ..wire.bytecode import Assembler

    class Names(Protocol):
        """Looks up names in the namespace that is searched. All but the last raise ValueError for an unknown one."""

        def interface_index(self, name: str) -> int: ...

        def cgroup_id(self, path: str) -> int: ...

        def cgroup_ids_below(self, path: str) -> frozenset[int]: ...

        def process_sockets(self, pid: int, start: int) -> frozenset[int] | None: ...

        def local_ports(self) -> tuple[int, int]: ...


PORT_MAX = 0xFFFF
MAX_DEPTH = 100
"""How deep conditions may be nested: what goes through them is recursive, and more is a mistake."""


def check_socket(socket: InetSocket) -> None:
    """Raises TypeError for what is not an InetSocket."""
    if not isinstance(socket, InetSocket):
        raise TypeError(f"a filter matches an InetSocket, as find_sockets() yields them, not {socket!r}")


class Condition(Value):
    """The base class of all conditions."""

    __slots__ = ()
    _depth = 0
    needs_info = False
    """Whether it is on struct tcp_info, which the kernel sends on request."""

    def matches(self, socket: InetSocket) -> bool:
        """Whether the socket is known to match.

        Raises ValueError for a name that is not resolved and for `autobound`, TypeError for what is no InetSocket.
        """
        check_socket(socket)
        return self.evaluate(socket) is True

    def evaluate(self, socket: InetSocket) -> bool | None:
        """Whether the socket matches; None where its row does not say. `and`, `or`, `not` follow three-valued logic."""
        raise NotImplementedError

    def emit(self, program: Assembler, no: Label) -> None:
        """Append bytecode that falls through for a match, and jumps to `no` otherwise."""
        raise NotImplementedError

    def supported(self, missing_ops: frozenset[int]) -> bool:
        """Whether a kernel without these bytecode ops can evaluate this test (of an And, Or or Not, ask its leaves)."""
        return True

    @property
    def is_resolved(self) -> bool:
        """Whether it contains nothing that depends on the namespace."""
        return True

    def resolved(self, names: Names) -> Condition:
        """The same with all of that replaced by numbers."""
        return self

    def _unresolved(self) -> ValueError:
        return ValueError(f"'{self}' is not resolved: what it stands for depends on the namespace, and may change")

    def __and__(self, other: Condition) -> Condition:
        return And(self, other) if isinstance(other, Condition) else NotImplemented

    def __or__(self, other: Condition) -> Condition:
        return Or(self, other) if isinstance(other, Condition) else NotImplemented

    def __invert__(self) -> Condition:
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a condition has no truth value: join conditions with & | ~, not with and, or, not")


class Host(Condition):
    """An address prefix on one side, "src" or "dst": its first address, packed, and its length.

    Mapped addresses follow the rule of wire/address.py: a mapped prefix becomes the v4 one, a v4 prefix matches mapped
    sockets too, a v6 prefix compares the 128 bits of v6 sockets and never matches a v4 socket.
    """

    __slots__ = ("_free", "_prefix", "_size", "address", "length", "side")
    side: str
    address: bytes
    length: int
    _size: int  # of the addresses, in bytes
    _free: int  # how many bits of them are
    _prefix: int

    def __init__(self, side: str, address: bytes, length: int) -> None:
        address, length = unmapped_prefix(address, length)
        free = len(address) * 8 - length
        self._set(side=side, address=address, length=length)
        self._set(_size=len(address), _free=free, _prefix=int.from_bytes(address, "big") >> free)

    def evaluate(self, socket: InetSocket) -> bool:
        packed = socket.dst_packed if self.side == "dst" else socket.src_packed
        if self._size == 4:
            packed = unmapped_packed(packed)
        return len(packed) == self._size and int.from_bytes(packed, "big") >> self._free == self._prefix

    def emit(self, program: Assembler, no: Label, port: int = ANY_PORT) -> None:
        """One instruction, which can test a port as well."""
        family = AF_INET if self._size == 4 else AF_INET6
        program.test(HOST_OPS[self.side], HostCond(family, self.length, port, self.address), no)

    @property
    def is_exact(self) -> bool:
        """Whether it is one address."""
        return not self._free

    def __str__(self) -> str:
        address = format_address(self.address)
        if not self.is_exact:
            return f"{self.side} {address}/{self.length}"
        return f"{self.side} [{address}]" if self._size == 16 else f"{self.side} {address}"


class Port(Condition):
    """A range of ports on one side, "src" or "dst", both ends included."""

    __slots__ = ("high", "low", "side")
    side: str
    low: int
    high: int

    def __init__(self, side: str, low: int, high: int) -> None:
        self._set(side=side, low=low, high=high)

    def evaluate(self, socket: InetSocket) -> bool:
        return self.low <= (socket.dport if self.side == "dst" else socket.sport) <= self.high

    def emit(self, program: Assembler, no: Label) -> None:
        if self.is_exact:
            program.test(HOST_OPS[self.side], port_alone(self.low), no)
            return
        if self.low > 0:
            program.test(GE_OPS[self.side], self.low, no)
        if self.high < PORT_MAX:
            program.test(LE_OPS[self.side], self.high, no)

    @property
    def is_exact(self) -> bool:
        """Whether it is one port."""
        return self.low == self.high

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
    """Joins its parts; parts of its own kind are flattened: (a & b) & c is a & b & c."""

    __slots__ = ("_depth", "parts")
    _word = ""
    parts: tuple[Condition, ...]

    def __init__(self, *parts: Condition) -> None:
        flat: list[Condition] = []
        for part in parts:
            if type(part) is type(self):
                flat.extend(part.parts)
            else:
                flat.append(part)
        self._set(parts=tuple(flat), _depth=_depth_above(flat))

    @property
    def is_resolved(self) -> bool:
        return all(part.is_resolved for part in self.parts)

    def resolved(self, names: Names) -> Condition:
        return type(self)(*(part.resolved(names) for part in self.parts))

    def _fields(self) -> dict[str, Any]:
        return {"parts": self.parts}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.parts

    def __str__(self) -> str:
        return "( " + f" {self._word} ".join(map(str, self.parts)) + " )"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"


class And(_Group):
    """Every part matches; without parts, every socket does."""

    __slots__ = ()
    _word = "and"

    def evaluate(self, socket: InetSocket) -> bool | None:
        result: bool | None = True
        for part in self.parts:
            value = part.evaluate(socket)
            if not value:
                if value is False:
                    return False
                result = None
        return result

    def emit(self, program: Assembler, no: Label) -> None:
        """One part after another; an address of one side takes an exact port of that side along."""
        ports = {part.side: part for part in self.parts if isinstance(part, Port) and part.is_exact}
        hosts = {part.side for part in self.parts if isinstance(part, Host)}
        for part in self.parts:
            if isinstance(part, Host) and part.side in ports:
                part.emit(program, no, ports[part.side].low)
            elif not (isinstance(part, Port) and part.side in hosts and part is ports.get(part.side)):
                part.emit(program, no)

    def __str__(self) -> str:
        return super().__str__() if self.parts else "dst *"


class Or(_Group):
    """Some part matches; without parts, no socket does."""

    __slots__ = ("_alternatives",)
    _word = "or"
    _alternatives: list[Condition | EndpointSet]

    def __init__(self, *parts: Condition) -> None:
        super().__init__(*parts)
        self._set(_alternatives=_gather_endpoints(self.parts))

    def evaluate(self, socket: InetSocket) -> bool | None:
        result: bool | None = False
        for part in self._alternatives:
            value = part.evaluate(socket)
            if value:
                return True
            if value is None:
                result = None
        return result

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

    def __str__(self) -> str:
        return super().__str__() if self.parts else "not dst *"


class Not(Condition):
    """The part does not match."""

    __slots__ = ("_depth", "part")
    part: Condition

    def __init__(self, part: Condition) -> None:
        self._set(part=part, _depth=_depth_above([part]))

    def __invert__(self) -> Condition:
        return self.part

    def evaluate(self, socket: InetSocket) -> bool | None:
        value = self.part.evaluate(socket)
        return None if value is None else not value

    def emit(self, program: Assembler, no: Label) -> None:
        otherwise = Label()
        self.part.emit(program, otherwise)
        program.jump(no)
        program.place(otherwise)

    @property
    def is_resolved(self) -> bool:
        return self.part.is_resolved

    def resolved(self, names: Names) -> Condition:
        return Not(self.part.resolved(names))

    def __str__(self) -> str:
        return f"not {self.part}"


def _depth_above(parts: list[Condition]) -> int:
    depth = 1 + max((part._depth for part in parts), default=0)
    if depth > MAX_DEPTH:
        raise ValueError(f"conditions are nested more than {MAX_DEPTH} deep")
    return depth


EVERYTHING = And()
"""Matches every socket."""


def joined(kind: type[And] | type[Or], parts: Iterable[Condition]) -> Condition:
    """The parts in a group of this kind, but one part as it is: also the one that is left when groups are flattened."""
    several = tuple(parts)
    group = several[0] if len(several) == 1 else kind(*several)
    return group.parts[0] if isinstance(group, kind) and len(group.parts) == 1 else group


def pushed_inward(
    condition: Condition, literal: Callable[[Condition, bool], Condition], negated: bool = False
) -> Condition:
    """The condition (or its negation) without a `not` before an `and`, `or` or `not`; `literal` makes what stands for a
    single test, or, if true is passed, for its negation.
    """
    if isinstance(condition, Not):
        return pushed_inward(condition.part, literal, not negated)
    if isinstance(condition, (And, Or)):
        kind = And if isinstance(condition, And) is not negated else Or
        return joined(kind, (pushed_inward(part, literal, negated) for part in condition.parts))
    return literal(condition, negated)


def leaves(condition: Condition) -> Iterator[Condition]:
    """The single tests in a condition, in no particular order."""
    pending = [condition]
    while pending:
        condition = pending.pop()
        if isinstance(condition, _Group):
            pending.extend(condition.parts)
        elif isinstance(condition, Not):
            pending.append(condition.part)
        else:
            yield condition


def endpoint_of(condition: Condition) -> tuple[str, Endpoint | None]:
    """(side, endpoint) of a condition that is one address, or one address and one port of a side; else ("", None)."""
    host, port = condition, ANY_PORT
    if isinstance(condition, And) and len(condition.parts) == 2:
        host, exact = condition.parts
        if not (isinstance(host, Host) and isinstance(exact, Port) and exact.is_exact and exact.side == host.side):
            return "", None
        port = exact.low
    if not (isinstance(host, Host) and host.is_exact):
        return "", None
    return host.side, Endpoint(host.address, port)


def _gather_endpoints(parts: tuple[Condition, ...]) -> list[Condition | EndpointSet]:
    """The parts of an `or`, with the endpoints of each side among them gathered into one set."""
    endpoints: dict[str, list[Endpoint]] = {}
    others: list[Condition | EndpointSet] = []
    for part in parts:
        side, endpoint = endpoint_of(part)
        if endpoint is None:
            others.append(part)
        else:
            endpoints.setdefault(side, []).append(endpoint)
    return [EndpointSet(side, several) for side, several in endpoints.items()] + others
