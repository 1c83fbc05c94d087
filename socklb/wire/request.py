# SPDX-License-Identifier: MIT
"""Requests: inet_diag_req_v2 for one protocol and family, the older inet_diag_req for TCP of both families
(linux/inet_diag.h).
"""

from __future__ import annotations

from collections import namedtuple
from struct import Struct

from ..errors import MalformedMessage
from .socket_id import ANY, SIZE, SocketId, any_cookie, decode_id, encode_id, swapped, unmapped_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .netlink import Buffer

IPPROTO_TCP = 6
IPPROTO_UDP = 17
PROTOCOLS = {"tcp": IPPROTO_TCP, "udp": IPPROTO_UDP}
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}

TCPDIAG_GETSOCK = 18  # linux/inet_diag.h: the message type of the older request
SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h: dump or look up; also the type of the rows
SOCK_DESTROY = 21  # linux/sock_diag.h

_V2 = Struct(
    "="
    "B"  # sdiag_family
    "B"  # sdiag_protocol
    "B"  # idiag_ext: bit N - 1 requests INET_DIAG_N, N up to 8
    "x"  # pad
    "I"  # idiag_states: a mask, bit N for state N
)  # then the id
_OLD = Struct(
    "="
    "B"  # idiag_family: ignored by the kernel, which answers for both
    "B"  # idiag_src_len: ignored
    "B"  # idiag_dst_len: ignored
    "B"  # idiag_ext
)  # then the id, then
_OLD_END = Struct(
    "="
    "I"  # idiag_states
    "I"  # idiag_dbs: ignored
)


class InetDiagReqV2(namedtuple("InetDiagReqV2", "family protocol extensions states id", defaults=(ANY,))):
    """struct inet_diag_req_v2: what SOCK_DIAG_BY_FAMILY and SOCK_DESTROY take."""

    __slots__ = ()
    family: int
    protocol: int
    extensions: int
    states: int
    id: SocketId

    def encode(self) -> bytes:
        return _V2.pack(self.family, self.protocol, self.extensions, self.states) + encode_id(self.id)


class InetDiagReq(
    namedtuple("InetDiagReq", "family src_len dst_len extensions id states dbs", defaults=(0, 0, 0, 0, ANY, 0, 0))
):
    """struct inet_diag_req: what TCPDIAG_GETSOCK takes. One walk of the TCP table answers for both families."""

    __slots__ = ()
    family: int
    src_len: int
    dst_len: int
    extensions: int
    id: SocketId
    states: int
    dbs: int

    def encode(self) -> bytes:
        head = _OLD.pack(self.family, self.src_len, self.dst_len, self.extensions)
        return head + encode_id(self.id) + _OLD_END.pack(self.states, self.dbs)


def destroy_request(protocol: int, family: int, id_bytes: bytes) -> bytes:
    """The payload of a SOCK_DESTROY for the socket whose row had this id of 48 bytes. The kernel ignores the states."""
    return _V2.pack(family, protocol, 0, 0) + id_bytes


def look_up_request(protocol: int, family: int, id_bytes: bytes, extensions: int) -> bytes:
    """The payload of a SOCK_DIAG_BY_FAMILY that is no dump: the kernel answers with the row of the socket that it finds
    first at the address of this id, whatever its cookie.

    udp_dump_one() wants source and destination swapped. And unlike all others (udp_diag_destroy() is one of them) it
    looks for v4-mapped addresses among the v6 ones, where it finds none of several that share a port: ask for v4.
    """
    if protocol == IPPROTO_UDP:
        family, id_bytes = unmapped_id(family, swapped(id_bytes))
    return _V2.pack(family, protocol, extensions, 0) + any_cookie(id_bytes)


def decode_request_v2(buffer: Buffer) -> InetDiagReqV2:
    _check_size("inet_diag_req_v2", buffer, _V2.size + SIZE)
    family, protocol, extensions, states = _V2.unpack_from(buffer)
    return InetDiagReqV2(family, protocol, extensions, states, decode_id(buffer, _V2.size, family))


def decode_request(buffer: Buffer) -> InetDiagReq:
    _check_size("inet_diag_req", buffer, _OLD.size + SIZE + _OLD_END.size)
    family, src_len, dst_len, extensions = _OLD.unpack_from(buffer)
    states, dbs = _OLD_END.unpack_from(buffer, _OLD.size + SIZE)
    return InetDiagReq(family, src_len, dst_len, extensions, decode_id(buffer, _OLD.size, family), states, dbs)


def _check_size(what: str, buffer: Buffer, size: int) -> None:
    if len(buffer) < size:
        raise MalformedMessage(f"cut {what}", offset=0, expected=f"{size} bytes", got=f"{len(buffer)}")
