"""Destroy the sockets that a filter means, by the rules of who may die."""

from __future__ import annotations

import errno
import os

from .errors import SocklbError, UnboundedFilter, kernel_error
from .find import SocketTable, place, resolve
from .kernel.diag import BATCH
from .kernel.namespaces import NetworkNamespace, inside
from .report import DESTROYED, FAILED, GONE, SKIPPED, DestroyReport, Outcome, outcome_record
from .spare import DRY_RUN, Mercy
from .states import STATE_FILTER_TCP, STATE_FILTER_UDP, TcpState
from .wire.request import IPPROTO_TCP, PROTOCOL_NAMES, destroy_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .filters import SocketFilter
    from .wire.reply import InetSocket

    Audit = Callable[[dict[str, Any]], object]

SHARED_ADDRESS = "another socket shares its address"
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
    in `.report`: what was still to be destroyed is `failed` in it.
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
    filters: Sequence[SocketFilter],
    *,
    namespace: NetworkNamespace | None = None,
    dry_run: bool = False,
    limit: int | None = None,
    unconnected: bool = False,
    allow_unbounded: bool = False,
    audit: Audit | None = None,
) -> DestroyReport:
    """`destroy_sockets` for several filters as one run: one netlink socket, one limit, one report."""
    mercy = Mercy(unconnected=unconnected, limit=limit)
    resolved = [resolve(filter, namespace) for filter in filters]
    for filter in filters:
        if not allow_unbounded and not filter.is_bounded:
            raise UnboundedFilter(
                f"the filter '{filter}' bounds no endpoint, so it could hit everything: name an address or a port, or "
                "allow that"
            )
    report = DestroyReport()
    where = place(namespace)
    try:
        with inside(namespace, SocketTable) as table:
            for filter, searched in zip(filters, resolved):
                ledger = _Ledger(report, audit, where, filter, dry_run)
                doomed = []
                for socket in table.collect(searched, where):
                    reason = mercy.reason(socket, searched) or (DRY_RUN if dry_run else "")
                    if reason:
                        ledger.enter(Outcome(socket, SKIPPED, reason))
                    else:
                        doomed.append(socket)
                _Execution(table, searched, where, ledger.enter).run(doomed)
    except (SocklbError, KeyboardInterrupt) as error:
        error.report = report  # type: ignore[union-attr]
        raise
    return report


class _Ledger:
    """Where the verdicts about one filter's sockets are entered: the report, and the audit if there is one."""

    def __init__(
        self, report: DestroyReport, audit: Audit | None, where: str, filter: SocketFilter, dry_run: bool
    ) -> None:
        self._report, self._audit = report, audit
        self._about = {} if audit is None else {"namespace": where, "filter": str(filter), "dry_run": dry_run}

    def enter(self, outcome: Outcome) -> None:
        self._report.add(outcome)
        if self._audit is not None:
            self._audit({**self._about, **outcome_record(outcome)})


class _Execution:
    """Destroys sockets in rounds, until each has its verdict."""

    def __init__(
        self, table: SocketTable, filter: SocketFilter, where: str, conclude: Callable[[Outcome], None]
    ) -> None:
        self._table, self._filter, self._where, self._conclude = table, filter, where, conclude
        self._doing = f"destroy {PROTOCOL_NAMES[filter.protocol]} sockets in {where}"
        self._pending: dict[int, InetSocket] = {}  # by cookie, those without a verdict

    def run(self, doomed: list[InetSocket]) -> None:
        """ENOENT says little: a socket that is still there hides behind a twin with the same address.

        The twin is found first; once it is gone the next one is. So rounds follow as long as the last one destroyed
        something. A cookie that answered 0 is never tried again: a bound UDP twin stays where it is, and answers 0
        for ever.
        """
        self._pending = {socket.cookie: socket for socket in doomed}
        try:
            while self._pending:
                self._conclude_round(self._round())
        except SocklbError as error:
            code = getattr(error, "errno", None)
            for socket in list(self._pending.values()):
                self._settle(socket, FAILED, os.strerror(code) if code else str(error), code)
            raise

    def _conclude_round(self, destroyed: int) -> None:
        """Tell those that are gone from those that hide behind a twin."""
        if self._pending:
            there = self._still_there()
            for cookie, socket in list(self._pending.items()):
                if cookie not in there:
                    self._settle(socket, GONE)
                elif not destroyed:
                    only_bound = socket.protocol == IPPROTO_TCP and socket.state == TcpState.CLOSE
                    self._settle(socket, FAILED, ONLY_BOUND if only_bound else SHARED_ADDRESS, errno.ENOENT)

    def _round(self) -> int:
        """Try each once; how many were destroyed. Those that answered ENOENT stay pending."""
        sockets = list(self._pending.values())
        destroyed = 0
        for start in range(0, len(sockets), BATCH):
            batch = sockets[start : start + BATCH]
            requests = [destroy_request(socket.protocol, socket.family, socket.id_bytes) for socket in batch]
            refused = 0
            for socket, code in zip(batch, self._table.diag.destroy(requests, self._doing)):
                if code == 0:
                    destroyed += 1
                    self._settle(socket, DESTROYED)
                elif code in (errno.EPERM, errno.EOPNOTSUPP):
                    refused = code
                elif code != errno.ENOENT:
                    self._settle(socket, FAILED, os.strerror(code), code)
            if refused:
                raise kernel_error(refused, self._doing)
        return destroyed

    def _settle(self, socket: InetSocket, verdict: str, reason: str = "", error: int | None = None) -> None:
        del self._pending[socket.cookie]
        self._conclude(Outcome(socket, verdict, reason, error))

    def _still_there(self) -> set[int]:
        """The cookies of pending sockets that are in the table with the address they had, in whatever live state."""
        live = STATE_FILTER_TCP if self._filter.protocol == IPPROTO_TCP else STATE_FILTER_UDP
        states = live | self._filter.request_states
        rows = self._table.search(self._filter, states, self._where, may_repeat_rows=True)
        return {
            socket.cookie
            for socket in rows
            if socket.cookie in self._pending and socket.id_bytes == self._pending[socket.cookie].id_bytes
        }
