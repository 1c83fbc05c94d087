# SPDX-License-Identifier: MIT
"""Rounds of destroys: from the sockets that a filter matches in one namespace to a verdict on each.

A round tries each pending socket once, 64 in a send, and then dumps again. ENOENT says little: a socket that still
exists can hide behind a twin, another socket with the same addresses and ports, which the kernel finds first. So after
a round that destroyed something the next one tries the rest again; after one that destroyed nothing, what is left is
given up. A socket that answered 0 is never tried again: a bound UDP twin keeps its place in the table and would answer
0 for ever.
"""

from __future__ import annotations

import errno
import os

from ..errors import kernel_error
from ..kernel.diag import BATCH
from ..states import STATE_FILTER_TCP, STATE_FILTER_UDP, TcpState
from ..wire.request import IPPROTO_TCP, PROTOCOL_NAMES, destroy_request
from .report import DESTROYED, FAILED, GONE, SKIPPED, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..errors import KernelError
    from ..filters import SocketFilter
    from ..kernel.namespaces import NetworkNamespace
    from ..wire.reply import InetSocket
    from .find import SocketTable

SHARED_ADDRESS = "another socket shares its address"
ONLY_BOUND = "only bound: the kernel destroys no TCP socket that has no peer"
ANSWER_LOST = "an answer of the kernel was lost: perhaps destroyed"
_MOVES = 3  # how often sockets are followed to another address before they count as gone


class Rounds:
    """The sockets of one namespace that one filter matches, until each has its verdict.

    `pending` holds those that are not accounted for, by cookie. A step returns outcomes; the caller takes them into
    account and then calls `settle`. After an interrupt between any two steps `left_over` has the rest.
    A reason to spare a socket is a text, "" for one that is to be destroyed.
    """

    def __init__(self, table: SocketTable, filter: SocketFilter, namespace: NetworkNamespace, bits: int) -> None:
        self._table, self.filter, self.namespace, self._bits = table, filter, namespace, bits
        self.pending: dict[int, InetSocket] = {}
        self._doing = f"destroy {PROTOCOL_NAMES[filter.protocol]} sockets in {namespace.name}"
        self._decided: list[Outcome] = []  # of the last step, for an interrupt that comes before they are settled
        self._in_flight: set[int] = set()  # cookies that were sent to the kernel and are not answered for
        self._in_doubt: set[int] = set()  # cookies of batches whose answers were lost in part
        self._progress = False  # whether the round at hand destroyed something, or may have
        self._moves_left = _MOVES
        self.refusal: KernelError | None = None

    def collect(self, seen: set[int]) -> None:
        """Find what the filter matches, but for the cookies in `seen`."""
        found = self._table.collect(self.filter, self.namespace.name, self._bits)
        for cookie in seen.intersection(found):
            del found[cookie]
        self.pending = found

    def spare(self, reasons: Sequence[str]) -> list[Outcome]:
        """Outcomes for the pending sockets that are spared; the reasons are in their order."""
        self._decided = [
            self._outcome(socket, SKIPPED, why) for socket, why in zip(self.pending.values(), reasons) if why
        ]
        return self._decided

    def batches(self) -> Iterator[list[InetSocket]]:
        """One round: each pending socket once, up to 64 at a time."""
        self._progress = False
        sockets = list(self.pending.values())
        for start in range(0, len(sockets), BATCH):
            yield sockets[start : start + BATCH]

    def destroy(self, batch: Sequence[InetSocket], reasons: Sequence[str]) -> list[Outcome]:
        """Destroy those of a batch that are not spared; the ones that answered ENOENT get no outcome yet.

        Where the kernel refuses (EPERM, EOPNOTSUPP), `refusal` is the error to end the run with.
        """
        outcomes = [self._outcome(socket, SKIPPED, why) for socket, why in zip(batch, reasons) if why]
        self._decided = outcomes
        doomed = [socket for socket, why in zip(batch, reasons) if not why]
        if not doomed:
            return outcomes
        self._in_flight = {socket.cookie for socket in doomed}
        requests = [destroy_request(socket.protocol, socket.family, socket.id_bytes) for socket in doomed]
        codes = self._table.diag.destroy(requests, self._doing)
        if self._table.diag.destroy_was_repeated and not self._in_flight <= self._in_doubt:
            self._in_doubt |= self._in_flight
            self._progress = True
        self._progress = self._progress or 0 in codes
        for socket, code in zip(doomed, codes):
            if code == 0:
                outcomes.append(self._outcome(socket, DESTROYED))
            elif code not in (errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP):
                outcomes.append(self._outcome(socket, FAILED, os.strerror(code), code))
            elif code != errno.ENOENT:
                self.refusal = self.refusal or kernel_error(code, self._doing)
        self._in_flight = set()
        return outcomes

    def look_again(self) -> list[Outcome]:
        """Sort those that answered ENOENT: gone, moved to another address, or hidden behind a twin."""
        there = self._still_there()
        moved = {
            cookie: row
            for cookie, row in there.items()
            if row.id_bytes != self.pending[cookie].id_bytes and self._moves_left and self.filter.accepts(row)
        }
        outcomes: list[Outcome] = []
        self._decided = outcomes
        for cookie, socket in self.pending.items():
            if cookie not in there or (socket.id_bytes != there[cookie].id_bytes and cookie not in moved):
                outcomes.append(self._outcome(socket, GONE, ANSWER_LOST if cookie in self._in_doubt else ""))
            elif cookie not in moved and not self._progress:
                only_bound = socket.protocol == IPPROTO_TCP and socket.state == TcpState.CLOSE
                reason = ONLY_BOUND if only_bound else SHARED_ADDRESS
                outcomes.append(self._outcome(socket, FAILED, reason, errno.ENOENT))
        if moved:
            self._moves_left -= 1
            self.pending.update(moved)
        return outcomes

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Forget the sockets of these outcomes: they are accounted for."""
        for outcome in outcomes:
            self.pending.pop(outcome.socket.cookie, None)

    def left_over(self, why: str, code: int | None) -> list[Outcome]:
        """Outcomes for all that is pending, where an error or an interrupt has ended the rounds: those that were
        decided, and failures for the rest.
        """
        decided = {outcome.socket.cookie: outcome for outcome in self._decided}
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
        rows = self._table.search(self.filter, states, self.namespace.name, bits=self._bits, may_repeat_rows=True)
        return {socket.cookie: socket for socket in rows if self._is_alive(socket)}

    def _is_alive(self, row: InetSocket) -> bool:
        """Whether it is one of the pending; a TCP socket that was reset may still hold its port, as a bound one."""
        pending = self.pending.get(row.cookie)
        if pending is None:
            return False
        return row.protocol != IPPROTO_TCP or row.state != TcpState.CLOSE or pending.state == TcpState.CLOSE
