"""Replies that are damaged on their way: every public call still ends in a value or a documented error.

Never another exception, an endless loop, or a netlink socket left open. Whatever the replies claim, no destroy is sent
for a socket that was not in them, or that is to be spared.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from unittest import mock

from hypothesis import example, given
from hypothesis import strategies as st

from socklb import (
    InetSocket,
    KernelError,
    MalformedMessage,
    SocketFilter,
    SocklbError,
    TcpState,
    cgroup,
    destroy_sockets,
    dport,
    find_sockets,
)
from socklb.engine import run
from socklb.engine.session import OwnSession
from socklb.wire.attributes import encode_value
from socklb.wire.netlink import NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLM_F_MULTI, encode_message
from socklb.wire.records import MemInfo, TcpInfo
from socklb.wire.request import IPPROTO_TCP
from socklb.wire.socket_id import AF_INET, AF_INET6, SocketId

from ..fake_kernel import (
    Answer,
    Datagram,
    FakeKernel,
    Request,
    StatefulTable,
    ack_message,
    done_message,
    row,
    table,
    tries,
    verdicts,
)
from ..sockets import socket_of
from .calls import CALLS, Call, End

# ------------------------------------------------------------------------------------------ kinds of damage

_types = st.integers(0, 22) | st.just(0xFFFF)
_flags = st.sampled_from((0, NLM_F_MULTI, NLM_F_DUMP_INTR, NLM_F_CAPPED, NLM_F_ACK_TLVS, 0x300, 0xFFFF))
_refusals = (errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.EINTR, errno.ENOBUFS, errno.EBUSY)
_codes = st.sampled_from((0, *_refusals, 4095))
# Lengths around those of headers, rows and acknowledgements, the ends of the number ranges, and negated errnos.
_numbers = st.one_of(
    st.integers(0, 400),
    st.sampled_from((0xFFFC, 0xFFFF, 0x10000, 1 << 31, (1 << 31) - 1, 0xFFFFF000, 0xFFFFF001, 0xFFFFFFFC)),
    _codes.map(lambda code: -code & 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
)
_words = st.one_of(
    st.binary(min_size=1, max_size=1),
    _numbers.map(lambda number: struct.pack("=H", number & 0xFFFF)),
    _numbers.map(lambda number: struct.pack("=I", number)),
)
_header_fields = st.one_of(
    st.tuples(st.just(("=I", 0)), _numbers),
    st.tuples(st.just(("=H", 4)), _types),
    st.tuples(st.just(("=H", 6)), _flags),
    st.tuples(st.sampled_from((("=I", 8), ("=I", 12))), _numbers),
    st.tuples(st.just(("=i", 16)), _codes.map(lambda code: -code)),  # the errno behind the header
)


def overwrite(one: bytes, at: int, word: bytes) -> bytes:
    """Where such a word is aligned."""
    at -= at % len(word)
    return (one[:at] + word + one[at + len(word) :])[: len(one)]


def in_messages(change: Callable[[list[bytes], int, Any], object]) -> Callable[[bytes, int, Any], bytes]:
    """A change to the messages of a datagram, as far as their lengths make sense; the rest is one more."""

    def changed(one: bytes, at: int, value: Any) -> bytes:
        messages = []
        while one:
            length = struct.unpack_from("=I", one)[0] if len(one) >= 4 else 0
            size = (length + 3) & ~3 if 16 <= length <= len(one) else len(one)
            messages.append(one[:size])
            one = one[size:]
        change(messages, at % len(messages), value)
        return b"".join(messages)

    return changed


def set_field(messages: list[bytes], at: int, field: tuple[tuple[str, int], int]) -> None:
    (format, offset), value = field
    message = bytearray(messages[at])
    if len(message) >= offset + struct.calcsize(format):
        struct.pack_into(format, message, offset, value)
    messages[at] = bytes(message)


class PossibleAnswer(NamedTuple):
    """What the kernel could say to one of the requests: an end, or an acknowledgement."""

    make: Callable[[Request, int], bytes]
    which: int
    code: int

    def __call__(self, requests: Sequence[Request]) -> bytes:
        return self.make(requests[self.which % len(requests)], self.code)


_insertions: st.SearchStrategy[Any] = st.one_of(
    st.binary(max_size=200),
    st.builds(encode_message, _types, _flags, st.integers(0, 9), st.binary(max_size=200)),
    st.builds(PossibleAnswer, st.sampled_from((ack_message, done_message)), st.integers(0, 99), _codes),
)
_receive_errors = st.sampled_from(
    (*(OSError(code, "recvfrom") for code in (errno.ENOBUFS, errno.EINTR, errno.EIO)), socket.timeout("timed out"))
)

OF_BYTES: dict[str, tuple[st.SearchStrategy[Any], Callable[[bytes, int, Any], Datagram]]] = {
    "overwritten": (_words, overwrite),
    "bytes inserted": (st.binary(max_size=64), lambda one, at, more: one[:at] + more + one[at:]),
    "bytes lost": (st.integers(1, 100), lambda one, at, count: one[:at] + one[at + count :]),
    "cut": (st.none(), lambda one, at, _: one[:at]),
    "front lost": (st.none(), lambda one, at, _: one[at:]),
    "from another port": (st.none(), lambda one, at, _: (one, at + 1)),
    "longer than any buffer": (st.none(), lambda one, at, _: one.ljust(70_000, b"\0")),
    "header field": (_header_fields, in_messages(set_field)),
    "message lost": (st.none(), in_messages(lambda messages, at, _: messages.pop(at))),
    "message doubled": (st.none(), in_messages(lambda messages, at, _: messages.insert(at, messages[at]))),
    "message last": (st.none(), in_messages(lambda messages, at, _: messages.append(messages.pop(at)))),
}
OF_DATAGRAMS: dict[str, tuple[st.SearchStrategy[Any], Callable[[list[Datagram], int, Any], object]]] = {
    "lost": (st.none(), lambda datagrams, which, _: datagrams.pop(which)),
    "doubled": (st.integers(0, 9), lambda datagrams, which, where: datagrams.insert(where, datagrams[which])),
    "last": (st.none(), lambda datagrams, which, _: datagrams.append(datagrams.pop(which))),
    "inserted": (_insertions, lambda datagrams, which, made: datagrams.insert(which, made)),
    "receive fails": (_receive_errors, lambda datagrams, which, error: datagrams.insert(which, error)),
}


class Damage(NamedTuple):
    """Of datagram number `which`, counted round and round, and the byte `at` in it."""

    kind: str
    which: int
    at: int
    value: Any

    def apply(self, datagrams: list[Datagram], requests: Sequence[Request]) -> None:
        if not datagrams:
            return
        which = self.which % len(datagrams)
        value = self.value(requests) if isinstance(self.value, PossibleAnswer) else self.value
        if self.kind in OF_DATAGRAMS:
            OF_DATAGRAMS[self.kind][1](datagrams, which, value)
            return
        one = datagrams[which]
        if isinstance(one, bytes) and one:
            datagrams[which] = OF_BYTES[self.kind][1](one, self.at % len(one), value)


damages = st.sampled_from([*OF_BYTES.items(), *OF_DATAGRAMS.items()]).flatmap(
    lambda kind: st.builds(Damage, st.just(kind[0]), st.integers(0, 20), st.integers(0, 1000), kind[1][0])
)
plans = st.lists(st.lists(damages, max_size=3), min_size=1, max_size=4)
"""What happens to the replies to the first send, to the second and so on; the last entry stands for all that follow."""
LOST_FOR_EVER = [[Damage("receive fails", 0, 0, OSError(errno.ENOBUFS, "recvfrom"))]]


class DamagedReplies:
    """The replies of a kernel, damaged by a plan. `received` is all that was in them."""

    def __init__(self, usual: Answer, plan: list[list[Damage]]) -> None:
        self._usual, self._plan, self._sends = usual, plan, 0
        self.received = b""

    def __call__(self, requests: Sequence[Request]) -> Iterable[Datagram]:
        datagrams = list(self._usual(requests))
        for damage in self._plan[min(self._sends, len(self._plan) - 1)]:
            damage.apply(datagrams, requests)
        self._sends += 1
        for datagram in datagrams:
            data = datagram[0] if isinstance(datagram, tuple) else datagram
            self.received += data if isinstance(data, bytes) else b""
        return datagrams

    def may_be_destroyed(self, request: Request) -> bool:
        """Whether a reply had the very id of this destroy, with a state that is not spared."""
        id, is_tcp = request.payload[8:56], request.body.protocol == IPPROTO_TCP
        at = self.received.find(id)
        while at >= 0:
            state = self.received[at - 3]
            if state != TcpState.LISTEN if is_tcp else state == TcpState.ESTABLISHED:
                return True
            at = self.received.find(id, at + 1)
        return False


# ------------------------------------------------------------------------------------- kernels and filters

_FEW = [encode_value("shutdown", 0), encode_value("cgroup_id", 7), encode_value("cong", "cubic")]
_MANY = [
    *_FEW,
    encode_value("mark", 42),
    encode_value("meminfo", MemInfo.of(1, 2, 3, 4)),
    encode_value("info", TcpInfo(bytes(range(200)))),
    encode_value("ulp_info", (("name", "mptcp"), ("mptcp", (("token_loc", 5), ("id_loc", 1))))),
]
ROWS = (
    row(1, attributes=_FEW),
    row(2, sport=5000, attributes=_FEW),
    row(3, sport=5000, attributes=_FEW),  # a twin
    row(4, family=AF_INET6, attributes=_MANY),
    row(5, dport=81),
    row(6, state=TcpState.LISTEN, sport=80, dst="0.0.0.0", dport=80, attributes=_FEW),
    row(7, state=TcpState.CLOSE, sport=53, dst="0.0.0.0", dport=80),  # UDP without a peer; as TCP, only bound
)
filters = st.sampled_from(
    (
        SocketFilter("tcp", dport(80), family=AF_INET),
        SocketFilter("tcp", dport(80)),
        SocketFilter("tcp", dport(80) & cgroup(7)),
        SocketFilter("tcp", states=0xFFFFFFFF),
        SocketFilter("udp", dport(80)),
    )
)
_MOST_SENDS = 300  # of one call for seven rows, each dump in every older way and repeated, each round destroying one
_NO_SESSION = OwnSession(frozenset(), frozenset())


def moving(states: bytes) -> Answer:
    """Sockets that are at another port when they are to be destroyed, and perhaps in another state."""
    rows = list(ROWS)
    left = list(enumerate(states[: len(rows)]))

    def destroy(id: SocketId, family: int) -> int:
        missed = errno.ENOENT if left else 0
        while left:
            index, state = left.pop()
            rows[index] = rows[index][:1] + bytes([state]) + rows[index][2:4] + b"\x77" + rows[index][5:]
        return missed

    return table(rows, destroy)


kernels: st.SearchStrategy[Answer] = st.one_of(
    st.builds(StatefulTable, st.just(ROWS), stays=st.booleans()),
    _codes.map(lambda code: table(ROWS, lambda *_: code)),
    st.binary(max_size=len(ROWS)).map(moving),
)


def check_documented(error: SocklbError) -> None:
    assert isinstance(error, (KernelError, MalformedMessage)), f"an undocumented error: {error!r}"
    assert str(error)


def read(socket: InetSocket) -> None:
    """A row may have attributes that no kernel sends."""
    assert repr(socket)
    try:
        assert repr(socket.attributes)
    except MalformedMessage as error:
        assert 0 <= error.offset <= len(socket.row)  # noqa: PT017 - both ways of it are fine


# ------------------------------------------------------------------------------------------------- the laws


@given(filters, st.sampled_from(((), ("info", "meminfo"))), plans)
@example(SocketFilter("tcp", dport(80)), (), LOST_FOR_EVER)
def test_find_sockets_gives_sockets_or_a_documented_error(
    filter: SocketFilter, extensions: tuple[str, ...], plan: list[list[Damage]]
) -> None:
    with FakeKernel(DamagedReplies(StatefulTable(ROWS), plan)).installed() as kernel:
        try:
            for socket in find_sockets(filter, extensions=extensions):
                read(socket)
        except SocklbError as error:
            check_documented(error)
        assert len(kernel.sent) <= _MOST_SENDS


@given(filters, kernels, plans)
@example(SocketFilter("tcp", dport(80)), StatefulTable(ROWS), LOST_FOR_EVER)
@example(SocketFilter("tcp", dport(80)), moving(bytes([TcpState.LISTEN] * 7)), [[]])
def test_destroy_sockets_reports_or_raises_with_the_report(
    filter: SocketFilter, usual: Answer, plan: list[list[Damage]]
) -> None:
    replies = DamagedReplies(usual, plan)
    with FakeKernel(replies).installed() as kernel, mock.patch.object(run, "own_session", return_value=_NO_SESSION):
        try:
            report = destroy_sockets(filter, allow_unbounded=True)
        except SocklbError as error:
            check_documented(error)
            report = error.report
        for outcome in report.outcomes:
            read(socket_of(outcome))
        destroyed = {cookie for cookie, verdict in verdicts(report).items() if verdict == "destroyed"}
        assert destroyed <= set(tries(kernel)), "reported as destroyed, and the kernel was never asked to"
        for request in (request for batch in kernel.destroys for request in batch):
            assert replies.may_be_destroyed(request), "to be destroyed, but never reported, or to be spared"
        assert len(kernel.sent) <= _MOST_SENDS


@given(st.sampled_from(list(CALLS)).map(CALLS.__getitem__), plans)
def test_every_public_call_ends_in_a_value_or_a_documented_error(call: Call, plan: list[list[Damage]]) -> None:
    """Any other exception would leave the call. Of commands there are exit codes for documented errors alone."""
    result = call.on(DamagedReplies(call.kernel(call.rows), plan))
    assert result.end in (0, 1, 3, 4) or (isinstance(result.end, End) and result.end.kind is not SocklbError)
