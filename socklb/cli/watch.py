# SPDX-License-Identifier: MIT
"""`socklb watch`: follow a list of backends, and destroy the connections to those that go down."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections import namedtuple
from contextlib import ExitStack, contextmanager

from ..engine.choice import ALL, CURRENT
from ..engine.probe import NO_DESTROY, NO_DIAG, NO_FAMILY, NOT_PERMITTED, SUPPORTED, probe
from ..errors import AuditError, NotPermitted, NotSupported, RunStopped, SocklbError
from ..kernel.discovery import current_namespace
from ..sources import FileSource, LineSource
from ..sources.protocol import shortened
from ..termination.loop import PAUSES, TerminationLoop, destroyable
from ..termination.table import BackendTable
from .arguments import (
    add_audit_argument,
    add_netns_argument,
    add_rev_nat_arguments,
    audit_from,
    describe,
    rev_nat_from,
)
from .netns import NamedNamespaces, namespace_problems, unsearched_texts
from .outlet import Outlet, start_thread
from .output import DONE, INTERRUPTED, SOME_FAILED, error_text, printable
from .signals import ended_by_signals
from .verdicts import left_alone_texts, outcome_line, sums_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..engine.audit import AuditFile
    from ..engine.report import Report
    from ..sources import Source
    from ..termination.loop import Pass

_ENDING = (signal.SIGTERM, signal.SIGINT)

_EXAMPLES = """\
examples:
  socklb watch --source /run/backends.json --audit /var/log/socklb.jsonl
  my-controller | socklb watch --source - --rev-nat

A line on standard input is one change, a JSON object:
  {"op": "upsert", "backend": "10.0.0.1:80/TCP", "service": "default/web"}
  {"op": "upsert", "backend": "10.0.0.1:80/TCP", "unhealthy": true}
  {"op": "delete", "backend": "10.0.0.1:80/TCP", "service": "default/web"}
  {"op": "replace", "backends": [{"backend": "10.0.0.1:80/TCP"}]}
An upsert, and each backend of a replace, can have "service", "state" (active,
terminating, quarantined, maintenance) and "unhealthy".
A FILE holds one replace object; write a new one and rename it over the old one.

A backend is alive while a service has it active or terminating, and healthy.
Its connections are destroyed when it stops being alive; what was never alive is
left alone, and nothing is destroyed at the start. What fails is tried again
where it failed, for 15 minutes. Needs what `socklb terminate` needs.

