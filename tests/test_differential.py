"""What socklb finds is what others find: ss(8), a full dump matched in Python, /proc/net; in generated worlds.

The worlds are made of the state machine's sockets (`machine/`), of every kind and state. `test_ss_agreement` has the
texts that people write; here they are generated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from socklb import InetSocket, SocketFilter, destroy_sockets, device, dport, dst, find_sockets, mark, sport, src
from socklb.filters import Condition
from socklb.filters.conditions import EVERYTHING

from . import this_kernel
from .filters.trees import trees
from .machine.endpoints import Netns, make_namespaces
from .machine.filters import (
    MARKS,
    PORTS,
    TARGETS,
    TWIN_PORT,
    Aim,
    aimed,
    aims,
    endpoint_aims,
    endpoint_conditions,
    joined,
    matched_conditions,
)
from .machine.machine import socket_filter, socket_options
from .machine.model import (
    BOUND_INACTIVE,
    CLOSE,
    CLOSING,
    FIN_WAIT1,
    LAST_ACK,
    STATES,
    ModelFilter,
    ModelSocket,
    matches,
)
from .machine.population import SocketOptions
from .machine.world import World
from .proc_net import ProcRow
from .ss import both, found, require_ss

pytestmark = pytest.mark.kernel

# ------------------------------------------------------------------------------------------------- worlds


class Step(NamedTuple):
    """One thing that happens in a world."""

    what: str
    address: str
    port: int
    options: SocketOptions
    which: int


STEPS = (
    *("listen", "bind tcp", "bind udp", "send_unbound_udp", "connect tcp", "connect tcp", "connect udp", "connect udp"),
    *("connect_in_vain", "connect_to_deferring_listener", "close_behind_data"),
    *("mark", "half_close", "half_close", "close", "close", "destroy"),
)

populations = st.lists(
    st.builds(
        Step,
        st.sampled_from(STEPS),
        st.sampled_from(TARGETS),
        st.sampled_from((*PORTS, TWIN_PORT)),
        socket_options,
        st.integers(0, 29),
    ),
    min_size=4,
    max_size=16,
)


def take(step: Step, world: World, netns: Netns) -> None:
    what, _, protocol = step.what.partition(" ")
    if protocol:
        getattr(world, what)(netns, protocol, step.address, step.port, step.options)
    elif what == "listen":
        world.listen(netns, step.address, step.port, step.options)
    elif what == "close_behind_data":
        world.close_behind_data(netns, step.address, (FIN_WAIT1, LAST_ACK, CLOSING)[step.which % 3], step.options)
    elif what in ("send_unbound_udp", "connect_in_vain", "connect_to_deferring_listener"):
        getattr(world, what)(netns, step.address, step.options)
    elif world.real:
        _change(what, one_of(world.real, step.which), world, step.options)


def _change(what: str, one: ModelSocket, world: World, options: SocketOptions) -> None:
    if what == "mark":
        world.mark(one, options.mark)
    elif what == "destroy":
        ends = sport(one.local_port) & dport(one.peer_port) & src(one.local)
        destroy_sockets(SocketFilter(one.protocol, ends), unconnected=True)
    elif one.other_end is not None:
        getattr(world, what)(one)


@pytest.fixture(scope="module")
def netns() -> Iterator[Netns]:
    this_kernel.needs(
        this_kernel.destroys_mini_sockets, "destroys no mini-sockets: nothing ends a population's", since=(6, 1)
    )
    (made,) = make_namespaces(1)
    yield made
    made.close()


@contextmanager
def inhabited(netns: Netns, population: list[Step]) -> Iterator[World]:
    """A world in which all that has happened; in the end nothing of it is left, not even what TCP keeps."""
    world = World([netns], cgroup=0)
    try:
        for address in ("127.0.0.2", "::ffff:127.0.0.2"):
            world.connect(netns, "tcp", address, PORTS[0], SocketOptions())
            world.connect(netns, "udp", address, PORTS[0], SocketOptions())
        for step in population:
            if step.what != "destroy":
                take(step, world, netns)
        world.check()  # what was on its way has arrived
        for step in population:
            if step.what == "destroy":  # which the model does not follow
                take(step, world, netns)
        yield world
    finally:
        world.clear()
        destroy_sockets(SocketFilter("tcp", states=["time-wait"]), allow_unbounded=True)


in_one_netns = settings(suppress_health_check=list(HealthCheck))


class Comparisons:
    """What was found: two that both find nothing, or everything, agree about little."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()

    def compare(self, here: Collection[object], there: Collection[object], of: int, what: object) -> None:
        assert here == there, what
        self._kinds["nothing" if not here else "some" if len(here) < of else "everything"] += 1

    def check(self) -> None:
        assert self._kinds["some"] >= sum(self._kinds.values()) / 4, self._kinds


@pytest.fixture
def comparisons() -> Iterator[Comparisons]:
    made = Comparisons()
    yield made
    made.check()


def one_of(sockets: Iterable[ModelSocket], which: int) -> ModelSocket:
    candidates = list(sockets)
    return candidates[which % len(candidates)]


_which = st.integers(0, 29)

# ---------------------------------------------------------------------------------- a full dump, and matches


# A TCP socket that is only bound reports CLOSE: `matches` takes it for either of two states, the kernel for one.
_COMPARED = [states for states in STATES if states.argument != ["unconnected"]]


