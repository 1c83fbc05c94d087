"""Sockets, backends, and trees of conditions, for the laws that filters keep."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Union

from hypothesis import strategies as st

from socklb import Backend, InetSocket, cgroup, device, dport, dst, mark, sport, src
from socklb.filters import Condition
from socklb.filters.conditions import And, Or
from socklb.wire.reply import InetDiagMsg
from socklb.wire.request import IPPROTO_TCP
from socklb.wire.socket_id import AF_INET, AF_INET6, SocketId

from ..strategies import addresses, make_socket, ports, sockets, u32

Network = Union[IPv4Network, IPv6Network]

# ----------------------------------------------------------------------------------------------- sockets


def socket_between(
    local: str,
    peer: str,
    *,
    protocol: int = IPPROTO_TCP,
    state: int = 1,
    timer: int = 0,
    interface: int = 0,
    **attributes: Any,
) -> InetSocket:
    """The row of a socket between two endpoints, "10.0.0.1:80" or "[::1]:80"."""
    (source, source_port), (destination, destination_port) = map(_endpoint, (local, peer))
    id = SocketId(source_port, destination_port, source, destination, interface, 1)
    family = AF_INET if len(source) == 4 else AF_INET6
    return make_socket(InetDiagMsg(family, state, timer, 0, id, 0, 0, 0, 0, 0), protocol, attributes)


def _endpoint(text: str) -> tuple[bytes, int]:
    host, _, port = text.rpartition(":")
    return ip_address(host.strip("[]")).packed, int(port)


full_sockets = sockets(with_attributes=("mark", "cgroup_id"))
"""Sockets whose rows have every attribute that a condition tests."""

backends = st.builds(
    Backend,
    addresses.filter(lambda address: int(address) not in (0, 0xFFFF << 32)),
    st.integers(1, 65535),
    st.sampled_from(("tcp", "udp")),
)

# ---------------------------------------------------------------------------------------------- networks

_V4_PREFIXES = st.sampled_from((0, 8, 24, 31, 32)) | st.integers(0, 32)
_V6_PREFIXES = st.sampled_from((0, 64, 95, 96, 120, 127, 128)) | st.integers(0, 128)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(addresses)
    return ip_network((address, draw(_V4_PREFIXES if address.version == 4 else _V6_PREFIXES)), strict=False)


# ------------------------------------------------------------------------------------------------- trees

_endpoints = st.builds(lambda make, *of: make(*of), st.sampled_from((src, dst)), networks(), st.none() | ports)
_one_sided_ports = st.builds(
    lambda make, number, ends: make(*(number, number) if ends is None else sorted((number, ends))),
    st.sampled_from((sport, dport)),
    ports,
    st.sampled_from((None, 0, 65535)),
)
_two_sided_ports = st.builds(
    lambda make, ends: make(*sorted(ends)), st.sampled_from((sport, dport)), st.tuples(ports, ports)
)
_marks = st.builds(lambda value, mask: mark(value & mask, mask), u32, st.sampled_from((0, 1, 0xFF, 0xFFFFFFFF)) | u32)
_indices = st.builds(device, st.sampled_from((0, 1, 2)) | st.integers(0, 0x7FFFFFFF))
_cgroups = st.builds(cgroup, st.sampled_from((0, 1)) | st.integers(0, (1 << 64) - 1))

# What the language of ss can say: one word without its symbols, and not a number.
_words = st.text(st.characters(codec="utf-8", categories=("L", "N", "P"), exclude_characters="()!&|=<>"), min_size=1)
_names = st.builds(device, _words.filter(lambda name: len(name.encode()) < 16 and not name.isdigit()))
_paths = st.builds(cgroup, _words.filter(lambda path: not path.isdigit()))


def trees(leaves: st.SearchStrategy[Condition], fewest_parts: int) -> st.SearchStrategy[Condition]:
    """Trees over these leaves; a group has so many parts at least."""

    def joined(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
        parts = st.lists(inner, min_size=fewest_parts, max_size=3)
        groups = st.builds(lambda kind, parts: kind(*parts), st.sampled_from((And, Or)), parts)
        return inner.map(lambda condition: ~condition) | groups

    return st.recursive(leaves, joined, max_leaves=8)


_resolved_leaves = _endpoints | _one_sided_ports | _two_sided_ports | _marks | _indices | _cgroups

conditions = trees(_resolved_leaves, fewest_parts=0)
"""Trees that can be matched: every name is resolved."""

written_conditions = trees(
    _endpoints | _one_sided_ports | _marks | _indices | _cgroups | _names | _paths, fewest_parts=2
)
"""Trees as the language writes them: a range with two inner ends is two tests there, a group of one is its part."""