SIGTERM and SIGINT end the command after the pass at hand, a second one after
the batch at hand; SIGHUP opens the audit file anew; SIGUSR1 shows the backends
on standard error. No pass waits for a reader of its output.
"""

_SOURCE_SECONDS = 10.0  # for the end of a source that is waiting for its disk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        description="Follow a list of backends, and destroy the connections to those that go down, in every network "
        "namespace of this host.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--source", metavar="-|FILE", required=True, help="standard input, or a file that is followed")
    add_netns_argument(parser, ALL)
    add_rev_nat_arguments(parser)
    add_audit_argument(parser)


def run(options: argparse.Namespace) -> int:
    words = options.netns or [ALL]
    with ExitStack() as stack:
        stack.enter_context(ended_by_signals())
        actions: dict[int, Callable[[], object]] = {}
        came = stack.enter_context(_signals(actions))  # left last: no signal breaks off what is still to be written
        named = NamedNamespaces(word for word in words if word != ALL)  # an unknown one is an error now
        reporter = stack.enter_context(_Reporter(options.readable_only))
        _check_support(words, reporter.warn)
        audit = stack.enter_context(audit_from(options))
        rev_nat = stack.enter_context(rev_nat_from(options))
        table = BackendTable()
        loop = TerminationLoop(
            table,
            namespaces=ALL if ALL in words else lambda: named.present(reporter.warn_once),
            rev_nat=rev_nat,
            audit=audit,
            readable_only=options.readable_only,
            on_pass=reporter.report,
        )
        source = _source(options.source)
        actions[signal.SIGINT] = actions[signal.SIGTERM] = loop.stop
        actions[signal.SIGHUP] = lambda: _reopen(audit, reporter)
        actions[signal.SIGUSR1] = lambda: reporter.err.print(lambda: _table_text(table, loop))
        if _ends(came):
            loop.stop()
        try:
            with _followed(source, table, loop, reporter):
                loop.run()
            if _ends(came) == 1:
                loop.run()  # once more, for what the source had read when the signal came
        except SocklbError as error:
            if error.report is not None:
                reporter.report_end(error.report)
            raise
    if _ends(came):
        return INTERRUPTED if signal.SIGINT in came else DONE
    return SOME_FAILED if reporter.has_failed or loop.outstanding or options.audit_problem else DONE


def _check_support(words: list[str], warn: Callable[[str], object]) -> None:
    """An agent that cannot destroy says so when it starts, and not when it is needed."""
    if ALL in words:
        current_namespace()  # raises where no others can be found
    answers = probe()
    statuses = {answer.status for answer in answers.values()}
    lacking: dict[str, set[str]] = {}
    for (protocol, _), answer in answers.items():
        if answer.status in (NO_DIAG, NO_DESTROY, NO_FAMILY):
            lacking.setdefault(answer.missing, set()).add(protocol)
    if not statuses & {SUPPORTED, NOT_PERMITTED}:
        raise NotSupported(errno.EOPNOTSUPP, f"this kernel cannot destroy sockets: it lacks {', '.join(lacking)}")
    if NOT_PERMITTED in statuses and {CURRENT, ALL} & {*words}:
        missing = next(answer.missing for answer in answers.values() if answer.status == NOT_PERMITTED)
        raise NotPermitted(errno.EPERM, f"not permitted: it needs {missing}; run as root, or grant it")
    for missing, protocols in lacking.items():
        if protocols - destroyable(answers):
            names = " and ".join(sorted(protocols))
            warn(f"this kernel cannot destroy {names} sockets: it lacks {missing}; such backends are left alone")


def _source(word: str) -> Source:
    if word != "-":
        return FileSource(word)
    if sys.stdin is None:
        raise ValueError("--source -: standard input is closed")
    return LineSource(sys.stdin.fileno())


@contextmanager
def _signals(actions: Mapping[int, Callable[[], object]]) -> Iterator[list[int]]:
    """While active, each of its signals is noted, and calls the action that there is for it by then; but for those that
    are ignored. Yields the list of those that have come.
    """
    came: list[int] = []

    def handle(number: int, frame: object) -> None:
        came.append(number)
        action = actions.get(number)
        if action is not None:
            action()

    before = {number: signal.getsignal(number) for number in (*_ENDING, signal.SIGHUP, signal.SIGUSR1)}
    for number, usual in before.items():
        if usual != signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield came
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


def _ends(came: list[int]) -> int:
    """How many of these signals ask the command to end."""
    return sum(number in _ENDING for number in came)


def _reopen(audit: AuditFile | None, reporter: _Reporter) -> None:
    if audit is None:
        return
    try:
        audit.reopen()
    except AuditError as error:
        reporter.warn(f"{error_text(error)}; the old one stays")


def _table_text(table: BackendTable, loop: TerminationLoop) -> str:
    """Each backend in a line, alive or down, and how many there are."""
    alive = table.backends()
    alive.update((backend, table.is_alive(backend)) for backend in loop.outstanding)
    lines = [f"{backend} {'alive' if is_alive else 'down'}" for backend, is_alive in alive.items()]
    return "\n".join(f"socklb: {line}" for line in [*lines, f"{sum(alive.values())} of {len(alive)} backends alive"])


@contextmanager
def _followed(source: Source, table: BackendTable, loop: TerminationLoop, reporter: _Reporter) -> Iterator[None]:
    """While active, a thread puts the source's changes into the table; at its end the loop finishes pending work."""

    def follow() -> None:
        try:
            source.follow(table, reporter.warn)
        except Exception as error:
            why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
            reporter.fail(f"the source cannot be read: {why}")
        finally:
            loop.finish()

    thread = start_thread(follow, "socklb source")
    try:
        yield
    finally:
        source.stop()
        thread.join(_SOURCE_SECONDS)


