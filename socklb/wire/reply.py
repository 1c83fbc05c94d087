# SPDX-License-Identifier: MIT
"""Replies: struct inet_diag_msg (linux/inet_diag.h), and the socket that a row of a dump describes."""

from __future__ import annotations

from collections import namedtuple
from functools import cache, lru_cache
from struct import Struct

from ..errors import MalformedMessage
from ..states import TcpState, state_mask
from .address import format_endpoint, from_packed
from .netlink import NLA_TYPE_MASK, encode_attributes, iter_attributes
from .socket_id import ADDRESSES, AF_INET, AF_INET6, SIZE, SocketId, decode_id, encode_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .address import IPAddress

_HEAD = Struct(
    "="
    "B"  # idiag_family
    "B"  # idiag_state
    "B"  # idiag_timer: 0 none, 1 retransmit, 2 keepalive, 3 time-wait, 4 zero-window probe
    "B"  # idiag_retrans
)  # then the id, then
_TAIL = Struct(
    "="
    "I"  # idiag_expires: milliseconds until the timer expires
    "I"  # idiag_rqueue
    "I"  # idiag_wqueue
    "I"  # idiag_uid
    "I"  # idiag_inode: 0 for a socket without an owner
)
_ID = _HEAD.size
_TAIL_AT = _ID + SIZE
MSG_SIZE = _TAIL_AT + _TAIL.size

_SRC = _ID + 4
_DST = _SRC + 16
_IFACE = _ID + ADDRESSES.size
_EXPIRES, _RQUEUE, _WQUEUE, _UID, _INODE = range(_TAIL_AT, MSG_SIZE, 4)

_be16: Callable[[bytes, int], tuple[int]] = Struct(">H").unpack_from
_u32: Callable[[bytes, int], tuple[int]] = Struct("=I").unpack_from
_two_u32: Callable[[bytes, int], tuple[int, int]] = Struct("=II").unpack_from

_KEPT = frozenset({19, 21})  # INET_DIAG_ULP_INFO, INET_DIAG_CGROUP_ID

_TIMER_TIME_WAIT = 3
_TIME_WAIT = int(TcpState.TIME_WAIT)
_STATES = tuple(TcpState(n) if 1 <= n <= TcpState.BOUND_INACTIVE else n for n in range(256))
# By the state of a row: a request socket reports SYN_RECV, and one that is only bound reports CLOSE.
_ANSWERS_TO = [state_mask(n) if 1 <= n < 32 else 0 for n in range(256)]
_ANSWERS_TO[TcpState.SYN_RECV] |= state_mask(TcpState.NEW_SYN_RECV)
_ANSWERS_TO[TcpState.CLOSE] |= state_mask(TcpState.BOUND_INACTIVE)


class InetDiagMsg(namedtuple("InetDiagMsg", "family state timer retransmits id expires_ms rqueue wqueue uid inode")):
    """struct inet_diag_msg, field by field."""

    __slots__ = ()
    family: int
    state: int
    timer: int
    retransmits: int
    id: SocketId
    expires_ms: int
    rqueue: int
    wqueue: int
    uid: int
    inode: int

    def encode(self, attributes: Iterable[tuple[int, bytes]] = ()) -> bytes:
        """The payload of a row: the structure, and (type, payload) attributes after it."""
        head = _HEAD.pack(self.family, self.state, self.timer, self.retransmits)
        tail = _TAIL.pack(self.expires_ms, self.rqueue, self.wqueue, self.uid, self.inode)
        return head + encode_id(self.id) + tail + encode_attributes(attributes)


def decode_msg(row: bytes) -> InetDiagMsg:
    """The structure at the start of a row, without the attributes."""
    _check(row)
    family, state, timer, retransmits = _HEAD.unpack_from(row)
    return InetDiagMsg(
        family, state, timer, retransmits, decode_id(row, _ID, family), *_TAIL.unpack_from(row, _TAIL_AT)
    )


