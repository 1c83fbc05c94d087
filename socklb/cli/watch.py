# SPDX-License-Identifier: MIT
"""`socklb watch`: follow a list of backends, and destroy the connections to those that go down."""

from __future__ import annotations

import argparse
import errno
import signal
from contextlib import ExitStack, contextmanager

from ..engine.choice import ALL, CURRENT
from ..engine.probe import NO_DESTROY, NO_DIAG, NO_FAMILY, NOT_PERMITTED, SUPPORTED, probe
from ..engine.report import ABSENT, OFF, REFUSED
from ..engine.report import DONE as CONNTRACK_DONE
from ..errors import AuditError, NotPermitted, NotSupported, SocklbError
from ..kernel.discovery import current_namespace
from ..termination.loop import TerminationLoop, destroyable
from ..termination.table import PackedTable
from .arguments import (
    add_audit_argument,
    add_conntrack_arguments,
    add_netns_argument,
    add_rev_nat_arguments,
    audit_from,
    conntrack_from,
    describe,
    rev_nat_from,
)
from .metrics import served
from .netns import NamedNamespaces
from .outlet import start_thread
from .output import DONE, INTERRUPTED, SOME_FAILED, error_text
from .signals import signals_so_far
from .verdicts import conntrack_text
from .watch_report import Reporter
from .watch_source import (
    STANDARD_INPUT,
    add_memory_arguments,
    add_source_arguments,
    remembered,
    source_from,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..engine.audit import AuditFile
    from ..sources import Source
    from ..termination.loop import Pass

_ENDING = (signal.SIGTERM, signal.SIGINT)

_EXAMPLES = """\
examples:
  socklb watch --source /run/backends.json --audit /var/log/socklb.jsonl
  my-controller | socklb watch --source - --rev-nat
  socklb watch --source kubernetes --metrics 9469 --dry-run

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
left alone, and nothing is destroyed at the start, but with --remember. What
fails is tried again where it failed, for 15 minutes. Needs what
`socklb terminate` needs.

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
    add_source_arguments(parser)
    add_netns_argument(parser, ALL)
    add_rev_nat_arguments(parser)
    add_conntrack_arguments(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="destroy nothing: look once for what is connected to a backend that goes down, and count it",
    )
    add_audit_argument(parser)
    add_memory_arguments(parser)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)  # of the other commands
    parser.add_argument("--log-json", action="store_true", help="one JSON object a line, on both outputs")
    parser.add_argument(
        "--metrics",
        metavar="[ADDRESS:]PORT",
        help="serve /metrics for Prometheus, /healthz and /readyz there; default address: 127.0.0.1",
    )


def run(options: argparse.Namespace) -> int:
    if options.json:
        options.fail("there is no --json here: it is --log-json, one object a line")
    words, conntrack = options.netns or [ALL], conntrack_from(options)
    with ExitStack() as stack:
        actions: dict[int, Callable[[], object]] = {}
        came = stack.enter_context(_signals(actions))  # left last: no signal breaks off what is still to be written
        named = NamedNamespaces(word for word in words if word != ALL)  # an unknown one is an error now
        source = source_from(options)
        status = _conntrack_status(words, conntrack)
        reporter = stack.enter_context(
            Reporter(options.readable_only, options.dry_run, as_json=options.log_json, conntrack=status)
        )
        _check_support(words, reporter.warn, dry_run=options.dry_run)
        audit = stack.enter_context(audit_from(options))
        rev_nat = stack.enter_context(rev_nat_from(options))
        table = PackedTable()
        on_pass: list[Callable[[Pass], object]] = [reporter.report]
        loop = TerminationLoop(
            table,
            namespaces=ALL if ALL in words else lambda: named.present(reporter.warn_once),
            rev_nat=rev_nat,
            conntrack=conntrack,
            external=options.external,
            audit=audit,
            readable_only=options.readable_only,
            dry_run=options.dry_run,
            on_pass=lambda done: [call(done) for call in on_pass],
        )
        if options.metrics is not None:
            on_pass.append(stack.enter_context(served(options.metrics, source, table, loop)))
        stack.enter_context(remembered(options, source, table, loop, reporter.warn))
        actions[signal.SIGINT] = actions[signal.SIGTERM] = loop.stop
        actions[signal.SIGHUP] = lambda: _reopen(audit, reporter)
        actions[signal.SIGUSR1] = lambda: reporter.show(lambda: _table_text(table, loop))
        reporter.say(_start_text(options, source, words, status))
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


def _start_text(options: argparse.Namespace, source: Source, words: list[str], conntrack: str) -> str:
    """What is followed, and where; and what is not done."""
    what = "standard input" if options.source == STANDARD_INPUT else getattr(source, "text", options.source)
    off = [name for name in ("rev_nat", "audit", "metrics", "remember") if not getattr(options, name)]
    without = "--no-conntrack" if options.no_conntrack else conntrack_text(conntrack, options.dry_run)
    return (
        f"follows {what} in network namespaces {', '.join(words)}"
        f"{'; dry run: nothing is destroyed' if options.dry_run else ''}"
        f"{'; ' if without else ''}{without}"
        f"{'; not asked for: --' if off else ''}{', --'.join(off).replace('_', '-')}"
    )


def _check_support(words: list[str], warn: Callable[[str], object], *, dry_run: bool) -> None:
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
    if NOT_PERMITTED in statuses and {CURRENT, ALL} & {*words} and not dry_run:
        missing = next(answer.missing for answer in answers.values() if answer.status == NOT_PERMITTED)
        raise NotPermitted(errno.EPERM, f"not permitted: it needs {missing}; run as root, or grant it")
    for missing, protocols in lacking.items():
        if protocols - destroyable(answers):
            names = " and ".join(sorted(protocols))
            warn(f"this kernel cannot destroy {names} sockets: it lacks {missing}; such backends are left alone")


def _conntrack_status(words: list[str], conntrack: bool | str) -> str:
    """What comes of looking into conntrack, as far as the current namespace tells: see Report. Raises NotSupported or
    NotPermitted where it is required.
    """
    if not conntrack:
        return OFF
    from ..conntrack.support import conntrack_support

    status, missing = conntrack_support()
    if status == SUPPORTED or not {CURRENT, ALL} & {*words}:
        return CONNTRACK_DONE
    is_absent = status != NOT_PERMITTED
    if conntrack is True and is_absent:
        raise NotSupported(errno.EOPNOTSUPP, f"--conntrack: this kernel has none that can be asked: {missing}")
    if conntrack is True:
        raise NotPermitted(errno.EPERM, f"--conntrack: not permitted: it needs {missing}; run as root, or grant it")
    return ABSENT if is_absent else REFUSED


@contextmanager
def _signals(actions: Mapping[int, Callable[[], object]]) -> Iterator[list[int]]:
    """While active, each of its signals is noted, and calls the action that there is for it by then; but for those that
    are ignored. Yields the list of those that have come, since `main` began.
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
    came[:0] = signals_so_far()
    try:
        yield came
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


def _ends(came: list[int]) -> int:
    """How many of these signals ask the command to end."""
    return sum(number in _ENDING for number in came)


def _reopen(audit: AuditFile | None, reporter: Reporter) -> None:
    if audit is None:
        return
    try:
        audit.reopen()
    except AuditError as error:
        reporter.warn(f"{error_text(error)}; the old one stays")


def _table_text(table: PackedTable, loop: TerminationLoop) -> str:
    """Each backend in a line, alive or down, and how many there are."""
    alive = table.backends()
    alive.update((backend, table.is_alive(backend)) for backend in loop.outstanding)
    lines = [f"{backend} {'alive' if is_alive else 'down'}" for backend, is_alive in alive.items()]
    return "\n".join(f"socklb: {line}" for line in [*lines, f"{sum(alive.values())} of {len(alive)} backends alive"])


@contextmanager
def _followed(source: Source, table: PackedTable, loop: TerminationLoop, reporter: Reporter) -> Iterator[None]:
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
