"""Filters of every kind, mostly about addresses and ports in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from hypothesis import strategies as st

from socklb import autobound, cgroup, device, dport, dst, mark, sport, src
from socklb.filters import Condition
from socklb.filters.conditions import And, Or

from ..filters.trees import conditions, trees
from .endpoints import LINKS
from .model import STATES, ModelFilter, ModelSocket, Options

TARGETS = ("127.0.0.2", "127.0.0.3", "::1", "fd00::1", "::ffff:127.0.0.2")
PORTS = (9000, 9001)
TWIN_PORT = 7000
MARKS = (0, 1, 0x11, 0xFFFFFFFF)

_HOSTS = (
    *(*TARGETS, "127.0.0.1", "127.0.0.9", "127.0.0.2/31", "127.0.0.0/8", "0.0.0.0/0", "0.0.0.0"),
    *("::", "fd00::/8", "::/0", "::/1", "::ffff:127.0.0.3", "::ffff:127.0.0.0/104", "::ffff:0.0.0.0/96"),
)
_ENDS = (0, 53, TWIN_PORT, *PORTS, 20000, 32768, 65535)  # of ranges: ports in use, and what lies around them

_hosts = st.builds(
    lambda make, *of: make(*of), st.sampled_from((src, dst)), st.sampled_from(_HOSTS), st.sampled_from((None, *PORTS))
)
_ports = st.builds(
    lambda make, ends: make(*sorted(ends)),
    st.sampled_from((sport, dport)),
    st.tuples(st.sampled_from(_ENDS), st.sampled_from(_ENDS)) | st.sampled_from(PORTS).map(lambda port: (port, port)),
)
_marks = st.builds(
    lambda value, mask: mark(value & mask, mask), st.sampled_from(MARKS), st.sampled_from((0, 1, 0x10, 0xFFFFFFFF))
)
_devices_and_cgroups = st.sampled_from((device(0), device(1), device(2), cgroup(0), cgroup(1)))
_kernels_own = st.sampled_from((*map(device, ("lo", *LINKS)), autobound()))  # only the kernel, or the namespace, knows
_others = _devices_and_cgroups | _kernels_own

endpoint_conditions = trees(_hosts | _ports, fewest_parts=0)
"""About addresses and ports alone."""

matched_conditions = trees(st.one_of(_hosts, _ports, _marks, _devices_and_cgroups), fewest_parts=0)
"""What can be matched in Python."""

filter_conditions: st.SearchStrategy[Condition] = st.one_of(
    _hosts,
    _ports,
    trees(st.one_of(_hosts, _ports, _hosts, _ports, _marks, _others), fewest_parts=0),
    _others,
    conditions,
)

states = st.sampled_from((*STATES[:1] * len(STATES), *STATES[1:2] * 4, *STATES))

model_filters: st.SearchStrategy[ModelFilter] = st.builds(
    ModelFilter,
    st.sampled_from(("tcp", "udp")),
    filter_conditions,
    states,
    st.sampled_from((None, None, None, None, None, None, 4, 6)),
    st.sampled_from((None, None, None, None, None, None, 0, 1)),
)

options: st.SearchStrategy[Options] = st.builds(
    Options,
    st.sampled_from((False, False, False, False, True)),
    st.sampled_from((None, None, None, 1, 2, 3, 100)),
    st.booleans(),
)


class Aim(NamedTuple):
    """How a filter is made to fit one socket: joined with a trait of it; without a trait, by protocol alone; or not.

    `how` is empty for the last.
    """

    how: str
    trait: str = ""


_ENDPOINT_TRAITS: dict[str, Callable[[ModelSocket], Condition]] = {
    "ends": lambda one: src(one.local, one.local_port) & dst(one.peer, one.peer_port),
    "peer": lambda one: dst(one.peer, one.peer_port),
    "address": lambda one: src(one.local),
    "port": lambda one: sport(one.local_port),
    "peer's port": lambda one: dport(one.peer_port),
}
_TRAITS: dict[str, Callable[[ModelSocket], Condition]] = {
    **_ENDPOINT_TRAITS,
    "mark": lambda one: mark(one.mark),
    "device": lambda one: device(one.device),
}
_JOINED: dict[str, Callable[[Condition, Condition], Condition]] = {
    "alone": lambda trait, condition: trait,
    "or": Or,
    "and": And,
    "and not": lambda trait, condition: trait & ~condition,
}
BY_PROTOCOL = Aim("by protocol")


def _aims_at(traits: Iterable[str]) -> st.SearchStrategy[Aim]:
    return st.sampled_from((*(Aim(""), BY_PROTOCOL) * 3, *(Aim(how, trait) for how in _JOINED for trait in traits)))


aims, endpoint_aims = _aims_at(_TRAITS), _aims_at(_ENDPOINT_TRAITS)


def aimed(filter: ModelFilter, aim: Aim, one: ModelSocket) -> ModelFilter:
    """With a trait, all else of the filter is made to match the socket too."""
    if not aim.how:
        return filter
    filter = filter._replace(protocol=one.protocol)
    if not aim.trait:
        return filter
    fitting = [states for states in (filter.states, *STATES[::-1]) if states.matches(one)]
    return filter._replace(
        condition=joined(filter.condition, aim, one),
        states=fitting[0],
        version=filter.version and one.version,
        keeps=None if filter.keeps is None else one.local_port % 2,
    )


def joined(condition: Condition, aim: Aim, one: ModelSocket) -> Condition:
    return _JOINED[aim.how](_TRAITS[aim.trait](one), condition) if aim.trait else condition
