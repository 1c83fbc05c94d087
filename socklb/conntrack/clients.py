# SPDX-License-Identifier: MIT
"""The sockets of the clients that conntrack knows: an entry's original tuple is that of the client's socket."""

from __future__ import annotations

from contextlib import suppress

from ..filters import SocketFilter, sport, src
from ..filters.backend import Backend, filters_to
from ..filters.conditions import Or
from ..states import TcpState
from ..wire.address import from_packed, unmapped_packed
from ..wire.request import IPPROTO_TCP, PROTOCOL_NAMES
from .layout import FlowTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from ..engine.find import SocketTable
    from ..wire.reply import InetSocket


class Clients:
    """The tuples of some sockets, and the filters that find them: those of clients, by the services they asked."""

    def __init__(self, tuples: Collection[FlowTuple]) -> None:
        self._tuples = frozenset(tuples)
        self._filters = self._filters_for(tuples)

    def _filters_for(self, tuples: Collection[FlowTuple]) -> list[SocketFilter]:
        return filters_to(services_of(tuples))

    def sockets_in(self, table: SocketTable) -> Iterator[tuple[FlowTuple, InetSocket]]:
        """The connected sockets that have one of the tuples, each with it."""
        for filter in self._filters:
            for _, socket in table.search_all(filter, filter.request_states):
                if _is_connected(socket) and (one := tuple_of(socket)) in self._tuples:
                    yield one, socket


class Servers(Clients):
    """Those of the other ends, by the services that they serve."""

    def _filters_for(self, tuples: Collection[FlowTuple]) -> list[SocketFilter]:
        services = services_of(one.inverse for one in tuples)
        protocols = sorted({service.protocol for service in services})
        return [
            SocketFilter(one, Or(*(src(s.address) & sport(s.port) for s in services if s.protocol == one)))
            for one in protocols
        ]


def services_of(tuples: Iterable[FlowTuple]) -> list[Backend]:
    """What the clients are connected to; without what nobody could be, such as an address without a link."""
    services = []
    for protocol, dst, dport in dict.fromkeys((one.protocol, one.dst, one.dport) for one in tuples):
        with suppress(ValueError):
            services.append(Backend(str(from_packed(dst)), dport, PROTOCOL_NAMES[protocol]))
    return services


def is_local(client: FlowTuple) -> bool:
    """Whether its source is on a loopback or link-local address, which is another one in each namespace."""
    source = from_packed(client.src)
    return source.is_loopback or (source.version == 6 and source.is_link_local)


def tuple_of(socket: InetSocket) -> FlowTuple:
    """What conntrack knows the packets of a socket by; a mapped address is the v4 one."""
    src, dst = unmapped_packed(socket.src_packed), unmapped_packed(socket.dst_packed)
    return FlowTuple(socket.protocol, src, socket.sport, dst, socket.dport)


def _is_connected(socket: InetSocket) -> bool:
    if socket.protocol == IPPROTO_TCP:
        return socket.state not in (TcpState.TIME_WAIT, TcpState.CLOSE, TcpState.LISTEN)
    return bool(socket.state == TcpState.ESTABLISHED)
