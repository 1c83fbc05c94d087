# SPDX-License-Identifier: MIT
"""What a datagram to or from ctnetlink says, as one line of a debug log."""

from __future__ import annotations

from ..wire.address import format_endpoint
from ..wire.describe import describe_messages
from ..wire.netlink import NLM_F_DUMP, NLM_F_REQUEST
from ..wire.request import PROTOCOL_NAMES
from .layout import (
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    IPCTNL_MSG_CT_GET_STATS,
    IPCTNL_MSG_CT_NEW,
    NFGENMSG,
    decode_count,
    decode_flow,
    decode_request,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .layout import FlowTuple

_TYPES = {
    IPCTNL_MSG_CT_NEW: "IPCTNL_MSG_CT_NEW",
    IPCTNL_MSG_CT_GET: "IPCTNL_MSG_CT_GET",
    IPCTNL_MSG_CT_DELETE: "IPCTNL_MSG_CT_DELETE",
    IPCTNL_MSG_CT_GET_STATS: "IPCTNL_MSG_CT_GET_STATS",
}


def describe(data: bytes) -> str:
    """The messages of one send or one receive. Never raises, whatever the bytes are."""
    return describe_messages(data, _tell)


def _tell(type: int, flags: int, payload: bytes) -> str:
    name = _TYPES.get(type)
    return "" if name is None else f"{name}: {_text_of(type, flags, payload)}"


def _text_of(type: int, flags: int, payload: bytes) -> str:
    end = len(payload)
    if type == IPCTNL_MSG_CT_NEW:
        flow = decode_flow(payload, 0, end)
        if flow is None:
            return "neither tcp nor udp"
        expires = "" if flow.expires_s is None else f" expires {flow.expires_s} s"
        state = f" {flow.state}" if flow.state else ""
        replies = f"replies {_ends(flow.reply)}"
        return f"{_named(flow.original, flow.zone, flow.id)} {replies} status {flow.status:#x}{state}{expires}"
    if type == IPCTNL_MSG_CT_GET_STATS and not flags & NLM_F_REQUEST:
        return f"{decode_count(payload, 0, end)} entries"
    if type == IPCTNL_MSG_CT_GET_STATS or flags & NLM_F_DUMP == NLM_F_DUMP:
        family = NFGENMSG.unpack_from(payload)[0] if end >= NFGENMSG.size else "?"
        return f"family {family}, {max(0, end - NFGENMSG.size)} bytes of attributes"
    return _named(*decode_request(payload, 0, end))


def _named(one: FlowTuple, zone: int, id: int | None) -> str:
    identity = "" if id is None else f" id {id:#x}"
    return f"{PROTOCOL_NAMES[one.protocol]} {_ends(one)} zone {zone}{identity}"


def _ends(one: FlowTuple) -> str:
    return f"{format_endpoint(one.src, one.sport)} -> {format_endpoint(one.dst, one.dport)}"
