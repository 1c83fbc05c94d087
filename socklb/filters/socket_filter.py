# SPDX-License-Identifier: MIT
"""SocketFilter: which sockets of one protocol match."""

from __future__ import annotations

from ..states import STATE_FILTER_TCP, STATE_FILTER_UDP, TcpState, named_states, state_mask
from ..values import Value
from ..wire.request import IPPROTO_TCP, IPPROTO_UDP, PROTOCOL_NAMES, PROTOCOLS
from ..wire.socket_id import AF_INET, AF_INET6
from .bounds import bounds, hinges_on
from .compiler import compile_condition
from .conditions import EVERYTHING, Condition, check_socket
from .language import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Union

    from ..states import States
    from ..wire.reply import InetSocket
    from .compiler import Plan
    from .conditions import Names
    from .constructors import Address

    Predicate = Callable[[InetSocket], object]
    Protocol = Union[str, int]

_DEFAULT_STATES = {IPPROTO_TCP: STATE_FILTER_TCP, IPPROTO_UDP: STATE_FILTER_UDP}
_IPPROTO_MPTCP = 262

_TIME_WAIT = state_mask(TcpState.TIME_WAIT)
_FIN_WAIT2 = state_mask(TcpState.FIN_WAIT2)
_LISTEN = state_mask(TcpState.LISTEN)


def protocol_number(protocol: Protocol) -> int:
    """IPPROTO_TCP or IPPROTO_UDP for "tcp", "udp" (in any case) or the number itself, else ValueError."""
    if isinstance(protocol, str):
        number = PROTOCOLS.get(protocol.lower())
        if number is not None:
            return number
    elif isinstance(protocol, int) and not isinstance(protocol, bool) and protocol in PROTOCOL_NAMES:
        return protocol
    if protocol in ("mptcp", "MPTCP", _IPPROTO_MPTCP):
        raise ValueError("the kernel cannot destroy MPTCP sockets: destroy their TCP subflows, protocol 'tcp'")
    raise ValueError(f"protocol must be 'tcp' or 'udp', not {protocol!r}")


