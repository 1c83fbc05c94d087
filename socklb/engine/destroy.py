# SPDX-License-Identifier: MIT
"""Destroy the sockets that a filter means, by the rules of who may die."""

from __future__ import annotations

import errno
import os

from ..errors import AuditError, KernelError, SocklbError, UnboundedFilter, kernel_error
from ..kernel.diag import BATCH
from ..kernel.namespaces import NetworkNamespace, inside
from ..states import STATE_FILTER_TCP, STATE_FILTER_UDP, TcpState
from ..wire.request import IPPROTO_TCP, PROTOCOL_NAMES, destroy_request
from .find import SocketTable, check_filter, place, resolve
from .ledger import Ledger
from .policy import DRY_RUN, Mercy
from .report import DESTROYED, FAILED, GONE, SKIPPED, DestroyReport, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from ..filters import SocketFilter
    from ..wire.reply import InetSocket
    from .ledger import Audit, Subject

SHARED_ADDRESS = "another socket shares its address"
_MOVES = 3  # how often sockets are followed to another address before they count as gone
ONLY_BOUND = "only bound: the kernel destroys no TCP socket that has no peer"
ANSWER_LOST = "an answer of the kernel was lost: perhaps destroyed"


def destroy_sockets(
    filter: SocketFilter,
    *,
    namespace: NetworkNamespace | None = None,
    dry_run: bool = False,
    limit: int | None = None,
    unconnected: bool = False,
    allow_unbounded: bool = False,
    audit: Audit | None = None,
) -> DestroyReport:
    """Destroy the sockets that the filter means, so that their owners get an error at once.

    Spared are listening TCP sockets (unless the filter's states name LISTEN), UDP sockets without a peer (unless
    `unconnected`), the ssh session one works in, all of them in a `dry_run`, and those beyond `limit`. `audit` is
    called with one dict for each verdict.

    Raises UnboundedFilter for a filter that names no endpoint (unless `allow_unbounded`); NotPermitted or NotSupported
    when the kernel refuses, KernelError or MalformedMessage when it answers nothing or nonsense, with the report so far
    in `.report`: what was still to be destroyed is `failed` in it. So is any other exception, one of `audit` among
    them; a batch of up to 64 is in the report before it is in the audit.
    A dry run, and a run that matches nothing, needs no privilege.
    """
    return destroy_each(
        [filter],
        namespace=namespace,
        dry_run=dry_run,
        limit=limit,
        unconnected=unconnected,
        allow_unbounded=allow_unbounded,
        audit=audit,
    )


def destroy_each(
    filters: Sequence[SocketFilter], *, namespace: NetworkNamespace | None = None, **options: Any
) -> DestroyReport:
    """`destroy_sockets` for several filters as one run: one netlink socket, one limit, one report."""
    return Operation(filters, **options).run_in(namespace)