class _Reporter:
    """Reports the passes of the loop: a line for each backend on standard output, problems on standard error. No pass
    waits for what is printed.
    """

    def __init__(self, readable_only: bool) -> None:
        self.has_failed = False
        self._readable_only = readable_only
        self._said: set[object] = set()
        self.err = Outlet(sys.stderr, lambda lost: self.warn(f"{lost} messages could not be written"))
        self._out = Outlet(sys.stdout, lambda lost: self.warn(f"{lost} lines of standard output could not be written"))

    def __enter__(self) -> _Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()
        self.err.close()

    def warn(self, text: str) -> None:
        self.err.print(f"socklb: {printable(text)}")

    def fail(self, text: str) -> None:
        self.has_failed = True
        self.warn(text)

    def warn_once(self, about: object, text: str) -> None:
        """Warn, unless there was a warning about the same before."""
        if about not in self._said:
            self._said.add(about)
            self.warn(text)

    def report(self, done: Pass) -> None:
        if isinstance(done.error, NotSupported):  # it was said at the start
            self.has_failed = True
        else:
            self._report_problems(done)
        if done.report is not None:
            self._print(
                done.report, with_empty=not (done.is_second_pass or done.is_retry), with_failed=not done.is_retry
            )
        if done.given_up and not isinstance(done.error, NotSupported):
            self.fail(shortened(f"given up after {len(PAUSES) + 1} attempts: {', '.join(map(str, done.given_up))}"))

    def _report_problems(self, done: Pass) -> None:
        """Each when it comes up, and then no more until it has changed."""
        problems = self._problems(done)
        self._said -= {about for about in self._said if about not in problems and self._is_over(about, done)}
        for about, text in problems.items():
            self.warn_once(about, text)

    def _problems(self, done: Pass) -> dict[object, str]:
        problems: dict[object, str] = {}
        if done.error is not None and not isinstance(done.error, RunStopped):
            text = error_text(done.error)
            problems[_Problem(text, None)] = f"{text}; it is tried again"
        if done.report is None:
            return problems
        for namespace, error in done.report.errors.items():
            if error is not done.error and not isinstance(error, RunStopped):
                is_expected = self._readable_only and isinstance(error, NotPermitted)
                text = f"in {namespace.name}: {error_text(error)}"
                problems[_Problem(text, namespace)] = text + ("" if is_expected else "; it is tried again")
        for one, text in zip(done.report.unsearched, unsearched_texts(done.report.unsearched)):
            about = one.reason if self._readable_only else _Problem(one.reason, None)  # how many there are changes
            problems[about] = text + ("" if self._readable_only else "; it is tried again")
        return problems

    def _is_over(self, about: object, done: Pass) -> bool:
        """Whether a pass that does not show a problem was where it would have shown."""
        if not isinstance(about, _Problem) or done.report is None or done.error is not None:
            return False
        return about.namespace is None or about.namespace in done.report.namespaces

    def report_end(self, report: Report) -> None:
        """What had been done when an error ended the loop, and what of that is not in the audit."""
        self._print(report, with_empty=False)
        for text in namespace_problems(report.errors, report.unsearched, readable_only=False)[0]:
            self.warn(text)
        for outcome in report.unrecorded:
            self.warn(outcome_line(outcome, report.device_of(outcome), is_unrecorded=True))

    def _print(self, report: Report, *, with_empty: bool, with_failed: bool = True) -> None:
        """A line for each backend that something was found of; without `with_failed` only where something was done."""
        for backend, counts in report.backends.items():
            if with_empty or counts.matched > (0 if with_failed else counts.failed):
                self._out.print(f"{backend}: {sums_text(counts)}")
        if report.hidden:
            self.warn_once("hidden", report.hidden)
        for text in left_alone_texts(report):
            self.warn_once("left alone", shortened(text))


class _Problem(namedtuple("_Problem", "text namespace")):
    """What is wrong with a pass, in one namespace or (None) as a whole."""

    __slots__ = ()
