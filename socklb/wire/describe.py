# SPDX-License-Identifier: MIT
"""What a datagram to or from sock_diag says, as one line of a debug log."""

from __future__ import annotations

from errno import errorcode
from itertools import groupby

from ..errors import MalformedMessage
from ..states import state_word
from .address import format_endpoint, from_packed
from .netlink import NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, decode_ack, decode_done, iter_messages
from .reply import decode_msg
from .request import (
    PROTOCOL_NAMES,
    SOCK_DESTROY,
    SOCK_DIAG_BY_FAMILY,
    TCPDIAG_GETSOCK,
    decode_request,
    decode_request_v2,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .request import InetDiagReq, InetDiagReqV2
    from .socket_id import SocketId

_TYPES = {
    NLMSG_ERROR: "NLMSG_ERROR",
    NLMSG_DONE: "NLMSG_DONE",
    TCPDIAG_GETSOCK: "TCPDIAG_GETSOCK",
    SOCK_DIAG_BY_FAMILY: "SOCK_DIAG_BY_FAMILY",
    SOCK_DESTROY: "SOCK_DESTROY",
}
_COUNTED = (SOCK_DIAG_BY_FAMILY, SOCK_DESTROY)


def describe(data: bytes) -> str:
    """The messages of one send or one receive, separated by "; ". Never raises, whatever the bytes are.

    Of requests or rows one after another only the first is described, and the others are counted.
    """
    messages: list[tuple[int, int, int, int, int, int]] = []
    parts: list[str] = []
    try:
        try:
            messages.extend(iter_messages(data, len(data)))
        finally:  # what comes before a malformed message is described too
            for type_, run in groupby(messages, key=lambda message: message[0]):
                first, *others = run
                parts.append(_message(data, *first))
                if type_ in _COUNTED and others:
                    parts[-1] += f" (+{len(others)} more)"
                else:
                    parts += [_message(data, *other) for other in others]
    except MalformedMessage as error:
        parts.append(f"malformed: {error}")
    return "; ".join(parts) or "nothing"


def _message(data: bytes, type: int, flags: int, sequence: int, port: int, start: int, end: int) -> str:
    head, payload = f"seq {sequence} {_TYPES.get(type, f'type {type}')}: ", data[start:end]
    if type in (NLMSG_ERROR, NLMSG_DONE):
        answer = (decode_ack if type == NLMSG_ERROR else decode_done)(payload, 0, len(payload), flags)
        text = f" {answer.text!a}" if answer.text else ""
        return f"{head}errno {errorcode.get(answer.errno, answer.errno)}{text}"
    if type not in _TYPES:
        return f"{head}{len(payload)} bytes"
    if not flags & NLM_F_REQUEST:
        row = decode_msg(payload)
        return f"{head}{_socket(row.id)} {state_word(row.state)}"
    request: InetDiagReq | InetDiagReqV2
    if type == TCPDIAG_GETSOCK:
        request, who = decode_request(payload), "tcp"
    else:
        request = decode_request_v2(payload)
        who = f"{PROTOCOL_NAMES.get(request.protocol, request.protocol)} family {request.family}"
    behind = len(payload) - len(request.encode())
    return f"{head}{who} {_socket(request.id)} states {request.states:#x}, {behind} bytes of attributes"


def _socket(id: SocketId) -> str:
    ends = f"{format_endpoint(from_packed(id.src), id.sport)} -> {format_endpoint(from_packed(id.dst), id.dport)}"
    return f"{ends} interface {id.interface} cookie {id.cookie:#x}"
