"""Filters that mean something in the machine's world: of every kind, and mostly about addresses and ports in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from hypothesis import strategies as st

from socklb import autobound, cgroup, device, dport, dst, mark, sport, src
from socklb.filters import Condition
from socklb.filters.conditions import And, Or

from ..filters.trees import conditions, trees
from .model import STATES, Inhabitant, Options, Wish

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
_kernels_own = st.sampled_from((device("lo"), autobound()))  # what the kernel, or a namespace, must be asked for
_others = _devices_and_cgroups | _kernels_own

endpoint_conditions = trees(_hosts | _ports, fewest_parts=0)
"""What can be asked about addresses and ports alone."""

matched_conditions = trees(st.one_of(_hosts, _ports, _marks, _devices_and_cgroups), fewest_parts=0)
"""What can be asked about a row in Python."""

wheres: st.SearchStrategy[Condition] = st.one_of(
    _hosts,
    _ports,
    trees(st.one_of(_hosts, _ports, _hosts, _ports, _marks, _others), fewest_parts=0),
    _others,
    conditions,
)

states = st.sampled_from((*STATES[:1] * len(STATES), *STATES[1:2] * 4, *STATES))

wishes: st.SearchStrategy[Wish] = st.builds(
    Wish,
    st.sampled_from(("tcp", "udp")),
    wheres,
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
    """What a wish has to do with one inhabitant: how its own condition is joined with a trait of this one.

    No trait: it is about the protocol of this one; and no way to join either: it has nothing to do with it.
    """

    how: str
    trait: str = ""


_ENDPOINT_TRAITS: dict[str, Callable[[Inhabitant], Condition]] = {
    "ends": lambda one: src(one.local, one.local_port) & dst(one.peer, one.peer_port),
    "peer": lambda one: dst(one.peer, one.peer_port),
    "address": lambda one: src(one.local),
    "port": lambda one: sport(one.local_port),
    "peer's port": lambda one: dport(one.peer_port),
}
_TRAITS: dict[str, Callable[[Inhabitant], Condition]] = {
    **_ENDPOINT_TRAITS,
    "mark": lambda one: mark(one.mark),
    "device": lambda one: device(one.device),
}
_JOINED: dict[str, Callable[[Condition, Condition], Condition]] = {
    "alone": lambda trait, where: trait,
    "or": Or,
    "and": And,
    "and not": lambda trait, where: trait & ~where,
}


def _aims_at(traits: Iterable[str]) -> st.SearchStrategy[Aim]:
    return st.sampled_from((*(Aim(""), Aim("its kind")) * 3, *(Aim(how, trait) for how in _JOINED for trait in traits)))


aims, endpoint_aims = _aims_at(_TRAITS), _aims_at(_ENDPOINT_TRAITS)


def aimed(wish: Wish, aim: Aim, one: Inhabitant) -> Wish:
    """The wish, made to fit this one in what is not its condition, if it is about it."""
    if not aim.how:
        return wish
    wish = wish._replace(protocol=one.protocol)
    if not aim.trait:
        return wish  # as it is in all else
    return wish._replace(
        where=with_trait(wish.where, aim, one),
        states=wish.states if wish.states.means(one) else next(those for those in STATES[::-1] if those.means(one)),
        version=wish.version and one.version,
        keeps=None if wish.keeps is None else one.local_port % 2,
    )


def with_trait(where: Condition, aim: Aim, one: Inhabitant) -> Condition:
    return _JOINED[aim.how](_TRAITS[aim.trait](one), where) if aim.trait else where