class SocketFilter(Value):
    """Which sockets of one protocol match: an immutable value.

    `where` is a condition (None: every socket), `states` a mask, or an iterable of states and words of ss(8) (None:
    the protocol's default), `family` AF_INET, AF_INET6 or None for both. `predicate` takes an InetSocket and is called
    last, in Python, for sockets that match all else. Without a predicate, or with one that can be pickled, a filter can
    be pickled.

    Raises ValueError for a value that is out of range or unknown, TypeError for one of another type.
    """

    __slots__ = ("_plans", "family", "names_listen", "predicate", "protocol", "states", "where")
    protocol: int
    where: Condition
    states: int
    names_listen: bool
    """Whether LISTEN was asked for on purpose: not by a group word, nor by a mask with all of the default's states."""
    family: int | None
    predicate: Predicate | None
    _plans: dict[frozenset[int], Plan]  # by the ops that the kernel lacks

    def __init__(
        self,
        protocol: Protocol,
        where: Condition | None = None,
        *,
        states: States | None = None,
        family: int | None = None,
        predicate: Predicate | None = None,
    ) -> None:
        number = protocol_number(protocol)
        if where is not None and not isinstance(where, Condition):
            raise TypeError(f"where must be a condition such as dst('10.0.0.1'), not {where!r}")
        if family is not None and (not isinstance(family, int) or family not in (AF_INET, AF_INET6)):
            raise ValueError(f"family must be AF_INET, AF_INET6, or None for both, not {family!r}")
        if predicate is not None and not callable(predicate):
            raise TypeError(f"predicate must be a function from an InetSocket to a bool, not {predicate!r}")
        default = _DEFAULT_STATES[number]
        mask, named = (default, 0) if states is None else named_states(states)
        is_wide_mask = isinstance(states, int) and not isinstance(states, TcpState) and states & default == default
        self._set(protocol=number, where=EVERYTHING if where is None else where, family=family, predicate=predicate)
        self._set(states=mask, names_listen=bool(named & _LISTEN) and not is_wide_mask, _plans={})

    @classmethod
    def to_backend(
        cls,
        address: Address,
        port: int,
        protocol: Protocol,
        *,
        states: States | None = None,
        family: int | None = None,
        predicate: Predicate | None = None,
    ) -> SocketFilter:
        """The sockets whose peer is this address and port; of a link-local address, those bound to its link."""
        from .backend_conditions import condition_to  # with ipaddress, which takes longer to import than all conditions

        return cls(protocol, condition_to(address, port), states=states, family=family, predicate=predicate)

    @classmethod
    def to_backends(
        cls,
        backends: Iterable[tuple[Address, int, Protocol]],
        *,
        states: States | None = None,
        family: int | None = None,
        predicate: Predicate | None = None,
    ) -> SocketFilter:
        """The sockets whose peer is one of these (address, port, protocol), which all have one protocol."""
        triples = list(backends)
        for each in triples:
            if not (isinstance(each, tuple) and len(each) == 3):
                raise TypeError(f"backends are several of (address, port, protocol), and {each!r} is none")
        protocols = {protocol_number(protocol) for _, _, protocol in triples}
        if len(protocols) != 1:
            raise ValueError("a filter takes at least one backend, and backends of one protocol only")
        from .backend_conditions import condition_to_any

        return cls(protocols.pop(), condition_to_any(triples), states=states, family=family, predicate=predicate)

    @classmethod
    def parse(
        cls,
        text: str,
        protocol: Protocol,
        *,
        states: States | None = None,
        family: int | None = None,
        predicate: Predicate | None = None,
    ) -> SocketFilter:
        """From the filter language of ss(8), which may begin with states; `states` are for a text that names none, and
        what it excludes is left out of them. Raises FilterSyntaxError, a ValueError with the word and its column.
        """
        number = protocol_number(protocol)
        where, named, excluded = parse(text, PROTOCOL_NAMES[number])
        if named:
            if states is not None:
                raise ValueError("states are given twice: in the filter, and beside it")
            states = named
        found = cls(number, where, states=states, family=family, predicate=predicate)
        return found._without(named_states(excluded)[0]) if excluded else found

    def _without(self, excluded: int) -> SocketFilter:
        """The same without these states, and their kin that ss(8) has no words for."""
        for state, kin in ((TcpState.SYN_RECV, TcpState.NEW_SYN_RECV), (TcpState.CLOSE, TcpState.BOUND_INACTIVE)):
            excluded |= state_mask(kin) if excluded & state_mask(state) else 0
        mask = self.states & ~excluded
        if not mask:
            raise ValueError("what the filter excludes leaves no state")
        names_listen = self.names_listen and bool(mask & _LISTEN)
        return _construct({**self._fields(), "states": mask, "names_listen": names_listen})

    @property
    def families(self) -> tuple[int, ...]:
        return (AF_INET, AF_INET6) if self.family is None else (self.family,)

    @property
    def request_states(self) -> int:
        """The mask for the kernel: time-wait mini-sockets whose substate is FIN_WAIT2 answer to that bit alone."""
        return self.states | _FIN_WAIT2 if self.states & _TIME_WAIT else self.states

    @property
    def is_bounded(self) -> bool:
        """Whether the condition names what it matches: an address, a few ports, a device, a cgroup, a process,
        a user.
        """
        return bounds(self.where)

    @property
    def is_unknowable(self) -> bool:
        """Whether no socket of its protocol can match: it would take a struct tcp_info, and UDP has none."""
        return self.protocol == IPPROTO_UDP and hinges_on(self.where, lambda test: test.needs_info)

    def accepts(self, socket: InetSocket) -> bool:
        """What is left to check of a socket that matches the condition: state and predicate."""
        return self.states & socket.answers_to != 0 and (self.predicate is None or bool(self.predicate(socket)))

    def plan(self, missing_ops: frozenset[int] = frozenset()) -> Plan:
        """How to find what matches the condition, for a kernel without these bytecode ops; compiled once."""
        plan = self._plans.get(missing_ops)
        if plan is None:
            plan = self._plans[missing_ops] = compile_condition(self.where, missing_ops)
        return plan

    def matches(self, socket: InetSocket) -> bool:
        """Whether this socket matches, all of it evaluated in Python.

        A condition on what the row does not carry (a mark, a cgroup) is unknown: neither it nor its negation matches.
        Raises ValueError for a condition that only the kernel can evaluate or whose name is not yet resolved.
        """
        check_socket(socket)
        return (
            socket.protocol == self.protocol
            and self.family in (None, socket.family)
            and self.states & socket.answers_to != 0
            and self.where.evaluate(socket) is True
            and (self.predicate is None or bool(self.predicate(socket)))
        )

    @property
    def is_resolved(self) -> bool:
        """Whether the condition is the same always and in every namespace: no interface or cgroup by name, no process,
        no `autobound`.
        """
        return self.where.is_resolved

    def resolved(self, names: Names) -> SocketFilter:
        """The same with the names of interfaces and cgroups replaced by their numbers."""
        return _construct({**self._fields(), "where": self.where.resolved(names)})

    def __reduce__(self) -> tuple[Any, ...]:
        return _construct, (self._fields(),)

    def __str__(self) -> str:
        """The condition in the language of ss(8)."""
        return str(self.where)

    def __repr__(self) -> str:
        return f"<SocketFilter {PROTOCOL_NAMES[self.protocol]} {self} states={self.states:#x}>"


def _construct(fields: dict[str, Any]) -> SocketFilter:
    """From all fields: `names_listen` does not follow from the mask alone."""
    names_listen = fields.pop("names_listen")
    filter = SocketFilter(**fields)
    filter._set(names_listen=names_listen)
    return filter
