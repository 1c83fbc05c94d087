"""Which sockets must be alive, in plain Python: the rules of who may die, and what a death does to others.

Nothing in here asks the kernel, nor the package's own matching: conditions are read, not run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple, Optional, Union

from socklb.filters import Condition
from socklb.filters.conditions import And, Host, Not, Or, Port
from socklb.filters.property_conditions import Autobound, Cgroup, Device, Mark

IPAddress = Union[IPv4Address, IPv6Address]

ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING = range(
    1, 12
)
NEW_SYN_RECV, BOUND_INACTIVE = 12, 13

LOOPBACK = 1  # its index, in every namespace

# tcp_need_reset(): from the other states a destroyed socket says nothing to its peer.
_TELLS_ITS_PEER = frozenset({ESTABLISHED, CLOSE_WAIT, FIN_WAIT1, FIN_WAIT2})

ONLY_BOUND = "only bound: the kernel destroys no TCP socket that has no peer"
SHARED = "another socket shares its address"


def unmapped(address: IPAddress) -> IPAddress:
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


class Inhabitant:
    """One socket of the kernel's table, as far as anybody may ask about it."""

    def __init__(
        self,
        place: int,
        protocol: str,
        state: int,
        local: tuple[IPAddress, int],
        peer: tuple[IPAddress, int],
        *,
        device: int = 0,
        mark: int = 0,
        cgroup: int = 0,
        autobound: bool = True,
        cookie: int = 0,
        inode: int = 0,
    ) -> None:
        self.place, self.protocol, self.state = place, protocol, state
        self.local, self.local_port = local
        self.peer, self.peer_port = peer
        self.device, self.mark, self.cgroup, self.autobound = device, mark, cgroup, autobound
        self.cookie, self.inode = cookie, inode  # 0 of what nobody owns
        self.is_mini = False
        self.is_request = False
        self.other_end: Optional[Inhabitant] = None  # of a TCP connection: who hears of the death of this one

    @property
    def is_owned(self) -> bool:
        """Whether some application holds it: mini-sockets and request sockets are the kernel's alone."""
        return not self.is_mini and not self.is_request

    @property
    def version(self) -> int:
        return self.local.version

    @property
    def ends(self) -> tuple[IPAddress, int, IPAddress, int]:
        return self.local, self.local_port, self.peer, self.peer_port

    @property
    def shared_address(self) -> tuple[object, ...]:
        """What a destroy is looked up by: who has the same may be found instead."""
        is_connected = self.state not in (CLOSE, BOUND_INACTIVE)  # else it may still have an address of its peer
        return (
            *(self.place, self.protocol, unmapped(self.local), self.local_port),
            (unmapped(self.peer), self.peer_port) if is_connected else None,
            self.state == BOUND_INACTIVE,  # in no table that is looked at
        )

    @property
    def answers_to(self) -> frozenset[int]:
        """The bits of a state mask that mean it."""
        if self.is_mini:
            return frozenset({TIME_WAIT})
        return frozenset({SYN_RECV, NEW_SYN_RECV}) if self.is_request else frozenset({self.state})

    @property
    def reported_state(self) -> int:
        return CLOSE if self.state == BOUND_INACTIVE else self.state

    def hears_of_it(self) -> Optional[Inhabitant]:
        """Who is reset when this one is destroyed."""
        tells = self.protocol == "tcp" and self.is_owned and self.state in _TELLS_ITS_PEER
        return self.other_end if tells else None

    def __repr__(self) -> str:
        kind = " mini" if self.is_mini else " request" if self.is_request else ""
        ends = f"{self.local}:{self.local_port} > {self.peer}:{self.peer_port}"
        return f"<{self.place}/{self.protocol}{kind} {self.state} {ends} {self.cookie}>"


# ------------------------------------------------------------------------------------------- conditions


def means(where: Condition, one: Inhabitant) -> bool:
    """Whether a condition means this one."""
    if isinstance(where, And):
        return all(means(part, one) for part in where.parts)
    if isinstance(where, Or):
        return any(means(part, one) for part in where.parts)
    if isinstance(where, Not):
        return not means(where.part, one)
    if isinstance(where, Host):
        address = one.local if where.side == "src" else one.peer
        if where.network.version == 4:
            address = unmapped(address)
        return address in where.network
    if isinstance(where, Port):
        return (one.local_port if where.side == "src" else one.peer_port) in range(where.low, where.high + 1)
    if isinstance(where, Device):
        return one.device == (LOOPBACK if where.interface == "lo" else where.interface)
    if isinstance(where, Mark):
        return one.mark & where.mask == where.value
    if isinstance(where, Cgroup):
        return one.cgroup == where.cgroup
    assert isinstance(where, Autobound), where
    return one.autobound


def bounds(where: Condition, negated: bool = False) -> bool:
    """A prefix above 0 and a port test that excludes some port do, un-negated; `and` if any part does, `or` if all."""
    if isinstance(where, Not):
        return bounds(where.part, not negated)
    if isinstance(where, (And, Or)):
        parts = [bounds(part, negated) for part in where.parts]
        return any(parts) if isinstance(where, And) != negated else all(parts)
    if negated:
        return False
    if isinstance(where, Host):
        return where.network.prefixlen != 0
    return isinstance(where, Port) and (where.low, where.high) != (0, 65535)


class States(NamedTuple):
    """An argument `states=`, the states that it means, and whether it names LISTEN on purpose."""

    argument: Any
    tcp: frozenset[int]
    udp: frozenset[int]
    names_listen: bool = False

    def means(self, one: Inhabitant) -> bool:
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


