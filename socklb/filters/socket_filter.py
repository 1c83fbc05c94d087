# SPDX-License-Identifier: MIT
"""SocketFilter: which sockets of one protocol are meant."""

from __future__ import annotations

from ..states import STATE_FILTER_TCP, STATE_FILTER_UDP, TcpState, named_states, state_mask
from ..wire.request import IPPROTO_TCP, IPPROTO_UDP, PROTOCOL_NAMES, PROTOCOLS
from ..wire.socket_id import AF_INET, AF_INET6
from .compiler import compile_condition
from .conditions import EVERYTHING, Condition, Or, endpoint_of
from .language import parse
from .vocabulary import dport, dst

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Union

    from ..states import States
    from ..wire.reply import InetSocket
    from .compiler import Plan
    from .conditions import Names
    from .vocabulary import Address

    Protocol = Union[str, int]

_DEFAULT_STATES = {IPPROTO_TCP: STATE_FILTER_TCP, IPPROTO_UDP: STATE_FILTER_UDP}
_IPPROTO_MPTCP = 262

_TIME_WAIT = state_mask(TcpState.TIME_WAIT)
_LISTEN = state_mask(TcpState.LISTEN)
# A request socket reports SYN_RECV and answers to either bit; a bound one reports CLOSE and answers to BOUND_INACTIVE.
_ANSWERS_TO = [state_mask(state) if 1 <= state < 32 else 0 for state in range(256)]  # by the state that a row reports
_ANSWERS_TO[TcpState.SYN_RECV] |= state_mask(TcpState.NEW_SYN_RECV)
_ANSWERS_TO[TcpState.CLOSE] |= state_mask(TcpState.BOUND_INACTIVE)


def protocol_number(protocol: Protocol) -> int:
    """IPPROTO_TCP or IPPROTO_UDP for "tcp", "udp" or the number itself, else ValueError."""
    if isinstance(protocol, str):
        number = PROTOCOLS.get(protocol.lower())
        if number is not None:
            return number
    elif isinstance(protocol, int) and not isinstance(protocol, bool) and protocol in PROTOCOL_NAMES:
        return protocol
    if protocol in ("mptcp", "MPTCP", _IPPROTO_MPTCP):
        raise ValueError("the kernel cannot destroy MPTCP sockets as such: destroy their TCP subflows, protocol 'tcp'")
    raise ValueError(f"protocol is 'tcp' or 'udp', not {protocol!r}")


