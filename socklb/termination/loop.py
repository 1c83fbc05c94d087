# SPDX-License-Identifier: MIT
"""The loop that follows a table of backends, and destroys the connections to those that go down."""

from __future__ import annotations

from collections import namedtuple
from time import monotonic

from ..engine.choice import ALL
from ..engine.probe import NOT_PERMITTED, SUPPORTED, probe
from ..engine.report import FAILED
from ..errors import AuditError, NotPermitted, NotSupported, SocklbError
from ..kernel.discovery import unsearched
from ..kernel.namespaces import CannotEnter
from .duty_cycle import DutyCycle
from .places import Places, without
from .reasons import STILL_BALANCED
from .schedule import Scheduled
from .table import BackendTable, taking_down
from .terminate import AUTO, conntrack_join, terminate
from .waker import Waker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ..engine.audit import Audit
    from ..engine.probe import Support
    from ..engine.report import Report
    from ..engine.run import Run
    from ..filters.backend import Backend
    from ..kernel.namespaces import NetworkNamespace
    from ..reverse_nat.maps import RevNatMaps
    from .places import Choice

GATHER_SECONDS = 0.05
"""Changes gather for so long from the first, and go as one batch."""

_LONGEST_SECONDS = 86_400


class Pass(namedtuple("Pass", "backends report error failed given_up is_second_pass is_retry seconds waited")):
    """One pass of the loop.

    `backends`: those that it was for. `report`: what it did; `error`: what ended it, or that clients are still balanced
    to some of them (either may be None). `failed`: backends that are to be attempted again. `given_up`: those that were
    attempted too often, or that this kernel cannot be asked about. `is_second_pass`: all of them had been terminated
    before. `is_retry`: a pass for each of them has failed somewhere. `seconds`: how long it took. `waited`: for how
    many more it had waited for processor time.
    """

    __slots__ = ()
    backends: list[Backend]
    report: Report | None
    error: Exception | None
    failed: list[Backend]
    given_up: list[Backend]
    is_second_pass: bool
    is_retry: bool
    seconds: float
    waited: float


