"""Which sockets must be alive, in plain Python: which are spared, and what destroying one does to others.

Nothing here uses the kernel or the package's own matching: conditions are interpreted anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any, NamedTuple, Optional, Union

from socklb.filters import Condition
from socklb.filters.conditions import And, Host, Not, Or, Port
from socklb.filters.peers import Peers
from socklb.filters.property_conditions import Autobound, Cgroup, Device, Mark

IPAddress = Union[IPv4Address, IPv6Address]
Endpoint = tuple[IPAddress, int]
Ends = tuple[IPAddress, int, IPAddress, int]  # local address and port, peer's

ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING = range(
    1, 12
)
NEW_SYN_RECV, BOUND_INACTIVE = 12, 13

LOOPBACK = 1  # its index, in every namespace

# tcp_need_reset(): from the other states a destroyed socket sends nothing to its peer.
_RESETS_ITS_PEER = frozenset({ESTABLISHED, CLOSE_WAIT, FIN_WAIT1, FIN_WAIT2})

ONLY_BOUND = "only bound: the kernel destroys no TCP socket that has no peer"
SHARED = "another socket shares its address"


def unmapped(address: IPAddress) -> IPAddress:
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


@dataclass(eq=False)
class ModelSocket:
    """One socket of the kernel's table, as far as anybody may ask about it."""

    netns: int
    protocol: str
    state: int
    local: IPAddress
    local_port: int
    peer: IPAddress
    peer_port: int
    device: int = 0
    interfaces: Mapping[str, int] = field(default_factory=dict, repr=False)  # of its namespace
    mark: int = 0
    cgroup: int = 0
    autobound: bool = True
    cookie: int = 0  # and the inode: 0 if no application holds it
    inode: int = 0
    is_mini: bool = False
    is_request: bool = False
    had_peer: bool = False
    other_end: Optional[ModelSocket] = field(default=None, repr=False)  # of a TCP connection

    @property
    def device_name(self) -> str:
        return next((name for name, index in self.interfaces.items() if index == self.device), "")

    @property
    def is_owned(self) -> bool:
        """Whether an application holds it: mini-sockets and request sockets are the kernel's alone."""
        return not self.is_mini and not self.is_request

    @property
    def version(self) -> int:
        return self.local.version

    @property
    def ends(self) -> Ends:
        return self.local, self.local_port, self.peer, self.peer_port

    @property
    def wire_ends(self) -> Ends:
        return unmapped(self.local), self.local_port, unmapped(self.peer), self.peer_port

    @property
    def shared_address(self) -> tuple[object, ...]:
        """What the kernel looks a destroy up by, but for the device: a socket with the same may be found instead."""
        is_connected = self.state not in (CLOSE, LISTEN, BOUND_INACTIVE)  # else it may still have its peer's address
        return (
            *(self.netns, self.protocol, unmapped(self.local), self.local_port),
            (unmapped(self.peer), self.peer_port) if is_connected else None,
            self.state == BOUND_INACTIVE,  # in no table that is looked at
        )

    @property
    def answers_to(self) -> frozenset[int]:
        """The bits of a state mask that match it."""
        if self.is_mini:
            return frozenset({TIME_WAIT})
        return frozenset({SYN_RECV, NEW_SYN_RECV}) if self.is_request else frozenset({self.state})

    @property
    def reported_state(self) -> int:
        return CLOSE if self.state == BOUND_INACTIVE else self.state

    @property
    def reset_with_it(self) -> Optional[ModelSocket]:
        """Who gets a reset when this one is destroyed."""
        resets = self.protocol == "tcp" and self.is_owned and self.state in _RESETS_ITS_PEER
        return self.other_end if resets else None


# ------------------------------------------------------------------------------------------- conditions

LOCAL_PORTS = range(32768, 61000)  # what a new namespace chooses from


_LOGIC = (False, None, True)  # of several an `and` is the least, an `or` the greatest


def matches(condition: Condition, one: ModelSocket) -> bool | None:
    """None where nobody knows: the cgroup of a socket that nobody has."""
    if isinstance(condition, (And, Or)):
        values = [matches(part, one) for part in condition.parts]
        if isinstance(condition, And):
            return min(values, key=_LOGIC.index, default=True)
        return max(values, key=_LOGIC.index, default=False)
    if isinstance(condition, Not):
        return _LOGIC[2 - _LOGIC.index(matches(condition.part, one))]
    if isinstance(condition, Host):
        address = one.local if condition.side == "src" else one.peer
        network = ip_network((condition.address, condition.length))
        return (unmapped(address) if network.version == 4 else address) in network
    if isinstance(condition, Port):
        return condition.low <= (one.local_port if condition.side == "src" else one.peer_port) <= condition.high
    if isinstance(condition, Device):
        return one.device == one.interfaces.get(str(condition.interface), condition.interface)
    if isinstance(condition, Mark):
        return one.mark & condition.mask == condition.value
    if isinstance(condition, Peers):
        return any(unmapped(one.peer).packed == host and one.peer_port == port for host, port in condition.endpoints)
    if isinstance(condition, Cgroup):
        several = condition.cgroup if isinstance(condition.cgroup, frozenset) else {condition.cgroup}
        return one.cgroup in several if one.is_owned else None
    assert isinstance(condition, Autobound), condition
    return one.autobound and one.local_port in LOCAL_PORTS