def _check(row: bytes) -> None:
    """A row is long enough for the structure, and of a family whose addresses are known."""
    if len(row) < MSG_SIZE:
        raise MalformedMessage("cut inet_diag_msg", offset=0, expected=f"{MSG_SIZE} bytes", got=f"{len(row)}")
    if row[0] != AF_INET and row[0] != AF_INET6:
        raise MalformedMessage("family of inet_diag_msg", offset=0, expected=f"{AF_INET} or {AF_INET6}", got=row[0])


class _Attributes(dict):  # type: ignore[type-arg] # of what, is said where it is returned
    def __missing__(self, key: str | int) -> Any:
        from .attributes import EXTENSION_BITS  # they are imported by now

        advice = f": ask for it with extensions=({key!r},)" if key in EXTENSION_BITS else ""
        raise KeyError(f"the row of this socket has no attribute {key!r}{advice}")


class InetSocket:
    """One socket as the kernel reported it: the bytes of a row, decoded when a property is read. It cannot be changed.

    `row` is the payload of a SOCK_DIAG_BY_FAMILY reply: struct inet_diag_msg and its attributes. `protocol` is that of
    the request, for a row does not carry it. Two are equal when both are. Raises MalformedMessage for a row that is
    too short, or of a family that is neither AF_INET nor AF_INET6; what else is in it raises nothing until it is read.
    """

    __slots__ = ("_protocol", "_row")

    def __init__(self, row: bytes, protocol: int) -> None:
        if len(row) < MSG_SIZE or (row[0] != AF_INET and row[0] != AF_INET6):
            _check(row)
        self._row = row
        self._protocol = protocol

    @property
    def row(self) -> bytes:
        """The bytes that the kernel sent."""
        return self._row

    @property
    def protocol(self) -> int:
        """IPPROTO_TCP or IPPROTO_UDP."""
        return self._protocol

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6; a v4-mapped socket is AF_INET6."""
        return self._row[0]

    @property
    def state(self) -> int:
        """A TcpState, or a plain int for a state that is unknown here. UDP uses ESTABLISHED and CLOSE."""
        return _STATES[self._row[1]]

    @property
    def timer(self) -> int:
        """0 none, 1 retransmit, 2 keepalive, 3 time-wait, 4 zero-window probe."""
        return self._row[2]

    @property
    def retransmits(self) -> int:
        """Unanswered retransmissions (timer 1) or probes (timers 2 and 4)."""
        return self._row[3]

    @property
    def is_time_wait(self) -> bool:
        """Whether this is a time-wait mini-socket, in its substate FIN_WAIT2 too. It has no owner."""
        return self._row[1] == _TIME_WAIT or self._row[2] == _TIMER_TIME_WAIT

    @property
    def answers_to(self) -> int:
        """The mask of the states by any of which a request finds it: TIME_WAIT alone for a time-wait mini-socket."""
        row = self._row
        state = _TIME_WAIT if row[2] == _TIMER_TIME_WAIT else row[1]
        return _ANSWERS_TO[state]

    @property
    def id_bytes(self) -> bytes:
        """struct inet_diag_sockid, 48 bytes: a request that carries them is about this very socket."""
        return self._row[_ID:_TAIL_AT]

    @property
    def src_packed(self) -> bytes:
        """The local address, 4 or 16 bytes."""
        return self._row[_SRC : _SRC + 4] if self._row[0] == AF_INET else self._row[_SRC : _SRC + 16]

    @property
    def dst_packed(self) -> bytes:
        """The peer's address, 4 or 16 bytes; all zeros without a peer."""
        return self._row[_DST : _DST + 4] if self._row[0] == AF_INET else self._row[_DST : _DST + 16]

    @property
    def src(self) -> IPAddress:
        """The local address as the kernel sent it: a mapped one stays ::ffff:a.b.c.d."""
        return from_packed(self.src_packed)

    @property
    def dst(self) -> IPAddress:
        """The peer's address as the kernel sent it: a mapped one stays ::ffff:a.b.c.d."""
        return from_packed(self.dst_packed)

    @property
    def sport(self) -> int:
        """The local port."""
        return _be16(self._row, _ID)[0]

    @property
    def dport(self) -> int:
        """The peer's port; 0 without a peer."""
        return _be16(self._row, _ID + 2)[0]

    @property
    def interface(self) -> int:
        """The index of the interface that the socket is bound to; 0 for none."""
        return _u32(self._row, _IFACE)[0]

    @property
    def cookie(self) -> int:
        """A u64 that no other socket has, or will have until the next boot (sock_gen_cookie())."""
        low, high = _two_u32(self._row, _IFACE + 4)
        return low | high << 32

    @property
    def expires_ms(self) -> int:
        """Milliseconds until the timer expires."""
        return _u32(self._row, _EXPIRES)[0]

    @property
    def rqueue(self) -> int:
        """Bytes not yet read; for a listening socket, connections not yet accepted."""
        return _u32(self._row, _RQUEUE)[0]

    @property
    def wqueue(self) -> int:
        """Bytes not yet acknowledged; for a listening socket, its backlog."""
        return _u32(self._row, _WQUEUE)[0]

    @property
    def uid(self) -> int:
        """The uid of the owner, as seen from the user namespace of the process that asked."""
        return _u32(self._row, _UID)[0]

    @property
    def inode(self) -> int:
        """The socket's inode, as in /proc/PID/fd; 0 if no process owns it."""
        return _u32(self._row, _INODE)[0]

    @property
    def attributes(self) -> dict[str | int, Any]:
        """The response attributes by lower-case kernel name, those that are unknown by number; decoded at each access.

        If one comes twice the last counts, as with nla_parse(). Raises MalformedMessage if one is cut; indexing raises
        a KeyError that says how to ask for what is missing.
        """
        try:
            return _Attributes(_decode_attributes(self._row[MSG_SIZE:]))
        except MalformedMessage as error:
            offset = MSG_SIZE + error.offset
            raise MalformedMessage(error.what, offset=offset, expected=error.expected, got=error.got) from None

    @property
    def is_mptcp_subflow(self) -> bool:
        """Whether this TCP connection is one of those that an MPTCP connection runs over, as far as its attributes say.
        Raises MalformedMessage if one of these is cut.
        """
        if b"mptcp" not in self._row:
            return False
        ulp = self.attributes.get("ulp_info")
        return isinstance(ulp, tuple) and ("name", "mptcp") in ulp

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._row, self._protocol)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InetSocket):
            return NotImplemented
        return self._row == other._row and self._protocol == other._protocol

    def __hash__(self) -> int:
        return hash((self._row, self._protocol))

    def __repr__(self) -> str:
        state = getattr(self.state, "name", self.state)
        return (
            f"<InetSocket {self._protocol} {state} {format_endpoint(self.src_packed, self.sport)} -> "
            f"{format_endpoint(self.dst_packed, self.dport)} cookie={self.cookie}>"
        )


def abridged(socket: InetSocket) -> InetSocket:
    """The same with no attributes but its cgroup, and what tells a subflow of MPTCP: for who keeps many."""
    row = socket.row
    return InetSocket(row[:MSG_SIZE] + _abridged_attributes(row[MSG_SIZE:]), socket.protocol)


@lru_cache(maxsize=256)  # unless extensions are requested, most sockets of a host carry the very same bytes
def _abridged_attributes(data: bytes) -> bytes:
    try:
        pairs = list(iter_attributes(data, 0, len(data)))
    except MalformedMessage:
        return data  # raises where it is read
    return encode_attributes(pair for pair in pairs if pair[0] & NLA_TYPE_MASK in _KEPT)


@lru_cache(maxsize=256)  # as above
def _decode_attributes(data: bytes) -> tuple[tuple[str | int, Any], ...]:
    return attribute_decoder()(data)


@cache
def attribute_decoder() -> Callable[[bytes], tuple[tuple[str | int, Any], ...]]:
    """Imported when first needed: few programs read attributes, and the codecs take long to import. Who needs them
    after a kill calls this before it, for then there may be no memory.
    """
    from .attributes import decode_attributes

    return decode_attributes
