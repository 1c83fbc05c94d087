# SPDX-License-Identifier: MIT
"""Many endpoints as a decision tree, so that the kernel's work on a socket grows with the logarithm of their number.

In front stand tests that most sockets fail: of the ports, and of the prefix that all addresses have in common. An
inner node tests the prefix that its left half has in common; a leaf tests the whole address, and the port.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import namedtuple

from ..wire.address import V4_MAPPED
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
    from collections.abc import Sequence

    from ..wire.bytecode import Assembler
    from ..wire.reply import InetSocket

HOST_CODES = {"src": INET_DIAG_BC_S_COND, "dst": INET_DIAG_BC_D_COND}
LE_CODES = {"src": INET_DIAG_BC_S_LE, "dst": INET_DIAG_BC_D_LE}
GE_CODES = {"src": INET_DIAG_BC_S_GE, "dst": INET_DIAG_BC_D_GE}


_FAMILIES = {4: AF_INET, 6: AF_INET6}
_WIDTHS = {4: 32, 6: 128}
_WORTH_A_GUARD = 4  # from so many addresses on, a test of their ports or common prefix saves most sockets the tree
_FEW_PORTS = 4


class Endpoint(namedtuple("Endpoint", "version address port")):
    """A whole address, as a number, and a port or ANY_PORT."""

    __slots__ = ()


class EndpointSet:
    """Endpoints on one side ("src" or "dst"), any of which may match."""

    def __init__(self, side: str, endpoints: Sequence[Endpoint]) -> None:
        self._side = side
        self._code, self._le, self._ge = HOST_CODES[side], LE_CODES[side], GE_CODES[side]
        self._ports: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}  # by version and address
        for version, address, port in endpoints:
            self._ports[version].setdefault(address, set()).add(port)

    def matches(self, socket: InetSocket) -> bool:
        is_dst = self._side == "dst"
        packed = socket.dst_packed if is_dst else socket.src_packed
        port = socket.dport if is_dst else socket.sport
        if len(packed) == 4:
            return self._has(4, packed, port)
        return self._has(6, packed, port) or (packed[:12] == V4_MAPPED and self._has(4, packed[12:], port))

    def _has(self, version: int, packed: bytes, port: int) -> bool:
        ports = self._ports[version].get(int.from_bytes(packed, "big"), ())
        return port in ports or ANY_PORT in ports

    def emit(self, program: Assembler, no: Label) -> None:
        """Append a program that goes on behind itself for a match and to `no` for none."""
        end = Label()
        v4, v6 = self._ports[4], self._ports[6]
        if len(v4) + len(v6) >= _WORTH_A_GUARD:
            self._emit_port_guard(program, no)
        if v4 and v6:
            is_v6 = Label()
            program.test(self._code, HostCond(AF_INET, 0, ANY_PORT, bytes(4)), is_v6)  # v4, and v4-mapped
            self._emit_tree(program, 4, no, end)
            program.jump(end)
            program.place(is_v6)
        for version in (6,) if v6 else (4,):
            self._emit_tree(program, version, no, end)
        program.place(end)

    def _emit_port_guard(self, program: Assembler, no: Label) -> None:
        """Most sockets have none of the ports, and need not go through the tree: the ports if few, else their range."""
        ports = sorted(set().union(*self._ports[4].values(), *self._ports[6].values()))
        if ports[0] == ANY_PORT:
            return
        if len(ports) > _FEW_PORTS:
            program.test(self._ge, ports[0], no)
            program.test(self._le, ports[-1], no)
            return
        one_of_them = Label()
        for port in ports[:-1]:
            following = Label()
            self._test_port(program, port, following)
            program.jump(one_of_them)
            program.place(following)
        self._test_port(program, ports[-1], no)
        program.place(one_of_them)

    def _emit_tree(self, program: Assembler, version: int, no: Label, end: Label) -> None:
        addresses = sorted(self._ports[version])
        if len(addresses) >= _WORTH_A_GUARD and _common_bits(version, addresses[0], addresses[-1]):
            self._test_prefix(program, version, addresses[0], addresses[-1], no)
        self._emit_node(program, version, addresses, no, end)

    def _emit_node(self, program: Assembler, version: int, addresses: Sequence[int], no: Label, end: Label) -> None:
        """The last leaf goes on behind itself, the others jump to `end`."""
        if len(addresses) == 1:
            self._emit_leaf(program, version, addresses[0], no, end)
            return
        width = _WIDTHS[version]
        differing = width - 1 - _common_bits(version, addresses[0], addresses[-1])
        middle = bisect_left(addresses, addresses[-1] >> differing << differing)
        right = Label()
        self._test_prefix(program, version, addresses[0], addresses[middle - 1], right)
        self._emit_node(program, version, addresses[:middle], no, end)
        program.jump(end)
        program.place(right)
        self._emit_node(program, version, addresses[middle:], no, end)

    def _emit_leaf(self, program: Assembler, version: int, address: int, no: Label, end: Label) -> None:
        ports = self._ports[version][address]
        port = ANY_PORT if ANY_PORT in ports or len(ports) > 1 else min(ports)
        packed = address.to_bytes(_WIDTHS[version] // 8, "big")
        program.test(self._code, HostCond(_FAMILIES[version], _WIDTHS[version], port, packed), no)
        if ANY_PORT not in ports and len(ports) > 1:
            self._emit_ports(program, sorted(ports), no, end)

    def _emit_ports(self, program: Assembler, ports: Sequence[int], no: Label, end: Label) -> None:
        """A binary search: below the middle, or from it on; what remains is one port, with nothing above it."""
        if len(ports) == 1:
            self._test_port(program, ports[0], no)
            return
        middle = len(ports) // 2
        upper = Label()
        program.test(self._le, ports[middle - 1], upper)
        self._emit_ports(program, ports[:middle], no, end)
        program.jump(end)
        program.place(upper)
        self._emit_ports(program, ports[middle:], no, end)

    def _test_port(self, program: Assembler, port: int, no: Label) -> None:
        """As a condition without an address: every kernel knows that, and not every one an equal operator."""
        program.test(self._code, HostCond(0, 0, port, b""), no)

    def _test_prefix(self, program: Assembler, version: int, first: int, last: int, no: Label) -> None:
        packed = first.to_bytes(_WIDTHS[version] // 8, "big")
        prefix_len = _common_bits(version, first, last)
        program.test(self._code, HostCond(_FAMILIES[version], prefix_len, ANY_PORT, packed), no)


def _common_bits(version: int, first: int, last: int) -> int:
    """How many leading bits two addresses share; all between them share those too."""
    return _WIDTHS[version] - (first ^ last).bit_length()