class States(NamedTuple):
    """An argument `states=`, the states that it matches, and whether it names LISTEN on purpose."""

    argument: Any
    tcp: frozenset[int]
    udp: frozenset[int]
    names_listen: bool = False

    def matches(self, one: ModelSocket) -> bool:
        return bool(one.answers_to & (self.tcp if one.protocol == "tcp" else self.udp))


_LIVE = frozenset({1, 2, 3, 4, 5, 8, 9, 10, 11, 12})
_ALL = frozenset(range(1, 14))


def _same(argument: Any, *states: int) -> States:
    return States(argument, frozenset(states), frozenset(states), LISTEN in states)


STATES = (
    States(None, _LIVE, frozenset({ESTABLISHED, CLOSE})),
    States("all", _ALL, _ALL),
    States("connected", _ALL - {LISTEN, CLOSE, BOUND_INACTIVE}, _ALL - {LISTEN, CLOSE, BOUND_INACTIVE}),
    States(0xFFFF, _ALL, _ALL),
    States(["all", "listening"], _ALL, _ALL, names_listen=True),
    _same(["established"], ESTABLISHED),
    _same(["listening"], LISTEN),
    _same(1 << LISTEN | 1 << ESTABLISHED, LISTEN, ESTABLISHED),
    _same(["time-wait"], TIME_WAIT),
    _same([BOUND_INACTIVE, CLOSE], BOUND_INACTIVE, CLOSE),
    _same(["syn-sent", "syn-recv"], SYN_SENT, SYN_RECV),
    _same([NEW_SYN_RECV, CLOSE_WAIT], NEW_SYN_RECV, CLOSE_WAIT),
    _same(["fin-wait-1", "fin-wait-2", "last-ack", "closing"], FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING),
    _same(["unconnected"], CLOSE),
)


class ModelFilter(NamedTuple):
    """A filter, in the model's words. `keeps` is what the predicate keeps: local ports of this parity, or all."""

    protocol: str
    condition: Condition
    states: States = STATES[0]
    version: Optional[int] = None
    keeps: Optional[int] = None

    def matches(self, one: ModelSocket) -> bool:
        return (
            one.protocol == self.protocol
            and self.version in (None, one.version)
            and self.states.matches(one)
            and matches(self.condition, one) is True
            and self.keeps in (None, one.local_port % 2)
        )


# ----------------------------------------------------------------------------------------------- the model


class Options(NamedTuple):
    """The options of a destroy."""

    dry_run: bool = False
    limit: Optional[int] = None
    unconnected: bool = False


class Verdict(NamedTuple):
    """What a report says about a socket."""

    verdict: str
    reason: str


class ModelFlow(NamedTuple):
    """An entry of conntrack: who asks which service, and the backend that answers, if not the service itself."""

    netns: int
    protocol: str
    original: Ends
    backend: Endpoint


