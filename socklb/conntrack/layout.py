# SPDX-License-Identifier: MIT
"""The messages of ctnetlink (linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c), both ways.

Each begins with struct nfgenmsg. Numbers in attributes are in network byte order, but for the flags of CTA_FILTER;
headers are in that of the host. The kernel writes the original tuple, then that of the reply, then the rest, whose
order differs from version to version (ctnetlink_fill_info()).
"""

from __future__ import annotations

from collections import namedtuple
from struct import Struct
from struct import error as struct_error

from ..errors import MalformedMessage
from ..filters.backend import Backend
from ..wire.address import format_endpoint, from_packed
from ..wire.netlink import NLA_TYPE_MASK, encode_attribute, encode_attributes, iter_attributes
from ..wire.request import PROTOCOL_NAMES
from ..wire.socket_id import AF_INET, AF_INET6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..wire.address import IPAddress
    from ..wire.netlink import Buffer

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
IPCTNL_MSG_CT_NEW = _SUBSYSTEM | 0
"""The type of each entry of an answer."""
IPCTNL_MSG_CT_GET = _SUBSYSTEM | 1
IPCTNL_MSG_CT_DELETE = _SUBSYSTEM | 2
IPCTNL_MSG_CT_GET_STATS = _SUBSYSTEM | 5

AF_UNSPEC = 0

NFGENMSG = Struct(
    ">"
    "B"  # nfgen_family
    "B"  # version: NFNETLINK_V0
    "H"  # res_id
)
_U8, _U16, _U32 = Struct(">B"), Struct(">H"), Struct(">I")
_HOST_U32 = Struct("=I")

NLA_F_NESTED = 0x8000

CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_PROTOINFO, CTA_TIMEOUT, CTA_ID = 1, 2, 3, 4, 7, 12
CTA_ZONE, CTA_FILTER = 18, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO, CTA_TUPLE_ZONE = 1, 2, 3
CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST = 1, 2, 3, 4
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
CTA_PROTOINFO_TCP = CTA_PROTOINFO_TCP_STATE = 1
CTA_FILTER_ORIG_FLAGS, CTA_FILTER_REPLY_FLAGS = 1, 2
CTA_STATS_GLOBAL_ENTRIES = 1

# CTA_FILTER_FLAG()
FILTER_IP_SRC, FILTER_IP_DST, FILTER_PROTO_NUM, FILTER_SRC_PORT, FILTER_DST_PORT = 1, 2, 8, 0x10, 0x20

IPS_DST_NAT = 0x20  # linux/netfilter/nf_conntrack_common.h

_TCP_STATES = (
    *("NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE"),
    "SYN_SENT2",
)  # nf_conntrack_tcp.h, in the words of conntrack(8)
_CLOSING = (7, 8)


class FlowTuple(namedtuple("FlowTuple", "protocol src sport dst dport")):
    """One direction of a flow: the protocol's number, packed addresses of 4 or 16 bytes, ports."""

    __slots__ = ()
    protocol: int
    src: bytes
    sport: int
    dst: bytes
    dport: int

    @property
    def inverse(self) -> FlowTuple:
        """That of the answers, where nothing is translated."""
        return FlowTuple(self.protocol, self.dst, self.dport, self.src, self.sport)