class TerminationLoop:
    """Destroys the connections to each backend of a table that goes down, in passes of `terminate_connections`.

    Changes gather for 50 ms from the first and go as one batch; what has come back by then is not terminated. A second
    pass, `second_pass` seconds after the first (None: no such pass), catches what was connecting meanwhile, unless the
    backend has come back. After a pass that cut clients whom conntrack had balanced there (`conntrack` and `external`
    are as in `terminate_connections`) further ones come, after 2, 4, 8, 16 and 32 s. A pass fails where a namespace was
    not searched to the end, or could not be searched at all (unless `readable_only`), or a socket is still there: it is
    repeated in these places, with growing pauses, for 15 minutes. Bursts go at once; under lasting churn passes wait,
    so that the process uses a fifth of one processor (DutyCycle). With `dry_run` nothing is destroyed, and there is one
    pass for each backend that goes down.

    `namespaces` as in `destroy_sockets`, or a function that is asked for them at each pass. "all" are discovered anew
    at each pass, but for those that only a thread is in: these are looked for once a minute. `on_pass` is called with a
    Pass after each; without it, failures are logged. Raises TypeError or ValueError for wrong arguments.
    """

    def __init__(
        self,
        table: BackendTable,
        *,
        namespaces: Choice = ALL,
        rev_nat: RevNatMaps | None = None,
        conntrack: bool | str = AUTO,
        external: bool = False,
        audit: Audit | None = None,
        second_pass: float | None = 1.0,
        readable_only: bool = False,
        dry_run: bool = False,
        on_pass: Callable[[Pass], object] | None = None,
    ) -> None:
        if not isinstance(table, BackendTable):
            raise TypeError(f"table is a BackendTable, not {table!r}")
        _check_second_pass(second_pass)
        if rev_nat is not None and not hasattr(rev_nat, "reopen"):
            raise TypeError(f"rev_nat is RevNatMaps or None, not {rev_nat!r}")
        for name, value in (("audit", audit), ("on_pass", on_pass)):
            if value is not None and not callable(value):
                raise TypeError(f"{name} is a function or None, not {value!r}")
        self._table, self._places = table, Places(namespaces)
        self._rev_nat, self._audit = rev_nat, audit
        self._join = conntrack_join(conntrack, external=external, dry_run=dry_run, is_alive=table.is_alive)
        self._second_pass, self._readable_only, self._dry_run = second_pass, readable_only, dry_run
        self._on_pass = on_pass or _log
        self._duty_cycle = DutyCycle()
        self._scheduled: dict[Backend, Scheduled] = {}
        self._stops, self._finishing = 0, False
        self._run_at_hand: Run | None = None
        self._waker: Waker | None = None  # while it runs
        self._is_gathering = False
        self.pass_began: float | None = None
        """When the pass at hand began, by monotonic()."""

    def stop(self) -> None:
        """Let `run` return once what has gone down by now is terminated; called again, after the batch at hand. Signal
        handlers may call this.
        """
        self._stops += 1
        self._stop_run()
        self._wake_up()

    def _stop_run(self) -> None:
        if self._stops > 1 and self._run_at_hand is not None:
            self._run_at_hand.stop("stopped")

    def finish(self) -> None:
        """Finish all pending work, second passes included, then let `run` return. For the end of the input."""
        self._finishing = True
        self._wake_up()

    @property
    def is_running(self) -> bool:
        return self._waker is not None

    @property
    def outstanding(self) -> list[Backend]:
        """Backends that have gone down and are not done with."""
        return list(self._scheduled)

    def run(self) -> None:
        """Run until `stop()` or `finish()`.

        Raises NotSupported, where this kernel can destroy nothing, and what the audit raises: another attempt would not
        help. What had been done by then is in `.report` of the error. Raises KernelError if no descriptors are left for
        the pipe that wakes it up. In the main thread signals wake it up too, unless the program has a wakeup descriptor
        of its own (asyncio has).
        """
        with self._table.subscribe(self._on_down):
            self._waker = Waker()  # in no local: an error of a pass, and so its frames, may be kept for long
            try:
                with self._waker.woken_by_signals():
                    self._run()
            finally:
                self._waker = None

    def _run(self) -> None:
        gathered: float | None = None  # when the batch that is gathering is to go
        self._is_gathering = False
        while True:
            now, stopping = monotonic(), self._stops > 0
            if gathered is None and self._table.has_down():
                gathered, self._is_gathering = now + GATHER_SECONDS, True
            if gathered is not None and (now >= gathered or stopping):
                gathered, self._is_gathering = None, False
                with taking_down(self._table) as down:  # at no time is it neither there nor outstanding
                    self._scheduled.update((backend, Scheduled(now, services)) for backend, services in down.items())
                    if self._join is not None:
                        self._join.forget(down)
            due = [backend for backend, scheduled in self._scheduled.items() if scheduled.time <= now]
            pause = self._pause() if due else 0.0
            if not due:
                self._duty_cycle.forget()
            elif not pause:
                self._pass_for(due)
            if stopping or (self._finishing and not self._has_more_to_do()):
                return
            times = [max(scheduled.time, now + pause) for scheduled in self._scheduled.values()]
            if gathered is not None:
                times.append(gathered)
            assert self._waker is not None
            self._waker.wait(min(times) - monotonic() if times else None)

    def _on_down(self) -> None:
        """What goes down while others gather goes with them: that has its time."""
        if not self._is_gathering:
            self._wake_up()

    def _has_more_to_do(self) -> bool:
        return self._table.has_down() or any(scheduled.is_waited_for for scheduled in self._scheduled.values())

    def _pause(self) -> float:
        """For how long a pass waits for processor time; at the end none does."""
        return 0.0 if self._stops or self._finishing else self._duty_cycle.wait()

    def _wake_up(self) -> None:
        waker = self._waker
        if waker is not None:
            waker.wake()

    def _pass_for(self, backends: list[Backend]) -> None:
        """A pass for those of the backends that have not come back, one for all that were searched for in the same
        places; then schedule their next one, if any.
        """
        groups: dict[frozenset[NetworkNamespace], list[Backend]] = {}
        for backend in backends:
            if self._table.is_alive(backend):
                del self._scheduled[backend]
            else:
                groups.setdefault(self._scheduled[backend].searched, []).append(backend)
        # Who has waited longest is first: after each group the time that there is may be over.
        longest = sorted(groups.items(), key=lambda group: min(self._scheduled[backend].time for backend in group[1]))
        for number, (searched, down) in enumerate(longest):
            if self._stops > 1 or (number and self._pause()):
                return
            before = [self._scheduled[backend] for backend in down]
            with self._duty_cycle.charged() as waited:
                began = self.pass_began = monotonic()
                report, error = self._pass(down, searched)
                seconds, self.pass_began = monotonic() - began, None
            if isinstance(error, NotSupported) and not isinstance(error, CannotEnter):
                given_up = self._give_up_unsupported(down, error)
                failed = [backend for backend in down if backend not in given_up]
            else:
                failures = self._failures(down, report, error)
                if error is None and self._join is not None and self._join.still_balanced:
                    error = _still_balanced(self._join.still_balanced)
                given_up = [backend for backend in down if not self._reschedule(backend, report, failures.get(backend))]
                failed = [backend for backend in failures if backend not in given_up]
            is_second, is_retry = (all(each) for each in zip(*((b.is_second_pass, b.failures) for b in before)))
            self._on_pass(Pass(down, report, error, failed, given_up, is_second, is_retry, seconds, waited))

    def _pass(
        self, backends: list[Backend], searched: frozenset[NetworkNamespace]
    ) -> tuple[Report | None, Exception | None]:
        """Terminate everywhere but where that was done."""
        try:
            if self._rev_nat is not None:
                self._rev_nat.reopen()
            found = self._places.now()
            if self._join is not None:
                self._join.forget_others(self._scheduled)
            report = terminate(
                backends,
                without(found, searched),
                rev_nat=self._rev_nat,
                join=self._join,
                is_last_look=lambda backend: self._scheduled[backend].is_last_look,
                look_in=found,
                audit=self._audit,
                dry_run=self._dry_run,
                is_alive=self._table.is_alive,
                services={backend: self._scheduled[backend].services for backend in backends},
                on_run=self._begin,
            )
        except AuditError:
            raise
        except (SocklbError, ValueError) as error:
            ended = getattr(error, "report", None)
            if ended is not None and ended.unrecorded:
                raise  # the audit's own
            return ended, error
        finally:
            self._run_at_hand = None
        try:
            seen = [one for one in found if one not in report.errors]  # also where nothing was to be looked for
            report.unsearched = unsearched(getattr(found, "refused", ()), [*searched, *seen])
        except SocklbError as error:
            return report, error
        return report, None

    def _begin(self, run: Run) -> None:
        self._run_at_hand = run
        self._stop_run()

    def _failures(
        self, backends: list[Backend], report: Report | None, error: Exception | None
    ) -> dict[Backend, set[NetworkNamespace]]:
        """The backends that are to be attempted again, with the namespaces where a socket of theirs is still there."""
        failed: dict[Backend, set[NetworkNamespace]] = {}
        if error is not None or report is None or not self._is_complete(report):
            failed = {backend: set() for backend in backends}
        if report is not None:
            for outcome in report.outcomes:
                if outcome.verdict == FAILED:
                    backend = report.backend_of(outcome)
                    failed.setdefault(backend, set()).add(outcome.namespace)
            for backend in () if self._join is None else self._join.still_balanced:
                failed.setdefault(backend, set())
        return failed

    def _is_complete(self, report: Report) -> bool:
        """Whether each namespace was searched to the end, but for those that may be left out."""
        if self._readable_only:
            return all(isinstance(error, NotPermitted) for error in report.errors.values())
        return not report.errors and not report.unsearched

    def _reschedule(self, backend: Backend, report: Report | None, failed_in: set[NetworkNamespace] | None) -> bool:
        """Schedule the backend's next pass, if it is to have one; False if it is given up."""
        last = self._scheduled[backend]
        has_failed = failed_in is not None
        next_one = None
        if not self._dry_run and not (has_failed and last.is_last_attempt):
            next_one = last.after_pass(
                monotonic(),
                frozenset() if report is None else _searched(report) - (failed_in or set()),
                has_failed=has_failed,
                has_cut_flows=self._join is not None and backend in self._join.acted_on,
                second_pass=self._second_pass,
            )
        if next_one is None:
            del self._scheduled[backend]
        else:
            self._scheduled[backend] = next_one
        return not (has_failed and last.is_last_attempt)

    def _give_up_unsupported(self, backends: list[Backend], error: NotSupported) -> list[Backend]:
        """The backends of a protocol that this kernel cannot list; the others are due again. Raises the error if it is
        not about one protocol alone.
        """
        try:
            protocols = destroyable(probe())
        except SocklbError:
            raise error from None
        given_up = [backend for backend in backends if backend.protocol not in protocols]
        if not protocols or not given_up:
            raise error
        for backend in given_up:
            del self._scheduled[backend]
        return given_up


