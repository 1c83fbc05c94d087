"""The rules by which sockets come, change and go, and are searched and destroyed; and what holds after each step."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterable
from typing import Optional

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from socklb import (
    DestroyReport,
    InetSocket,
    SocketFilter,
    UnboundedFilter,
    destroy_sockets,
    dport,
    dst,
    find_sockets,
    sport,
)
from socklb.filters.conditions import EVERYTHING
from socklb.report import Counts

from .endpoints import Place, make_places
from .model import (
    CLOSING,
    ESTABLISHED,
    FIN_WAIT1,
    LAST_ACK,
    STATES,
    Inhabitant,
    Options,
    States,
    Verdict,
    Wish,
    bounds,
    unmapped,
)
from .population import Manner
from .wishes import MARKS, PORTS, TARGETS, TWIN_PORT, aimed, aims, options, states, wishes
from .world import World

PLACES = 3
VERDICTS = ("destroyed", "gone", "skipped", "failed")

tally: Counter[str] = Counter()
"""What was done, in all worlds: a test that destroys nothing shows nothing."""

_FAMILIES = {None: None, 4: socket.AF_INET, 6: socket.AF_INET6}

_which = st.integers(0, 59)
_places = st.sampled_from((*range(PLACES), PLACES - 1, PLACES - 1))  # the caller's own is visited most
_counts = st.integers(1, 3)
_targets = st.sampled_from(TARGETS)
_ports = st.sampled_from(PORTS)
_bind_addresses = st.sampled_from((*TARGETS, "0.0.0.0", "::"))
_bind_ports = st.sampled_from((*PORTS, TWIN_PORT, TWIN_PORT))
_manners = st.builds(Manner, st.booleans(), st.booleans(), st.sampled_from(MARKS), st.booleans(), st.booleans())


def filter_of(wish: Wish) -> SocketFilter:
    keeps = wish.keeps
    return SocketFilter(
        wish.protocol,
        wish.where,
        states=wish.states.argument,
        family=_FAMILIES[wish.version],
        predicate=None if keeps is None else lambda row: row.sport % 2 == keeps,
    )


class SocketMachine(RuleBasedStateMachine):
    """No rule has a precondition: what is drawn must not depend on which of several sockets the kernel found first."""

    places: list[Place] = []  # noqa: RUF012 - those of the whole run

    @initialize(addresses=st.lists(_targets, max_size=2), port=_ports, manner=_manners)
    def start(self, addresses: list[str], port: int, manner: Manner) -> None:
        if any(place.rows() for place in self.places):  # what an example that failed has left
            self.places[:] = make_places(PLACES)
        self.world = World(self.places, _cgroup_of_all(self.places[-1]))
        for place in self.places:
            for address in addresses:
                self.world.connect(place, address, port, manner)
                self.world.connect_udp(place, address, port, manner)
        tally["worlds"] += 1

    def teardown(self) -> None:
        """Every socket goes. What TCP itself keeps for a minute is destroyed: it counts, and nothing else is there."""
        os.environ.pop("SSH_CONNECTION", None)
        if not hasattr(self, "world"):
            return
        self.world.clear()
        left = self.world.model.inhabitants
        for place in self.places:
            wish = Wish("tcp", EVERYTHING, next(those for those in STATES if those.argument == ["time-wait"]))
            if any(one.place == place.number for one in left):
                self.world.model.session = None
                self._destroy(place, wish, Options(), allow_unbounded=True)
        self.world.check()
        assert not self.world.model.inhabitants

    # ------------------------------------------------------------------------------------------------ rules

    @rule(place=_places, address=_bind_addresses, port=_bind_ports, manner=_manners)
    def listen(self, place: int, address: str, port: int, manner: Manner) -> None:
        self.world.listen(self.places[place], address, port, manner)

    @rule(place=_places, address=_bind_addresses, port=_bind_ports, manner=_manners)
    def bind_tcp(self, place: int, address: str, port: int, manner: Manner) -> None:
        self.world.bind_tcp(self.places[place], address, port, manner)

    @rule(place=_places, address=_bind_addresses, port=_bind_ports, manner=_manners)
    def bind_udp(self, place: int, address: str, port: int, manner: Manner) -> None:
        self.world.bind_udp(self.places[place], address, port, manner)

    @rule(place=_places, address=_targets, port=_ports, manner=_manners, count=_counts)
    def connect(self, place: int, address: str, port: int, manner: Manner, count: int) -> None:
        for _ in range(count):
            self.world.connect(self.places[place], address, port, manner)

    @rule(place=_places, address=_targets, port=_ports, manner=_manners, count=_counts)
    def connect_udp(self, place: int, address: str, port: int, manner: Manner, count: int) -> None:
        for _ in range(count):
            self.world.connect_udp(self.places[place], address, port, manner)

    @rule(place=_places, address=_targets, manner=_manners)
    def send_unbound_udp(self, place: int, address: str, manner: Manner) -> None:
        self.world.send_unbound_udp(self.places[place], address, manner)

    @rule(place=_places, address=_targets, manner=_manners)
    def knock_in_vain(self, place: int, address: str, manner: Manner) -> None:
        self.world.knock_in_vain(self.places[place], address, manner)

    @rule(place=_places, address=_targets, manner=_manners)
    def wait_for_data(self, place: int, address: str, manner: Manner) -> None:
        self.world.wait_for_data(self.places[place], address, manner)

    @rule(place=_places, address=_targets, state=st.sampled_from((FIN_WAIT1, LAST_ACK, CLOSING)), manner=_manners)
    def get_stuck(self, place: int, address: str, state: int, manner: Manner) -> None:
        self.world.get_stuck(self.places[place], address, state, manner)

    @rule(which=_which, mark=st.sampled_from(MARKS))
    def mark(self, which: int, mark: int) -> None:
        one = self._pick(which, self.world.sockets)
        if one is not None:
            self.world.mark(one, mark)

    @rule(which=_which, address=_targets, port=_ports)
    def reconnect_udp(self, which: int, address: str, port: int) -> None:
        one = self._pick(which, [one for one in self.world.sockets if one.protocol == "udp"])
        if one is not None:
            self.world.reconnect_udp(one, address, port)

    @rule(which=_which)
    def half_close(self, which: int) -> None:
        one = self._pick(which, [one for one in self.world.sockets if one.other_end is not None])
        if one is not None:
            self.world.half_close(one)

    @rule(which=_which)
    def close(self, which: int) -> None:
        one = self._pick(which, self.world.sockets)
        if one is not None:
            self.world.close(one)

    @rule(which=_which)
    def abort(self, which: int) -> None:
        one = self._pick(which, self.world.sockets)
        if one is not None:
            self.world.abort(one)

    @rule(which=_which, mapped=st.booleans())
    def work_over_ssh(self, which: int, mapped: bool) -> None:
        """One connection, or none, is the one that the caller works over."""
        connections = [one for one in self.world.sockets if one.protocol == "tcp" and one.state == ESTABLISHED]
        one = self._pick(which, connections)
        self.world.model.session = None
        os.environ.pop("SSH_CONNECTION", None)
        if one is not None:
            local, peer = (unmapped(address) for address in (one.local, one.peer))
            self.world.model.session = (local, one.local_port, peer, one.peer_port)
            said = [f"::ffff:{address}" if mapped and address.version == 4 else address for address in (peer, local)]
            os.environ["SSH_CONNECTION"] = f"{said[0]} {one.peer_port} {said[1]} {one.local_port}"

    @rule(wish=wishes, aim=aims, which=_which)
    def find(self, wish: Wish, aim: str, which: int) -> None:
        where, wish = self._aimed(wish, aim, which)
        rows = list(find_sockets(filter_of(wish), namespace=where.namespace))
        meant = self.world.model.meant(wish, where.number)
        found = [self._identify(where, row) for row in rows]
        assert len(found) == len(set(found))
        assert set(found) == set(meant), (wish, set(found) ^ set(meant))
        for one, row in zip(found, rows):
            assert (row.state, row.is_time_wait) == (one.reported_state, one.is_mini)
            assert (row.interface, row.inode) == (one.device, one.inode)
        tally["searches"] += 1
        tally["found"] += len(found)

    @rule(wish=wishes, aim=aims, which=_which, options=options)
    def destroy(self, wish: Wish, aim: str, which: int, options: Options) -> None:
        where, wish = self._aimed(wish, aim, which)
        if bounds(wish.where):
            self._destroy(where, wish, options)
            return
        with pytest.raises(UnboundedFilter):
            destroy_sockets(filter_of(wish), namespace=where.namespace, **options._asdict())
        tally["refused"] += 1

    @rule(wish=wishes, which=_which, options=options)
    def destroy_the_like(self, wish: Wish, which: int, options: Options) -> None:
        """Whatever the filter bounds."""
        where, wish = self._aimed(wish, "the like", which)
        self._destroy(where, wish, options, allow_unbounded=True)

    @rule(which=_which, options=options, states=states)
    def destroy_by_backend(self, which: int, options: Options, states: States) -> None:
        """What this is for: everybody who is connected where this one is."""
        one = self._pick(which, [one for one in self.world.model.inhabitants if one.peer_port])
        if one is not None:
            wish = Wish(one.protocol, dst(one.peer, one.peer_port), states)
            self._destroy(self.places[one.place], wish, options)

    @rule(which=_which, options=options, states=states)
    def destroy_both_ends(self, which: int, options: Options, states: States) -> None:
        """Who dies of whom is the kernel's choice."""
        one = self._pick(which, self.world.model.inhabitants)
        if one is not None:
            port = one.peer_port or one.local_port
            wish = Wish(one.protocol, sport(port) | dport(port), states)
            self._destroy(self.places[one.place], wish, options)

    # -------------------------------------------------------------------------------------------- invariant

    @invariant()
    def everybody_is_as_the_model_says(self) -> None:
        if hasattr(self, "world"):
            self.world.check()
            self.world.make_room()
            tally["steps"] += 1

    # ------------------------------------------------------------------------------------------------ parts

    def _aimed(self, wish: Wish, aim: str, which: int) -> tuple[Place, Wish]:
        """Where somebody lives, and the wish with that one in mind."""
        one = self._pick(which, self.world.model.inhabitants)
        return (self.places[-1], wish) if one is None else (self.places[one.place], aimed(wish, aim, one))

    @staticmethod
    def _pick(which: int, of: Iterable[Inhabitant]) -> Optional[Inhabitant]:
        candidates = list(of)
        return candidates[which % len(candidates)] if candidates else None

    def _identify(self, place: Place, row: InetSocket) -> Inhabitant:
        protocol = "tcp" if row.protocol == socket.IPPROTO_TCP else "udp"
        ends = row.src, row.sport, row.dst, row.dport
        return self.world.model.identify(place.number, protocol, row.cookie, ends)

    def _destroy(self, place: Place, wish: Wish, options: Options, *, allow_unbounded: bool = False) -> None:
        model = self.world.model
        meant = model.meant(wish, place.number)
        report = destroy_sockets(
            filter_of(wish), namespace=place.namespace, allow_unbounded=allow_unbounded, **options._asdict()
        )
        said = self._said(place, report)
        model.check_report(wish, options, meant, said)
        self._bury(said)

    def _bury(self, said: dict[Inhabitant, Verdict]) -> None:
        destroyed = [one for one, verdict in said.items() if verdict.verdict == "destroyed"]
        self.world.bury(destroyed, self.world.model.victims(destroyed))
        tally["runs"] += 1
        for verdict, _ in said.values():
            tally[verdict] += 1

    def _said(self, place: Place, report: DestroyReport) -> dict[Inhabitant, Verdict]:
        said = {}
        for row, verdict, reason, _ in report.outcomes:
            said[self._identify(place, row)] = Verdict(verdict, reason)
        assert len(said) == len(report.outcomes) == report.matched
        self._check_sums(report, said.values())
        return said

    @staticmethod
    def _check_sums(counts: Counts, said: Iterable[Verdict]) -> None:
        expected = Counter(verdict for verdict, _ in said)
        assert counts.sums() == {"matched": sum(expected.values()), **{name: expected[name] for name in VERDICTS}}


def _cgroup_of_all(place: Place) -> int:
    """The cgroup that every socket here is made in, as the kernel numbers it; 0 where there is no cgroup v2."""
    with place.make(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 1))
        (row,) = find_sockets(SocketFilter("udp"))
    return int(row.attributes.get("cgroup_id", 0))