class Flow(namedtuple("Flow", "original reply status tcp_state expires_s id zone")):
    """A connection as conntrack keeps it: struct nf_conn.

    `original`: the tuple of the client's first packet, `reply`: that of the answers, FlowTuple each; where they are not
    the inverse of each other, addresses or ports are translated. `status`: bits (IPS_*). `tcp_state`: a number (enum
    tcp_conntrack), None for UDP. `expires_s`: seconds until the entry expires, None where a device forwards it. `zone`:
    that of the original direction, 0 for none.
    """

    __slots__ = ()
    original: FlowTuple
    reply: FlowTuple
    status: int
    tcp_state: int | None
    expires_s: int | None
    id: int
    zone: int

    @property
    def protocol(self) -> int:
        """The number: 6 for TCP, 17 for UDP."""
        return self.original.protocol

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return AF_INET if len(self.original.src) == 4 else AF_INET6

    @property
    def src(self) -> IPAddress:
        """The client's address."""
        return from_packed(self.original.src)

    @property
    def sport(self) -> int:
        """The client's port."""
        return self.original.sport

    @property
    def dst(self) -> IPAddress:
        """The address that the client asked for: the service's."""
        return from_packed(self.original.dst)

    @property
    def dport(self) -> int:
        """The port that the client asked for."""
        return self.original.dport

    @property
    def backend(self) -> Backend:
        """Who answers: the source of the replies. Raises ValueError for what no backend can be."""
        return Backend(str(from_packed(self.reply.src)), self.reply.sport, PROTOCOL_NAMES[self.protocol])

    @property
    def state(self) -> str:
        """conntrack(8)'s word for the state of a TCP connection, "" for UDP."""
        if self.tcp_state is None:
            return ""
        return _TCP_STATES[self.tcp_state] if self.tcp_state < len(_TCP_STATES) else str(self.tcp_state)

    @property
    def is_dnated(self) -> bool:
        """Whether somebody else answers than was asked. By the tuples: IPVS sets no IPS_DST_NAT."""
        return (self.original.dst, self.original.dport) != (self.reply.src, self.reply.sport)

    @property
    def is_translated(self) -> bool:
        """Whether either end is known by another address or port to the other: by any NAT."""
        return self.reply != self.original.inverse

    @property
    def is_by_ipvs(self) -> bool:
        """Whether IPVS has balanced it (ip_vs_update_conntrack() alters the reply tuple alone)."""
        return self.is_dnated and not self.status & IPS_DST_NAT

    @property
    def is_closing(self) -> bool:
        """TCP, in TIME_WAIT or CLOSE."""
        return self.tcp_state in _CLOSING

    def __str__(self) -> str:
        name = PROTOCOL_NAMES.get(self.protocol, str(self.protocol))
        ends = [(self.original.src, self.sport), (self.original.dst, self.dport), (self.reply.src, self.reply.sport)]
        client, service, backend = (format_endpoint(*end) for end in ends)
        return f"{name} {client} -> {service} to {backend}"


# --------------------------------------------------------------------------------------------- requests


def request(family: int, attributes: bytes = b"") -> bytes:
    """The payload of a message: nfgenmsg, and what follows. AF_UNSPEC is any family."""
    return NFGENMSG.pack(family, 0, 0) + attributes


def get_request(one: FlowTuple, zone: int) -> bytes:
    """The payload of a question for the entry that has this tuple, in either direction, in a zone."""
    return request(_family(one), encode_tuple(CTA_TUPLE_ORIG, one) + _zone(zone))


def delete_request(flow: Flow) -> bytes:
    """The payload that deletes one entry: by its original tuple, its zone and its id.

    This is the only one there is. Without a tuple the kernel empties the whole table, whatever else is named.
    """
    by = encode_tuple(CTA_TUPLE_ORIG, flow.original) + _zone(flow.zone)
    return request(_family(flow.original), by + encode_attribute(CTA_ID, _packed(_U32, flow.id, "id")))


