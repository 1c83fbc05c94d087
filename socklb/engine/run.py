# SPDX-License-Identifier: MIT
"""A run: destroy what some filters match, in one network namespace or in many, with one limit, audit and report.

The way of a kill: `destroy_sockets` makes a Run; the run opens a SocketTable in each namespace and collects what each
filter matches; Rounds destroys it batch by batch; the run takes every outcome into the report and the audit.

Without an audit no lock is held while the kernel works, so several namespaces go on at once. With one, only one thread
at a time is between asking the kernel for a batch and recording its outcomes: at most one batch is unrecorded when the
audit fails.
"""

from __future__ import annotations

import os
from _thread import RLock, allocate_lock  # as functools does: threading takes a while to import

from ..errors import AuditError, KernelError, NotPermitted, NotSupported, RunStopped, SocklbError
from ..filters import SocketFilter
from ..kernel import names
from ..kernel.diag import BATCH
from ..kernel.names import UnknownName
from ..kernel.namespaces import CannotEnter, NamespaceVanished, NetworkNamespace, current_first, run_in_netns
from .destroy import Rounds
from .find import SocketTable, extension_bits
from .parallel import in_parallel, is_worker
from .policy import DRY_RUN, LIMIT, check_filters, check_limit, why_spared
from .report import Report
from .session import OwnSession, own_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager
    from typing import Union

    from ..filters.backend import Backend
    from ..kernel.discovery import UnsearchedNamespace
    from ..wire.reply import InetSocket
    from .audit import Audit, AuditTrail, Target
    from .report import Outcome

    Progress = Callable[[int, int, NetworkNamespace], object]
    Namespaces = Union[str, NetworkNamespace, Iterable[NetworkNamespace]]

CURRENT, ALL = "current", "all"


def destroy_sockets(
    filters: SocketFilter | Iterable[SocketFilter],
    *,
    namespaces: Namespaces = CURRENT,
    extensions: Iterable[str] = (),
    dry_run: bool = False,
    limit: int | None = None,
    unconnected: bool = False,
    allow_unbounded: bool = False,
    audit: Audit | None = None,
    progress: Progress | None = None,
) -> Report:
    """Destroy the sockets that one of the filters matches, so that their owners get an error at once.

    `namespaces`: "current" (the caller's), "all" that can be discovered, a NetworkNamespace, or several. One
    namespace that fails raises; of several the others are done, and its error is in the report.

    Spared, with the reason in the report: listening TCP sockets (unless the filter's states name LISTEN), UDP sockets
    without a peer (unless `unconnected`), the ssh session that the caller runs in, all of them in a `dry_run`, and
    those beyond `limit`, a number of sockets for the whole run. A socket that several filters match counts for the
    first of them. `extensions` names response attributes for the predicates of filters, as `find_sockets` takes them.
    `audit` is called with one dict for each outcome, `progress` with (done, total, namespace) after each namespace;
    where there are several, both are called from the thread that worked there, one at a time.

    Raises UnboundedFilter for a filter that names no endpoint (unless `allow_unbounded`); ValueError or TypeError for
    other wrong arguments; NotPermitted or NotSupported when the kernel refuses (of several namespaces: NotPermitted if
    all of them do); KernelError or MalformedMessage when it answers nothing or nonsense; and what `audit` raises.
    Once the run has begun, the exception has the report so far in `.report`, where the sockets that were still to be
    destroyed are `failed`. A dry run, and a run that matches nothing, needs no privilege.
    """
    run = Run(
        [filters] if isinstance(filters, SocketFilter) else list(filters),
        extensions=extensions,
        dry_run=dry_run,
        limit=limit,
        unconnected=unconnected,
        allow_unbounded=allow_unbounded,
        audit=audit,
    )
    return run.run(namespaces, progress)


