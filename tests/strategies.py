"""What the properties draw from: values as the kernel has them, of every kind that the package tells apart.

Addresses come from a small neighbourhood more often than not, so that two of them meet, share a prefix, or are the v4
and the mapped form of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Union

from hypothesis import strategies as st

from socklb import InetSocket, TcpState
from socklb.wire.attributes import Md5Signature, encode_value
from socklb.wire.netlink import Ack, Done
from socklb.wire.records import BbrInfo, DctcpInfo, MemInfo, Record, SkMemInfo, SockOpt, TcpInfo, VegasInfo
from socklb.wire.reply import InetDiagMsg
from socklb.wire.request import IPPROTO_TCP, IPPROTO_UDP, InetDiagReq, InetDiagReqV2
from socklb.wire.socket_id import AF_INET, AF_INET6, SocketId

IPAddress = Union[IPv4Address, IPv6Address]

V4_MAPPED = bytes(10) + b"\xff\xff"

u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))

# ------------------------------------------------------------------------------------------------ states

named_states = st.sampled_from(TcpState)
reported_states = st.sampled_from([state for state in TcpState if state <= TcpState.CLOSING])  # the state of a row
state_numbers = named_states | st.integers(1, 31)
state_masks = u32

# ----------------------------------------------------------------------------------- addresses and ports

ports = st.sampled_from((0, 1, 53, 80, 443, 1023, 1024, 65534, 65535)) | u16
families = st.sampled_from((AF_INET, AF_INET6))

_NEAR_V4 = tuple(map(IPv4Address, ("0.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.1.1", "127.0.0.1", "255.255.255.255")))
_NEAR_V6 = tuple(map(IPv6Address, ("::", "::1", "fd00::1", "fd00::2", "fd00:0:0:1::1", "::a00:1", "64:ff9b::a00:1")))

packed_v4 = st.sampled_from([address.packed for address in _NEAR_V4]) | st.binary(min_size=4, max_size=4)
packed_mapped = packed_v4.map(lambda packed: V4_MAPPED + packed)
packed_v6 = st.sampled_from([address.packed for address in _NEAR_V6]) | st.binary(min_size=16, max_size=16)
packed_addresses = packed_v4 | packed_mapped | packed_v6

v4_addresses = packed_v4.map(IPv4Address)
mapped_addresses = packed_mapped.map(IPv6Address)
v6_addresses = packed_v6.map(IPv6Address)
addresses: st.SearchStrategy[IPAddress] = v4_addresses | mapped_addresses | v6_addresses


def address_pairs(family: int) -> st.SearchStrategy[tuple[bytes, bytes]]:
    """Packed source and destination as a socket of this family has them: a mapped one is mapped at both ends."""
    if family == AF_INET:
        return st.tuples(packed_v4, packed_v4)
    return st.tuples(packed_mapped, packed_mapped) | st.tuples(packed_v6, packed_v6)


# ------------------------------------------------------------------------------------ structures of wire


@st.composite
def socket_ids(draw: st.DrawFn, family: int | None = None) -> SocketId:
    source, destination = draw(address_pairs(draw(families) if family is None else family))
    return SocketId(draw(ports), draw(ports), source, destination, draw(u32), draw(u64))


@st.composite
def requests_v2(draw: st.DrawFn) -> InetDiagReqV2:
    family = draw(families)
    return InetDiagReqV2(family, draw(u8), draw(u8), draw(u32), draw(socket_ids(family)))


@st.composite
def requests(draw: st.DrawFn) -> InetDiagReq:
    family = draw(families)
    lengths_and_extensions = draw(u8), draw(u8), draw(u8)
    return InetDiagReq(family, *lengths_and_extensions, draw(socket_ids(family)), draw(u32), draw(u32))


@st.composite
def messages(
    draw: st.DrawFn,
    *,
    family: int | None = None,
    state: st.SearchStrategy[int] = u8,
    timer: st.SearchStrategy[int] = u8,
) -> InetDiagMsg:
    """struct inet_diag_msg; any number in any field, but for the family and its addresses."""
    family = draw(families) if family is None else family
    head = family, draw(state), draw(timer), draw(u8)
    return InetDiagMsg(*head, draw(socket_ids(family)), *(draw(u32) for _ in range(5)))


attribute_pairs = st.tuples(u16, st.binary(max_size=40))
"""(type, payload) as netlink has it: any number, its flags included."""

attribute_runs: st.SearchStrategy[Any] = st.lists(attribute_pairs, max_size=5).map(tuple)

errnos = st.integers(1, 4095)


@st.composite
def acks(draw: st.DrawFn) -> Ack:
    """An error brings its request back, or (with NETLINK_CAP_ACK) only its header, as a success does."""
    code = draw(st.just(0) | errnos)
    request = draw(st.binary(max_size=80)) if code else b""
    length = 16 + len(request) if request else draw(st.integers(16, 1 << 31))
    return Ack(code, draw(u16), draw(u16), draw(u32), draw(u32), request, draw(attribute_runs), length)


dones: st.SearchStrategy[Done] = st.builds(Done, st.just(0) | errnos, attribute_runs)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """What was a message once: some bytes are others now, it is cut, or more stands behind it."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3)) if data else 0):
        data[draw(st.integers(0, len(data) - 1))] = draw(u8)
    if draw(st.booleans()):
        return bytes(data[: draw(st.integers(0, len(data)))])
    return bytes(data) + draw(st.binary(max_size=8))


