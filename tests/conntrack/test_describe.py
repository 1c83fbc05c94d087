"""A datagram of ctnetlink as one line of a debug log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb.conntrack.describe import describe
from socklb.conntrack.layout import (
    FILTER_IP_SRC,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    IPCTNL_MSG_CT_GET_STATS,
    IPCTNL_MSG_CT_NEW,
    delete_request,
    filter_by,
    get_request,
    request,
)
from socklb.wire.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    encode_message,
)
from socklb.wire.socket_id import AF_INET

from ..strategies import damaged, u16, u32
from ..wire.golden import joined, of_this_byte_order
from . import golden
from .ctnetlink import REPLY, entries, flows
from .test_layout import GOLDEN
from .test_scan import ICMP

FLOW = GOLDEN["ORIGINAL_IN_ZONE"]
DELETE = encode_message(IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST, 3, delete_request(FLOW))
FILTER = filter_by(REPLY, flags=FILTER_IP_SRC, src=bytes(4))
DUMP = encode_message(IPCTNL_MSG_CT_GET, NLM_F_REQUEST | NLM_F_DUMP, 4, request(AF_INET, FILTER))

LINES = {
    "seq 5 IPCTNL_MSG_CT_NEW: tcp 10.1.0.2:40000 -> 10.96.0.10:80 zone 0 id 0x81b198bf "
    "replies 10.244.2.2:8080 -> 10.1.0.2:40000 status 0x1ae ESTABLISHED expires 599 s (+1 more)": (
        joined(golden.BALANCED_V4, golden.ORIGINAL_IN_ZONE)
    ),
    "seq 6 IPCTNL_MSG_CT_GET_STATS: 4 entries": joined(golden.STATISTICS),
    "seq 3 IPCTNL_MSG_CT_DELETE: udp 10.1.0.3:40002 -> 10.96.0.10:53 zone 11 id 0xd8316e2b (+1 more)": DELETE * 2,
    "seq 5 IPCTNL_MSG_CT_GET: udp [fd00::1:2]:40001 -> [fd00::96:10]:53 zone 5": encode_message(
        IPCTNL_MSG_CT_GET, NLM_F_REQUEST, 5, get_request(GOLDEN["BALANCED_V6_IN_ZONE"].original, 5)
    ),
    "seq 4 IPCTNL_MSG_CT_GET: family 2, 28 bytes of attributes": DUMP,
    "seq 4 IPCTNL_MSG_CT_NEW: neither tcp nor udp": encode_message(IPCTNL_MSG_CT_NEW, NLM_F_MULTI, 4, ICMP),
    "seq 3 type 259: 0 bytes; malformed: cut netlink header at offset 16: expected 16 bytes, got 1": (
        encode_message(0x103, 0, 3, b"") + b"1"
    ),
}


@of_this_byte_order
@pytest.mark.parametrize(("line", "data"), LINES.items(), ids=range(len(LINES)))
def test_a_line(line: str, data: bytes) -> None:
    assert describe(data) == line


types = st.sampled_from(
    (NLMSG_ERROR, NLMSG_DONE, IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE, IPCTNL_MSG_CT_GET_STATS)
)
flags = st.sampled_from((0, NLM_F_REQUEST, NLM_F_REQUEST | NLM_F_ACK, NLM_F_REQUEST | NLM_F_DUMP)) | u16
payloads = st.one_of(flows.map(delete_request), entries().map(lambda entry: entry.payload), st.binary(max_size=20))
datagrams = st.lists(st.builds(encode_message, types | u16, flags, u32, payloads), max_size=4).map(b"".join)


@given(damaged(datagrams) | st.binary(max_size=200))
def test_any_bytes_are_one_printable_line(data: bytes) -> None:
    line = describe(data)
    assert line
    assert line.isprintable()
