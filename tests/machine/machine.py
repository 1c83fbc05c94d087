"""The rules by which sockets come, change and go, and are searched and destroyed; and what holds after each step."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Optional

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from socklb import (
    InetSocket,
    Outcome,
    SocketFilter,
    UnboundedFilter,
    destroy_sockets,
    device,
    dport,
    dst,
    find_sockets,
    sport,
)
from socklb.engine.report import Counts
from socklb.filters.conditions import EVERYTHING

from ..filters.trees import names_what_it_matches
from ..sockets import socket_of
from .counters import count_run, count_search, counters
from .endpoints import LINKS, ON_LINKS, Netns, make_namespaces
from .filters import BY_PROTOCOL, MARKS, PORTS, TARGETS, TWIN_PORT, Aim, aimed, aims, model_filters, options, states
from .model import (
    CLOSING,
    ESTABLISHED,
    FIN_WAIT1,
    LAST_ACK,
    STATES,
    ModelFilter,
    ModelSocket,
    Options,
    States,
    Verdict,
    unmapped,
)
from .population import DEVICES, TWIN_CLIENTS_PORT, SocketOptions
from .world import World

NAMESPACES = 3

_FAMILIES = {None: None, 4: socket.AF_INET, 6: socket.AF_INET6}
_TIME_WAIT = next(states for states in STATES if states.argument == ["time-wait"])
_WITH_LISTEN = next(states for states in STATES if states.names_listen)

_which = st.integers(0, 59)
netns_numbers = st.sampled_from((*range(NAMESPACES), NAMESPACES - 1, NAMESPACES - 1))  # the current one most often
_counts = st.integers(1, 3)
_protocols = st.sampled_from(("tcp", "udp"))
_uncommon = st.sampled_from(("send_unbound_udp", "connect_in_vain", "connect_to_deferring_listener"))
_targets = st.sampled_from(TARGETS)
_ports = st.sampled_from(PORTS)
_links, _on_links = st.sampled_from(LINKS), st.sampled_from(ON_LINKS)
_bind_addresses = st.sampled_from((*TARGETS, "0.0.0.0", "::"))
_bind_ports = st.sampled_from((*PORTS, TWIN_PORT, TWIN_PORT))
_dry_runs = st.sampled_from((False, False, False, True))
socket_options = st.builds(
    SocketOptions, st.booleans(), st.booleans(), st.sampled_from(MARKS), st.sampled_from(DEVICES), st.booleans()
)


def socket_filter(filter: ModelFilter) -> SocketFilter:
    keeps = filter.keeps
    return SocketFilter(
        filter.protocol,
        filter.condition,
        states=filter.states.argument,
        family=_FAMILIES[filter.version],
        predicate=None if keeps is None else lambda row: row.sport % 2 == keeps,
    )


class SocketMachine(RuleBasedStateMachine):
    """No rule has a precondition: what is drawn must not depend on which of several sockets the kernel found first."""

    namespaces: list[Netns] = []  # noqa: RUF012 - those of the whole run

    @initialize(addresses=st.lists(_targets, min_size=1, max_size=2), port=_ports, made=socket_options)
    def start(self, addresses: list[str], port: int, made: SocketOptions) -> None:
        if any(netns.rows() for netns in self.namespaces):  # what an example that failed has left
            for netns in self.namespaces:
                netns.close()
            self.namespaces[:] = make_namespaces(NAMESPACES)
        self.world = World(self.namespaces, _cgroup_of_all(self.namespaces[-1]))
        for netns in self.namespaces:
            for address in addresses:
                self.world.connect(netns, "tcp", address, port, made)
                self.world.connect(netns, "udp", address, port, made)
        counters["worlds"] += 1
        self.begin()

    def begin(self) -> None:
        """What is in some worlds from the first."""

    def teardown(self) -> None:
        """Every socket goes. What TCP itself keeps for a minute is destroyed: it counts, and nothing else is there."""
        os.environ.pop("SSH_CONNECTION", None)
        if not hasattr(self, "world"):
            return
        self.world.clear()
        self.world.model.session = None
        left = {one.netns for one in self.world.model.sockets}
        for number in left:
            filter = ModelFilter("tcp", EVERYTHING, _TIME_WAIT)
            self._expect_destroyed(self._run(self.namespaces[number], filter, Options(), allow_unbounded=True))
        self.world.check()
        assert not self.world.model.sockets

    # ------------------------------------------------------------------------------------------------ rules

    @rule(netns=netns_numbers, address=_bind_addresses, port=_bind_ports, made=socket_options)
    def listen(self, netns: int, address: str, port: int, made: SocketOptions) -> None:
        self.world.listen(self.namespaces[netns], address, port, made)

    @rule(netns=netns_numbers, protocol=_protocols, address=_bind_addresses, port=_bind_ports, made=socket_options)
    def bind(self, netns: int, protocol: str, address: str, port: int, made: SocketOptions) -> None:
        self.world.bind(self.namespaces[netns], protocol, address, port, made)

    @rule(netns=netns_numbers, protocol=_protocols, address=_targets, port=_ports, made=socket_options, count=_counts)
    def connect(self, netns: int, protocol: str, address: str, port: int, made: SocketOptions, count: int) -> None:
        for _ in range(count):
            self.world.connect(self.namespaces[netns], protocol, address, port, made)

    @rule(netns=netns_numbers, how=_uncommon, address=_targets, made=socket_options)
    def connect_in_an_uncommon_way(self, netns: int, how: str, address: str, made: SocketOptions) -> None:
        getattr(self.world, how)(self.namespaces[netns], address, made)

    @rule(
        netns=netns_numbers,
        address=_targets,
        state=st.sampled_from((FIN_WAIT1, LAST_ACK, CLOSING)),
        made=socket_options,
    )
    def close_behind_data(self, netns: int, address: str, state: int, made: SocketOptions) -> None:
        self.world.close_behind_data(self.namespaces[netns], address, state, made)

    @rule(netns=netns_numbers, protocol=_protocols, link=_links, address=_on_links, port=_ports, made=socket_options)
    def connect_on_link(
        self, netns: int, protocol: str, link: str, address: str, port: int, made: SocketOptions
    ) -> None:
        self.world.connect_on_link(self.namespaces[netns], protocol, link, address, port, made)

    @rule(which=_which, mark=st.sampled_from(MARKS))
    def mark(self, which: int, mark: int) -> None:
        one = self._pick(which, self.world.real)
        if one is not None:
            self.world.mark(one, mark)

    @rule(which=_which, address=_targets, port=_ports)
    def reconnect_udp(self, which: int, address: str, port: int) -> None:
        one = self._pick(which, [one for one in self.world.real if one.protocol == "udp"])
        if one is not None:
            self.world.reconnect_udp(one, address, port)

    @rule(which=_which)
    def half_close(self, which: int) -> None:
        one = self._pick(which, [one for one in self.world.real if one.other_end is not None])
        if one is not None:
            self.world.half_close(one)

    @rule(which=_which, reset=st.booleans())
    def close(self, which: int, reset: bool) -> None:
        one = self._pick(which, self.world.real)
        if one is not None:
            (self.world.abort if reset else self.world.close)(one)

    @rule(which=_which, mapped=st.booleans())
    def set_ssh_session(self, which: int, mapped: bool) -> None:
        """One connection, or none, is the own ssh session."""
        connections = [one for one in self.world.real if one.protocol == "tcp" and one.state == ESTABLISHED]
        self._set_ssh_session(self._pick(which, connections), mapped)

    @rule(several=st.lists(st.tuples(model_filters, aims, _which), min_size=1, max_size=3))
    def find(self, several: list[tuple[ModelFilter, Aim, int]]) -> None:
        for filter, aim, which in several:
            self._find(*self._aimed(filter, aim, which))

    @rule(filter=model_filters, aim=aims, which=_which, options=options, unbounded=st.booleans())
    def destroy(self, filter: ModelFilter, aim: Aim, which: int, options: Options, unbounded: bool) -> None:
        netns, filter = self._aimed(filter, aim, which)
        if unbounded or not self._is_refused(netns, filter, options):
            self._destroy(netns, filter, options, allow_unbounded=unbounded)

    @rule(filter=model_filters, which=_which, options=options)
    def destroy_by_protocol(self, filter: ModelFilter, which: int, options: Options) -> None:
        """Whatever the filter bounds, once that is allowed."""
        netns, filter = self._aimed(filter, BY_PROTOCOL, which)
        self._is_refused(netns, filter, options)
        self._destroy(netns, filter, options, allow_unbounded=True)

    @rule(which=_which, options=options, states=states)
    def destroy_by_backend(self, which: int, options: Options, states: States) -> None:
        """What this is for: everything that is connected where this one is."""
        one = self._pick(which, [one for one in self.world.model.sockets if one.peer_port])
        if one is not None:
            filter = ModelFilter(one.protocol, dst(one.peer, one.peer_port), states)
            self._destroy(self.namespaces[one.netns], filter, options)

    @rule(which=_which, options=options, states=states)
    def destroy_both_ends(self, which: int, options: Options, states: States) -> None:
        """Which end goes with the other is the kernel's choice."""
        one = self._pick(which, self.world.model.sockets)
        if one is not None:
            port = one.peer_port or one.local_port
            filter = ModelFilter(one.protocol, sport(port) | dport(port), states)
            self._destroy(self.namespaces[one.netns], filter, options)

    @rule(netns=netns_numbers, protocol=_protocols, address=_targets, port=_ports, limit=_counts, dry_run=_dry_runs)
    def destroy_some_of_several(
        self, netns: int, protocol: str, address: str, port: int, limit: int, dry_run: bool
    ) -> None:
        """There are more than the limit allows."""
        for _ in range(limit + 1):
            self.world.connect(self.namespaces[netns], protocol, address, port, SocketOptions())
        self._destroy(self.namespaces[netns], ModelFilter(protocol, dst(address, port)), Options(dry_run, limit))

    @rule(netns=netns_numbers, address=_targets, port=_ports, count=_counts, which=_which, mapped=st.booleans())
    def destroy_around_ssh(self, netns: int, address: str, port: int, count: int, which: int, mapped: bool) -> None:
        """One of those that are connected to a backend is the own session."""
        for _ in range(count):
            self.world.connect(self.namespaces[netns], "tcp", address, port, SocketOptions())
        filter = ModelFilter("tcp", dst(address, port))
        self._set_ssh_session(self._pick(which, self.world.model.matching(filter, netns)), mapped)
        self._destroy(self.namespaces[netns], filter, Options())

    @rule(netns=netns_numbers, protocol=_protocols, address=_on_links, port=_ports, link=_links, by_name=st.booleans())
    def destroy_on_link(self, netns: int, protocol: str, address: str, port: int, link: str, by_name: bool) -> None:
        """Two connections that differ in nothing but the link, and only the one that is named by it."""
        here = self.namespaces[netns]
        self.world.connect_on_links(here, protocol, address, port)
        to = dst(address, port)
        filter = ModelFilter(protocol, to & device(link if by_name else here.interfaces[link]))
        self._destroy(here, filter, Options())
        counters["alive on the other link"] += len(self.world.model.matching(ModelFilter(protocol, to), netns))

    @rule(netns=netns_numbers, address=_targets, port=_ports)
    def destroy_twins(self, netns: int, address: str, port: int) -> None:
        """The one that the kernel finds first hides the others. UDP clients that have lost their peer are spared at
        first, and then hide each other for ever.
        """
        here, twin = self.namespaces[netns], SocketOptions(own_port=True, twin=True)
        for _ in range(3):
            self.world.listen(here, address, TWIN_PORT, twin)
            self.world.connect(here, "udp", address, port, twin)
        self.world.bind(here, "tcp", address, TWIN_PORT, twin)
        for named in (STATES[0], _WITH_LISTEN):
            self._destroy(here, ModelFilter("tcp", sport(TWIN_PORT), named), Options())
        for unconnected in (False, False, True):
            self._destroy(here, ModelFilter("udp", sport(TWIN_CLIENTS_PORT)), Options(unconnected=unconnected))

    # -------------------------------------------------------------------------------------------- invariant

    @invariant()
    def every_socket_is_as_the_model_says(self) -> None:
        if hasattr(self, "world"):
            self.world.check()
            self.world.make_room()
            counters["steps"] += 1

    # ------------------------------------------------------------------------------------------------ parts

    def _aimed(self, filter: ModelFilter, aim: Aim, which: int) -> tuple[Netns, ModelFilter]:
        """The namespace of some socket, and the filter with that one in mind."""
        one = self._pick(which, self.world.model.sockets)
        return (self.namespaces[-1], filter) if one is None else (self.namespaces[one.netns], aimed(filter, aim, one))

    @staticmethod
    def _pick(which: int, of: Iterable[ModelSocket]) -> Optional[ModelSocket]:
        candidates = list(of)
        return candidates[which % len(candidates)] if candidates else None

    def _set_ssh_session(self, one: Optional[ModelSocket], mapped: bool) -> None:
        self.world.model.session = None
        os.environ.pop("SSH_CONNECTION", None)
        if one is not None:
            local, peer = (unmapped(address) for address in (one.local, one.peer))
            self.world.model.session = (local, one.local_port, peer, one.peer_port)
            texts = [f"::ffff:{address}" if mapped and address.version == 4 else address for address in (peer, local)]
            os.environ["SSH_CONNECTION"] = f"{texts[0]} {one.peer_port} {texts[1]} {one.local_port}"

    def _find(self, netns: Netns, filter: ModelFilter) -> None:
        rows = list(find_sockets(socket_filter(filter), namespace=netns.namespace))
        matching = self.world.model.matching(filter, netns.number)
        found = [self._identify(netns, row) for row in rows]
        assert len(found) == len(set(found))
        assert set(found) == set(matching), (filter, set(found) ^ set(matching))
        for one, row in zip(found, rows):
            assert (row.state, row.is_time_wait) == (one.reported_state, one.is_mini)
            assert row.inode == one.inode
        count_search(len(found))

    def _identify(self, netns: Netns, row: InetSocket) -> ModelSocket:
        protocol = "tcp" if row.protocol == socket.IPPROTO_TCP else "udp"
        ends = row.src, row.sport, row.dst, row.dport
        return self.world.model.identify(netns.number, protocol, row.cookie, ends, row.interface)

    def _is_refused(self, netns: Netns, filter: ModelFilter, options: Options) -> bool:
        """As it has to be if the filter bounds nothing."""
        if names_what_it_matches(filter.condition):
            return False
        with pytest.raises(UnboundedFilter):
            destroy_sockets(socket_filter(filter), namespaces=netns.namespace or "current", **options._asdict())
        counters["refused"] += 1
        return True

    def _destroy(self, netns: Netns, filter: ModelFilter, options: Options, *, allow_unbounded: bool = False) -> None:
        verdicts = self._run(netns, filter, options, allow_unbounded=allow_unbounded)
        count_run(verdicts, self.world.model)
        self._expect_destroyed(verdicts)

    def _run(
        self, netns: Netns, filter: ModelFilter, options: Options, *, allow_unbounded: bool
    ) -> dict[ModelSocket, Verdict]:
        matching = self.world.model.matching(filter, netns.number)
        report = destroy_sockets(
            socket_filter(filter),
            namespaces=netns.namespace or "current",
            allow_unbounded=allow_unbounded,
            **options._asdict(),
        )
        verdicts = self._verdicts(netns, report.outcomes)
        self._check_sums(report.counts, verdicts.values())
        self.world.model.check_report(filter, options, matching, verdicts)
        return verdicts

    def _expect_destroyed(self, verdicts: dict[ModelSocket, Verdict]) -> None:
        self.world.expect_destroyed(self._destroyed(verdicts))

    @staticmethod
    def _destroyed(verdicts: dict[ModelSocket, Verdict]) -> list[ModelSocket]:
        return [one for one, verdict in verdicts.items() if verdict.verdict == "destroyed"]

    def _verdicts(self, netns: Netns, outcomes: Sequence[Outcome]) -> dict[ModelSocket, Verdict]:
        verdicts = {self._identify(netns, socket_of(one)): Verdict(one.verdict, one.reason) for one in outcomes}
        assert len(verdicts) == len(outcomes)
        return verdicts

    @staticmethod
    def _check_sums(counts: Counts, verdicts: Iterable[Verdict]) -> None:
        assert counts == Counts(**Counter(verdict for verdict, _ in verdicts))


def _cgroup_of_all(netns: Netns) -> int:
    """The cgroup that every socket here is made in, as the kernel numbers it; 0 where there is no cgroup v2."""
    with netns.make(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 1))
        (row,) = find_sockets(SocketFilter("udp"))
    return int(row.attributes.get("cgroup_id", 0))
