"""Calls to a kernel whose replies are damaged on their way: what is asked for, and what befalls the answers, is chosen.

Every call ends in a value or in a documented error, after a bounded number of sends and receives; no netlink socket is
left open; and no socket is asked to be destroyed but as it was told, in a state in which it may be.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from unittest import mock

from socklb import (
    DestroyReport,
    InetSocket,
    KernelError,
    MalformedMessage,
    NotPermitted,
    NotSupported,
    SocketFilter,
    SocklbError,
    TcpState,
    cgroup,
    destroy_sockets,
    dport,
    find_sockets,
)
from socklb.engine import policy as spare
from socklb.engine.session import OwnSession
from socklb.wire.attributes import encode_value
from socklb.wire.records import MemInfo, TcpInfo
from socklb.wire.request import IPPROTO_TCP
from socklb.wire.socket_id import AF_INET, AF_INET6, SocketId

from ...choices import Choices
from ...damage import Damaged
from ...fake_kernel import Answer, Datagram, FakeKernel, Living, Request, row, table, tries, verdicts

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
    row(7, state=TcpState.CLOSE, sport=53, dst="0.0.0.0", dport=80),  # unconnected UDP; as TCP, bound only
)
TCP = SocketFilter("tcp", dport(80), family=AF_INET)
FILTERS = (
    TCP,
    SocketFilter("tcp", dport(80)),
    SocketFilter("tcp", dport(80) & cgroup(7)),
    SocketFilter("tcp", states=0xFFFFFFFF),
    SocketFilter("udp", dport(80)),
)
_CODES = (0, errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL)
_ERRORS = (KernelError, MalformedMessage, NotPermitted, NotSupported)
LONGEST = 200  # enough for a dozen damages, with something to put in

_DUMPS_OF_ONE_SEARCH = 3 * (2 + 5)  # thrice each; two families; four older sets of bytecodes and the newer request
_NOBODY = OwnSession(frozenset(), frozenset())


def check(data: bytes) -> None:
    run(data)


class Run(NamedTuple):
    """What came of a call: "value" or the name of the error, and how many answers were damaged."""

    came: str
    hits: int


def run(data: bytes) -> Run:
    choices = Choices(data)
    return choices.of((find, destroy))(choices)


def find(choices: Choices) -> Run:
    filter = choices.of(FILTERS)
    damaged = Damaged(Living(ROWS), choices)
    with FakeKernel(damaged).installed() as kernel:
        try:
            for socket in find_sockets(filter, extensions=choices.of(((), ("info", "meminfo")))):
                read(socket)
            came = "value"
        except SocklbError as error:
            came = _documented(error)
        assert len(kernel.sent) <= _DUMPS_OF_ONE_SEARCH
    return Run(came, damaged.hits)


def destroy(choices: Choices) -> Run:
    filter = choices.of(FILTERS)
    damaged = Damaged(_usual(choices), choices)
    told = _Told(damaged)
    with FakeKernel(told).installed() as kernel, mock.patch.object(spare, "own_session", return_value=_NOBODY):
        report: DestroyReport | None
        try:
            report = destroy_sockets(filter, allow_unbounded=True)
            came = "value"
        except SocklbError as error:
            report = error.report
            came = _documented(error)
        assert report is not None
        for outcome in report.outcomes:
            read(outcome.socket)
        killed = {cookie for cookie, verdict in verdicts(report).items() if verdict == "destroyed"}
        assert killed <= set(tries(kernel)), "said to be destroyed, and the kernel was never asked to"
        for batch in kernel.destroys:
            for request in batch:
                assert told.may_die(request), "asked to destroy what was not told, or is to be spared"
        # Each round but the last, and but three for those that moved, destroys something; it takes a search and a
        # batch, which is sent thrice at most.
        assert len(kernel.sent) <= (_DUMPS_OF_ONE_SEARCH + 3) * (len(killed) + 2 + 3)
    return Run(came, damaged.hits)


class _Told:
    """An answer that remembers what it told."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._told = b""

    def __call__(self, requests: Sequence[Request]) -> Iterable[Datagram]:
        for datagram in self._answer(requests):
            data = datagram[0] if isinstance(datagram, tuple) else datagram
            if isinstance(data, bytes):
                self._told += data
            yield datagram

    def may_die(self, request: Request) -> bool:
        """Whether the very id in a destroy was told of a socket that is not to be spared for its state."""
        id, is_tcp = request.payload[8:56], request.body.protocol == IPPROTO_TCP
        at = self._told.find(id)
        while at >= 0:
            state = self._told[at - 3]
            if state != TcpState.LISTEN if is_tcp else state == TcpState.ESTABLISHED:
                return True
            at = self._told.find(id, at + 1)
        return False


def _usual(choices: Choices) -> Answer:
    kind, code = choices.below(4), choices.of(_CODES)
    if kind == 0:
        return Living(ROWS)
    if kind == 1:
        return Living(ROWS, stays=True)
    if kind == 2:
        return table(ROWS, lambda *_: code)
    return _moving(choices.bytes(len(ROWS)))


def _moving(states: bytes) -> Answer:
    """Some sockets are at another port when they are to be destroyed, and perhaps in another state."""
    rows = list(ROWS)
    left = list(enumerate(states))

    def destroy(id: SocketId, family: int) -> int:
        missed = errno.ENOENT if left else 0
        while left:
            index, state = left.pop()
            rows[index] = rows[index][:1] + bytes([state]) + rows[index][2:4] + b"\x77" + rows[index][5:]
        return missed

    return table(rows, destroy)


def _documented(error: SocklbError) -> str:
    """Its name, public and not a base that says nothing."""
    assert isinstance(error, _ERRORS), f"an error that no document knows: {error!r}"
    assert str(error)
    return next(kind.__name__ for kind in type(error).__mro__ if kind in _ERRORS)


def read(socket: InetSocket) -> None:
    """Look at everything that a row tells."""
    assert repr(socket)
    _ = socket.interface, socket.expires_ms, socket.rqueue, socket.wqueue, socket.uid, socket.inode, socket.timer
    _ = socket.retransmits, socket.is_time_wait, hash(socket), socket.cookie, socket.id_bytes
    try:
        assert repr(socket.attributes)
    except MalformedMessage as error:
        check_error(error, len(socket.row))


def check_error(error: MalformedMessage, size: int) -> None:
    assert str(error)
    assert 0 <= error.offset <= size, "an offset outside of what was read"
