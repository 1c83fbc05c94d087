"""Entries of conntrack that the properties draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from socklb import Flow
from socklb.conntrack.layout import FlowTuple
from socklb.wire.netlink import encode_attribute
from socklb.wire.request import IPPROTO_TCP, IPPROTO_UDP

from ..ctnetlink import attributes_of, encode_entry
from ..strategies import packed_v4, packed_v6, ports, u16, u32


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
