# SPDX-License-Identifier: MIT
"""What `watch` says: a line a pass on standard output, the rest on standard error. No pass waits for its reader."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections import namedtuple

from ..engine.report import OFF
from ..errors import NotPermitted, NotSupported, RunStopped
from ..features import standard_module
from ..sources.protocol import shortened
from ..termination.schedule import PAUSES
from .netns import namespace_problems, unsearched_texts
from .outlet import Outlet
from .output import error_text, printable
from .verdicts import conntrack_text, left_alone_texts, outcome_line, sums_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TextIO

    from ..engine.report import Report
    from ..filters.backend import Backend
    from ..termination.loop import Pass

_WORTH_SAYING = 0.1  # seconds
_NAMED = 3  # so many backends are named in a line


class Log:
    """Lines on a stream that nobody waits for, as text or as JSON. Text has a time in front where nobody else puts one
    there, as journald and container runtimes do for what comes through a socket or a pipe.
    """

    def __init__(self, stream: TextIO | None, on_lost: Callable[[int], object], *, as_json: bool) -> None:
        self._json = standard_module("json", "--log-json") if as_json else None
        self._has_to_show = False
        self._has_time = stream is not None and _keeps_lines(stream)
        self._outlet = Outlet(stream, on_lost)
        self.close = self._outlet.close

    def print(self, fields: dict[str, Any], text: str = "") -> None:
        """These, or as text this, by default their message."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03}Z"
        if self._json is not None:
            self._outlet.print(self._json.dumps({"time": stamp, **fields}))
        else:
            line = text or f"socklb: {printable(fields['message'])}"
            self._outlet.print(f"{stamp} {line}" if self._has_time else line)

    def show(self, text: Callable[[], str]) -> None:
        """What this returns by then, in lines, unless something waits to be shown. Signal handlers may call this."""
        if self._has_to_show:
            return
        self._has_to_show = True

        def make() -> str:
            self._has_to_show = False
            return text() if self._json is None else self._json.dumps({"message": text()})

        self._outlet.print(make)


def _keeps_lines(stream: TextIO) -> bool:
    """A file, or a terminal."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) or stream.isatty()


class Reporter:
    """Reports the passes of the loop, and each problem once."""

    def __init__(self, readable_only: bool, dry_run: bool, *, as_json: bool, conntrack: str = OFF) -> None:
        self.has_failed = False
        self._readable_only = readable_only
        self._dry_run = dry_run
        self._conntrack = conntrack  # what was said of it last
        self._what_next = "" if dry_run else "; it is tried again"
        self._said: set[object] = set()
        self._err = Log(sys.stderr, lambda lost: self.warn(f"{lost} messages could not be written"), as_json=as_json)
        self._out = Log(
            sys.stdout,
            lambda lost: self.warn(f"{lost} lines of standard output could not be written"),
            as_json=as_json,
        )

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.close()
        self._err.close()

    def show(self, text: Callable[[], str]) -> None:
        self._err.show(text)

    def say(self, text: str) -> None:
        self._err.print({"level": "info", "message": text})

    def warn(self, text: str) -> None:
        self._err.print({"level": "warning", "message": text})

    def fail(self, text: str) -> None:
        self.has_failed = True
        self.warn(text)

    def warn_once(self, about: object, text: str) -> None:
        """Warn, unless there was a warning about the same before."""
        if about not in self._said:
            self._said.add(about)
            self.warn(text)

    def report(self, done: Pass) -> None:
        self.has_failed = self.has_failed or bool(self._dry_run and done.failed)
        if isinstance(done.error, NotSupported):  # it was said at the start
            self.has_failed = True
        else:
            self._report_problems(done)
        if done.report is not None:
            self._print(done, done.report)
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
            problems[_Problem(text, None)] = text + self._what_next
        if done.report is None:
            return problems
        for namespace, error in done.report.errors.items():
            if error is not done.error and not isinstance(error, RunStopped):
                is_expected = self._readable_only and isinstance(error, NotPermitted)
                text = f"in {namespace.name}: {error_text(error)}"
                problems[_Problem(text, namespace)] = text + ("" if is_expected else self._what_next)
        for one, text in zip(done.report.unsearched, unsearched_texts(done.report.unsearched)):
            about = one.reason if self._readable_only else _Problem(one.reason, None)  # how many there are changes
            problems[about] = text + ("" if self._readable_only else self._what_next)
        return problems

    def _is_over(self, about: object, done: Pass) -> bool:
        """Whether a pass that does not show a problem was where it would have shown."""
        if not isinstance(about, _Problem) or done.report is None or done.error is not None:
            return False
        return about.namespace is None or about.namespace in done.report.namespaces

    def report_end(self, report: Report) -> None:
        """What had been done when an error ended the loop, and what of that is not in the audit."""
        if report.counts.matched:
            self._print_sums([*report.backends], report, {}, "")
        for text in namespace_problems(report.errors, report.unsearched, readable_only=False)[0]:
            self.warn(text)
        for outcome in report.unrecorded:
            self.warn(outcome_line(outcome, report.device_of(outcome), is_unrecorded=True))

    def _print(self, done: Pass, report: Report) -> None:
        """A line for a first pass; for a further one if it found what was not said before: who was spared, or has
        failed in a retry, was.
        """
        counts = report.counts
        is_first = not (done.is_second_pass or done.is_retry)
        said_before = counts.skipped + (counts.failed if done.is_retry else 0)
        if is_first or counts.matched > said_before:
            waited = f" after {done.waited:.1f} s without processor time" if done.waited >= _WORTH_SAYING else ""
            fields = {"seconds": round(done.seconds, 6), "waited": round(done.waited, 6)}
            self._print_sums(done.backends, report, fields, f"; {done.seconds:.3f} s{waited}")
        if report.conntrack not in (OFF, self._conntrack):
            self._conntrack = report.conntrack
            self.warn(conntrack_text(report.conntrack, self._dry_run) or "conntrack can be asked now")
        if report.hidden:
            self.warn_once("hidden", report.hidden)
        for text in left_alone_texts(report.left_alone):
            self.warn_once("left alone", shortened(text))

    def _print_sums(self, backends: list[Backend], report: Report, fields: dict[str, Any], text: str) -> None:
        names = [*map(str, backends)]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        self._out.print(
            {"backends": names, **report.counts.as_dict(), "conntrack": report.conntrack, **fields},
            f"{', '.join(names[:_NAMED])}{more}: {sums_text(report.counts, dry_run=self._dry_run)}{text}",
        )


class _Problem(namedtuple("_Problem", "text namespace")):
    """What is wrong with a pass, in one namespace or (None) as a whole."""

    __slots__ = ()
