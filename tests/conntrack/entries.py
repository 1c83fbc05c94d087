"""Entries of conntrack: written as the kernel writes them (ctnetlink_fill_info()), drawn, and made in the kernel.

make_entries(flow("10.96.0.10:80/TCP", "10.0.0.5:8080/TCP"))        # in the calling thread's network namespace
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from hypothesis import strategies as st

from socklb import Backend, Flow
from socklb.conntrack.layout import FlowTuple
from socklb.conntrack.table import open_netlink
from socklb.wire.netlink import NLM_F_ACK, NLM_F_REQUEST, decode_ack, encode_attribute, encode_message, iter_messages
from socklb.wire.request import IPPROTO_TCP, IPPROTO_UDP, PROTOCOLS

from ..strategies import packed_v4, packed_v6, ports, u16, u32

NEW = 1 << 8  # IPCTNL_MSG_CT_NEW
CONFIRMED, DST_NAT = 8, 0x20
ESTABLISHED, TIME_WAIT, CLOSE = 3, 7, 8
_WITH_PORTS = (IPPROTO_TCP, IPPROTO_UDP, socket.IPPROTO_SCTP)
_CREATE_ANEW = 0x600  # NLM_F_CREATE and NLM_F_EXCL


def flow(
    service: str,
    backend: str = "",
    *,
    client: str = "",
    sport: int = 1024,
    status: int = CONFIRMED,
    tcp_state: int = ESTABLISHED,
    id: int = 1,
    zone: int = 0,
) -> Flow:
    """A client's, of a service for which a backend answers, or the service itself; without DST_NAT as of IPVS."""
    asked, answers = Backend.parse(service), Backend.parse(backend or service)
    protocol, src = (
        PROTOCOLS[asked.protocol],
        ip_address(client or ("10.0.0.1" if asked.address.version == 4 else "fd00::1")),
    )
    original = FlowTuple(protocol, src.packed, sport, asked.address.packed, asked.port)
    reply = FlowTuple(protocol, answers.address.packed, answers.port, src.packed, sport)
    return Flow(original, reply, status, tcp_state if protocol == IPPROTO_TCP else None, 600, id, zone)


# ------------------------------------------------------------------------------------------------- bytes


def nest(kind: int, *attributes: bytes) -> bytes:
    return encode_attribute(kind | 0x8000, b"".join(attributes))


def number(kind: int, value: int, size: int = 4) -> bytes:
    return encode_attribute(kind, value.to_bytes(size, "big"))


def tuple_attribute(kind: int, one: FlowTuple, zone: int = 0) -> bytes:
    """CTA_TUPLE_ORIG (1) or CTA_TUPLE_REPLY (2). What has no ports has the id, type and code of ICMP."""
    first = 1 if len(one.src) == 4 else 3  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
    address = nest(1, encode_attribute(first, one.src), encode_attribute(first + 1, one.dst))
    have_ports = number(2, one.sport, 2) + number(3, one.dport, 2)
    proto = have_ports if one.protocol in _WITH_PORTS else number(4, one.sport, 2) + number(5, 8, 1) + number(6, 0, 1)
    return nest(kind, address, nest(2, number(1, one.protocol, 1), proto), number(3, zone, 2) if zone else b"")


def attributes_of(flow: Flow) -> list[bytes]:
    """Those behind the tuples and the zone: CTA_STATUS, CTA_ID, CTA_TIMEOUT, CTA_PROTOINFO."""
    state = [] if flow.tcp_state is None else [nest(4, nest(1, number(1, flow.tcp_state, 1)))]
    timeout = [] if flow.expires_s is None else [number(7, flow.expires_s)]
    return [number(3, flow.status), number(12, flow.id), *timeout, *state]


