# SPDX-License-Identifier: MIT
"""Rounds of destroys: from the sockets that a filter matches in one namespace to a verdict on each.

A batch is two sends: the first looks up what is now at the address of each socket, the second destroys what still has
the cookie, matches and is not spared. That something else is found says little: a socket that still exists can hide
behind a twin, another socket with the same addresses and ports, which the kernel finds first.

The first round tries each pending socket once, and then all are dumped again. The second one takes one socket of each
address at a time and destroys whichever twin is found there, as long as there is one: so many destroys as sockets, in
whatever order the twins lie. What is found and is not pending hides the rest: a bound UDP twin that was destroyed keeps
its place, and would answer 0 for ever.
"""

from __future__ import annotations

import errno
import os
from itertools import islice
from time import monotonic

from ..errors import AuditError, KernelError, SocklbError, kernel_error
from ..states import STATE_FILTER_TCP, STATE_FILTER_UDP, TcpState
from ..wire.reply import abridged
from ..wire.request import IPPROTO_TCP, PROTOCOL_NAMES, destroy_request
from ..wire.socket_id import ADDRESS_SIZE
from .report import DESTROYED, FAILED, GONE, SKIPPED, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from typing import TypeVar

    from ..filters import SocketFilter
    from ..kernel.namespaces import NetworkNamespace
    from ..wire.reply import InetSocket
    from .find import SocketTable

    T = TypeVar("T")
    Reasons = Callable[[Sequence[InetSocket]], Sequence[str]]

SHARED_ADDRESS = "another socket shares its address"
ONLY_BOUND = "only bound: the kernel destroys no TCP socket that has no peer"
ANSWER_LOST = "an answer of the kernel was lost: perhaps destroyed"
TIME_LIMIT = "time limit"
IN_THIS_STATE = "the kernel does not destroy it in this state"
SUBFLOW = "MPTCP subflow: the connection may live on"

_MOVES = 3  # how often sockets are followed to another address before they count as gone
_SECONDS_AN_ADDRESS = 10


