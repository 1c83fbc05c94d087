"""A kernel that is a function: from the messages of one send to the datagrams that come back.

    with FakeKernel(table([row(1), row(2)])).installed() as kernel:
        find_sockets(...)

An answer is any number of datagrams: bytes (from port 0), a (bytes, port) pair, or an exception that the receive
raises. After the last one the kernel is silent, which is a timeout. `sent` has the requests, `sockets` every socket
that was opened.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from itertools import chain
from math import ceil
from typing import NamedTuple, Union
from unittest import mock

from socklb import InetSocket, Report
from socklb.kernel import diag, namespaces
from socklb.wire.bytecode import INET_DIAG_REQ_BYTECODE
from socklb.wire.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_MULTI,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    Ack,
    Done,
    encode_ack,
    encode_done,
    encode_message,
    iter_attributes,
    iter_messages,
)
from socklb.wire.reply import InetDiagMsg, decode_msg
from socklb.wire.request import (
    IPPROTO_TCP,
    IPPROTO_UDP,
    SOCK_DESTROY,
    TCPDIAG_GETSOCK,
    InetDiagReq,
    InetDiagReqV2,
    decode_request,
    decode_request_v2,
)
from socklb.wire.socket_id import AF_INET, AF_INET6, SocketId, encode_id

from . import bytecode_vm
from .sockets import socket_of

Datagram = Union[bytes, "tuple[bytes, int]", BaseException]


class Request(NamedTuple):
    """A message that was sent to the kernel."""

    type: int
    flags: int
    sequence: int
    payload: bytes

    @property
    def kind(self) -> str:
        """ "dump", "look-up" or "destroy"."""
        if self.type == SOCK_DESTROY:
            return "destroy"
        return "dump" if self.flags & NLM_F_DUMP == NLM_F_DUMP else "look-up"

    @property
    def body(self) -> InetDiagReqV2:
        return decode_request_v2(self.payload)

    @property
    def families(self) -> tuple[int, ...]:
        """Those that a dump asks for; the older request is for both."""
        return (AF_INET, AF_INET6) if self.type == TCPDIAG_GETSOCK else (self.body.family,)

    @property
    def states(self) -> int:
        return int(decode_request(self.payload).states if self.type == TCPDIAG_GETSOCK else self.body.states)

    @property
    def program(self) -> bytes:
        """The bytecode of a dump, empty without one."""
        start = len((InetDiagReq() if self.type == TCPDIAG_GETSOCK else InetDiagReqV2(0, 0, 0, 0)).encode())
        return dict(iter_attributes(self.payload, start, len(self.payload))).get(INET_DIAG_REQ_BYTECODE, b"")


Answer = Callable[[Sequence[Request]], Iterable[Datagram]]

_ID, _ADDRESS_SIZE = 4, 40  # the offset of the id in a row, and how much of it comes before the cookie
_MOST_CALLS = 10_000  # an endless loop fails here


class FakeSocket:
    """The part of a netlink socket that DiagSocket uses."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel
        self._replies: Iterator[Datagram] = iter(())
        self._calls = 0
        self.timeout: float | None = None
        self.waits: list[float] = []
        self.options: list[tuple[int, int, int]] = []
        self.closed = False

    def settimeout(self, seconds: float) -> None:
        self.timeout = seconds
        if seconds:
            self.waits.append(seconds)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if option in self._kernel.option_errors:
            raise OSError(self._kernel.option_errors[option], "setsockopt")
        self.options.append((level, option, value))

    def bind(self, address: tuple[int, int]) -> None:
        assert address == (0, 0)

    connect = bind

    def close(self) -> None:
        self.closed = True

    def send(self, data: bytes) -> int:
        self._check()
        if self._kernel.send_errors:
            raise self._kernel.send_errors.pop(0)
        requests = [
            Request(type_, flags, sequence, bytes(data[start:end]))
            for type_, flags, sequence, _, start, end in iter_messages(data, len(data))
        ]
        if requests[0].type == NLMSG_NOOP:
            self._replies = iter([ack_message(requests[0])])
            return len(data)
        self._kernel.sent.append(requests)
        self._replies = chain(self._replies, self._kernel.answer(requests))
        return len(data)

    def recvfrom_into(self, buffer: memoryview) -> tuple[int, tuple[int, int]]:
        self._check()
        reply = next(self._replies, None)
        if reply is None:
            raise socket.timeout("timed out") if self.timeout else BlockingIOError(errno.EAGAIN, "recvfrom")
        if isinstance(reply, BaseException):
            raise reply
        data, port = reply if isinstance(reply, tuple) else (reply, 0)
        size = min(len(data), len(buffer))
        buffer[:size] = data[:size]
        return size, (port, 0)

    def _check(self) -> None:
        if self.closed:
            raise OSError(errno.EBADF, "used after close")
        self._calls += 1
        assert self._calls <= _MOST_CALLS, "an endless loop"


