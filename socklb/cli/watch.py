# SPDX-License-Identifier: MIT
"""`socklb watch`: be told which backends there are, and cut the connections to those that fall."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from contextlib import ExitStack, contextmanager
from threading import Thread

from ..engine.parallel import start
from ..engine.probe import NO_DESTROY, NO_DIAG, NOT_PERMITTED, probe
from ..errors import NotPermitted, NotSupported, SocklbError
from ..kernel.namespaces import HOST_NAME
from ..sources import FileSource, LineSource
from ..termination.loop import PAUSES, TerminationLoop
from ..termination.table import BackendTable
from .arguments import (
    ALL,
    add_audit_argument,
    add_netns_argument,
    add_rev_nat_argument,
    audit_from,
    open_rev_nat,
)
from .help import HelpFormatter
from .namespaces import namespaces_from, skipped_texts
from .output import DONE, INTERRUPTED, SOME_FAILED, complain, error_text, quiet_pipe
from .verdicts import namespace_problems, outcome_line, sums_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..kernel.namespaces import NetworkNamespace
    from ..sources import Source
    from ..termination.loop import Pass
    from ..termination.terminate import TerminationReport

_EXAMPLES = """\
examples:
  socklb watch --source /run/backends.json --audit /var/log/socklb.jsonl
  my-controller | socklb watch --source - --rev-nat

A line on standard input is one change, a JSON object:
  {"op": "upsert", "backend": "10.0.0.1:80/TCP", "service": "default/web", "state": "active", "unhealthy": false}
  {"op": "delete", "backend": "10.0.0.1:80/TCP", "service": "default/web"}
  {"op": "replace", "backends": [{"backend": "10.0.0.1:80/TCP", "service": "default/web"}]}
A FILE holds one replace object; write it anew and rename it over the old one.

A backend is alive while a service has it active or terminating, and healthy. It is cut when it stops being alive; what
was never alive is not cut, and nothing is at the start. SIGTERM and SIGINT end it after the batch at hand.
Needs what `socklb terminate` needs.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "watch",
        help="follow a list of backends, and cut the connections to those that fall",
        description="Follow a list of backends, and cut the connections to those that fall, in every network namespace "
        "of this host.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--source", metavar="-|FILE", required=True, help="standard input, or a file that is followed")
    add_netns_argument(parser, ALL)
    add_rev_nat_argument(parser, "spare what the balancer's reverse-NAT maps in DIR do not know: it was not sent there")
    add_audit_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    words = options.netns or [ALL]
    namespaces_from(words)  # an unknown one is told now and not at the first pass
    _check_support(words)
    with ExitStack() as stack:
        audit = stack.enter_context(audit_from(options))
        rev_nat = None if options.rev_nat is None else stack.enter_context(open_rev_nat(options.rev_nat))
        table = BackendTable()
        teller = _Teller()
        loop = TerminationLoop(
            table, namespaces=lambda: _present(words, teller), rev_nat=rev_nat, audit=audit, on_pass=teller.tell
        )
        source = _source(options.source)
        caught = stack.enter_context(_stopping_on_signals(loop))
        try:
            with _followed(source, table, loop, teller):
                loop.run()
            if caught:
                loop.run()  # once more, for what the source had read when the signal came
        except SocklbError as error:
            if error.report is not None:
                teller.tell_end(error.report)
            raise
    if signal.SIGINT in caught:
        return INTERRUPTED
    if signal.SIGTERM in caught:
        return DONE
    return SOME_FAILED if teller.has_failed or loop.outstanding else DONE


def _present(words: list[str], teller: _Teller) -> list[NetworkNamespace] | None:
    """The namespaces that are there now; one that is not, or not yet, is told once and does not stop the others."""
    if ALL in words:
        return None
    present: list[NetworkNamespace] = []
    for word in words:
        try:
            present += namespaces_from([word]) or []
        except ValueError as error:
            teller.tell_once(str(error))
    return present


def _check_support(words: list[str]) -> None:
    """An agent that cannot cut says so when it is started, and not when it is needed."""
    answers = {answer.status: answer.missing for answer in probe().values()}
    for status in (NO_DIAG, NO_DESTROY):
        if status in answers:
            raise NotSupported(errno.EOPNOTSUPP, f"this kernel cannot destroy sockets: it lacks {answers[status]}")
    if NOT_PERMITTED in answers and {HOST_NAME, ALL} & {*words}:
        raise NotPermitted(errno.EPERM, f"not permitted: it needs {answers[NOT_PERMITTED]}; run as root, or grant it")


def _source(word: str) -> Source:
    if word != "-":
        return FileSource(word)
    if sys.stdin is None:
        raise ValueError("--source -: standard input is closed")
    return LineSource(sys.stdin.fileno())


@contextmanager
def _stopping_on_signals(loop: TerminationLoop) -> Iterator[list[int]]:
    """Meanwhile SIGTERM and SIGINT stop the loop, unless they are ignored; the list is of those that came."""
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
def _followed(source: Source, table: BackendTable, loop: TerminationLoop, teller: _Teller) -> Iterator[None]:
    """Meanwhile a thread puts what the source tells into the table; at its end the loop finishes what it has to do."""

    def follow() -> None:
        try:
            source.follow(table, complain)
        except Exception as error:
            why = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
            teller.fail(f"the source cannot be read: {why}")
        finally:
            loop.finish()

    thread = Thread(target=follow, name="socklb source")
    start(thread)
    try:
        yield
    finally:
        source.stop()
        thread.join()


class _Teller:
    """Says what the passes of the loop came to: a line for each backend on standard output, problems on error."""

    def __init__(self) -> None:
        self.has_failed = False
        self._told: set[str] = set()

    def fail(self, text: str) -> None:
        self.has_failed = True
        complain(text)

    def tell_once(self, text: str, about: str = "") -> None:
        """Unless something about the same has been told."""
        if (about or text) not in self._told:
            self._told.add(about or text)
            complain(text)

    def tell(self, done: Pass) -> None:
        if done.error is not None:
            complain(error_text(done.error))
        if done.report is not None:
            self._tell_report(done.report, with_empty=not done.is_second_look)
        if done.given_up:
            self.fail(f"given up after {len(PAUSES) + 1} attempts: {', '.join(map(str, done.given_up))}")

    def tell_end(self, report: TerminationReport) -> None:
        """What had been done when an error ended the loop, and what of that is not in the audit."""
        self._tell_report(report, with_empty=False)
        unrecorded = {id(outcome) for outcome in report.unrecorded}
        for namespace, outcome in report.outcomes:
            if id(outcome) in unrecorded:
                complain(outcome_line(namespace.name, outcome, is_unrecorded=True))

    def _tell_report(self, report: TerminationReport, *, with_empty: bool) -> None:
        for text in namespace_problems(report):
            complain(text)
        for text in skipped_texts(report.skipped_namespaces):
            self.tell_once(text, about=text.rpartition(": ")[2])  # how many there are changes with every process
        with quiet_pipe():
            for backend, counts in report.backends.items():
                if counts.matched or with_empty:
                    print(f"{backend}: {sums_text(counts)}", flush=True)
