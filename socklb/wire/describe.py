# SPDX-License-Identifier: MIT
"""What a datagram to or from sock_diag, or another subsystem, says, as one line of a debug log."""

from __future__ import annotations

from errno import errorcode
from itertools import groupby

from ..errors import MalformedMessage
from ..states import state_word
from .address import format_endpoint
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
    from collections.abc import Callable

    from .request import InetDiagReq, InetDiagReqV2
    from .socket_id import SocketId

_TYPES = {
    TCPDIAG_GETSOCK: "TCPDIAG_GETSOCK",
    SOCK_DIAG_BY_FAMILY: "SOCK_DIAG_BY_FAMILY",
    SOCK_DESTROY: "SOCK_DESTROY",
}


def describe(data: bytes) -> str:
    """The messages of one send to sock_diag, or of one receive from it. Never raises, whatever the bytes are."""
    return describe_messages(data, _sock_diag)


def describe_messages(data: bytes, tell: Callable[[int, int, bytes], str]) -> str:
    """The messages of one send or one receive, separated by "; ". Never raises, whatever the bytes are.

    Of requests or rows one after another only the first is described, and the others are counted. `tell` makes words of
    the type, the flags and the payload of a message of its subsystem, or "" for a type that it does not know.
    """
    messages: list[tuple[int, int, int, int, int, int]] = []
    parts: list[str] = []
    try:
        try:
            messages.extend(iter_messages(data, len(data)))
        finally:  # what comes before a malformed message is described too
            for type_, run in groupby(messages, key=lambda message: message[0]):
                first, *others = run
                parts.append(_message(data, tell, first))
                if type_ in (NLMSG_ERROR, NLMSG_DONE):
                    parts += [_message(data, tell, other) for other in others]
                elif others:
                    parts[-1] += f" (+{len(others)} more)"
    except MalformedMessage as error:
        parts.append(f"malformed: {error}")
    return "; ".join(parts) or "nothing"


def _message(data: bytes, tell: Callable[[int, int, bytes], str], message: tuple[int, ...]) -> str:
    type, flags, sequence, _, start, end = message
    payload = data[start:end]
    if type in (NLMSG_ERROR, NLMSG_DONE):
        answer = (decode_ack if type == NLMSG_ERROR else decode_done)(payload, 0, len(payload), flags)
        text = f" {answer.text!a}" if answer.text else ""
        name = "NLMSG_ERROR" if type == NLMSG_ERROR else "NLMSG_DONE"
        return f"seq {sequence} {name}: errno {errorcode.get(answer.errno, answer.errno)}{text}"
    return f"seq {sequence} {tell(type, flags, payload) or f'type {type}: {len(payload)} bytes'}"


def _sock_diag(type: int, flags: int, payload: bytes) -> str:
    name = _TYPES.get(type)
    if name is None:
        return ""
    if not flags & NLM_F_REQUEST:
        row = decode_msg(payload)
        return f"{name}: {_socket(row.id)} {state_word(row.state)}"
    request: InetDiagReq | InetDiagReqV2
    if type == TCPDIAG_GETSOCK:
        request, who = decode_request(payload), "tcp"
    else:
        request = decode_request_v2(payload)
        who = f"{PROTOCOL_NAMES.get(request.protocol, request.protocol)} family {request.family}"
    behind = len(payload) - len(request.encode())
    return f"{name}: {who} {_socket(request.id)} states {request.states:#x}, {behind} bytes of attributes"


def _socket(id: SocketId) -> str:
    ends = f"{format_endpoint(id.src, id.sport)} -> {format_endpoint(id.dst, id.dport)}"
    return f"{ends} interface {id.interface} cookie {id.cookie:#x}"