class FakeKernel:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.sent: list[list[Request]] = []
        self.sockets: list[FakeSocket] = []
        self.send_errors: list[BaseException] = []
        self.option_errors: dict[int, int] = {}

    def open(self) -> FakeSocket:
        self.sockets.append(FakeSocket(self))
        return self.sockets[-1]

    @contextmanager
    def installed(self) -> Iterator[FakeKernel]:
        """In this context every DiagSocket talks to this kernel; at its end none may be open.

        It is in every namespace that has no path: every thread is taken to be there already.
        """
        usual = namespaces._is_current
        with (
            mock.patch.object(diag, "open_netlink", self.open),
            mock.patch.object(namespaces, "_is_current", lambda one: not one.path or usual(one)),
        ):
            yield self
        assert all(made.closed for made in self.sockets), "a netlink socket was left open"

    @property
    def dumps(self) -> list[Request]:
        return [requests[0] for requests in self.sent if requests[0].kind == "dump"]

    @property
    def look_ups(self) -> list[list[Request]]:
        """The batches of look-ups, one a send."""
        return [requests for requests in self.sent if requests[0].kind == "look-up"]

    @property
    def destroys(self) -> list[list[Request]]:
        """The batches of destroys, one a send."""
        return [requests for requests in self.sent if requests[0].kind == "destroy"]


# ------------------------------------------------------------------------------------------ usual answers


def row(
    cookie: int,
    *,
    family: int = AF_INET,
    state: int = 1,
    src: str = "",
    sport: int = 0,
    dst: str = "",
    dport: int = 80,
    inode: int = 0,
    attributes: Sequence[tuple[int, bytes]] = (),
) -> bytes:
    """A socket; by default an established one, from a port of its own to 10.0.0.5 or fd00::5."""
    ends = ("10.0.0.1", "10.0.0.5") if family == AF_INET else ("fd00::1", "fd00::5")
    source, destination = (ip_address(given or default).packed for given, default in zip((src, dst), ends))
    id = SocketId(sport or 1024 + cookie % 60000, dport, source, destination, 0, cookie)
    return InetDiagMsg(family, state, 0, 0, id, 0, 0, 0, 0, inode).encode(attributes)


def row_message(request: Request, row: bytes, flags: int = NLM_F_MULTI) -> bytes:
    return encode_message(request.type, flags, request.sequence, row)


def done_message(request: Request, code: int = 0, extra_flags: int = 0) -> bytes:
    flags, payload = encode_done(Done(code, ()))
    return encode_message(NLMSG_DONE, flags | extra_flags, request.sequence, payload)


def ack_message(request: Request, code: int = 0, attributes: tuple[tuple[int, bytes], ...] = ()) -> bytes:
    flags, payload = encode_ack(Ack(code, request.type, request.flags, request.sequence, 0, b"", attributes))
    return encode_message(NLMSG_ERROR, flags, request.sequence, payload)