class Wish(NamedTuple):
    """A filter, in the model's words. `keeps` is what the predicate keeps: local ports of this parity, or all."""

    protocol: str
    where: Condition
    states: States = STATES[0]
    version: Optional[int] = None
    keeps: Optional[int] = None

    def means(self, one: Inhabitant) -> bool:
        return (
            one.protocol == self.protocol
            and self.version in (None, one.version)
            and self.states.means(one)
            and means(self.where, one)
            and self.keeps in (None, one.local_port % 2)
        )


# ----------------------------------------------------------------------------------------------- the model


class Options(NamedTuple):
    """How a destroy is asked for."""

    dry_run: bool = False
    limit: Optional[int] = None
    unconnected: bool = False


class Verdict(NamedTuple):
    """What a report says of one."""

    verdict: str
    reason: str


class Model:
    """Who is there."""

    def __init__(self) -> None:
        self.inhabitants: list[Inhabitant] = []
        self.session: Optional[tuple[IPAddress, int, IPAddress, int]] = None  # the ends of the ssh session worked in

    def meant(self, wish: Wish, place: int) -> list[Inhabitant]:
        return [one for one in self.inhabitants if one.place == place and wish.means(one)]

    def identify(
        self, place: int, protocol: str, cookie: int, ends: tuple[IPAddress, int, IPAddress, int]
    ) -> Inhabitant:
        """Whom a row is about: by cookie, but for what the kernel keeps alone, which nobody can ask for its cookie."""
        for one in self.inhabitants:
            if (one.place, one.protocol, one.ends) == (place, protocol, ends):
                if one.is_owned and one.cookie == cookie:
                    return one
                if not one.is_owned and cookie not in {other.cookie for other in self.inhabitants}:
                    return one
        raise AssertionError(f"{protocol} {ends} with cookie {cookie} in {place} is none of {self.inhabitants}")

    def why_spared(self, one: Inhabitant, wish: Wish, options: Options) -> str:
        """The reason why one that is meant must not die, whatever the limit; "" if it may."""
        ends = (unmapped(one.local), one.local_port, unmapped(one.peer), one.peer_port)
        if self.session in (ends, (*ends[2:], *ends[:2])):
            return "own session"
        if one.protocol == "tcp":
            return "listening" if one.state == LISTEN and not wish.states.names_listen else ""
        return "not connected" if one.state == CLOSE and not options.unconnected else ""

    def check_report(
        self, wish: Wish, options: Options, meant: Sequence[Inhabitant], said: dict[Inhabitant, Verdict]
    ) -> None:
        """A report is one that the rules allow: which of many die by a limit, and who dies of whom, the kernel says."""
        assert set(said) == set(meant), (set(said) ^ set(meant), wish)
        doomed = []
        for one in meant:
            spared = self.why_spared(one, wish, options)
            if spared:
                assert said[one] == Verdict("skipped", spared), (one, said[one])
            else:
                doomed.append(one)
        limited = [one for one in doomed if said[one] == Verdict("skipped", "limit")]
        assert len(limited) == max(0, len(doomed) - (len(doomed) if options.limit is None else options.limit))
        tried = [one for one in doomed if one not in limited]
        if options.dry_run:
            assert all(said[one] == Verdict("skipped", "dry run") for one in tried), said
            return
        destroyed = {one for one in tried if said[one].verdict == "destroyed"}
        for one in tried:
            self._check_verdict(one, said[one], destroyed)
        self._check_twins(tried, destroyed)

    def _check_verdict(self, one: Inhabitant, said: Verdict, destroyed: set[Inhabitant]) -> None:
        if one.state == BOUND_INACTIVE:
            assert said == Verdict("failed", ONLY_BOUND), (one, said)
        elif said.verdict == "gone":
            assert one in set(self.victims(destroyed)), (one, said)
        elif said.verdict == "failed":
            assert said.reason == SHARED, (one, said)
            assert len(self.twins(one)) > 1 or _new_twins(one, destroyed), (one, said)
        else:
            assert said == Verdict("destroyed", ""), (one, said)

    def _check_twins(self, tried: list[Inhabitant], destroyed: set[Inhabitant]) -> None:
        """If every twin was to be destroyed none is left, but of bound UDP sockets: those hide each other for ever."""
        for one in tried:
            twins = self.twins(one)
            if len(twins) > 1 and all(twin in tried for twin in twins) and one.state != BOUND_INACTIVE:
                if one.protocol == "udp" and one.state == CLOSE:
                    assert _new_twins(one, destroyed) or any(twin in destroyed for twin in twins), twins
                else:
                    assert one in destroyed, (one, twins)

    def twins(self, one: Inhabitant) -> list[Inhabitant]:
        """All that share its address, itself among them."""
        return [other for other in self.inhabitants if other.shared_address == one.shared_address]

    def victims(self, destroyed: Iterable[Inhabitant]) -> list[Inhabitant]:
        """Who dies, or may be dead already, because these were destroyed."""
        found = [one.hears_of_it() for one in destroyed]
        # A listener takes the connections with it that were not yet made.
        found += [
            other
            for one in destroyed
            if one.state == LISTEN
            for other in self.inhabitants
            if other.is_request and (other.place, other.local_port) == (one.place, one.local_port)
        ]
        return [one for one in found if one is not None]


def _new_twins(one: Inhabitant, destroyed: Iterable[Inhabitant]) -> list[Inhabitant]:
    """Who came to share the address of a UDP socket without a peer, by losing its own peer in the same run."""
    return [
        other
        for other in destroyed
        if (one.protocol, one.state, other.state, other.autobound) == ("udp", CLOSE, ESTABLISHED, False)
        and (other.place, other.protocol, other.local_port) == (one.place, one.protocol, one.local_port)
        and unmapped(other.local) == unmapped(one.local)
    ]