class Run:
    """One call that destroys, with all its filters, namespaces and threads. `report` is its account.

    `spare` is asked before each batch: a reason to spare each of its sockets, "" for none. `target` names what a
    socket was matched by, for the records: its filter unless given. `backends` are those that the report sums up.
    """

    def __init__(
        self,
        filters: Sequence[SocketFilter],
        *,
        extensions: Iterable[str] = (),
        dry_run: bool = False,
        limit: int | None = None,
        unconnected: bool = False,
        allow_unbounded: bool = False,
        audit: Audit | None = None,
        spare: Callable[[Sequence[InetSocket]], Sequence[str]] | None = None,
        target: Target | None = None,
        backends: Iterable[Backend] = (),
    ) -> None:
        check_filters(filters, allow_unbounded)
        check_limit(limit)
        self._filters, self._bits = filters, extension_bits(extensions)
        self._are_resolved = [filter.is_resolved for filter in filters]
        self._dry_run, self._unconnected, self._spare, self._target = dry_run, unconnected, spare, target
        self._left, self._limit_lock = limit, allocate_lock()
        self._session: OwnSession | None = None
        self._audit: AuditTrail | None = None
        from contextlib import nullcontext  # takes a while to import

        self._turn: AbstractContextManager[object] = nullcontext()
        if audit is not None:
            from .audit import AuditTrail  # most runs have none

            # Held from a batch's question to its records. An interrupt may come between acquiring it and the block: the
            # thread that has it then can acquire it again, to account for what is left.
            self._audit, self._turn = AuditTrail(audit, dry_run=dry_run), RLock()
        self._why_stopped = ""
        self.report = Report(backends)

    # ---------------------------------------------------------------------------------------- namespaces

    def run(self, namespaces: Namespaces, progress: Progress | None = None) -> Report:
        """Destroy in these namespaces. Whatever is raised once that has begun has the report in `.report`."""
        if isinstance(namespaces, NetworkNamespace):
            return self._run_in_one(namespaces, progress)
        if namespaces == CURRENT:
            return self._run_in_one(NetworkNamespace.current(), progress)
        if namespaces == ALL:
            from ..kernel.discovery import discover_namespaces

            namespaces = discover_namespaces()
        if isinstance(namespaces, str):
            raise ValueError(f'namespaces is "current", "all", or NetworkNamespaces, not {namespaces!r}')
        self.report.hidden = getattr(namespaces, "hidden", "")
        return self._run_in_many(_distinct(namespaces), progress, getattr(namespaces, "refused", ()))

    def _run_in_one(self, namespace: NetworkNamespace, progress: Progress | None) -> Report:
        try:
            self._run_in(namespace)
            if progress is not None:
                progress(1, 1, namespace)
            return self.report
        except BaseException as error:
            error.report = self.report  # type: ignore[attr-defined]
            raise

    def _run_in_many(
        self, namespaces: list[NetworkNamespace], progress: Progress | None, refused: Iterable[UnsearchedNamespace] = ()
    ) -> Report:
        """A namespace that fails does not stop the others. What does: NotSupported, for the kernel is the same
        everywhere; an audit that fails; an interrupt. If every namespace failed with NotPermitted (or UnknownName),
        that error is raised; so is CannotEnter if any has it.
        """
        lock = allocate_lock()
        begun: list[NetworkNamespace] = []
        done = 0

        def run(namespace: NetworkNamespace) -> None:
            nonlocal done
            begun.append(namespace)
            failure: BaseException | None = None
            try:
                self._run_in(namespace)
            except BaseException as error:
                failure = error
                self._note_failure(namespace, error)
            with lock:
                done += 1
                if progress is not None:
                    progress(done, len(namespaces), namespace)
            if failure is not None and self._ends_the_run(failure):
                raise failure

        try:
            in_parallel(run, current_first(namespaces), self._stop)
            if refused:
                from ..kernel.discovery import unsearched

                searched = [namespace for namespace in self.report.namespaces if namespace not in self.report.errors]
                self.report.unsearched += unsearched(refused, searched)
            self._raise_if_all_failed()
            return self.report
        except BaseException as error:
            for namespace in namespaces:
                if namespace not in begun:
                    self._note_failure(namespace, RunStopped("not begun"))
            error.report = self.report  # type: ignore[attr-defined]
            raise

    def _note_failure(self, namespace: NetworkNamespace, error: BaseException) -> None:
        if not isinstance(error, NamespaceVanished):
            self.report.add_namespace(namespace)
            self.report.errors[namespace] = error

    def _ends_the_run(self, error: BaseException) -> bool:
        if isinstance(error, NotSupported):
            return not isinstance(error, CannotEnter)
        is_from_audit = self._audit is not None and error is self._audit.error
        return is_from_audit or not isinstance(error, (SocklbError, ValueError))

    def _raise_if_all_failed(self) -> None:
        errors = self.report.errors
        for kind in (NotPermitted, UnknownName):
            failed = [namespace for namespace, error in errors.items() if isinstance(error, kind)]
            if failed and len(failed) == len(self.report.namespaces):
                raise errors[failed[0]]
        for namespace in [namespace for namespace, error in errors.items() if isinstance(error, UnknownName)]:
            del errors[namespace]  # where only some lack an interface, nothing matches in these
        for error in errors.values():
            if isinstance(error, CannotEnter):
                raise error

    def _run_in(self, namespace: NetworkNamespace) -> None:
        filters: list[SocketFilter] = []
        seen: set[int] = set()

        def enter() -> SocketTable:
            pairs = zip(self._filters, self._are_resolved)
            filters.extend(filter if is_resolved else filter.resolved(names) for filter, is_resolved in pairs)
            return SocketTable()

        with run_in_netns(namespace, enter, thread_may_move=is_worker()) as table:
            self.report.add_namespace(namespace)
            for filter, resolved in zip(self._filters, filters):
                text = str(filter) if self._audit else ""  # of a thousand backends it takes as long as a walk
                target = self._target or _constantly({"filter": text})
                self._destroy(Rounds(table, resolved, namespace, self._bits), seen, target)

    # ------------------------------------------------------------------------------------------- sockets

    def _destroy(self, rounds: Rounds, seen: set[int], target: Target) -> None:
        """Drive the rounds until each socket has an outcome, even if an error or an interrupt ends them.

        Who is spared is recorded first: an audit that does not work is noticed before anything is destroyed.
        """
        try:
            rounds.collect(seen)
            if len(self._filters) > 1:  # the cookies of a large crowd take memory
                seen.update(rounds.pending)
            spared = rounds.spare(self._first_reasons(rounds))
            for start in range(0, len(spared), BATCH):
                with self._turn:
                    self._raise_if_stopped()
                    self._take(spared[start : start + BATCH], rounds, target)
            while rounds.pending:
                for batch in rounds.batches():
                    with self._turn:
                        self._raise_if_stopped()
                        self._take(rounds.destroy(batch, self._reasons(rounds, batch)), rounds, target)
                    if rounds.refusal is not None:
                        raise rounds.refusal
                if rounds.pending:
                    outcomes = rounds.look_again()
                    with self._turn:
                        self._take(outcomes, rounds, target)
        except BaseException as error:
            taken = {o.socket.cookie for o in self.report.outcomes if o.namespace == rounds.namespace}
            left = [o for o in rounds.left_over(*_why_failed(error)) if o.socket.cookie not in taken]
            with self._turn:
                self._take(left, rounds, target)
            raise

    def _take(self, outcomes: list[Outcome], rounds: Rounds, target: Target) -> None:
        """Take outcomes into the report, and then into the audit. With an audit one thread at a time does so."""
        try:
            self.report.outcomes.extend(outcomes)
            rounds.settle(outcomes)
            if self._audit is not None:
                self._audit.record(outcomes, target)
        except BaseException as error:
            self._note_unrecorded(error)
            raise

    def _note_unrecorded(self, error: BaseException) -> None:
        """If an outcome is in the report and not in the audit, end the audit and the run."""
        if self._audit is None or self._audit.error is not None:
            return
        unrecorded = self.report.outcomes[self._audit.recorded :]
        if unrecorded:
            self._audit.error, self.report.unrecorded = error, unrecorded
            self._stop("the audit failed")

    def _stop(self, why: str) -> None:
        """Let no thread begin another batch: RunStopped is raised there, and says why."""
        self._why_stopped = self._why_stopped or why

    def _raise_if_stopped(self) -> None:
        if self._why_stopped:
            raise RunStopped(self._why_stopped)

    def _first_reasons(self, rounds: Rounds) -> list[str]:
        """Why each pending socket is spared before any is destroyed, "" if it is not: also limit and dry run."""
        return [why or self._limit_or_dry_run() for why in self._reasons(rounds, list(rounds.pending.values()))]

    def _reasons(self, rounds: Rounds, sockets: Sequence[InetSocket]) -> list[str]:
        """Why each socket is spared, "" if it is not: by the policy, else by the `spare` hook."""
        if not sockets:
            return []  # most searches of most namespaces; a look at one's ancestors would take as long
        if self._session is None:
            self._session = own_session()
        reasons = [why_spared(socket, rounds.filter, self._session, self._unconnected) for socket in sockets]
        if self._spare is not None and "" in reasons:
            further = iter(self._spare([socket for socket, why in zip(sockets, reasons) if not why]))
            reasons = [why or next(further) for why in reasons]
        return reasons

    def _limit_or_dry_run(self) -> str:
        """LIMIT once the run has had its number of sockets, which nothing else spared; else DRY_RUN in a dry run."""
        if self._left is not None:
            with self._limit_lock:
                if not self._left:
                    return LIMIT
                self._left -= 1
        return DRY_RUN if self._dry_run else ""


def _distinct(namespaces: object) -> list[NetworkNamespace]:
    """Each namespace once. Raises TypeError for what is none."""
    if namespaces is None:
        raise TypeError('namespaces is "current", "all", or NetworkNamespaces, not None')
    distinct = list(dict.fromkeys(namespaces))  # type: ignore[call-overload]
    for namespace in distinct:
        if not isinstance(namespace, NetworkNamespace):
            raise TypeError(f"namespaces are NetworkNamespaces, not {namespace!r}")
    return distinct


def _constantly(target: dict[str, str]) -> Target:
    return lambda socket: target


def _why_failed(error: BaseException) -> tuple[str, int | None]:
    """Reason and errno for sockets that an error left without a verdict; an audit's errno says nothing about them."""
    if isinstance(error, KernelError) and error.errno:
        return os.strerror(error.errno), error.errno
    if isinstance(error, AuditError):
        return str(error.strerror), None
    if isinstance(error, SocklbError):
        return str(error), None
    return f"ended by {type(error).__name__}" if isinstance(error, Exception) else "interrupted", None