class SocketFilter:
    """A value that says which sockets of one protocol are meant.

    `where` is a condition (None: every socket), `states` a mask, or an iterable of states and words of ss(8) (None:
    the protocol's filter), `family` AF_INET, AF_INET6 or None for both; `predicate` takes an InetSocket and is asked
    last, in Python, about what all else has accepted.
    """

    __slots__ = ("_planned", "_plans", "family", "names_listen", "predicate", "protocol", "states", "where")

    def __init__(
        self,
        protocol: Protocol,
        where: Condition | None = None,
        *,
        states: States | None = None,
        family: int | None = None,
        predicate: Callable[[InetSocket], object] | None = None,
    ) -> None:
        self.protocol = protocol_number(protocol)
        if where is not None and not isinstance(where, Condition):
            raise TypeError(f"where is a condition such as dst('10.0.0.1'), not {where!r}")
        self.where = EVERYTHING if where is None else where
        default = _DEFAULT_STATES[self.protocol]
        self.states, named = (default, 0) if states is None else named_states(states)
        # Whether LISTEN was asked for on purpose: not by a group word, nor by a mask of all that the default has.
        is_wide_mask = isinstance(states, int) and not isinstance(states, TcpState) and states & default == default
        self.names_listen = bool(named & _LISTEN) and not is_wide_mask
        if family is not None and (not isinstance(family, int) or family not in (AF_INET, AF_INET6)):
            raise ValueError(f"family is AF_INET, AF_INET6 or None for both, not {family!r}")
        self.family = family
        if predicate is not None and not callable(predicate):
            raise TypeError(f"predicate is a function from an InetSocket to a bool, not {predicate!r}")
        self.predicate = predicate
        self._plans: dict[frozenset[int], Plan] = {}  # by what the kernel lacks, of the condition `_planned`
        self._planned = self.where

    @classmethod
    def to_backend(cls, address: Address, port: int, protocol: Protocol, **options: Any) -> SocketFilter:
        """The sockets whose peer is this address and port."""
        return cls(protocol, _backend(address, port), **options)

    @classmethod
    def to_backends(cls, backends: Iterable[tuple[Address, int, Protocol]], **options: Any) -> SocketFilter:
        """The sockets whose peer is one of these (address, port, protocol), which are all of one protocol."""
        triples = list(backends)
        protocols = {protocol_number(protocol) for _, _, protocol in triples}
        if len(protocols) != 1:
            raise ValueError("the backends of one filter are at least one, and of one protocol")
        return cls(protocols.pop(), Or(*(_backend(address, port) for address, port, _ in triples)), **options)

    @classmethod
    def parse(cls, text: str, protocol: Protocol, **options: Any) -> SocketFilter:
        """From the filter language of ss(8). Raises FilterSyntaxError, a ValueError with the word and its column."""
        number = protocol_number(protocol)
        return cls(number, parse(text, PROTOCOL_NAMES[number]), **options)

    @property
    def families(self) -> tuple[int, ...]:
        return (AF_INET, AF_INET6) if self.family is None else (self.family,)

    @property
    def request_states(self) -> int:
        """The mask to ask the kernel with: time-wait mini-sockets in FIN_WAIT2 come with that bit alone."""
        return self.states | state_mask(TcpState.FIN_WAIT2) if self.states & _TIME_WAIT else self.states

    @property
    def is_bounded(self) -> bool:
        """Whether the condition names an endpoint; states, family and predicate do not count."""
        return self.where.bounds()

    def accepts_state(self, socket: InetSocket) -> bool:
        """Whether the socket's state is meant; a mini-socket is, whatever its substate, if TIME_WAIT is."""
        answers_to = _TIME_WAIT if socket.is_time_wait else _ANSWERS_TO[socket.row[1]]
        return self.states & answers_to != 0

    def accepts(self, socket: InetSocket) -> bool:
        """What is left to ask about a socket that the kernel sent for the condition: state and predicate."""
        return self.accepts_state(socket) and (self.predicate is None or bool(self.predicate(socket)))

    def plan(self, lacks: frozenset[int] = frozenset()) -> Plan:
        """How to ask a kernel that lacks these bytecodes for what the condition means; worked out once."""
        if self._planned is not self.where:
            self._planned = self.where
            self._plans.clear()
        if lacks not in self._plans:
            self._plans[lacks] = compile_condition(self.where, lacks)
        return self._plans[lacks]

    def matches(self, socket: InetSocket) -> bool:
        """Whether this very socket is meant.

        Raises ValueError for a condition that only the kernel can evaluate or whose name is not yet resolved, and
        NotPermitted for a mark that the kernel did not tell.
        """
        return (
            socket.protocol == self.protocol
            and self.family in (None, socket.family)
            and self.accepts_state(socket)
            and self.where.matches(socket)
            and (self.predicate is None or bool(self.predicate(socket)))
        )

    @property
    def is_resolved(self) -> bool:
        """Whether the condition means the same in every namespace: it has no interface or cgroup by name."""
        return self.where.is_resolved

    def resolved(self, names: Names) -> SocketFilter:
        """The same with the names of interfaces and cgroups replaced by their numbers."""
        copy = SocketFilter(self.protocol, self.where.resolved(names), family=self.family, predicate=self.predicate)
        copy.states, copy.names_listen = self.states, self.names_listen
        return copy

    def _key(self) -> tuple[object, ...]:
        return self.protocol, self.where, self.states, self.names_listen, self.family, self.predicate

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, SocketFilter) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        """The condition in the language of ss(8)."""
        return str(self.where)

    def __repr__(self) -> str:
        return f"<SocketFilter {PROTOCOL_NAMES[self.protocol]} {self} states={self.states:#x}>"


def _backend(address: Address, port: int) -> Condition:
    """One address and one port: a prefix, or no port, would mean more than a backend."""
    backend = dst(address) & dport(port)
    if endpoint_of(backend)[1] is None:
        raise ValueError(f"the address of a backend is a single one, not {address}")
    return backend