class Operation:
    """One call that destroys what some filters mean, in one namespace or in several at once: one limit, one audit.

    `spare` gives a further reason to spare a socket, or "". `subject` tells of a socket what the records say it was
    meant by; unless told otherwise, its filter.
    """

    def __init__(
        self,
        filters: Sequence[SocketFilter],
        *,
        dry_run: bool = False,
        limit: int | None = None,
        unconnected: bool = False,
        allow_unbounded: bool = False,
        audit: Audit | None = None,
        spare: Callable[[InetSocket], str] | None = None,
        subject: Subject | None = None,
    ) -> None:
        self._filters = filters
        self.mercy = Mercy(unconnected=unconnected, limit=limit, further=spare)
        self.ledger = Ledger(audit, dry_run=dry_run)
        self.dry_run, self._subject = dry_run, subject
        for filter in filters:
            check_filter(filter)
            if not allow_unbounded and not filter.is_bounded:
                raise UnboundedFilter(
                    f"the filter '{filter}' bounds no endpoint, so it could hit everything: name an address or a port, "
                    "or allow that"
                )
        self._are_resolved = all(filter.is_resolved for filter in filters)

    def stop(self, why: str) -> None:
        """Let no thread of the operation begin another batch: RunStopped is raised there, and says why."""
        self.ledger.close(why)

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped, or its audit failed."""
        return self.ledger.is_closed

    @property
    def audit_error(self) -> BaseException | None:
        """What the audit raised."""
        return self.ledger.audit_error

    def run_in(self, namespace: NetworkNamespace | None) -> DestroyReport:
        """Destroy in this namespace (None: the caller's), over one netlink socket. Whatever is raised has `.report`."""
        report = DestroyReport()
        try:
            resolved = self._filters
            if not self._are_resolved:
                resolved = [resolve(filter, namespace) for filter in self._filters]
            with inside(namespace, SocketTable) as table:
                for filter, searched in zip(self._filters, resolved):
                    subject = self._subject or _filter_as_subject(filter)
                    _Execution(self, searched, table, place(namespace), report, subject).run()
        except BaseException as error:
            error.report = report  # type: ignore[attr-defined]
            raise
        return report


def _filter_as_subject(filter: SocketFilter) -> Subject:
    said = {"filter": str(filter)}
    return lambda socket: said


def _why_failed(error: BaseException) -> tuple[str, int | None]:
    """Reason and errno of those that an error left without a verdict; an audit's errno says nothing about a socket."""
    if isinstance(error, KernelError) and error.errno:
        return os.strerror(error.errno), error.errno
    if isinstance(error, AuditError):
        return str(error.strerror), None
    if isinstance(error, SocklbError):
        return str(error), None
    return f"ended by {type(error).__name__}" if isinstance(error, Exception) else "interrupted", None


class _Execution:
    """Destroys what one filter means in one namespace, in rounds, until each socket has its verdict."""

    def __init__(
        self,
        operation: Operation,
        filter: SocketFilter,
        table: SocketTable,
        where: str,
        report: DestroyReport,
        subject: Subject,
    ) -> None:
        self._mercy, self._ledger, self._dry_run = operation.mercy, operation.ledger, operation.dry_run
        self._filter, self._table, self._where = filter, table, where
        self._report, self._subject = report, subject
        self._doing = f"destroy {PROTOCOL_NAMES[filter.protocol]} sockets in {where}"
        self._pending: dict[int, InetSocket] = {}  # by cookie, those without a verdict
        self._in_flight: set[int] = set()  # the cookies that were sent to the kernel and not yet answered for
        self._in_doubt: set[int] = set()  # the cookies of whose batch an answer was lost
        self._settled: list[Outcome] = []  # the last verdicts, entered or about to be
        self._moves_left = _MOVES

    def run(self) -> None:
        """ENOENT says little: a socket that is still there hides behind a twin with the same address.

        The twin is found first; once it is gone the next one is. So rounds follow as long as the last one destroyed
        something. A cookie that answered 0 is never tried again: a bound UDP twin stays where it is, and answers 0
        for ever. A socket that was given another address or device meanwhile, and is still meant, is tried as it is
        now, a few times.
        """
        try:
            self._judge()
            for start in range(0, len(self._settled), BATCH):
                with self._ledger:
                    self._enter(self._settled[start : start + BATCH])
            while self._pending:
                progress = self._round()
                if self._pending:
                    self._sort_out(progress)
        except BaseException as error:
            self._enter(self._left_over(error))
            raise

    def _judge(self) -> None:
        """Tell those that are spared, which is a verdict, from those that are not."""
        self._pending = self._table.collect(self._filter, self._where)
        for socket in list(self._pending.values()):
            reason = self._mercy.reason(socket, self._filter) or (DRY_RUN if self._dry_run else "")
            if reason:
                self._settled.append(Outcome(socket, SKIPPED, reason))
                del self._pending[socket.cookie]

    def _enter(self, outcomes: list[Outcome]) -> None:
        self._ledger.enter(self._report, outcomes, self._where, self._subject)

    def _left_over(self, error: BaseException) -> list[Outcome]:
        """Verdicts that an error, or an interrupt between any two steps, has kept from being entered or given."""
        why, code = _why_failed(error)
        doubtful = self._in_flight | self._in_doubt
        entered = set(map(id, self._report.outcomes))
        settled = {outcome.socket.cookie for outcome in self._settled}
        return [outcome for outcome in self._settled if id(outcome) not in entered] + [
            Outcome(socket, FAILED, f"{why}, and perhaps destroyed" if cookie in doubtful else why, code)
            for cookie, socket in self._pending.items()
            if cookie not in settled
        ]

    def _round(self) -> bool:
        """Try each once; whether any was, or may have been, destroyed. Those that answered ENOENT stay pending."""
        sockets = list(self._pending.values())
        destroyed = False
        for start in range(0, len(sockets), BATCH):
            with self._ledger:
                destroyed = self._destroy_batch(sockets[start : start + BATCH]) or destroyed
        return destroyed

    def _destroy_batch(self, batch: list[InetSocket]) -> bool:
        self._in_flight = {socket.cookie for socket in batch}
        requests = [destroy_request(socket.protocol, socket.family, socket.id_bytes) for socket in batch]
        codes = self._table.diag.destroy(requests, self._doing)
        newly_in_doubt = self._table.diag.destroy_was_repeated and not self._in_flight <= self._in_doubt
        if newly_in_doubt:
            self._in_doubt |= self._in_flight
        self._settle(
            Outcome(socket, DESTROYED) if code == 0 else Outcome(socket, FAILED, os.strerror(code), code)
            for socket, code in zip(batch, codes)
            if code not in (errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP)
        )
        refused = next((code for code in codes if code in (errno.EPERM, errno.EOPNOTSUPP)), 0)
        if refused:
            raise kernel_error(refused, self._doing)
        return 0 in codes or newly_in_doubt

    def _sort_out(self, progress: bool) -> None:
        """Of those that answered ENOENT, tell the gone from those that moved and those that hide behind a twin."""
        there = self._still_there()
        moved = {
            cookie: row
            for cookie, row in there.items()
            if row.id_bytes != self._pending[cookie].id_bytes and self._moves_left and self._is_meant(row)
        }
        if moved:
            self._moves_left -= 1
            self._pending.update(moved)
        outcomes = []
        for cookie, socket in self._pending.items():
            if cookie not in there or socket.id_bytes != there[cookie].id_bytes:
                outcomes.append(Outcome(socket, GONE, ANSWER_LOST if cookie in self._in_doubt else ""))
            elif cookie not in moved and not progress:
                only_bound = socket.protocol == IPPROTO_TCP and socket.state == TcpState.CLOSE
                outcomes.append(Outcome(socket, FAILED, ONLY_BOUND if only_bound else SHARED_ADDRESS, errno.ENOENT))
        self._settle(outcomes)

    def _is_meant(self, socket: InetSocket) -> bool:
        return self._filter.accepts(socket) and not self._mercy.reason_in_itself(socket, self._filter)

    def _settle(self, outcomes: Iterable[Outcome]) -> None:
        self._settled = list(outcomes)
        for outcome in self._settled:
            del self._pending[outcome.socket.cookie]
        self._in_flight.clear()
        self._enter(self._settled)

    def _still_there(self) -> dict[int, InetSocket]:
        """By cookie, the pending sockets as they are now, if the condition still means them, in whatever live state."""
        live = STATE_FILTER_TCP if self._filter.protocol == IPPROTO_TCP else STATE_FILTER_UDP
        states = live | self._filter.request_states
        rows = self._table.search(self._filter, states, self._where, may_repeat_rows=True)
        return {socket.cookie: socket for socket in rows if self._is_alive(socket)}

    def _is_alive(self, row: InetSocket) -> bool:
        """Whether it is one of those pending; one that was reset meanwhile may still hold its port, as a bound one."""
        pending = self._pending.get(row.cookie)
        if pending is None:
            return False
        return row.protocol != IPPROTO_TCP or row.state != TcpState.CLOSE or pending.state == TcpState.CLOSE
