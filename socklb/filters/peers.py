# SPDX-License-Identifier: MIT
"""The condition that the peer is one of many endpoints: tens of thousands of backends."""

from __future__ import annotations

from ..wire.address import format_address
from .conditions import Condition
from .endpoints import Endpoint, EndpointSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..wire.bytecode import Assembler, Label
    from ..wire.reply import InetSocket

_PROGRAM = 64_000  # bytes; an attribute holds 65,532, guards are less than the rest
_BYTES = {4: 36, 16: 60}  # of a program for an address, and its port, by the size of the address


class Peers(Condition):
    """The peer is one of these endpoints, each a packed address (not a v4-mapped one) and a port.

    It matches what an `or` of them does, and is made, compiled and matched without a condition for each.
    """

    __slots__ = ("_endpoint_set", "endpoints")
    endpoints: frozenset[Endpoint]
    _endpoint_set: EndpointSet

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        kept = frozenset(endpoints)
        self._set(endpoints=kept, _endpoint_set=EndpointSet("dst", kept))

    def evaluate(self, socket: InetSocket) -> bool:
        return self._endpoint_set.evaluate(socket)

    def emit(self, program: Assembler, no: Label) -> None:
        self._endpoint_set.emit(program, no)

    def emit_guard(self, program: Assembler, no: Label) -> None:
        """What lets through all that match and few others, in a few instructions."""
        self._endpoint_set.emit_guard(program, no)

    @property
    def number_of_pieces(self) -> int:
        """How many `pieces` there are, without making them."""
        return -(-self._size // _PROGRAM)

    @property
    def _size(self) -> int:
        return sum(_BYTES[len(address)] for address, _ in self.endpoints)

    def pieces(self) -> Iterator[Peers]:
        """Parts of it, of about one size, that each fit into a program."""
        number, size, before = self.number_of_pieces, self._size, 0
        parts: list[list[Endpoint]] = [[] for _ in range(number)]
        for endpoint in sorted(self.endpoints):
            parts[before * number // size].append(endpoint)
            before += _BYTES[len(endpoint.address)]
        return map(Peers, parts)

    def halves(self) -> tuple[Peers, Peers]:
        """Two parts of it, where it has to be divided with what it is joined to."""
        endpoints = sorted(self.endpoints)
        middle = len(endpoints) // 2
        return Peers(endpoints[:middle]), Peers(endpoints[middle:])

    def __str__(self) -> str:
        """As an `or` of them is written."""
        return f"( {' or '.join(map(_text, sorted(self.endpoints)))} )"


def _text(endpoint: Endpoint) -> str:
    address = format_address(endpoint.address)
    host = f"[{address}]" if len(endpoint.address) == 16 else address
    return f"( dst {host} and dport = {endpoint.port} )"