def filter_by(
    which: int, *, flags: int, protocol: int = 0, src: bytes = b"", dst: bytes = b"", sport: int = 0, dport: int = 0
) -> bytes:
    """The attributes that filter a dump in the kernel (Linux 5.8): entries whose CTA_TUPLE_ORIG or CTA_TUPLE_REPLY
    (`which`) has what the FILTER_* `flags` name. Of v6 no addresses: what they are compared with, the kernel inverts
    (ctnetlink_filter_match_tuple() in 5.8 to 6.18 at least).
    """
    ip = encode_attribute(CTA_IP_V4_SRC, src) if flags & FILTER_IP_SRC else b""
    ip += encode_attribute(CTA_IP_V4_DST, dst) if flags & FILTER_IP_DST else b""
    proto = encode_attribute(CTA_PROTO_NUM, _packed(_U8, protocol, "protocol")) if flags & FILTER_PROTO_NUM else b""
    proto += _port(CTA_PROTO_SRC_PORT, sport) if flags & FILTER_SRC_PORT else b""
    proto += _port(CTA_PROTO_DST_PORT, dport) if flags & FILTER_DST_PORT else b""
    parts = (_nest(CTA_TUPLE_IP, ip) if ip else b"") + (_nest(CTA_TUPLE_PROTO, proto) if proto else b"")
    flags_of = CTA_FILTER_REPLY_FLAGS if which == CTA_TUPLE_REPLY else CTA_FILTER_ORIG_FLAGS
    return _nest(which, parts) + _nest(CTA_FILTER, encode_attribute(flags_of, _HOST_U32.pack(flags)))


def encode_tuple(kind: int, one: FlowTuple) -> bytes:
    """CTA_TUPLE_ORIG or CTA_TUPLE_REPLY, whole. Raises ValueError for what does not fit."""
    if not len(one.src) == len(one.dst) in (4, 16):
        raise ValueError(f"a tuple has two packed addresses of 4 or 16 bytes, not {one.src!r} and {one.dst!r}")
    src, dst = (CTA_IP_V4_SRC, CTA_IP_V4_DST) if len(one.src) == 4 else (CTA_IP_V6_SRC, CTA_IP_V6_DST)
    proto = encode_attribute(CTA_PROTO_NUM, _packed(_U8, one.protocol, "protocol"))
    proto += _port(CTA_PROTO_SRC_PORT, one.sport) + _port(CTA_PROTO_DST_PORT, one.dport)
    addresses = encode_attributes([(src, one.src), (dst, one.dst)])
    return _nest(kind, _nest(CTA_TUPLE_IP, addresses) + _nest(CTA_TUPLE_PROTO, proto))


def _zone(zone: int) -> bytes:
    """CTA_ZONE. Not for zone 0, which it is without: kernels without CONFIG_NF_CONNTRACK_ZONES refuse any."""
    return b"" if zone == 0 else encode_attribute(CTA_ZONE, _packed(_U16, zone, "zone"))


def _port(kind: int, port: int) -> bytes:
    return encode_attribute(kind, _packed(_U16, port, "port"))


def _packed(layout: Struct, number: int, what: str) -> bytes:
    try:
        return layout.pack(number)
    except struct_error as error:
        raise ValueError(f"{what} {number!r} of a flow: {error}") from None


def _nest(kind: int, attributes: bytes) -> bytes:
    return encode_attribute(kind | NLA_F_NESTED, attributes)


def _family(one: FlowTuple) -> int:
    return AF_INET if len(one.src) == 4 else AF_INET6


# ---------------------------------------------------------------------------------------------- answers


def decode_flow(buffer: Buffer, start: int, end: int) -> Flow | None:
    """An entry, from the payload of its message between two offsets; None for one that is not of TCP or UDP."""
    found = _attributes(buffer, start, end)
    original, zone = _decode_tuple(found.get(CTA_TUPLE_ORIG), start)
    reply, _ = _decode_tuple(found.get(CTA_TUPLE_REPLY), start)
    if original is None or reply is None:
        return None
    return Flow(
        original,
        reply,
        _number(found, CTA_STATUS, _U32, start) or 0,
        _tcp_state(found),
        _number(found, CTA_TIMEOUT, _U32, start),
        _number(found, CTA_ID, _U32, start) or 0,
        _number(found, CTA_ZONE, _U16, start) or zone,
    )