class Model:
    """All sockets, all flows to services, and the ends of the own ssh session."""

    def __init__(self) -> None:
        self.sockets: list[ModelSocket] = []
        self.flows: list[ModelFlow] = []
        self.session: Optional[Ends] = None

    def matching(self, filter: ModelFilter, netns: int) -> list[ModelSocket]:
        return [one for one in self.sockets if one.netns == netns and filter.matches(one)]

    def open_flows(self) -> list[ModelFlow]:
        """Those that are translated; but for TCP if nothing is left on both sides, or only what waits for a minute."""
        tcp = {(one.netns, one.wire_ends) for one in self.sockets if one.protocol == "tcp" and one.state != TIME_WAIT}
        return [
            flow
            for flow in self.flows
            if flow.backend != flow.original[2:]
            and (
                flow.protocol == "udp"
                or not tcp.isdisjoint(
                    (flow.netns, side) for side in (flow.original, (*flow.backend, *flow.original[:2]))
                )
            )
        ]

    def identify(self, netns: int, protocol: str, cookie: int, ends: Ends, device: int) -> ModelSocket:
        """The socket that a row describes: by cookie, but for the kernel's own, whose cookies are unknown."""
        for one in self.sockets:
            if (one.netns, one.protocol, one.ends, one.device) == (netns, protocol, ends, device):
                if one.is_owned and one.cookie == cookie:
                    return one
                if not one.is_owned and cookie not in {other.cookie for other in self.sockets}:
                    return one
        raise AssertionError(f"{protocol} {ends} on {device} with cookie {cookie} in {netns} is none of {self.sockets}")

    def why_spared(self, one: ModelSocket, filter: ModelFilter, options: Options) -> str:
        """Why a socket that matches is spared whatever the limit; "" if it is not."""
        ends = one.wire_ends
        if self.session in (ends, (*ends[2:], *ends[:2])):
            return "own session"
        if one.protocol == "tcp":
            return "listening" if one.state == LISTEN and not filter.states.names_listen else ""
        return "not connected" if one.state == CLOSE and not options.unconnected else ""

    def check_report(
        self,
        filter: ModelFilter,
        options: Options,
        matching: Sequence[ModelSocket],
        verdicts: dict[ModelSocket, Verdict],
    ) -> None:
        """It is one that the rules allow: whom a limit spares, and which end of a connection goes first, may vary."""
        assert set(verdicts) == set(matching), (set(verdicts) ^ set(matching), filter)
        spared = {one: self.why_spared(one, filter, options) for one in matching}
        for one in matching:
            assert not spared[one] or verdicts[one] == Verdict("skipped", spared[one]), (one, verdicts[one])
        allowed = [one for one in matching if not spared[one]]
        tried = [one for one in allowed if verdicts[one] != Verdict("skipped", "limit")]
        destroyed = {one for one in tried if verdicts[one].verdict in ("destroyed", "would_destroy")}
        assert len(tried) == len(allowed) or len(destroyed) == options.limit, "what is gone or failed does not count"
        assert options.limit is None or len(destroyed) <= options.limit
        if options.dry_run:
            assert all(verdicts[one] == Verdict("would_destroy", "") for one in tried), verdicts
            return
        for one in tried:
            self._check_verdict(one, verdicts[one], destroyed)
        self._check_twins(tried, destroyed)

    def _check_verdict(self, one: ModelSocket, verdict: Verdict, destroyed: set[ModelSocket]) -> None:
        if one.state == BOUND_INACTIVE:
            assert verdict == Verdict("failed", ONLY_BOUND), (one, verdict)
        elif verdict.verdict == "gone":
            assert one in set(self.victims(destroyed)), (one, verdict)
        elif verdict.verdict == "failed":
            assert verdict.reason == SHARED, (one, verdict)
            assert len(self.twins(one)) > 1 or _new_twins(one, destroyed), (one, verdict)
        else:
            assert verdict == Verdict("destroyed", ""), (one, verdict)

    def _check_twins(self, tried: list[ModelSocket], destroyed: set[ModelSocket]) -> None:
        """If every twin was to be destroyed none is left, but of bound UDP sockets: those hide each other for ever, and
        all do if some have received from a peer (SO_INCOMING_CPU): which is found depends on the processor that asks.
        """
        for one in tried:
            twins = self.twins(one)
            if len(twins) > 1 and all(twin in tried for twin in twins) and one.state != BOUND_INACTIVE:
                if one.protocol == "udp" and one.state == CLOSE:
                    may_hide_all = _new_twins(one, destroyed) or any(twin.had_peer for twin in twins)
                    assert may_hide_all or any(twin in destroyed for twin in twins), twins
                else:
                    assert one in destroyed, (one, twins)

    def twins(self, one: ModelSocket) -> list[ModelSocket]:
        """All that may be found in its place, itself among them: those on its device, and those on none."""
        return [
            other
            for other in self.sockets
            if other.shared_address == one.shared_address and other.device in (0, one.device)
        ]

    def victims(self, destroyed: Iterable[ModelSocket]) -> list[ModelSocket]:
        """Who is closed with these, or may be: the other ends that are reset, and the requests of listeners."""
        resets = [one.reset_with_it for one in destroyed]
        requests = [
            other
            for one in destroyed
            if one.state == LISTEN
            for other in self.sockets
            if other.is_request and (other.netns, other.local_port) == (one.netns, one.local_port)
        ]
        return [*(one for one in resets if one is not None), *requests]


def _new_twins(one: ModelSocket, destroyed: Iterable[ModelSocket]) -> list[ModelSocket]:
    """Who came to share the address of a UDP socket without a peer, by losing its own one, or its device, meanwhile."""
    return [
        other
        for other in destroyed
        if (one.protocol, one.state, other.autobound) == ("udp", CLOSE, False)
        and (other.state == ESTABLISHED or other.device)
        and (other.netns, other.protocol, other.local_port) == (one.netns, one.protocol, one.local_port)
        and unmapped(other.local) == unmapped(one.local)
    ]