def destroyable(answers: dict[tuple[str, int], Support]) -> set[str]:
    """The protocols whose sockets this kernel can list and destroy, permitted or not, by what `probe` answered."""
    return {protocol for (protocol, _), answer in answers.items() if answer.status in (SUPPORTED, NOT_PERMITTED)}


def _check_second_pass(seconds: object) -> None:
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"second_pass is a number of seconds or None, not {seconds!r}")
    if not 0 <= seconds <= _LONGEST_SECONDS:  # nor a NaN
        raise ValueError(f"second_pass is 0 to {_LONGEST_SECONDS} seconds, not {seconds!r}")


def _searched(report: Report) -> frozenset[NetworkNamespace]:
    return frozenset(namespace for namespace in report.namespaces if namespace not in report.errors)


def _still_balanced(backends: Collection[Backend]) -> SocklbError:
    """That clients are, whom the report of a pass before has as cut."""
    first, *more = sorted(map(str, backends))
    return SocklbError(f"clients of {first}{f' and {len(more)} more' if more else ''}: {STILL_BALANCED}")


def _log(done: Pass) -> None:
    """Failures go to the log where no `on_pass` takes them."""
    reasons = [str(error) for error in done.report.errors.values()] if done.report else []
    reasons += [f"{one.path}: {one.reason}" for one in done.report.unsearched] if done.report else []
    if done.error is not None:
        reasons.append(str(done.error))
    if (reasons and not done.is_retry) or done.given_up:
        from logging import getLogger  # few need it

        names = ", ".join(map(str, done.backends))
        verdict = "given up" if done.given_up else "to be tried again"
        getLogger("socklb").warning("terminate connections to %s: %s (%s)", names, "; ".join(reasons), verdict)