def decode_request(buffer: Buffer, start: int, end: int) -> tuple[FlowTuple, int, int | None]:
    """The tuple, the zone and the id (None without) of a payload that names one entry."""
    found = _attributes(buffer, start, end)
    one, zone = _decode_tuple(found.get(CTA_TUPLE_ORIG), start)
    if one is None:
        raise MalformedMessage("tuple of conntrack", offset=start, expected="TCP or UDP", got="another protocol")
    return one, _number(found, CTA_ZONE, _U16, start) or zone, _number(found, CTA_ID, _U32, start)


def decode_count(buffer: Buffer, start: int, end: int) -> int:
    """How many entries a namespace has, from the answer to IPCTNL_MSG_CT_GET_STATS."""
    count = _number(_attributes(buffer, start, end), CTA_STATS_GLOBAL_ENTRIES, _U32, start)
    if count is None:
        raise MalformedMessage("statistics of conntrack", offset=start, expected="a number of entries", got="none")
    return count


def _attributes(buffer: Buffer, start: int, end: int) -> dict[int, bytes]:
    if end - start < NFGENMSG.size:
        raise MalformedMessage("cut nfgenmsg", offset=start, expected=f"{NFGENMSG.size} bytes", got=f"{end - start}")
    return _nested(buffer, start + NFGENMSG.size, end)


def _nested(buffer: Buffer, start: int, end: int) -> dict[int, bytes]:
    return {kind & NLA_TYPE_MASK: payload for kind, payload in iter_attributes(buffer, start, end)}


def _decode_tuple(payload: bytes | None, offset: int) -> tuple[FlowTuple | None, int]:
    """A tuple and its zone; None for one of a protocol without ports."""
    if payload is None:
        raise MalformedMessage("entry of conntrack", offset=offset, expected="two tuples", got="fewer")
    parts = _nested(payload, 0, len(payload))
    address = parts.get(CTA_TUPLE_IP, b"")
    ip = _nested(address, 0, len(address))
    proto_payload = parts.get(CTA_TUPLE_PROTO, b"")
    proto = _nested(proto_payload, 0, len(proto_payload))
    protocol = proto.get(CTA_PROTO_NUM, b"")
    if len(protocol) < 1:
        raise MalformedMessage("tuple of conntrack", offset=offset, expected="a protocol", got="none")
    if protocol[0] not in PROTOCOL_NAMES:
        return None, 0
    v4 = ip.get(CTA_IP_V4_SRC), ip.get(CTA_IP_V4_DST)
    src, dst = v4 if v4[0] is not None else (ip.get(CTA_IP_V6_SRC), ip.get(CTA_IP_V6_DST))
    size = 4 if v4[0] is not None else 16
    if src is None or dst is None or not len(src) == len(dst) == size:
        raise MalformedMessage(
            "tuple of conntrack", offset=offset, expected="two addresses", got=f"{src!r} and {dst!r}"
        )
    sport, dport = (_number(proto, kind, _U16, offset) for kind in (CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT))
    if sport is None or dport is None:
        raise MalformedMessage("tuple of conntrack", offset=offset, expected="two ports", got="fewer")
    return FlowTuple(protocol[0], src, sport, dst, dport), _number(parts, CTA_TUPLE_ZONE, _U16, offset) or 0


def _tcp_state(found: dict[int, bytes]) -> int | None:
    info = found.get(CTA_PROTOINFO, b"")
    tcp = _nested(info, 0, len(info)).get(CTA_PROTOINFO_TCP, b"")
    state = _nested(tcp, 0, len(tcp)).get(CTA_PROTOINFO_TCP_STATE, b"")
    return state[0] if state else None


def _number(found: dict[int, bytes], kind: int, layout: Struct, offset: int) -> int | None:
    payload = found.get(kind)
    if payload is None:
        return None
    if len(payload) < layout.size:
        raise MalformedMessage(
            f"attribute {kind} of conntrack", offset=offset, expected=f"{layout.size} bytes", got=f"{len(payload)}"
        )
    return int(layout.unpack_from(payload)[0])
