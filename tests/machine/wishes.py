"""Filters that mean something in the machine's world: of every kind, and mostly about addresses and ports in use."""

from __future__ import annotations

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

aims = st.sampled_from(("", "the like", "at it", "at it too", "of it alone"))
"""What a wish has to do with one inhabitant: nothing; it is about its protocol; it is this one that is meant; this one
too; of what is meant this one alone."""


def aimed(wish: Wish, aim: str, one: Inhabitant) -> Wish:
    if not aim:
        return wish
    wish = wish._replace(protocol=one.protocol)
    if aim == "the like":
        return wish
    its_ends = src(one.local, one.local_port) & dst(one.peer, one.peer_port)
    return wish._replace(
        where={"at it": its_ends, "at it too": Or(wish.where, its_ends), "of it alone": And(wish.where, its_ends)}[aim]
    )
