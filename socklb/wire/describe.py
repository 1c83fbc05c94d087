# SPDX-License-Identifier: MIT
"""What a datagram to or from sock_diag says, as one line of a debug log."""

from __future__ import annotations

from errno import errorcode
from itertools import groupby

from ..errors import MalformedMessage
from ..states import TcpState, state_mask, state_word, states_in
from .address import format_endpoint, from_packed
from .attributes import NUMBERS
from .bytecode import INET_DIAG_REQ_BYTECODE
from .netlink import (
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    decode_ack,
    decode_done,
    iter_attributes,
    iter_messages,
)
from .reply import decode_msg
from .request import (
    PROTOCOL_NAMES,
    SOCK_DESTROY,
    SOCK_DIAG_BY_FAMILY,
    TCPDIAG_GETSOCK,
    decode_request,
    decode_request_v2,
)
from .socket_id import AF_INET, AF_INET6, ANY, NO_COOKIE, encode_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .netlink import Ack, Done
    from .request import InetDiagReq, InetDiagReqV2
    from .socket_id import SocketId

_TYPES = {
    NLMSG_NOOP: "NLMSG_NOOP",
    NLMSG_ERROR: "NLMSG_ERROR",
    NLMSG_DONE: "NLMSG_DONE",
    NLMSG_OVERRUN: "NLMSG_OVERRUN",
    TCPDIAG_GETSOCK: "TCPDIAG_GETSOCK",
    SOCK_DIAG_BY_FAMILY: "SOCK_DIAG_BY_FAMILY",
    SOCK_DESTROY: "SOCK_DESTROY",
}
_NLMSG_MIN_TYPE = 16  # linux/netlink.h: those below are control messages
_REQUEST_FLAGS = {"ACK": NLM_F_ACK, "DUMP": NLM_F_DUMP}
_REPLY_FLAGS = {
    "MULTI": NLM_F_MULTI,
    "DUMP_INTR": NLM_F_DUMP_INTR,
    "CAPPED": NLM_F_CAPPED,
    "ACK_TLVS": NLM_F_ACK_TLVS,
}
_FAMILIES = {AF_INET: "inet", AF_INET6: "inet6"}
_EVERY_STATE = state_mask(*TcpState)


def describe(data: bytes) -> str:
    """The messages of one send or one receive, decoded, separated by "; ". Never raises, whatever the bytes are.

    Of consecutive requests or rows only the first is described, and the others are counted.
    """
    messages: list[tuple[int, int, int, int, int, int]] = []
    problem: list[str] = []
    try:
        messages.extend(iter_messages(data, len(data)))  # keeps those that come before a malformed one
    except MalformedMessage as error:
        problem = [f"malformed: {error}"]
    parts = []
    for _, run in groupby(messages, _countable):
        first, *others = run
        parts.append(_message(data, *first) + (f" (+{len(others)} more)" if others else ""))
    return "; ".join(parts + problem) or "nothing"


def _countable(message: tuple[int, int, int, int, int, int]) -> tuple[int, int]:
    """The same for consecutive messages of a type, unless it is a control message: each of those is described."""
    type_, _, _, _, start, _ = message
    return type_, 0 if type_ >= _NLMSG_MIN_TYPE else start


def _message(data: bytes, type: int, flags: int, sequence: int, port: int, start: int, end: int) -> str:
    is_request = bool(flags & NLM_F_REQUEST)
    try:
        body = " ".join(_request(type, data[start:end]) if is_request else _reply(type, flags, data[start:end]))
    except MalformedMessage as error:
        body = f"malformed: {error}"
    head = f"seq {sequence} {_TYPES.get(type, f'type {type}')}"
    for name, bits in (_REQUEST_FLAGS if is_request else _REPLY_FLAGS).items():
        if flags & bits == bits:
            head += f" {name}"
    return f"{head}: {body}"


def _request(type: int, payload: bytes) -> Iterator[str]:
    if type not in (TCPDIAG_GETSOCK, SOCK_DIAG_BY_FAMILY, SOCK_DESTROY):
        yield f"{len(payload)} bytes"
        return
    request: InetDiagReq | InetDiagReqV2
    if type == TCPDIAG_GETSOCK:
        request = decode_request(payload)
        yield "tcp"
    else:
        request = decode_request_v2(payload)
        yield PROTOCOL_NAMES.get(request.protocol, f"protocol {request.protocol}")
        yield _FAMILIES.get(request.family, f"family {request.family}")
    if encode_id(request.id) != encode_id(ANY):
        yield from _id(request.id)
    if request.states:
        is_every = request.states & _EVERY_STATE == _EVERY_STATE
        yield "in " + ("every state" if is_every else ",".join(map(state_word, states_in(request.states))))
    if request.extensions:
        yield "with " + ",".join(name for name, n in NUMBERS.items() if n <= 8 and request.extensions >> n - 1 & 1)
    size = len(request.encode())
    for attribute, value in iter_attributes(payload, size, len(payload)):
        what = "bytecode" if attribute == INET_DIAG_REQ_BYTECODE else f"attribute {attribute}"
        yield f"{len(value)} bytes of {what}"


def _reply(type: int, flags: int, payload: bytes) -> Iterator[str]:
    if type == NLMSG_ERROR:
        ack = decode_ack(payload, 0, len(payload), flags)
        yield from _errno(ack)
        yield f"for {_TYPES.get(ack.type, f'type {ack.type}')}"
    elif type == NLMSG_DONE:
        yield from _errno(decode_done(payload, 0, len(payload), flags))
    elif type in (TCPDIAG_GETSOCK, SOCK_DIAG_BY_FAMILY):
        row = decode_msg(payload)
        yield from _id(row.id)
        yield state_word(row.state)
    else:
        yield f"{len(payload)} bytes"


def _errno(answer: Ack | Done) -> Iterator[str]:
    yield f"errno {errorcode.get(answer.errno, answer.errno)}"
    if answer.text:
        yield ascii(answer.text)


def _id(id: SocketId) -> Iterator[str]:
    yield f"{format_endpoint(from_packed(id.src), id.sport)} -> {format_endpoint(from_packed(id.dst), id.dport)}"
    if id.interface:
        yield f"interface {id.interface}"
    if id.cookie != NO_COOKIE:
        yield f"cookie {id.cookie}"