def table(
    rows: Sequence[bytes], destroy: Callable[[SocketId, int], int] | None = None, *, datagrams: int = 1
) -> Answer:
    """A kernel with these rows; `destroy(id, family)` is the errno of a destroy (default: 0 for a row, else ENOENT).

    A dump answers with the rows of its families and states that match its program, in so many datagrams, and with the
    end of the dump in one more. A look-up finds the last row with the address. A destroy by itself removes no row.
    """

    def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
        if requests[0].kind == "destroy":
            return [message for request in requests for message in _destroy(request)]
        if requests[0].kind == "look-up":
            return [_look_up(request) for request in requests]
        (request,) = requests
        wanted = [row for row in rows if _asked_for(request, row)]
        size = max(1, ceil(len(wanted) / datagrams))
        parts = (wanted[start : start + size] for start in range(0, len(wanted), size))
        return [*(b"".join(row_message(request, row) for row in part) for part in parts), done_message(request)]

    def _look_up(request: Request) -> bytes:
        body = request.body
        found = found_at(rows, swapped(body.id) if body.protocol == IPPROTO_UDP else body.id)
        return ack_message(request, errno.ENOENT) if found is None else row_message(request, found, 0)

    def _destroy(request: Request) -> list[bytes]:
        body = request.body
        known = any(decode_msg(row).id == body.id for row in rows)
        code = destroy(body.id, body.family) if destroy else (0 if known else errno.ENOENT)
        return [ack_message(request, code)] if code or request.flags & NLM_F_ACK else []

    return answer


def found_at(rows: Sequence[bytes], id: SocketId) -> bytes | None:
    """The row that the kernel finds first at an address."""
    address = encode_id(id)[:_ADDRESS_SIZE]
    return next((row for row in reversed(rows) if row.startswith(address, _ID)), None)


def swapped(id: SocketId) -> SocketId:
    """With source and destination exchanged, as a look-up of UDP has them."""
    return id._replace(sport=id.dport, dport=id.sport, src=id.dst, dst=id.src)


class StatefulTable:
    """A table in which a destroy looks up a socket like the kernel: the last row with the address, which must have the
    cookie too. A destroyed socket is removed, unless it `stays` as a bound UDP socket does, which answers 0 each time.

    `rows` are those that are left, and may be changed meanwhile; `killed` are the cookies that answered 0.
    """

    def __init__(self, rows: Sequence[bytes], *, stays: bool = False) -> None:
        self.rows, self._stays = list(rows), stays
        self.killed: list[int] = []
        self._table = table(self.rows, self._destroy)

    def __call__(self, requests: Sequence[Request]) -> Iterable[Datagram]:
        return self._table(requests)

    def _destroy(self, id: SocketId, family: int) -> int:
        found = found_at(self.rows, id)
        if found is None or decode_msg(found).id.cookie != id.cookie:
            return errno.ENOENT
        if not self._stays:
            self.rows.remove(found)
        self.killed.append(id.cookie)
        return 0


def _asked_for(request: Request, row: bytes) -> bool:
    message = decode_msg(row)
    if message.family not in request.families or not request.states >> message.state & 1:
        return False
    program = request.program
    return not program or bytecode_vm.run(program, bytecode_vm.entry_of(InetSocket(row, IPPROTO_TCP)))


# --------------------------------------------------------------------------------------------- outcomes


def verdicts(report: Report) -> dict[int, str]:
    """By cookie. Every socket has one verdict, and `matched` is the sum of the counts."""
    verdict_of = {socket_of(outcome).cookie: outcome.verdict for outcome in report.outcomes}
    counts = Counter(verdict_of.values())
    sums = {name: counts[name] for name in report.counts._fields}
    assert report.counts.as_dict() == {"matched": len(verdict_of), **sums}
    assert len(report.outcomes) == len(verdict_of)
    return verdict_of


def tries(kernel: FakeKernel) -> Counter[int]:
    """How many destroys were sent for each cookie."""
    return Counter(request.body.id.cookie for batch in kernel.destroys for request in batch)