class Rounds:
    """The sockets of one namespace that one filter matches, until each has its verdict.

    `pending` holds those that are not accounted for, by cookie. A step returns outcomes; the caller takes them into
    account and then calls `settle`. After an error between any two steps `left_over` has the rest.
    A reason to spare a socket is a text, "" for one that is to be destroyed.
    """

    def __init__(self, table: SocketTable, filter: SocketFilter, namespace: NetworkNamespace, bits: int) -> None:
        self._table, self.filter, self.namespace, self._bits = table, filter, namespace, bits
        self.pending: dict[int, InetSocket] = {}
        self._doing = f"destroy {PROTOCOL_NAMES[filter.protocol]} sockets in {namespace.name}"
        self._decided: list[Outcome] = []  # of the last step, for an error that comes before they are settled
        self._in_flight: set[int] = set()  # cookies that were sent to the kernel and are not answered for
        self._in_doubt: set[int] = set()  # cookies of batches whose answers were lost in part
        self._found: list[int] = []  # for each socket of the last batch the cookie of the pending one found there, or 0
        self._late: set[bytes] = set()  # addresses that took too long
        self._round = 0
        self._moves_left = _MOVES
        self.refusal: KernelError | None = None

    def collect(self, seen: Collection[int]) -> None:
        """Find what the filter matches, but for the cookies in `seen`."""
        found: dict[int, InetSocket] = {}  # one for all: two would take a third more memory
        states, accepts = self.filter.request_states, self.filter.accepts
        for cookie, row in self._table.search_all(self.filter, states, self._bits, found):
            if cookie not in seen and accepts(row):
                found[cookie] = abridged(row)
        self.pending = found if all(found.values()) else {cookie: row for cookie, row in found.items() if row}

    def decide(self, sockets: Sequence[InetSocket], verdict: str, reasons: Iterable[str | None]) -> list[Outcome]:
        """Outcomes for pending sockets without a look-up; the reasons are in their order, None for no outcome."""
        self._decided = [
            self._outcome(socket, verdict, why) for socket, why in zip(sockets, reasons) if why is not None
        ]
        return self._decided

    def batches(self, size: Callable[[], int]) -> Iterator[list[InetSocket]]:
        """One round: the pending sockets in batches of so many, those of one address one after another."""
        self._round += 1
        if self._round > 1:
            yield from self._batches_by_address(size)
            return
        for some in taken_off(list(self.pending.values()), size):
            batch = [socket for socket in some if socket.cookie in self.pending]
            if batch:  # one that a twin led to has its verdict already
                yield batch

    def _batches_by_address(self, size: Callable[[], int]) -> Iterator[list[InetSocket]]:
        addresses: dict[bytes, list[int]] = {}
        for cookie, socket in self.pending.items():
            addresses.setdefault(_address(socket), []).append(cookie)
        begun: dict[bytes, float] = {}
        last_found: dict[bytes, int] = {}
        while addresses and size():
            batch = []
            for address in list(islice(addresses, size())):
                begun.setdefault(address, monotonic())
                cookies = addresses[address]
                while cookies and cookies[-1] not in self.pending:
                    cookies.pop()
                if cookies and monotonic() - begun[address] > _SECONDS_AN_ADDRESS:
                    self._late.add(address)
                if cookies and address not in self._late:
                    batch.append(self.pending[cookies[-1]])
                else:
                    del addresses[address]
            if not batch:
                continue
            yield batch
            for address, cookie in zip(map(_address, batch), self._found):
                if not cookie or cookie == last_found.get(address):
                    del addresses[address]  # hidden: no other pending socket will be found there
                last_found[address] = cookie

    def destroy(self, batch: Sequence[InetSocket], reasons: Reasons) -> list[Outcome]:
        """Look a batch up, and destroy what is found of the pending sockets; the others get no outcome yet.

        `reasons` says of sockets as they are now why each is spared. Where the kernel refuses (EPERM, EOPNOTSUPP),
        `refusal` is the error to end the run with.
        """
        outcomes = self._decided = []
        found: dict[int, InetSocket] = {}
        self._found = []
        for row in self._table.look_up(self.filter, batch, self._bits, self._doing):
            cookie = 0 if row is None else row.cookie
            if row is not None and cookie in self.pending:
                found[cookie] = row
            self._found.append(cookie if cookie in found else 0)
        for cookie in [cookie for cookie, row in found.items() if not self._table.still_matches(self.filter, row)]:
            del found[cookie]
            outcomes.append(self._outcome(self.pending[cookie], GONE))
        doomed: dict[int, InetSocket] = {}
        for (cookie, row), why in zip(found.items(), reasons(list(found.values()))):
            if why:
                outcomes.append(self._outcome(abridged(row), SKIPPED, why))
            else:
                doomed[cookie] = row
        if doomed:
            self._destroy(doomed, outcomes)
        return outcomes

    def _destroy(self, doomed: dict[int, InetSocket], outcomes: list[Outcome]) -> None:
        said = remarks(doomed.values())  # before: it may raise
        self._in_flight = {*doomed}
        requests = [destroy_request(socket.protocol, socket.family, socket.id_bytes) for socket in doomed.values()]
        codes = self._table.diag.destroy(requests, self._doing)
        if self._table.diag.was_repeated:
            self._in_doubt |= self._in_flight
        unsupported = []
        for (cookie, socket), code, remark in zip(doomed.items(), codes, said):
            if code == 0:
                found = self.pending[cookie]  # abridged already
                is_as_found = (found.state, found.id_bytes) == (socket.state, socket.id_bytes)
                outcomes.append(self._outcome(found if is_as_found else abridged(socket), DESTROYED, remark))
            elif code in (errno.EPERM, errno.EACCES):
                self.refusal = self.refusal or kernel_error(code, self._doing)
            elif code == errno.EOPNOTSUPP:
                unsupported.append(socket)
            elif code != errno.ENOENT:
                outcomes.append(self._outcome(abridged(socket), FAILED, os.strerror(code), code))
        self._in_flight = set()
        if unsupported:
            self._judge(unsupported, outcomes)

    def _judge(self, unsupported: list[InetSocket], outcomes: list[Outcome]) -> None:
        """Sockets that answered EOPNOTSUPP. Linux before about 6.1 says so of mini-sockets, and a full one may have
        become one since it was looked up; a kernel without CONFIG_INET_DIAG_DESTROY says so of every socket.
        """
        rows = self._table.look_up(self.filter, unsupported, self._bits, self._doing)
        for socket, row in zip(unsupported, rows):
            if row is None or row.cookie != socket.cookie or not self._table.still_matches(self.filter, row):
                outcomes.append(self._outcome(abridged(socket), GONE))
                continue
            if self.refusal is None:
                from .probe import can_destroy  # kernels that answer so are few

                if not can_destroy(socket.protocol, socket.family):
                    self.refusal = kernel_error(errno.EOPNOTSUPP, self._doing)
            if self.refusal is None:
                outcomes.append(self._outcome(abridged(row), FAILED, IN_THIS_STATE, errno.EOPNOTSUPP))

    def look_again(self) -> list[Outcome]:
        """Sort those that were not found: gone, moved to another address, or hidden behind a twin."""
        there = self._still_there()
        moved = {
            cookie: row
            for cookie, row in there.items()
            if row.id_bytes != self.pending[cookie].id_bytes and self._moves_left and self.filter.accepts(row)
        }
        outcomes = self._decided = []
        for cookie, socket in self.pending.items():
            if cookie not in there or (socket.id_bytes != there[cookie].id_bytes and cookie not in moved):
                outcomes.append(self._outcome(socket, GONE, ANSWER_LOST if cookie in self._in_doubt else ""))
            elif cookie not in moved and self._round > 1:
                only_bound = socket.protocol == IPPROTO_TCP and socket.state == TcpState.CLOSE
                reason = ONLY_BOUND if only_bound else SHARED_ADDRESS
                if _address(socket) in self._late:
                    reason = TIME_LIMIT
                outcomes.append(self._outcome(socket, FAILED, reason, errno.ENOENT))
        self._in_doubt.clear()
        if moved:
            self._moves_left -= 1
            self.pending.update((cookie, abridged(row)) for cookie, row in moved.items())
        return outcomes

    @property
    def in_doubt(self) -> int:
        """How many pending sockets may have been destroyed by now."""
        return len(self._in_doubt & self.pending.keys())

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Forget the sockets of these outcomes: they are accounted for."""
        for outcome in outcomes:
            socket = outcome.socket
            assert socket is not None
            self.pending.pop(socket.cookie, None)

    def left_over(self, error: BaseException) -> list[Outcome]:
        """Outcomes for all that is pending, where an error or an interrupt has ended the rounds: those that were
        decided, and failures for the rest.
        """
        why, code = _why_failed(error)
        decided = {socket.cookie: outcome for outcome in self._decided if (socket := outcome.socket)}
        doubtful = self._in_flight | self._in_doubt
        return [
            decided.get(cookie)
            or self._outcome(socket, FAILED, f"{why}, and perhaps destroyed" if cookie in doubtful else why, code)
            for cookie, socket in self.pending.items()
        ]

    def _outcome(self, socket: InetSocket, verdict: str, reason: str = "", error: int | None = None) -> Outcome:
        return Outcome(socket, verdict, reason, error, self.namespace)

    def _still_there(self) -> dict[int, InetSocket]:
        """Dump again: pending sockets that still exist and match, in whatever live state, keyed by cookie."""
        live = STATE_FILTER_TCP if self.filter.protocol == IPPROTO_TCP else STATE_FILTER_UDP
        states = live | self.filter.request_states
        rows = self._table.search_all(self.filter, states, self._bits)
        return {cookie: row for cookie, row in rows if cookie in self.pending and self._is_alive(cookie, row)}

    def _is_alive(self, cookie: int, row: InetSocket) -> bool:
        """A TCP socket that was reset may still hold its port, as a bound one."""
        return (
            row.protocol != IPPROTO_TCP or row.state != TcpState.CLOSE or self.pending[cookie].state == TcpState.CLOSE
        )


def remarks(sockets: Iterable[InetSocket]) -> list[str]:
    """What is to be known of each socket that is destroyed, or would be."""
    return [SUBFLOW if socket.is_mptcp_subflow else "" for socket in sockets]


def taken_off(items: list[T], size: Callable[[], int]) -> Iterator[list[T]]:
    """Items in batches of so many, as long as that is not 0; the list, which may be long, forgets them."""
    items.reverse()
    while items and (number := size()):
        batch = items[: -number - 1 : -1]
        del items[-number:]
        yield batch


def _address(socket: InetSocket) -> bytes:
    """What the kernel looks up by: ports, addresses and interface. Twins have it in common."""
    return socket.id_bytes[:ADDRESS_SIZE]


def _why_failed(error: BaseException) -> tuple[str, int | None]:
    """Reason and errno for sockets that an error left without a verdict; an audit's errno says nothing about them."""
    if isinstance(error, KernelError) and error.errno:
        return os.strerror(error.errno), error.errno
    if isinstance(error, AuditError):
        return str(error.strerror), None
    if isinstance(error, SocklbError):
        return str(error), None
    return f"ended by {type(error).__name__}" if isinstance(error, Exception) else "interrupted", None