# -------------------------------------------------------------------------------- values of attributes

RECORDS: tuple[type[Record], ...] = (BbrInfo, DctcpInfo, MemInfo, SkMemInfo, SockOpt, TcpInfo, VegasInfo)

texts = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=15)


def records(kind: type[Record]) -> st.SearchStrategy[Record]:
    """Of any length: cut, whole, or from a kernel that knows more."""
    return st.binary(max_size=kind.SIZE + 8).map(kind)


def _nests(
    members: Mapping[str, st.SearchStrategy[Any]], unknown: st.SearchStrategy[int]
) -> st.SearchStrategy[tuple[tuple[str | int, Any], ...]]:
    """(name, value) pairs of the members, and (number, bytes) pairs of what is none, in any order."""
    pairs = [st.tuples(st.just(name), values) for name, values in members.items()]
    foreign: Any = st.tuples(unknown, st.binary(max_size=9))
    return st.lists(st.one_of(foreign, *pairs), max_size=5).map(tuple)


_TLS = _nests(
    {
        **dict.fromkeys(("version", "cipher", "txconf", "rxconf"), u16),
        **dict.fromkeys(("zc_ro_tx", "rx_no_pad"), st.just(True)),
    },
    st.integers(7, 0xFFFF),
)
_MPTCP = _nests(
    {
        **dict.fromkeys(("token_rem", "token_loc", "relwrite_seq", "map_sfseq", "ssn_offset", "flags"), u32),
        **dict.fromkeys(("id_rem", "id_loc"), u8),
        "map_seq": u64,
        "map_datalen": u16,
    },
    st.integers(11, 0xFFFF),
)

_md5_signatures = st.builds(Md5Signature, st.just(AF_INET), u8, packed_v4, st.binary(max_size=80)) | st.builds(
    Md5Signature, st.just(AF_INET6), u8, packed_v6, st.binary(max_size=80)
)

ATTRIBUTE_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "meminfo": records(MemInfo),
    "info": records(TcpInfo),
    "vegasinfo": records(VegasInfo),
    "cong": texts,
    "tos": u8,
    "tclass": u8,
    "skmeminfo": records(SkMemInfo),
    "shutdown": u8,
    "dctcpinfo": records(DctcpInfo),
    "protocol": u8,
    "skv6only": u8,
    "pad": st.binary(max_size=8),
    "mark": u32,
    "bbrinfo": records(BbrInfo),
    "class_id": u32,
    "md5sig": st.lists(_md5_signatures, max_size=3).map(tuple),
    "ulp_info": _nests({"name": texts, "tls": _TLS, "mptcp": _MPTCP}, st.integers(4, 0xFFFF)),
    "cgroup_id": u64,
    "sockopt": records(SockOpt),
}
"""By name, what `decode_attribute` makes of a payload that fits."""

attributes: st.SearchStrategy[tuple[str, Any]] = st.sampled_from(sorted(ATTRIBUTE_VALUES)).flatmap(
    lambda name: st.tuples(st.just(name), ATTRIBUTE_VALUES[name])
)
"""(name, value) of any known attribute."""

# ----------------------------------------------------------------------------------------------- sockets


def make_socket(message: InetDiagMsg, protocol: int, values: Mapping[str, Any]) -> InetSocket:
    """The row that a kernel would send for this socket, with these attributes."""
    return InetSocket(message.encode(encode_value(name, value) for name, value in values.items()), protocol)


@st.composite
def sockets(
    draw: st.DrawFn,
    *,
    protocol: int | None = None,
    family: int | None = None,
    with_attributes: tuple[str, ...] = (),
) -> InetSocket:
    """A row as the kernel has it: states and timers of its protocol, `with_attributes` always, others sometimes."""
    protocol = draw(st.sampled_from((IPPROTO_TCP, IPPROTO_UDP))) if protocol is None else protocol
    of_udp = st.sampled_from((TcpState.ESTABLISHED, TcpState.CLOSE))
    states, timers = (of_udp, st.just(0)) if protocol == IPPROTO_UDP else (reported_states, st.integers(0, 4))
    message = draw(messages(family=family, state=states, timer=timers))
    values = {name: draw(ATTRIBUTE_VALUES[name]) for name in with_attributes}
    for name in draw(st.lists(st.sampled_from(("mark", "cgroup_id", "shutdown", "sockopt")), unique=True, max_size=4)):
        values.setdefault(name, draw(ATTRIBUTE_VALUES[name]))
    return make_socket(message, protocol, values)
