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
from socklb.engine.report import Counts
from socklb.filters.conditions import EVERYTHING

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
from .population import TWIN_CLIENTS_PORT, Manner
from .tallies import count_run, count_search, tally
from .wishes import MARKS, PORTS, TARGETS, TWIN_PORT, Aim, aimed, aims, options, states, wishes
from .world import World

PLACES = 3
VERDICTS = ("destroyed", "gone", "skipped", "failed")

_FAMILIES = {None: None, 4: socket.AF_INET, 6: socket.AF_INET6}

_which = st.integers(0, 59)
_places = st.sampled_from((*range(PLACES), PLACES - 1, PLACES - 1))  # the caller's own is visited most
_counts = st.integers(1, 3)
_protocols = st.sampled_from(("tcp", "udp"))
_targets = st.sampled_from(TARGETS)
_ports = st.sampled_from(PORTS)
_bind_addresses = st.sampled_from((*TARGETS, "0.0.0.0", "::"))
_bind_ports = st.sampled_from((*PORTS, TWIN_PORT, TWIN_PORT))
_dry_runs = st.sampled_from((False, False, False, True))
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

    @initialize(addresses=st.lists(_targets, min_size=1, max_size=2), port=_ports, manner=_manners)
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
                self._bury(self._run(place, wish, Options(), allow_unbounded=True))
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
        self._work_over(self._pick(which, connections), mapped)

    @rule(several=st.lists(st.tuples(wishes, aims, _which), min_size=1, max_size=3))
    def find(self, several: list[tuple[Wish, Aim, int]]) -> None:
        for wish, aim, which in several:
            self._find(*self._aimed(wish, aim, which))

    @rule(wish=wishes, aim=aims, which=_which, options=options, unbounded=st.booleans())
    def destroy(self, wish: Wish, aim: Aim, which: int, options: Options, unbounded: bool) -> None:
        where, wish = self._aimed(wish, aim, which)
        if unbounded or not self._is_refused(where, wish, options):
            self._destroy(where, wish, options, allow_unbounded=unbounded)

    @rule(wish=wishes, which=_which, options=options)
    def destroy_its_kind(self, wish: Wish, which: int, options: Options) -> None:
        """Whatever the filter bounds, once that is allowed."""
        where, wish = self._aimed(wish, Aim("its kind"), which)
        self._is_refused(where, wish, options)
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

    @rule(protocol=_protocols, place=_places, address=_targets, port=_ports, limit=_counts, dry_run=_dry_runs)
    def destroy_some_of_several(
        self, protocol: str, place: int, address: str, port: int, limit: int, dry_run: bool
    ) -> None:
        """There are more than the limit allows."""
        connect = self.world.connect if protocol == "tcp" else self.world.connect_udp
        for _ in range(limit + 1):
            connect(self.places[place], address, port, Manner())
        self._destroy(self.places[place], Wish(protocol, dst(address, port)), Options(dry_run, limit))

    @rule(place=_places, address=_targets, port=_ports, count=_counts, which=_which, mapped=st.booleans())
    def destroy_around_ssh(self, place: int, address: str, port: int, count: int, which: int, mapped: bool) -> None:
        """Of those who are connected to a backend one is what the caller works over."""
        for _ in range(count):
            self.world.connect(self.places[place], address, port, Manner())
        wish = Wish("tcp", dst(address, port))
        self._work_over(self._pick(which, self.world.model.meant(wish, place)), mapped)
        self._destroy(self.places[place], wish, Options())

    @rule(place=_places, address=_targets, port=_ports)
    def destroy_twins(self, place: int, address: str, port: int) -> None:
        """Whom the kernel finds first hides the others. UDP clients that have lost their peer are spared at first, and
        then hide each other for ever.
        """
        where, twin = self.places[place], Manner(own_port=True, twin=True)
        for _ in range(3):
            self.world.listen(where, address, TWIN_PORT, twin)
            self.world.connect_udp(where, address, port, twin)
        self.world.bind_tcp(where, address, TWIN_PORT, twin)
        for named in (STATES[0], next(those for those in STATES if those.names_listen)):
            self._destroy(where, Wish("tcp", sport(TWIN_PORT), named), Options())
        for unconnected in (False, False, True):
            self._destroy(where, Wish("udp", sport(TWIN_CLIENTS_PORT)), Options(unconnected=unconnected))

    # -------------------------------------------------------------------------------------------- invariant

    @invariant()
    def everybody_is_as_the_model_says(self) -> None:
        if hasattr(self, "world"):
            self.world.check()
            self.world.make_room()
            tally["steps"] += 1

    # ------------------------------------------------------------------------------------------------ parts

    def _aimed(self, wish: Wish, aim: Aim, which: int) -> tuple[Place, Wish]:
        """Where somebody lives, and the wish with that one in mind."""
        one = self._pick(which, self.world.model.inhabitants)
        return (self.places[-1], wish) if one is None else (self.places[one.place], aimed(wish, aim, one))

    @staticmethod
    def _pick(which: int, of: Iterable[Inhabitant]) -> Optional[Inhabitant]:
        candidates = list(of)
        return candidates[which % len(candidates)] if candidates else None

    def _work_over(self, one: Optional[Inhabitant], mapped: bool) -> None:
        self.world.model.session = None
        os.environ.pop("SSH_CONNECTION", None)
        if one is not None:
            local, peer = (unmapped(address) for address in (one.local, one.peer))
            self.world.model.session = (local, one.local_port, peer, one.peer_port)
            said = [f"::ffff:{address}" if mapped and address.version == 4 else address for address in (peer, local)]
            os.environ["SSH_CONNECTION"] = f"{said[0]} {one.peer_port} {said[1]} {one.local_port}"

    def _find(self, where: Place, wish: Wish) -> None:
        rows = list(find_sockets(filter_of(wish), namespace=where.namespace))
        meant = self.world.model.meant(wish, where.number)
        found = [self._identify(where, row) for row in rows]
        assert len(found) == len(set(found))
        assert set(found) == set(meant), (wish, set(found) ^ set(meant))
        for one, row in zip(found, rows):
            assert (row.state, row.is_time_wait) == (one.reported_state, one.is_mini)
            assert (row.interface, row.inode) == (one.device, one.inode)
        count_search(len(found))

    def _identify(self, place: Place, row: InetSocket) -> Inhabitant:
        protocol = "tcp" if row.protocol == socket.IPPROTO_TCP else "udp"
        ends = row.src, row.sport, row.dst, row.dport
        return self.world.model.identify(place.number, protocol, row.cookie, ends)

    def _is_refused(self, place: Place, wish: Wish, options: Options) -> bool:
        """As it is if the filter bounds nothing."""
        if bounds(wish.where):
            return False
        with pytest.raises(UnboundedFilter):
            destroy_sockets(filter_of(wish), namespace=place.namespace, **options._asdict())
        tally["refused"] += 1
        return True

    def _destroy(self, place: Place, wish: Wish, options: Options, *, allow_unbounded: bool = False) -> None:
        said = self._run(place, wish, options, allow_unbounded=allow_unbounded)
        count_run(said, self.world.model)
        self._bury(said)

    def _run(self, place: Place, wish: Wish, options: Options, *, allow_unbounded: bool) -> dict[Inhabitant, Verdict]:
        meant = self.world.model.meant(wish, place.number)
        report = destroy_sockets(
            filter_of(wish), namespace=place.namespace, allow_unbounded=allow_unbounded, **options._asdict()
        )
        said = self._said(place, report)
        self.world.model.check_report(wish, options, meant, said)
        return said

    def _bury(self, said: dict[Inhabitant, Verdict]) -> None:
        destroyed = [one for one, verdict in said.items() if verdict.verdict == "destroyed"]
        self.world.bury(destroyed, self.world.model.victims(destroyed))

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