_filters = st.builds(
    ModelFilter,
    st.sampled_from(("tcp", "udp")),
    matched_conditions,
    st.sampled_from((*_COMPARED[:2] * 4, *_COMPARED)),
    st.sampled_from((None, None, 4, 6)),
    st.sampled_from((None, None, None, 0, 1)),
)


class TestAFullDump:
    """find_sockets(f) is what f.matches says of every socket."""

    @in_one_netns
    @given(population=populations, asked=st.lists(st.tuples(_filters, aims, _which), min_size=4, max_size=12))
    def test_matched_in_python(
        self, netns: Netns, comparisons: Comparisons, population: list[Step], asked: list[tuple[ModelFilter, Aim, int]]
    ) -> None:
        with inhabited(netns, population) as world:
            rows = {protocol: list(find_sockets(SocketFilter(protocol, states="all"))) for protocol in ("tcp", "udp")}
            for model, aim, which in asked:
                model = aimed(model, aim, one_of(world.model.sockets, which))
                asked_for, everything = socket_filter(model), rows[model.protocol]
                here, there = list(find_sockets(asked_for)), list(filter(asked_for.matches, everything))
                comparisons.compare(_ids(here), _ids(there), len(everything), asked_for)


def _ids(rows: Iterable[InetSocket]) -> list[tuple[object, ...]]:
    return sorted((row.cookie, row.state, row.family, row.src, row.sport, row.dst, row.dport) for row in rows)


# ----------------------------------------------------------------------------------------------- /proc/net


class TestProcNet:
    """What /proc/net/tcp, tcp6, udp and udp6 show, but for TCP sockets that are only bound: those are not there."""

    @in_one_netns
    @given(
        population=populations,
        asked=st.lists(st.tuples(endpoint_conditions, endpoint_aims, _which), min_size=2, max_size=8),
    )
    def test_the_same_sockets(
        self, netns: Netns, comparisons: Comparisons, population: list[Step], asked: list[tuple[Condition, Aim, int]]
    ) -> None:
        with inhabited(netns, population) as world:
            shown = netns.table.rows()
            assert Counter(_found(EVERYTHING)) == Counter(shown)
            for condition, aim, which in asked:
                condition = joined(condition, aim, one_of(world.model.sockets, which))
                expected = Counter(row for row in shown if matches(condition, _model_socket(row)))
                comparisons.compare(Counter(_found(condition)), expected, len(shown), condition)


def _found(condition: Condition) -> list[ProcRow]:
    return [
        ProcRow(
            *(protocol, row.src.version, row.src, row.sport, row.dst, row.dport),
            *(row.state, row.is_time_wait, row.uid, row.inode),
        )
        for protocol in ("tcp", "udp")
        for row in find_sockets(SocketFilter(protocol, condition, states="all"))
        if protocol == "udp" or row.state != CLOSE
    ]


def _model_socket(row: ProcRow) -> ModelSocket:
    """As far as /proc/net shows it: addresses and ports."""
    state = BOUND_INACTIVE if row.protocol == "tcp" and row.state == CLOSE else row.state
    return ModelSocket(0, row.protocol, state, row.local, row.local_port, row.peer, row.peer_port)


# ------------------------------------------------------------------------------------------------------ ss

_HOSTS = (
    "127.0.0.1",
    "127.0.0.2",
    "127.0.0.9",
    "127.0.0.2/31",
    "127.0.0.0/8",
    "::1",
    "fd00::1",
    "fd00::/8",
)  # for ss ::/0 is any address, for us v6 alone
_sides = st.sampled_from((src, dst))
_ss_leaves = st.one_of(
    st.builds(
        lambda side, host, port: side(host, port), _sides, st.sampled_from(_HOSTS), st.sampled_from((None, 9000))
    ),
    st.builds(
        lambda side, ends: side(*sorted(ends)),
        st.sampled_from((sport, dport)),
        st.tuples(*[st.sampled_from((1, 7000, 9000, 9001, 20000, 32768, 65534))] * 2),
    ),
    st.builds(lambda value, mask: mark(value & mask, mask), st.sampled_from(MARKS), st.sampled_from((1, 0x10, 0xFF))),
    st.just(device("lo")),
)
_FEWER = max(20, (settings.default or settings()).max_examples // 4)  # of examples that ask many processes

ss_conditions = trees(_ss_leaves, fewest_parts=2)
"""What both read alike: no mapped address (which matches more here), and parentheses around every group."""


class TestSs:
    """What ss(8) shows for the text of the filter."""

    @settings(in_one_netns, max_examples=_FEWER)
    @given(
        population=populations,
        asked=st.lists(st.tuples(ss_conditions, endpoint_aims, _which), min_size=1, max_size=4),
    )
    def test_the_same_text(
        self, netns: Netns, comparisons: Comparisons, population: list[Step], asked: list[tuple[Condition, Aim, int]]
    ) -> None:
        require_ss()
        with inhabited(netns, population) as world:
            for protocol in ("tcp", "udp"):
                everything = len(found(protocol))
                connected = [one for one in world.model.sockets if one.protocol == protocol and one.peer_port]
                for condition, aim, which in asked:
                    condition = joined(condition, aim, one_of(connected, which))
                    comparisons.compare(*both(protocol, str(condition)), everything, condition)
