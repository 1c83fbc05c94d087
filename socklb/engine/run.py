# SPDX-License-Identifier: MIT
"""A run: destroy what some filters match, in one network namespace or in many, with one limit, audit and report.

The way of a kill: `destroy_sockets` makes a Run; the run opens a SocketTable in each namespace and collects what each
filter matches; Rounds destroys it batch by batch; the run takes every outcome into the report and the audit.

Without an audit no lock is held while the kernel works, so several namespaces go on at once (but one after another with
a limit). With one, only one thread at a time is between asking the kernel for a batch and recording its outcomes: at
most one batch is unrecorded when the audit fails. Signals wait meanwhile.
"""

from __future__ import annotations

from _thread import RLock, allocate_lock  # as functools does: threading takes a while to import
from functools import partial
from itertools import islice

from ..errors import NotSupported, RunStopped, SocklbError
from ..filters import SocketFilter
from ..kernel import names
from ..kernel.names import UnknownName
from ..kernel.namespaces import CannotEnter, NamespaceVanished, NetworkNamespace, current_first, run_in_netns
from ..kernel.netlink_socket import BATCH
from .choice import CURRENT, chosen, is_one, raise_if_all_failed
from .destroy import ANSWER_LOST, Rounds, remarks, taken_off
from .find import SocketTable, extension_bits
from .parallel import in_parallel, is_worker
from .policy import LIMIT, check_filters, check_limit, why_spared
from .report import ACHIEVED, SKIPPED, WOULD_DESTROY, Report
from .session import OwnSession, own_session
from .signals import HeldSignals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..filters.backend import Backend
    from ..wire.reply import InetSocket
    from .audit import Audit, AuditTrail, Target
    from .choice import Namespaces
    from .report import Outcome

    Spare = Callable[[Sequence[InetSocket], NetworkNamespace], Sequence[str]]
    After = Callable[[list[Outcome]], list[Outcome]]
    Progress = Callable[[int, int, NetworkNamespace], object]


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
    without a peer (unless `unconnected`), the ssh session that the caller runs in, closing sockets without an owner on
    a kernel that would keep them for good, and those beyond `limit`, a number of destroyed sockets for the whole run. A
    `dry_run` destroys nothing: "would_destroy" is the verdict on what a run would. A socket that several filters match
    counts for the first of them. `extensions` names response attributes for the predicates of filters, as
    `find_sockets` takes them. `audit` is called with one dict for each outcome, `progress` with (done, total,
    namespace) after each namespace; where there are several, both are called from the thread that worked there, one at
    a time.

    Raises UnboundedFilter for a filter that could match everything (unless `allow_unbounded`); ValueError or TypeError
    for other wrong arguments; NotPermitted or NotSupported when the kernel refuses (of several namespaces: NotPermitted
    if all of them do); KernelError or MalformedMessage when it answers nothing or nonsense; and what `audit` raises.
    Once the run has begun, the exception has the report so far in `.report`, where the sockets that were still to be
    destroyed are `failed`. SIGINT, SIGTERM and SIGHUP, where Python handles them, are handled when the batch at hand
    is in the report and the audit; a second one at once. A dry run, and a run that matches nothing, needs no privilege.
    """
    several = [filters] if isinstance(filters, SocketFilter) else list(filters)
    check_filters(several, allow_unbounded)
    run = Run(extensions=extensions, dry_run=dry_run, limit=limit, unconnected=unconnected, audit=audit)
    where = chosen(namespaces)
    return run.carry_out(lambda: run.search(several, where, is_one=is_one(namespaces), progress=progress))


class Run:
    """One call that destroys, with all its searches, namespaces and threads. `report` is its account.

    `spare` is asked before each batch: a reason to spare each of its sockets, "" for none. `after` is given its
    outcomes, and gives them back as they are to be reported. `target` names what a socket was matched by, for the
    records: its filter unless given. `backends` are those that the report sums up.
    """

    def __init__(
        self,
        *,
        extensions: Iterable[str] = (),
        dry_run: bool = False,
        limit: int | None = None,
        unconnected: bool = False,
        audit: Audit | None = None,
        spare: Spare | None = None,
        after: After | None = None,
        target: Target | None = None,
        backends: Iterable[Backend] = (),
    ) -> None:
        check_limit(limit)
        self._bits = extension_bits(("info", *extensions) if dry_run else extensions)  # "info" tells of MPTCP
        self._dry_run, self._unconnected = dry_run, unconnected
        self._spare, self._after, self._target = spare, after, target
        self._left = limit
        self._session: OwnSession | None = None
        self._audit: AuditTrail | None = None
        if audit is not None:
            from .audit import AuditTrail  # most runs have none

            self._audit = AuditTrail(audit, dry_run=dry_run)
        # Held from a batch's question to its records. A second signal may come between acquiring it and the block: the
        # thread that has it then can acquire it again, to account for what is left.
        self._turn = RLock()
        self._signals = HeldSignals()
        self._why_stopped = ""
        self.report = Report(backends)

    def carry_out(self, work: Callable[[], object]) -> Report:
        """Call what searches, and accounts for what is no socket. Signals wait for the batch at hand meanwhile, and
        whatever is raised has the report in `.report`.
        """
        try:
            self._signals = HeldSignals()
            try:
                self._signals.hold()
                work()
            except BaseException:
                self._signals.release(quietly=True)  # the error ends the run anyway, and says more
                raise
            self._signals.release()
        except BaseException as error:
            error.report = self.report  # type: ignore[attr-defined]
            raise
        return self.report

    # ---------------------------------------------------------------------------------------- namespaces

    def search(
        self,
        filters: Sequence[SocketFilter],
        namespaces: Sequence[NetworkNamespace],
        *,
        local_filters: Sequence[SocketFilter] = (),
        is_one: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Destroy what the filters match in these namespaces; in one that was asked for alone an error is raised.

        `local_filters` are for addresses that mean another host in each namespace: of discovered namespaces only the
        current one is searched for them.
        """
        everywhere, local = _with_resolved(filters), _with_resolved(local_filters)
        here: NetworkNamespace | None = None
        if local and hasattr(namespaces, "refused"):  # they were discovered
            here = NetworkNamespace.current()
            self.report.leave_alone(namespaces)

        def search_in(namespace: NetworkNamespace) -> None:
            self._search_in(namespace, [*everywhere, *local] if here in (None, namespace) else everywhere)

        if is_one:
            search_in(namespaces[0])
            if progress is not None:
                progress(1, 1, namespaces[0])
        else:
            self._search_in_many(namespaces, search_in, progress)

    def _search_in_many(
        self,
        namespaces: Sequence[NetworkNamespace],
        search_in: Callable[[NetworkNamespace], None],
        progress: Progress | None,
    ) -> None:
        """A namespace that fails does not stop the others. What does: NotSupported, for the kernel is the same
        everywhere; an audit that fails; an interrupt. If no namespace could be searched, the first error is raised.
        """
        lock = allocate_lock()
        begun: list[NetworkNamespace] = []
        done = 0

        def run(namespace: NetworkNamespace) -> None:
            nonlocal done
            self._signals.obey()
            begun.append(namespace)
            try:
                search_in(namespace)
            except BaseException as error:
                self.note_failure(namespace, error)
                if self._ends_the_run(error):
                    raise
            finally:
                with lock:
                    done += 1
                    if progress is not None:
                        progress(done, len(namespaces), namespace)

        self.report.hidden = self.report.hidden or getattr(namespaces, "hidden", "")
        try:
            in_parallel(
                run,
                current_first(namespaces),
                self.stop,
                while_waiting=self.obey_signals,
                one_by_one=self._left is not None,
            )
            raise_if_all_failed(self.report.errors, len(self.report.namespaces))
            refused = getattr(namespaces, "refused", ())
            if refused:
                from ..kernel.discovery import unsearched

                searched = [one for one in begun if one not in self.report.errors]
                self.report.unsearched = unsearched(refused, searched)
        except BaseException:
            for namespace in namespaces:
                if namespace not in begun:
                    self.note_failure(namespace, RunStopped("not begun"))
            raise

    def note_failure(self, namespace: NetworkNamespace, error: BaseException) -> None:
        if not isinstance(error, NamespaceVanished):
            self.report.add_namespace(namespace)
            self.report.errors[namespace] = error

    def _ends_the_run(self, error: BaseException) -> bool:
        if isinstance(error, NotSupported):
            return not isinstance(error, CannotEnter)
        is_from_audit = self._audit is not None and error is self._audit.error
        return is_from_audit or not isinstance(error, (SocklbError, ValueError))

    def _search_in(self, namespace: NetworkNamespace, filters: list[tuple[SocketFilter, bool]]) -> None:
        self._raise_if_stopped()
        if not filters:
            return
        resolved: list[tuple[SocketFilter, SocketFilter]] = []
        seen: set[int] = set()

        def enter() -> SocketTable:
            unknown: UnknownName | None = None
            for filter, is_resolved in filters:
                try:
                    resolved.append((filter, filter if is_resolved else filter.resolved(names)))
                except UnknownName as error:
                    unknown = error  # nothing can match this filter here
            if unknown is not None and not resolved:
                raise unknown
            return SocketTable(namespace)

        with run_in_netns(namespace, enter, thread_may_move=is_worker()) as table:
            self.report.add_namespace(namespace)
            for filter, here in resolved:
                self._signals.obey()
                self._raise_if_stopped()
                target = self._target or _constantly({"filter": str(filter) if self._audit else ""})
                self._destroy(Rounds(table, here, namespace, self._bits), seen if len(filters) > 1 else None, target)

    # ------------------------------------------------------------------------------------------- sockets

    def _destroy(self, rounds: Rounds, seen: set[int] | None, target: Target) -> None:
        """Drive the rounds until each socket has an outcome, even if an error or an interrupt ends them.

        Who is spared is recorded first: an audit that does not work is noticed before anything is destroyed.
        """
        turn = self._turn if self._audit is not None else RLock()
        reasons = partial(self._reasons, rounds)

        def take(outcomes: list[Outcome]) -> None:
            with turn:
                self._take(outcomes, rounds, target)

        def decide(verdict: str, reasons: Callable[[Sequence[InetSocket]], Iterable[str | None]], at_most: int) -> None:
            for batch in taken_off(list(islice(rounds.pending.values(), at_most)), lambda: BATCH):
                take(rounds.decide(batch, verdict, reasons(batch)))

        try:
            rounds.collect(seen or ())
            found = len(rounds.pending)
            if seen is not None:
                seen.update(rounds.pending)  # the cookies of a large crowd take memory
            if any(socket.interface for socket in rounds.pending.values()):
                self.report.note_devices(rounds.namespace)
            decide(SKIPPED, lambda batch: (why or None for why in reasons(batch)), found)
            if self._dry_run:
                decide(WOULD_DESTROY, remarks, self._left_of(found))
            while rounds.pending and self._left_of(BATCH):
                for batch in rounds.batches(lambda: self._left_of(BATCH, rounds.in_doubt)):
                    self._signals.obey()
                    with turn:
                        self._raise_if_stopped()
                        self._take(rounds.destroy(batch, reasons), rounds, target)
                    if rounds.refusal is not None:
                        raise rounds.refusal
                if rounds.pending and self._left_of(BATCH):
                    take(rounds.look_again())
            decide(SKIPPED, lambda batch: [LIMIT] * len(batch), found)
        except BaseException as error:
            with turn:
                taken = {s.cookie for o in self.report.outcomes if o.namespace == rounds.namespace and (s := o.socket)}
                left = [o for o in rounds.left_over(error) if (s := o.socket) and s.cookie not in taken]
                self._take(left, rounds, target)
            raise

    def account(self, act: Callable[[], list[Outcome]], instead_of: Sequence[Outcome] = ()) -> None:
        """Do something that is no destroying of sockets, a batch of at most 64, and take what became of it into account
        like everything else; `instead_of` outcomes of before. Call `obey_signals` first, except to record what an
        interrupt left.
        """
        with self._turn if self._audit is not None else RLock():
            self._raise_if_stopped()
            outcomes = act()
            self.withdraw(instead_of)
            for outcome in outcomes:
                self.report.add_namespace(outcome.namespace)
            self._take(outcomes, None, self._target or _constantly({}))

    def withdraw(self, outcomes: Sequence[Outcome]) -> None:
        """Take back what has been reported, and stays in the audit."""
        if outcomes:
            self.report.withdraw(outcomes)
            if self._audit is not None:
                self._audit.recorded = len(self.report.outcomes)

    def _take(self, outcomes: list[Outcome], rounds: Rounds | None, target: Target) -> None:
        """Take outcomes into the report and then into the audit, so many at a time as may stay unrecorded."""
        try:
            for start in range(0, len(outcomes), BATCH):
                some = outcomes[start : start + BATCH]
                if rounds is not None and self._after is not None:
                    some = self._after(some)
                self.report.outcomes.extend(some)
                if rounds is not None:
                    rounds.settle(some)
                if self._left is not None:
                    self._left -= sum(o.verdict in ACHIEVED or o.reason == ANSWER_LOST for o in some)
                if self._audit is not None:
                    self._audit.record(some, target, self.report.device_of)
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
            self.stop("the audit failed")

    def obey_signals(self) -> None:
        """Between batches: handle the signal that has come, which usually raises."""
        self._signals.obey()

    def stop(self, why: str) -> None:
        """Let no thread begin another batch: RunStopped is raised there, and says why."""
        self._why_stopped = self._why_stopped or why

    def _raise_if_stopped(self) -> None:
        if self._why_stopped:
            raise RunStopped(self._why_stopped)

    def _reasons(self, rounds: Rounds, sockets: Sequence[InetSocket]) -> list[str]:
        """Why each socket is spared, "" if it is not: by the policy, else by the `spare` hook."""
        if not sockets:
            return []  # most searches of most namespaces; a look at one's ancestors would take as long
        if self._session is None:
            self._session = own_session()
        session, unconnected = self._session, self._unconnected
        reasons = [why_spared(socket, rounds.filter, session, unconnected, _keeps_orphans) for socket in sockets]
        if self._spare is not None and "" in reasons:
            further = iter(self._spare([s for s, why in zip(sockets, reasons) if not why], rounds.namespace))
            reasons = [why or next(further) for why in reasons]
        return reasons

    def _left_of(self, number: int, in_doubt: int = 0) -> int:
        """So many, or what the limit leaves of them, if all that are in doubt have been destroyed."""
        return number if self._left is None else max(0, min(number, self._left - in_doubt))


def _with_resolved(filters: Iterable[SocketFilter]) -> list[tuple[SocketFilter, bool]]:
    """With each filter whether it is resolved; of a thousand backends it takes long to find out."""
    return [(filter, filter.is_resolved) for filter in filters]


def _keeps_orphans() -> bool:
    from .probe import keeps_orphans  # few sockets are closing and without an owner

    return keeps_orphans()


def _constantly(target: dict[str, str]) -> Target:
    return lambda outcome: target