def encode_entry(
    flow: Flow, *, is_zone_of_original: bool = False, reply_zone: int = 0, behind: Sequence[bytes] | None = None
) -> bytes:
    """The payload of its message. A zone is that of both directions, or of one of them alone."""
    family = socket.AF_INET if len(flow.original.src) == 4 else socket.AF_INET6
    return b"".join(
        (
            bytes([family, 0, 0, 0]),
            tuple_attribute(1, flow.original, flow.zone if is_zone_of_original else 0),
            tuple_attribute(2, flow.reply, reply_zone),
            number(18, flow.zone, 2) if flow.zone and not is_zone_of_original else b"",
            *(attributes_of(flow) if behind is None else behind),
        )
    )


# ------------------------------------------------------------------------------------------ any of them


@st.composite
def flows(draw: st.DrawFn, protocols: Sequence[int] = (IPPROTO_TCP, IPPROTO_UDP)) -> Flow:
    protocol, packed = draw(st.sampled_from(protocols)), draw(st.sampled_from((packed_v4, packed_v6)))
    original = FlowTuple(protocol, draw(packed), draw(ports), draw(packed), draw(ports))
    inverse = FlowTuple(protocol, original.dst, original.dport, original.src, original.sport)
    changes = {"src": packed, "sport": ports, "dst": packed, "dport": ports}
    translated = draw(st.sets(st.sampled_from(sorted(changes))))
    reply = inverse._replace(**{name: draw(changes[name]) for name in sorted(translated)})
    state = draw(st.none() | st.integers(0, 10)) if protocol == IPPROTO_TCP else None
    return Flow(original, reply, draw(u32), state, draw(st.none() | u32), draw(u32), draw(st.just(0) | u16))


_FLOWS = flows()
_OTHERS = st.builds(encode_attribute, st.integers(26, 40) | st.sampled_from((8, 11, 22)), st.binary(max_size=24))


@st.composite
def entries(draw: st.DrawFn, flows: st.SearchStrategy[Flow] = _FLOWS, others: Any = _OTHERS) -> tuple[bytes, Flow]:
    """The payload of a message and what it says: the attributes behind the zone in any order, others among them."""
    one = draw(flows)
    behind = draw(st.permutations(attributes_of(one) + draw(st.lists(others, max_size=2))))
    reply_zone = 0 if one.zone else draw(st.just(0) | u16)
    return encode_entry(one, is_zone_of_original=draw(st.booleans()), reply_zone=reply_zone, behind=behind), one


# -------------------------------------------------------------------------------------------- real ones


def make_entries(*flows: Flow, is_zone_of_original: bool = False, reply_zone: int = 0) -> None:
    """Make entries with the tuples, zones, states and times of these. The kernel translates those with DST_NAT."""
    with open_netlink() as netlink:
        for start in range(0, len(flows), 100):
            messages = [
                encode_message(
                    NEW, NLM_F_REQUEST | NLM_F_ACK | _CREATE_ANEW, n, _creation(flow, is_zone_of_original, reply_zone)
                )
                for n, flow in enumerate(flows[start : start + 100])
            ]
            netlink.send(b"".join(messages))
            for _ in messages:
                answer = netlink.recv(65536)
                for _, flags, _, _, begin, end in iter_messages(answer, len(answer)):
                    code = decode_ack(answer, begin, end, flags).errno
                    if code:
                        raise OSError(code, os.strerror(code))


def _creation(flow: Flow, is_zone_of_original: bool, reply_zone: int) -> bytes:
    behind = attributes_of(flow._replace(status=CONFIRMED))
    if flow.status & DST_NAT:  # CTA_NAT_DST: CTA_NAT_V4_MINIP or _V6_MINIP, CTA_NAT_PROTO
        to = encode_attribute(1 if len(flow.reply.src) == 4 else 4, flow.reply.src)
        behind.append(nest(13, to, nest(3, number(1, flow.reply.sport, 2))))
        one = flow.original
        flow = flow._replace(reply=FlowTuple(one.protocol, one.dst, one.dport, one.src, one.sport))
    return encode_entry(flow, is_zone_of_original=is_zone_of_original, reply_zone=reply_zone, behind=behind)
