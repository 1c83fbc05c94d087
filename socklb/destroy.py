"""Destroy the sockets that a filter means, by the rules of who may die."""

from __future__ import annotations

import errno
import os

from .errors import SocklbError, UnboundedFilter, kernel_error
from .find import SocketTable, check_filter, place, resolve
from .kernel.diag import BATCH
from .kernel.namespaces import NetworkNamespace, inside
from .ledger import Ledger
from .report import DESTROYED, FAILED, GONE, SKIPPED, DestroyReport, Outcome
from .spare import DRY_RUN, Mercy
from .states import STATE_FILTER_TCP, STATE_FILTER_UDP, TcpState
from .wire.request import IPPROTO_TCP, PROTOCOL_NAMES, destroy_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from .filters import SocketFilter
    from .ledger import Audit, Subject
    from .rev_nat import RevNatMaps
    from .wire.reply import InetSocket

SHARED_ADDRESS = "another socket shares its address"
_MOVES = 3  # how often sockets are followed to another address before they count as gone
ONLY_BOUND = "only bound: the kernel destroys no TCP socket that has no peer"


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

    With `rev_nat`, only what the balancer sent there itself. `subject` tells of a socket what the records say it was
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
        rev_nat: RevNatMaps | None = None,
        subject: Subject | None = None,
    ) -> None:
        self.filters = filters
        self._mercy = Mercy(unconnected=unconnected, limit=limit, rev_nat=rev_nat)
        self._ledger = Ledger(audit, dry_run=dry_run)
        self._dry_run, self._subject = dry_run, subject
        for filter in filters:
            check_filter(filter)
            if not allow_unbounded and not filter.is_bounded:
                raise UnboundedFilter(
                    f"the filter '{filter}' bounds no endpoint, so it could hit everything: name an address or a port, "
                    "or allow that"
                )

    def stop(self, why: str) -> None:
        """Let no thread of the operation begin another batch: RunStopped is raised there, and says why."""
        self._ledger.close(why)

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped, or its audit failed."""
        return self._ledger.is_closed

    def run_in(self, namespace: NetworkNamespace | None) -> DestroyReport:
        """Destroy in this namespace (None: the caller's), over one netlink socket. Whatever is raised has `.report`."""
        report = DestroyReport()
        try:
            resolved = [resolve(filter, namespace) for filter in self.filters]
            with inside(namespace, SocketTable) as table:
                for filter, searched in zip(self.filters, resolved):
                    subject = self._subject or _filter_as_subject(filter)
                    self._destroy(searched, table, place(namespace), report, subject)
        except BaseException as error:
            error.report = report  # type: ignore[attr-defined]
            raise
        return report

    def _destroy(
        self, filter: SocketFilter, table: SocketTable, where: str, report: DestroyReport, subject: Subject
    ) -> None:
        doomed, spared = [], []
        for socket in table.collect(filter, where):
            reason = self._mercy.reason(socket, filter) or (DRY_RUN if self._dry_run else "")
            if reason:
                spared.append(Outcome(socket, SKIPPED, reason))
            else:
                doomed.append(socket)

        def conclude(outcomes: Iterable[Outcome]) -> None:
            self._ledger.enter(report, outcomes, where, subject)

        def is_meant(socket: InetSocket) -> bool:
            return filter.accepts(socket) and not self._mercy.reason_in_itself(socket, filter)

        conclude(spared)
        _Execution(table, filter, where, self._ledger, conclude, is_meant).run(doomed)


def _filter_as_subject(filter: SocketFilter) -> Subject:
    said = {"filter": str(filter)}
    return lambda socket: said


class _Execution:
    """Destroys sockets in rounds, until each has its verdict."""

    def __init__(
        self,
        table: SocketTable,
        filter: SocketFilter,
        where: str,
        ledger: Ledger,
        conclude: Callable[[list[Outcome]], None],
        is_meant: Callable[[InetSocket], bool],
    ) -> None:
        self._table, self._filter, self._where = table, filter, where
        self._ledger, self._conclude, self._is_meant = ledger, conclude, is_meant
        self._doing = f"destroy {PROTOCOL_NAMES[filter.protocol]} sockets in {where}"
        self._pending: dict[int, InetSocket] = {}  # by cookie, those without a verdict
        self._in_flight: set[int] = set()  # the cookies that were sent to the kernel and not yet answered for
        self._moves_left = _MOVES

    def run(self, doomed: list[InetSocket]) -> None:
        """ENOENT says little: a socket that is still there hides behind a twin with the same address.

        The twin is found first; once it is gone the next one is. So rounds follow as long as the last one destroyed
        something. A cookie that answered 0 is never tried again: a bound UDP twin stays where it is, and answers 0
        for ever. A socket that was given another address or device meanwhile, and is still meant, is tried as it is
        now, a few times.
        """
        self._pending = {socket.cookie: socket for socket in doomed}
        try:
            while self._pending:
                progress = self._round()
                if self._pending:
                    self._sort_out(progress)
        except BaseException as error:
            self._settle(
                Outcome(socket, FAILED, self._why_failed(error, cookie), getattr(error, "errno", None))
                for cookie, socket in self._pending.items()
            )
            raise

    def _why_failed(self, error: BaseException, cookie: int) -> str:
        if isinstance(error, SocklbError):
            code = getattr(error, "errno", None)
            return os.strerror(code) if code else str(error)
        return "interrupted, and perhaps destroyed" if cookie in self._in_flight else "interrupted"

    def _round(self) -> bool:
        """Try each once; whether any was destroyed. Those that answered ENOENT stay pending."""
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
        self._settle(
            Outcome(socket, DESTROYED) if code == 0 else Outcome(socket, FAILED, os.strerror(code), code)
            for socket, code in zip(batch, codes)
            if code not in (errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP)
        )
        refused = next((code for code in codes if code in (errno.EPERM, errno.EOPNOTSUPP)), 0)
        if refused:
            raise kernel_error(refused, self._doing)
        return 0 in codes

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
                outcomes.append(Outcome(socket, GONE))
            elif cookie not in moved and not progress:
                only_bound = socket.protocol == IPPROTO_TCP and socket.state == TcpState.CLOSE
                outcomes.append(Outcome(socket, FAILED, ONLY_BOUND if only_bound else SHARED_ADDRESS, errno.ENOENT))
        self._settle(outcomes)

    def _settle(self, outcomes: Iterable[Outcome]) -> None:
        settled = list(outcomes)
        for outcome in settled:
            del self._pending[outcome.socket.cookie]
        self._in_flight.clear()
        self._conclude(settled)

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
