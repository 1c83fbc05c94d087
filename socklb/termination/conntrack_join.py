# SPDX-License-Identifier: MIT
"""Cut the clients that conntrack has balanced to backends that are gone.

TCP: the socket is destroyed, then the entry deleted: the other way round the backend would keep a dead connection, and
without the deletion a new connection from the same port would go there again. UDP: the entry is deleted, and the next
packet goes to a backend that lives; the socket goes on unharmed. Before a socket is destroyed its entry is asked for
again: the same one, and still to the same backend.

The balancer's rules may lag, so it is looked again as long as a look still finds something.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from operator import methodcaller

from ..conntrack.clients import services_of, tuple_of
from ..conntrack.table import ConntrackTable
from ..engine.policy import OWN_SESSION
from ..engine.report import (
    ABSENT,
    ACHIEVED,
    CLEARED,
    DESTROYED,
    FAILED,
    GONE,
    REFUSED,
    REROUTED,
    SKIPPED,
    WOULD_DESTROY,
    Outcome,
)
from ..engine.session import own_session
from ..errors import NotPermitted, NotSupported
from ..filters.backend import filters_to
from ..kernel.namespaces import NetworkNamespace
from ..kernel.netlink_socket import batches
from ..wire.request import IPPROTO_TCP
from .balanced import Balanced
from .reasons import ALIVE_AGAIN, BY_IPVS, NO_SOCKET, NOT_LOOSE, PERHAPS_DELETED, STILL_BALANCED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Union

    from ..conntrack.layout import FlowTuple
    from ..engine.report import Report
    from ..engine.run import Run
    from ..engine.session import OwnSession
    from ..filters.backend import Backend
    from ..wire.reply import InetSocket
    from .balanced import Case

    SocketKey = tuple[int, FlowTuple]
    EntryKey = tuple[NetworkNamespace, FlowTuple, int]
    Key = Union[SocketKey, EntryKey]


class ConntrackJoin:
    """Looks into conntrack for the clients of backends that are gone, and cuts them: once, or again and again.

    A client counts once, however many looks find it. What the last look for its backend finds as it was before has
    failed; if an earlier pass has reported it, so that it cannot be taken back, its backend is in `still_balanced`.
    `acted_on` are the backends for which the last look destroyed or deleted something.
    """

    def __init__(
        self,
        *,
        is_required: bool = False,
        external: bool = False,
        dry_run: bool = False,
        is_alive: Callable[[Backend], bool] = lambda backend: False,
    ) -> None:
        self._is_required, self._external, self._dry_run, self._is_alive = is_required, external, dry_run, is_alive
        self._counted: dict[Key, Outcome] = {}  # by the client's socket, by its entry, or both
        self._meant: dict[SocketKey, Case] = {}  # of the look at hand
        self._balanced: Balanced
        self._session: OwnSession | None = None
        self.acted_on: set[Backend] = set()
        self.still_balanced: set[Backend] = set()

    def forget(self, backends: Collection[Backend]) -> None:
        """They went down anew: who is balanced to them now is another client."""
        for key in [key for key, one in self._counted.items() if one.flow and one.flow.backend in backends]:
            del self._counted[key]

    def forget_others(self, backends: Collection[Backend]) -> None:
        """Those that are done with: a client that is balanced to one of them from now on is a new one."""
        done = [key for key, outcome in self._counted.items() if outcome.flow and outcome.flow.backend not in backends]
        for key in done:
            del self._counted[key]

    def begin(self, report: Report) -> None:
        """Before a pass: raise NotSupported or NotPermitted if conntrack is required and cannot be asked here; the
        report says so.
        """
        self.acted_on, self.still_balanced = set(), set()
        if not self._is_required:
            return
        try:
            with ConntrackTable() as table:
                table.count()
        except (NotSupported, NotPermitted) as error:
            report.conntrack = ABSENT if isinstance(error, NotSupported) else REFUSED
            raise

    def look(
        self,
        run: Run,
        backends: Collection[Backend],
        namespaces: Sequence[NetworkNamespace],
        *,
        is_last: Callable[[Backend], bool] = lambda backend: False,
    ) -> None:
        """Cut who is balanced to the backends: the entry is in one namespace, the client in another, so that all of
        them are looked into, however many are done with otherwise.
        """
        self.acted_on, self.still_balanced, self._session, self._meant = set(), set(), None, {}
        again = {key: outcome for key, outcome in self._counted.items() if outcome.verdict not in ACHIEVED}
        self._counted = {key: outcome for key, outcome in self._counted.items() if outcome.verdict in ACHIEVED}
        try:
            self._look(run, backends, namespaces, is_last)
        except BaseException:  # the others were not tried again
            again = {key: outcome for key, outcome in again.items() if key in self._counted}
            raise
        finally:  # whoever was not cut counts by what became of it now
            run.withdraw([*again.values()])

    def _look(
        self,
        run: Run,
        backends: Collection[Backend],
        namespaces: Sequence[NetworkNamespace],
        is_last: Callable[[Backend], bool],
    ) -> None:
        with Balanced(backends, namespaces, run.obey_signals) as balanced:
            self._balanced = balanced
            balanced.find(NetworkNamespace.current() if hasattr(namespaces, "refused") else None)
            run.report.conntrack = balanced.status
            balanced.locate()
            failures = {**balanced.errors, **balanced.refused} if self._is_required else balanced.errors
            for namespace, error in failures.items():
                run.note_failure(namespace, error)
            self._cut_sockets(run)
            alone = [case for case in balanced.cases if not case.sockets]
            failed = self._outlasting([case for case in alone if is_last(case.flow.backend)], run.report)
            for batch in batches([case for case in alone if case not in failed]):
                _account(run, partial(self._cut_entries, batch))
            for batch in batches([case for case in alone if case in failed]):
                _account(run, partial(self._fail, batch), [self._counted[_entry_key(case)] for case in batch])

    # ------------------------------------------------------------------------------------------- sockets

    def _cut_sockets(self, run: Run) -> None:
        cases = [case for case in self._balanced.cases if case.sockets]
        found = {_socket_key(socket): case for case in cases for _, socket in case.sockets}
        # In a dry run they are still there, whose service is among the backends itself.
        reported = run.report.outcomes if self._dry_run and found else ()
        counted = {key for one in reported if (socket := one.socket) and (key := _socket_key(socket)) in found}
        self._meant = {key: case for key, case in found.items() if key not in self._counted and key not in counted}
        if not self._meant:
            return
        where = dict.fromkeys(namespace for case in self._meant.values() for namespace, _ in case.sockets)
        run.search(filters_to(services_of(case.client for case in self._meant.values()), self._is_meant), list(where))
        vanished = [
            _of_missing(case, socket, namespace, run.report.errors.get(namespace))
            for case in dict.fromkeys(self._meant.values())
            for namespace, socket in case.sockets
            if _socket_key(socket) in self._meant and _socket_key(socket) not in self._counted
        ]
        for batch in batches(vanished):
            self._count(batch)
            _account(run, methodcaller("extend", batch))

    def _is_meant(self, socket: InetSocket) -> bool:
        """Asked when the search finds a socket, and again just before it is destroyed."""
        case = self.case_of(socket)
        return case is not None and self._balanced.is_still_there(case)

    def case_of(self, socket: InetSocket) -> Case | None:
        """The one that a socket is part of, in the look at hand."""
        return self._meant.get(_socket_key(socket)) if self._meant else None

    def after(self, outcomes: list[Outcome]) -> list[Outcome]:
        """The outcomes of sockets with the flows that led to them; the entries of those destroyed are deleted."""
        cases = [self.case_of(socket) if (socket := outcome.socket) else None for outcome in outcomes]
        destroyed = [case for case, one in zip(cases, outcomes) if case and one.verdict == DESTROYED]
        with_entry = [case for case in destroyed if case.has_own_socket]
        problems = dict(zip(with_entry, map(_problem, self._balanced.delete(with_entry)))) if with_entry else {}
        with_flows = [
            one._replace(flow=case.flow, reason=one.reason or problems.get(case, "")) if case else one
            for case, one in zip(cases, outcomes)
        ]
        self.acted_on.update(case.flow.backend for case in destroyed)
        self._count([outcome for outcome in with_flows if outcome.flow])
        self._counted.update((_entry_key(case), one) for case, one in zip(cases, with_flows) if case in destroyed)
        return with_flows

    # ------------------------------------------------------------------------------------------- entries

    def _cut_entries(self, cases: Sequence[Case], outcomes: list[Outcome]) -> None:
        """Delete entries that are not about a socket here; what is to be said of them that was not said before."""
        reasons = {case: self._why_entry_spared(case) for case in cases}
        doomed = [case for case, why in reasons.items() if not (why or self._dry_run)]
        said = [
            _of_entry(case, SKIPPED if why else WOULD_DESTROY, why)
            for case, why in reasons.items()
            if why or self._dry_run
        ]
        outcomes[:] = self._not_counted([*said, *(_of_entry(case, FAILED, PERHAPS_DELETED) for case in doomed)])
        codes = self._balanced.delete(doomed)
        self.acted_on.update(case.flow.backend for case, code in zip(doomed, codes) if not code)
        outcomes[:] = self._not_counted([*said, *map(_of_deletion, doomed, codes)])
        self._count(outcomes)

    def _not_counted(self, outcomes: list[Outcome]) -> list[Outcome]:
        return [outcome for outcome in outcomes if _key(outcome) not in self._counted]

    def _why_entry_spared(self, case: Case) -> str:
        if self._is_alive(case.flow.backend):
            return ALIVE_AGAIN
        if not case.is_of_socket:
            return ""
        if case.flow.is_by_ipvs:
            return BY_IPVS
        if not self._external:
            return NO_SOCKET
        if self._session is None:
            self._session = own_session()
        if self._session.has_flow(case.flow):
            return OWN_SESSION
        return "" if self._balanced.is_loose[case.namespace] else NOT_LOOSE

    def _outlasting(self, cases: Sequence[Case], report: Report) -> set[Case]:
        """Those whose entries were deleted before and are there again, as far as this report has them."""
        before = {case: self._counted.get(_entry_key(case)) for case in cases}
        again = {
            case: one
            for case, one in before.items()
            if one is not None and one.socket is None and not self._is_alive(case.flow.backend)
        }
        in_report = {*map(id, report.outcomes)} if again else set()
        failed = {case for case, one in again.items() if id(one) in in_report}
        self.still_balanced.update(case.flow.backend for case in again if case not in failed)
        return failed

    def _fail(self, cases: Sequence[Case], outcomes: list[Outcome]) -> None:
        outcomes[:] = [_of_entry(case, FAILED, STILL_BALANCED) for case in cases]
        self._balanced.delete(cases)
        self._count(outcomes)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        self._counted.update((_key(outcome), outcome) for outcome in outcomes)


def _account(run: Run, act: Callable[[list[Outcome]], object], instead_of: Sequence[Outcome] = ()) -> None:
    """Have the run account for a batch. `act` fills a list, at first with what is in doubt: a second signal may come at
    any time, and what the kernel was asked to do by then belongs in the report and the audit.
    """
    outcomes: list[Outcome] = []

    def acted() -> list[Outcome]:
        act(outcomes)
        return outcomes

    run.obey_signals()
    try:
        run.account(acted, instead_of)
    except BaseException:
        if outcomes and outcomes[-1:] != run.report.outcomes[-1:]:
            run.account(lambda: outcomes, instead_of)
        raise


def _socket_key(socket: InetSocket) -> SocketKey:
    """Before Linux 5.4 each namespace counts its own cookies."""
    return socket.cookie, tuple_of(socket)


def _entry_key(case: Case) -> EntryKey:
    return case.namespace, case.flow.original, case.flow.zone


def _key(outcome: Outcome) -> Key:
    """What a client is known by in several looks: its socket, or where its entry is."""
    socket = outcome.socket
    if socket is not None:
        return _socket_key(socket)
    assert outcome.flow is not None
    return outcome.namespace, outcome.flow.original, outcome.flow.zone  # type: ignore[attr-defined]


def _of_missing(case: Case, socket: InetSocket, namespace: NetworkNamespace, error: BaseException | None) -> Outcome:
    """Of a socket that the search has not found again: it is gone, or its namespace could not be searched."""
    if error is None:
        return Outcome(socket, GONE, "", None, namespace, case.flow)
    return Outcome(socket, FAILED, str(error), getattr(error, "errno", None), namespace, case.flow)


def _of_entry(case: Case, verdict: str, reason: str = "", code: int | None = None) -> Outcome:
    return Outcome(None, verdict, reason, code, case.namespace, case.flow)


def _of_deletion(case: Case, code: int) -> Outcome:
    if not code:
        return _of_entry(case, CLEARED if case.flow.protocol == IPPROTO_TCP else REROUTED)
    return _of_entry(case, GONE) if code == errno.ENOENT else _of_entry(case, FAILED, _problem(code), code)


def _problem(code: int) -> str:
    """What became of the deletion of an entry, if it is worth saying."""
    return f"its conntrack entry cannot be deleted: {os.strerror(code)}" if code not in (0, errno.ENOENT) else ""
