# SPDX-License-Identifier: MIT
"""`socklb watch`: follow a list of backends, and destroy the connections to those that go down."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from contextlib import ExitStack, contextmanager
from threading import Thread

from ..engine.probe import NO_DESTROY, NO_DIAG, NOT_PERMITTED, probe
from ..engine.run import ALL, CURRENT
from ..errors import NotPermitted, NotSupported, SocklbError
from ..sources import FileSource, LineSource
from ..termination.loop import PAUSES, TerminationLoop
from ..termination.table import BackendTable
from .arguments import (
    add_audit_argument,
    add_command,
    add_netns_argument,
    add_rev_nat_arguments,
    audit_from,
    rev_nat_from,
)
from .netns import NamedNamespaces, unsearched_texts
from .output import DONE, INTERRUPTED, SOME_FAILED, error_text, ignore_broken_pipe, warn
from .verdicts import namespace_problems, outcome_line, sums_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..engine.report import Report
    from ..sources import Source
    from ..termination.loop import Pass
    from .arguments import Commands

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
left alone, and nothing is destroyed at the start. SIGTERM and SIGINT end the
command after the batch at hand. Needs what `socklb terminate` needs.
"""


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "watch",
        run,
        help="follow a list of backends, and destroy the connections to those that go down",
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
    named = NamedNamespaces(word for word in words if word != ALL)  # an unknown one is an error now
    _check_support(words)
    with ExitStack() as stack:
        audit = stack.enter_context(audit_from(options))
        rev_nat = stack.enter_context(rev_nat_from(options))
        table = BackendTable()
        reporter = _Reporter()
        namespaces = ALL if ALL in words else lambda: named.present(reporter.warn_once)
        loop = TerminationLoop(table, namespaces=namespaces, rev_nat=rev_nat, audit=audit, on_pass=reporter.report)
        source = _source(options.source)
        caught = stack.enter_context(_stopping_on_signals(loop))
        try:
            with _followed(source, table, loop, reporter):
                loop.run()
            if caught:
                loop.run()  # once more, for what the source had read when the signal came
        except SocklbError as error:
            if error.report is not None:
                reporter.report_end(error.report)
            raise
    if signal.SIGINT in caught:
        return INTERRUPTED
    if signal.SIGTERM in caught:
        return DONE
    return SOME_FAILED if reporter.has_failed or loop.outstanding else DONE


def _check_support(words: list[str]) -> None:
    """An agent that cannot destroy says so when it starts, and not when it is needed."""
    answers = {answer.status: answer.missing for answer in probe().values()}
    for status in (NO_DIAG, NO_DESTROY):
        if status in answers:
            raise NotSupported(errno.EOPNOTSUPP, f"this kernel cannot destroy sockets: it lacks {answers[status]}")
    if NOT_PERMITTED in answers and {CURRENT, ALL} & {*words}:
        raise NotPermitted(errno.EPERM, f"not permitted: it needs {answers[NOT_PERMITTED]}; run as root, or grant it")


def _source(word: str) -> Source:
    if word != "-":
        return FileSource(word)
    if sys.stdin is None:
        raise ValueError("--source -: standard input is closed")
    return LineSource(sys.stdin.fileno())


@contextmanager
def _stopping_on_signals(loop: TerminationLoop) -> Iterator[list[int]]:
    """While active, SIGTERM and SIGINT stop the loop, unless they are ignored; yields the list of those that came."""
    came: list[int] = []

    def stop(number: int, frame: object) -> None:
        came.append(number)
        loop.stop()

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _followed(source: Source, table: BackendTable, loop: TerminationLoop, reporter: _Reporter) -> Iterator[None]:
    """While active, a thread puts the source's changes into the table; at its end the loop finishes pending work."""

    def follow() -> None:
        try:
            source.follow(table, warn)
        except Exception as error:
            why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
            reporter.fail(f"the source cannot be read: {why}")
        finally:
            loop.finish()

    thread = Thread(target=follow, name="socklb source")
    try:
        thread.start()
    except RuntimeError as error:
        raise SocklbError(f"start a thread: {error} (a limit on processes or memory)") from None
    try:
        yield
    finally:
        source.stop()
        thread.join()


class _Reporter:
    """Reports the passes of the loop: a line for each backend on standard output, problems on standard error."""

    def __init__(self) -> None:
        self.has_failed = False
        self._warned: set[str] = set()

    def fail(self, text: str) -> None:
        self.has_failed = True
        warn(text)

    def warn_once(self, text: str, about: str = "") -> None:
        """Warn, unless there was a warning about the same before."""
        if (about or text) not in self._warned:
            self._warned.add(about or text)
            warn(text)

    def report(self, done: Pass) -> None:
        if done.error is not None:
            warn(error_text(done.error))
        if done.report is not None:
            self._print(done.report, with_empty=not done.is_second_pass)
        if done.given_up:
            self.fail(f"given up after {len(PAUSES) + 1} attempts: {', '.join(map(str, done.given_up))}")

    def report_end(self, report: Report) -> None:
        """What had been done when an error ended the loop, and what of that is not in the audit."""
        self._print(report, with_empty=False)
        for outcome in report.unrecorded:
            warn(outcome_line(outcome, is_unrecorded=True))

    def _print(self, report: Report, *, with_empty: bool) -> None:
        for text in namespace_problems(report):
            warn(text)
        for text in unsearched_texts(report.unsearched):
            self.warn_once(text, about=text.rpartition(": ")[2])  # how many there are changes with every process
        if report.hidden:
            self.warn_once(report.hidden, about=report.hidden.rpartition(": ")[2])
        with ignore_broken_pipe():
            for backend, counts in report.backends.items():
                if counts.matched or with_empty:
                    print(f"{backend}: {sums_text(counts)}", flush=True)
