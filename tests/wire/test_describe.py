"""A datagram as one line of a debug log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb.wire.address import format_endpoint, from_packed
from socklb.wire.describe import describe
from socklb.wire.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Ack,
    encode_ack,
    encode_attribute,
    encode_done,
    encode_message,
)
from socklb.wire.reply import InetDiagMsg
from socklb.wire.request import SOCK_DESTROY, SOCK_DIAG_BY_FAMILY, TCPDIAG_GETSOCK, InetDiagReq, InetDiagReqV2
from socklb.wire.socket_id import AF_INET, AF_INET6, NO_COOKIE, SocketId

from ..strategies import acks, damaged, dones, messages, requests, requests_v2, u16, u32
from . import golden

V4 = SocketId(5, 80, b"\x0a\0\0\1", b"\x0a\0\0\2", 0, 12)
V6 = SocketId(5, 80, b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(14) + b"\2", 3, NO_COOKIE)
PROGRAM = encode_attribute(1, bytes(20))
DESTROY = encode_message(SOCK_DESTROY, NLM_F_REQUEST, 5, InetDiagReqV2(AF_INET, 6, 0, 0, V4).encode())
ROW = encode_message(SOCK_DIAG_BY_FAMILY, NLM_F_MULTI, 5, InetDiagMsg(AF_INET, 1, 0, 0, V4, 0, 0, 0, 0, 0).encode())
DONE = golden.joined(golden.DONE)


def dump(type: int, request: InetDiagReq | InetDiagReqV2, behind: bytes = b"") -> bytes:
    return encode_message(type, NLM_F_REQUEST | NLM_F_DUMP, 5, request.encode() + behind)


def refused(code: int, text: bytes) -> bytes:
    flags, payload = encode_ack(Ack(code, SOCK_DESTROY, 0, 6, 0, b"", ((1, text),)))
    return encode_message(NLMSG_ERROR, flags, 6, payload)


LINES = {
    "seq 5 TCPDIAG_GETSOCK: tcp [::]:0 -> [::]:0 interface 0 cookie 0xffffffffffffffff states 0x102, "
    "24 bytes of attributes": dump(TCPDIAG_GETSOCK, InetDiagReq(states=0x102), PROGRAM),
    "seq 5 SOCK_DIAG_BY_FAMILY: 132 family 10 [fd00::1]:5 -> [fd00::2]:80 interface 3 cookie 0xffffffffffffffff "
    "states 0x0, 0 bytes of attributes": dump(SOCK_DIAG_BY_FAMILY, InetDiagReqV2(AF_INET6, 132, 0, 0, V6)),
    "seq 5 SOCK_DESTROY: tcp family 2 10.0.0.1:5 -> 10.0.0.2:80 interface 0 cookie 0xc states 0x0, "
    "0 bytes of attributes (+63 more)": DESTROY * 64,
    "seq 5 SOCK_DIAG_BY_FAMILY: 10.0.0.1:5 -> 10.0.0.2:80 interface 0 cookie 0xc ESTABLISHED (+2 more); "
    "seq 7 NLMSG_DONE: errno 0": ROW * 3 + DONE,
    "seq 6 NLMSG_ERROR: errno EPERM 'no\\nway'; seq 6 NLMSG_ERROR: errno 4095 '\\xe4'": (
        refused(1, b"no\nway\0") + refused(4095, "ä".encode())
    ),
    "seq 9 type 99: 8 bytes; seq 7 NLMSG_DONE: errno 0; "
    "malformed: cut netlink header at offset 44: expected 16 bytes, got 15": (
        encode_message(99, NLM_F_REQUEST | NLM_F_ACK, 9, bytes(8)) + DONE + DONE[:15]
    ),
    "nothing": b"",
}


@golden.of_this_byte_order
@pytest.mark.parametrize(("line", "data"), LINES.items(), ids=range(len(LINES)))
def test_a_line(line: str, data: bytes) -> None:
    assert describe(data) == line


@given(messages(), u32)
def test_a_row_is_named_by_its_addresses_and_its_cookie(message: InetDiagMsg, sequence: int) -> None:
    line = describe(encode_message(SOCK_DIAG_BY_FAMILY, NLM_F_MULTI, sequence, message.encode()))
    assert f"seq {sequence} " in line
    assert format_endpoint(from_packed(message.id.dst), message.id.dport) in line
    assert f"cookie {message.id.cookie:#x} " in line


payloads = st.one_of(
    requests_v2().map(InetDiagReqV2.encode),
    requests().map(InetDiagReq.encode),
    messages().map(InetDiagMsg.encode),
    acks().map(lambda ack: encode_ack(ack)[1]),
    dones.map(lambda done: encode_done(done)[1]),
    st.binary(max_size=80),
)
types = st.sampled_from((NLMSG_ERROR, NLMSG_DONE, TCPDIAG_GETSOCK, SOCK_DIAG_BY_FAMILY, SOCK_DESTROY)) | u16
datagrams = st.lists(st.builds(encode_message, types, u16, u32, payloads), max_size=4).map(b"".join)


@given(damaged(datagrams) | st.binary(max_size=200))
def test_any_bytes_are_one_printable_line(data: bytes) -> None:
    line = describe(data)
    assert line
    assert line.isprintable()
