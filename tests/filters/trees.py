"""Sockets, backends, and trees of conditions, for the laws that filters keep."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, Union

from hypothesis import strategies as st

from socklb import Backend, InetSocket, cgroup, device, dport, dst, idle, mark, pid, sport, src, stalled, uid
from socklb.filters import Condition
from socklb.filters.conditions import And, Host, Not, Or, Port
from socklb.filters.endpoints import Endpoint
from socklb.filters.peers import Peers
from socklb.filters.property_conditions import Cgroup, Device
from socklb.wire.address import unmapped
from socklb.wire.reply import InetDiagMsg, decode_msg
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
    inode: int = 0,
    **attributes: Any,
) -> InetSocket:
    """The row of a socket between two endpoints, "10.0.0.1:80" or "[::1]:80"."""
    (source, source_port), (destination, destination_port) = map(_endpoint, (local, peer))
    id = SocketId(source_port, destination_port, source, destination, interface, 1)
    family = AF_INET if len(source) == 4 else AF_INET6
    return make_socket(InetDiagMsg(family, state, timer, 0, id, 0, 0, 0, 0, inode), protocol, attributes)


def _endpoint(text: str) -> tuple[bytes, int]:
    host, _, port = text.rpartition(":")
    return ip_address(host.strip("[]")).packed, int(port)


full_sockets = sockets(with_attributes=("mark", "cgroup_id"))
"""Sockets whose rows have every attribute that a condition tests."""

mini_sockets = sockets().map(lambda socket: make_socket(decode_msg(socket.row)._replace(inode=0), socket.protocol, {}))
"""Sockets whose rows have none, and no owner."""

backends = st.builds(
    Backend,
    addresses.filter(lambda address: int(address) not in (0, 0xFFFF << 32) and int(address) >> 118 != 0xFE80 >> 6)
    | st.builds(
        lambda host, link: f"fe80::{host >> 16:x}:{host & 0xFFFF:x}%{link}",
        u32,
        st.sampled_from(("eth0", "an-altname" * 9, "1")),
    ),
    st.integers(1, 65535),
    st.sampled_from(("tcp", "udp")),
)

# ---------------------------------------------------------------------------------------------- networks

_V4_PREFIXES = st.sampled_from((0, 8, 15, 16, 24, 31, 32)) | st.integers(0, 32)
_V6_PREFIXES = st.sampled_from((0, 16, 31, 32, 64, 80, 95, 96, 111, 112, 120, 127, 128)) | st.integers(0, 128)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    address = draw(addresses)
    return ip_network((address, draw(_V4_PREFIXES if address.version == 4 else _V6_PREFIXES)), strict=False)


# ------------------------------------------------------------------------------------------------- trees

_endpoints = st.builds(lambda make, *of: make(*of), st.sampled_from((src, dst)), networks(), st.none() | ports)
_ends = ports | st.sampled_from((4094, 4095, 4096, 4097, 61438, 61439, 61440, 61441))
_one_sided_ports = st.builds(
    lambda make, number, ends: make(*(number, number) if ends is None else sorted((number, ends))),
    st.sampled_from((sport, dport)),
    _ends,
    st.sampled_from((None, 0, 65535)),
)
_two_sided_ports = st.builds(
    lambda make, ends: make(*sorted(ends)), st.sampled_from((sport, dport)), st.tuples(_ends, _ends)
)
_marks = st.builds(lambda value, mask: mark(value & mask, mask), u32, st.sampled_from((0, 1, 0xFF, 0xFFFFFFFF)) | u32)
_indices = st.builds(device, st.sampled_from((0, 1, 2)) | st.integers(0, 0x7FFFFFFF))
_peers = st.sets(
    st.builds(lambda address, port: Endpoint(unmapped(address).packed, port), addresses, ports), min_size=1, max_size=9
).map(Peers)
_cgroups = st.builds(cgroup, st.sampled_from((0, 1)) | st.integers(0, (1 << 64) - 1))
_several_cgroups = st.frozensets(st.integers(0, 9), min_size=1, max_size=4).map(Cgroup)

# What the language of ss can say: one word without its symbols, and not a number.
_words = st.text(st.characters(codec="utf-8", categories=("L", "N", "P"), exclude_characters="()!&|=<>"), min_size=1)
_names = st.builds(device, _words.filter(lambda name: len(name.encode()) < 128) | st.integers(0, 0x7FFFFFFF).map(str))
_paths = st.builds(cgroup, _words.filter(lambda path: not path.isdigit()))


def trees(leaves: st.SearchStrategy[Condition], fewest_parts: int) -> st.SearchStrategy[Condition]:
    """Trees over these leaves; a group has so many parts at least."""

    def joined(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
        parts = st.lists(inner, min_size=fewest_parts, max_size=3)
        groups = st.builds(lambda kind, parts: kind(*parts), st.sampled_from((And, Or)), parts)
        return inner.map(lambda condition: ~condition) | groups

    return st.recursive(leaves, joined, max_leaves=8)


resolved_leaves = (
    _endpoints | _one_sided_ports | _two_sided_ports | _marks | _indices | _cgroups | _several_cgroups | _peers
)

conditions = trees(resolved_leaves, fewest_parts=0)
"""Trees that can be matched: every name is resolved."""

_in_python = (
    st.builds(uid, st.integers(0, 0xFFFFFFFE))
    | st.builds(pid, st.integers(1, 0x7FFFFFFF))
    | st.builds(lambda make, ms: make(ms / 1000), st.sampled_from((stalled, idle)), st.integers(0, 49 * 86_400_000))
)

written_conditions = trees(
    _endpoints | _one_sided_ports | _marks | _cgroups | _names | _paths | _in_python, fewest_parts=2
)
"""Trees as the language writes them: a range with two inner ends is two tests there, a group of one is its part, a
device is a name first."""


# ---------------------------------------------------------------------------------------------- bounds

_V4_IN_V6 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))


def names_what_it_matches(condition: Condition, negated: bool = False) -> bool:
    """What bounds a filter, for conditions without names: the rule in other words than those of the package."""
    if isinstance(condition, Not):
        return names_what_it_matches(condition.part, not negated)
    if isinstance(condition, (And, Or)):
        some = [names_what_it_matches(part, negated) for part in condition.parts]
        if isinstance(condition, And) is negated:
            return all(some)
        ranges = [literal for part in condition.parts for literal in _port_ranges(part, negated)]
        return any(some) or any(
            len(set.intersection(*(set(numbers) for of, numbers in ranges if of == side))) <= 4096
            for side in {side for side, _ in ranges}
        )
    if isinstance(condition, Port):
        ends = [range(condition.low), range(condition.high + 1, 1 << 16)] if negated else []
        return all(len(r) <= 4096 for r in ends or [range(condition.low, condition.high + 1)])
    if negated:
        return False
    if isinstance(condition, Host):
        return _is_narrow(network_of(condition))
    if isinstance(condition, Cgroup):
        assert not isinstance(condition.cgroup, str)
        return not (condition.cgroup if isinstance(condition.cgroup, frozenset) else {condition.cgroup}) & {0, 1}
    return isinstance(condition, Peers) or (isinstance(condition, Device) and condition.interface != 0)


def _port_ranges(condition: Condition, negated: bool) -> list[tuple[str, range]]:
    """The port tests that are and-ed together by this, or its negation, alone."""
    if isinstance(condition, Not):
        return _port_ranges(condition.part, not negated)
    if isinstance(condition, (And, Or)):
        is_one = isinstance(condition, And) is not negated or len(condition.parts) == 1
        return [each for part in condition.parts for each in _port_ranges(part, negated)] if is_one else []
    if not isinstance(condition, Port):
        return []
    if not negated:
        return [(condition.side, range(condition.low, condition.high + 1))]
    ends = [range(condition.low), range(condition.high + 1, 1 << 16)]
    return [(condition.side, end) for end in ends if end] if not all(ends) else []


def network_of(host: Host) -> Network:
    return ip_network((host.address, host.length))


def _is_narrow(network: Network) -> bool:
    if isinstance(network, IPv4Network):
        return network.prefixlen >= 16
    if any(network.subnet_of(v4) for v4 in _V4_IN_V6):
        return network.prefixlen >= 96 + 16
    return network.prefixlen >= 32 and not any(v4.subnet_of(network) for v4 in _V4_IN_V6)
