# SPDX-License-Identifier: MIT
"""Many endpoints as a decision tree: the kernel's work on a socket grows with the logarithm of their number.

The tests that most sockets fail come first: of the ports, and of the prefix that all addresses have in common. An
inner node tests the prefix that its left half has in common; a leaf tests the whole address, and the port.
The rule for v4-mapped addresses is in `wire.address`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import namedtuple

from ..wire.address import unmapped_packed
from ..wire.bytecode import (
    ANY_PORT,
    INET_DIAG_BC_D_COND,
    INET_DIAG_BC_D_GE,
    INET_DIAG_BC_D_LE,
    INET_DIAG_BC_S_COND,
    INET_DIAG_BC_S_GE,
    INET_DIAG_BC_S_LE,
    HostCond,
    Label,
)
from ..wire.socket_id import AF_INET, AF_INET6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..wire.bytecode import Assembler
    from ..wire.reply import InetSocket

HOST_OPS = {"src": INET_DIAG_BC_S_COND, "dst": INET_DIAG_BC_D_COND}
LE_OPS = {"src": INET_DIAG_BC_S_LE, "dst": INET_DIAG_BC_D_LE}
GE_OPS = {"src": INET_DIAG_BC_S_GE, "dst": INET_DIAG_BC_D_GE}

_FAMILIES = {4: AF_INET, 16: AF_INET6}  # by the size of an address
_WORTH_A_GUARD = 4  # from so many addresses on, a test of their ports or common prefix saves most sockets the tree
_FEW_PORTS = 4


def port_alone(port: int) -> HostCond:
    """A host condition of family 0: no address, one port. INET_DIAG_BC_S_EQ and D_EQ came later, with Linux 5.0."""
    return HostCond(0, 0, port, b"")


class Endpoint(namedtuple("Endpoint", "address port")):
    """A packed address, not a v4-mapped one, and a port or ANY_PORT."""

    __slots__ = ()


class EndpointSet:
    """Endpoints on one side ("src" or "dst"), any of which may match."""

    __slots__ = ("_endpoints", "_has_any_port", "_op", "_side")

    def __init__(self, side: str, endpoints: Iterable[Endpoint]) -> None:
        self._side, self._op = side, HOST_OPS[side]
        self._endpoints = frozenset(endpoints)
        self._has_any_port = any(port == ANY_PORT for _, port in self._endpoints)

    def evaluate(self, socket: InetSocket) -> bool:
        is_dst = self._side == "dst"
        address = unmapped_packed(socket.dst_packed if is_dst else socket.src_packed)
        found = (address, socket.dport if is_dst else socket.sport) in self._endpoints
        return found or (self._has_any_port and (address, ANY_PORT) in self._endpoints)

    def emit(self, program: Assembler, no: Label) -> None:
        """Append bytecode that falls through for a match, and jumps to `no` otherwise."""
        end = Label()
        ports: dict[bytes, list[int]] = {}  # by address, both in order
        for address, port in sorted(self._endpoints):
            ports.setdefault(address, []).append(port)
        if len(ports) >= _WORTH_A_GUARD:
            self._emit_port_guard(program, no)
        v4, v6 = ({one: ports[one] for one in ports if len(one) == size} for size in (4, 16))
        if v4 and v6:
            is_v6 = Label()
            program.test(self._op, HostCond(AF_INET, 0, ANY_PORT, bytes(4)), is_v6)  # v4, and v4-mapped
            self._emit_tree(program, v4, no, end)
            program.jump(end)
            program.place(is_v6)
        self._emit_tree(program, v6 or v4, no, end)
        program.place(end)

    def emit_guard(self, program: Assembler, no: Label) -> None:
        """Append bytecode that keeps away what has none of the ports, or another prefix than all have in common."""
        self._emit_port_guard(program, no)
        first, last = (choose(address for address, _ in self._endpoints) for choose in (min, max))
        if len({len(address) for address, _ in self._endpoints}) == 1 and _common_bits(first, last):
            self._test_prefix(program, first, last, no)

    def _emit_port_guard(self, program: Assembler, no: Label) -> None:
        """Keep sockets that have none of the ports out of the tree: by each port if they are few, else by range."""
        ports = sorted({port for _, port in self._endpoints})
        if ports[0] == ANY_PORT:
            return
        if len(ports) > _FEW_PORTS:
            program.test(LE_OPS[self._side], ports[-1], no)  # first: the peers of servers have high ports
            program.test(GE_OPS[self._side], ports[0], no)
            return
        one_of_them = Label()
        for port in ports[:-1]:
            following = Label()
            program.test(self._op, port_alone(port), following)
            program.jump(one_of_them)
            program.place(following)
        program.test(self._op, port_alone(ports[-1]), no)
        program.place(one_of_them)

    def _emit_tree(self, program: Assembler, ports: Mapping[bytes, Sequence[int]], no: Label, end: Label) -> None:
        addresses = list(ports)
        if len(addresses) >= _WORTH_A_GUARD and _common_bits(addresses[0], addresses[-1]):
            self._test_prefix(program, addresses[0], addresses[-1], no)
        self._emit_node(program, addresses, ports, no, end)

    def _emit_node(
        self,
        program: Assembler,
        addresses: Sequence[bytes],
        ports: Mapping[bytes, Sequence[int]],
        no: Label,
        end: Label,
    ) -> None:
        """The last leaf falls through, the others jump to `end`."""
        if len(addresses) == 1:
            self._emit_leaf(program, addresses[0], ports[addresses[0]], no, end)
            return
        middle = _first_of_right_half(addresses)
        right = Label()
        self._test_prefix(program, addresses[0], addresses[middle - 1], right)
        self._emit_node(program, addresses[:middle], ports, no, end)
        program.jump(end)
        program.place(right)
        self._emit_node(program, addresses[middle:], ports, no, end)

    def _emit_leaf(self, program: Assembler, address: bytes, ports: Sequence[int], no: Label, end: Label) -> None:
        is_any = ports[0] == ANY_PORT
        port = ANY_PORT if is_any or len(ports) > 1 else ports[0]
        program.test(self._op, HostCond(_FAMILIES[len(address)], len(address) * 8, port, address), no)
        if not is_any and len(ports) > 1:
            self._emit_ports(program, ports, no, end)

    def _emit_ports(self, program: Assembler, ports: Sequence[int], no: Label, end: Label) -> None:
        """A binary search: below the middle, or from it on; what remains is one port, with nothing above it."""
        if len(ports) == 1:
            program.test(self._op, port_alone(ports[0]), no)
            return
        middle = len(ports) // 2
        upper = Label()
        program.test(LE_OPS[self._side], ports[middle - 1], upper)
        self._emit_ports(program, ports[:middle], no, end)
        program.jump(end)
        program.place(upper)
        self._emit_ports(program, ports[middle:], no, end)

    def _test_prefix(self, program: Assembler, first: bytes, last: bytes, no: Label) -> None:
        """The prefix that two addresses share, and so all between them."""
        program.test(self._op, HostCond(_FAMILIES[len(first)], _common_bits(first, last), ANY_PORT, first), no)


def _common_bits(first: bytes, last: bytes) -> int:
    """How many leading bits two addresses share."""
    return len(first) * 8 - (int.from_bytes(first, "big") ^ int.from_bytes(last, "big")).bit_length()


def _first_of_right_half(addresses: Sequence[bytes]) -> int:
    """Where sorted addresses divide: the index of the first that has the first bit set in which they differ."""
    size = len(addresses[-1])
    differing = size * 8 - 1 - _common_bits(addresses[0], addresses[-1])
    lowest = int.from_bytes(addresses[-1], "big") >> differing << differing
    return bisect_left(addresses, lowest.to_bytes(size, "big"))
