# SPDX-License-Identifier: MIT
"""The loop that follows a table of backends, and destroys the connections to those that go down."""

from __future__ import annotations

from collections import namedtuple
from queue import Empty, SimpleQueue
from time import monotonic

from ..engine.run import ALL, CURRENT
from ..errors import AuditError, NotPermitted, NotSupported, SocklbError
from ..kernel.discovery import DiscoveredNamespaces, discover_namespaces
from ..kernel.namespaces import NetworkNamespace
from .terminate import terminate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Union

    from ..engine.audit import Audit
    from ..engine.report import Report
    from ..engine.run import Namespaces
    from ..filters.backend import Backend
    from ..reverse_nat.maps import RevNatMaps
    from .table import BackendTable

    Choice = Union[Namespaces, Callable[[], Namespaces]]

GATHER_SECONDS = 0.05
"""Changes gather for so long from the first, and go as one batch."""

PAUSES = (1, 2, 4, 8, 16, 32, 60, 60, 60)
"""Seconds between the attempts at a backend whose pass failed; after the last one it is given up."""

THREADS_SECONDS = 60.0
"""How often namespaces are looked for that only a thread is in: with many threads it is what a pass costs most."""

_PATIENCE_SECONDS = 1.0  # Python may miss a signal that comes just as a wait begins; it is noticed after so long


class Pass(namedtuple("Pass", "backends report error given_up is_second_pass")):
    """One pass of the loop.

    `backends`: those that it was for. `report`: what it did, `error`: what ended it (either may be None). `given_up`:
    backends that were attempted too often. `is_second_pass`: all of them had been terminated before.
    """

    __slots__ = ()
    backends: list[Backend]
    report: Report | None
    error: Exception | None
    given_up: list[Backend]
    is_second_pass: bool


class _Scheduled(namedtuple("_Scheduled", "time failures is_second_pass")):
    """When a backend that went down is next to be terminated, and how often that has failed."""

    __slots__ = ()


class _Discovery:
    """Discovers namespaces again and again; those that only a thread is in are remembered from one minute's look."""

    def __init__(self) -> None:
        self._of_threads: list[NetworkNamespace] = []
        self._next_look = 0.0

    def discover(self) -> DiscoveredNamespaces:
        threads = monotonic() >= self._next_look
        found = discover_namespaces(threads=threads)
        if threads:
            self._next_look = monotonic() + THREADS_SECONDS
            self._of_threads = [namespace for namespace in found if "/task/" in namespace.path]
        both = DiscoveredNamespaces(dict.fromkeys((*found, *self._of_threads)))
        both.refused, both.hidden = found.refused, found.hidden
        return both


class TerminationLoop:
    """Destroys the connections to each backend of a table that goes down, in passes of `terminate_connections`.

    Changes gather for 50 ms from the first and go as one batch; what has come back by then is not terminated. A second
    pass, `second_pass` seconds after the first (None: no such pass), catches what was connecting meanwhile, unless the
    backend has come back. A backend whose pass failed is attempted again, with growing pauses, ten times in all.

    `namespaces` as in `destroy_sockets`, or a function that is asked for them at each pass. "all" are discovered anew
    at each pass, but for those that only a thread is in: these are looked for once a minute. `on_pass` is called with a
    Pass after each; without it, failures are logged.
    """

    def __init__(
        self,
        table: BackendTable,
        *,
        namespaces: Choice = ALL,
        rev_nat: RevNatMaps | None = None,
        audit: Audit | None = None,
        second_pass: float | None = 1.0,
        on_pass: Callable[[Pass], object] | None = None,
    ) -> None:
        if second_pass is not None and second_pass < 0:
            raise ValueError(f"second_pass {second_pass} is below 0")
        if isinstance(namespaces, str) and namespaces not in (CURRENT, ALL):
            raise ValueError(f'namespaces is "current", "all", or NetworkNamespaces, not {namespaces!r}')
        self._table = table
        if isinstance(namespaces, NetworkNamespace):
            namespaces = (namespaces,)  # that it has vanished is no failure here
        is_one = callable(namespaces) or isinstance(namespaces, str)
        self._namespaces = namespaces if is_one else tuple(namespaces)  # type: ignore[arg-type]
        self._rev_nat, self._audit, self._second_pass = rev_nat, audit, second_pass
        self._on_pass = on_pass or _log
        self._discovery = _Discovery()
        self._scheduled: dict[Backend, _Scheduled] = {}
        self._stopped = self._finishing = False
        self._wake: SimpleQueue[None] = SimpleQueue()  # its put() may be called from a signal handler

    def stop(self) -> None:
        """Let `run` return once what has gone down by now is terminated. Signal handlers may call this."""
        self._stopped = True
        self._wake_up()

    def finish(self) -> None:
        """Finish all pending work, second passes included, then let `run` return. For the end of the input."""
        self._finishing = True
        self._wake_up()

    @property
    def outstanding(self) -> list[Backend]:
        """Backends that have gone down and are not done with."""
        return list(self._scheduled)

    def run(self) -> None:
        """Run until `stop()` or `finish()`.

        Raises NotSupported, NotPermitted (every namespace refused) and what the audit raises: another attempt would not
        help. What had been done by then is in `.report` of the error.
        """
        with self._table.subscribe(self._wake_up):
            self._run()

    def _run(self) -> None:
        gathered: float | None = None  # when the batch that is gathering is to go
        while True:
            now, stopping = monotonic(), self._stopped
            if gathered is None and self._table.has_down():
                gathered = now + GATHER_SECONDS
            if gathered is not None and (now >= gathered or stopping):
                gathered = None
                self._scheduled.update(dict.fromkeys(self._table.drain_down(), _Scheduled(now, 0, False)))
            self._pass_for([backend for backend, scheduled in self._scheduled.items() if scheduled.time <= now])
            if stopping or (self._finishing and not self._has_more_to_do()):
                return
            self._wait(gathered)

    def _has_more_to_do(self) -> bool:
        """What has failed is not waited for."""
        return self._table.has_down() or any(not scheduled.failures for scheduled in self._scheduled.values())

    def _wait(self, gathered: float | None) -> None:
        """Until the next thing is due, or something changes."""
        times = [scheduled.time for scheduled in self._scheduled.values()] + ([] if gathered is None else [gathered])
        try:
            self._wake.get(timeout=max(0.0, min([*times, monotonic() + _PATIENCE_SECONDS]) - monotonic()))
        except Empty:
            return

    def _wake_up(self) -> None:
        if self._wake.empty():
            self._wake.put(None)

    def _pass_for(self, backends: list[Backend]) -> None:
        """One pass for those of the backends that have not come back; then schedule their next one, if any."""
        down = []
        for backend in backends:
            if self._table.is_alive(backend):
                del self._scheduled[backend]
            else:
                down.append(backend)
        if not down:
            return
        is_second_pass = all(self._scheduled[backend].is_second_pass for backend in down)
        report, error = self._pass(down)
        given_up = [backend for backend in down if not self._reschedule(backend, _has_failed(backend, report, error))]
        self._on_pass(Pass(down, report, error, given_up, is_second_pass))

    def _pass(self, backends: list[Backend]) -> tuple[Report | None, Exception | None]:
        try:
            if self._rev_nat is not None:
                self._rev_nat.reopen()
            namespaces: Any = self._namespaces() if callable(self._namespaces) else self._namespaces
            if namespaces == ALL:
                namespaces = self._discovery.discover()
            return terminate(
                backends, namespaces, rev_nat=self._rev_nat, audit=self._audit, is_alive=self._table.is_alive
            ), None
        except (NotSupported, NotPermitted, AuditError):
            raise
        except (SocklbError, ValueError) as error:
            report = getattr(error, "report", None)
            if report is not None and report.unrecorded:
                raise  # the audit's own
            return report, error

    def _reschedule(self, backend: Backend, has_failed: bool) -> bool:
        """Schedule the backend's next pass, if it is to have one; False if it is given up."""
        last = self._scheduled.pop(backend)
        if has_failed:
            if last.failures >= len(PAUSES):
                return False
            self._scheduled[backend] = _Scheduled(
                monotonic() + PAUSES[last.failures], last.failures + 1, last.is_second_pass
            )
        elif not last.is_second_pass and self._second_pass is not None:
            self._scheduled[backend] = _Scheduled(monotonic() + self._second_pass, 0, True)
        return True


def _has_failed(backend: Backend, report: Report | None, error: Exception | None) -> bool:
    """Whether some namespace was not searched to the end, or a socket of the backend is still there."""
    return error is not None or report is None or bool(report.errors) or report.backends[backend].failed > 0


def _log(done: Pass) -> None:
    """Failures go to the log where no `on_pass` takes them."""
    reasons = [str(error) for error in done.report.errors.values()] if done.report else []
    if done.error is not None:
        reasons.append(str(done.error))
    if reasons or done.given_up:
        from logging import getLogger  # few need it

        names = ", ".join(map(str, done.backends))
        verdict = "given up" if done.given_up else "to be tried again"
        getLogger("socklb").warning("terminate connections to %s: %s (%s)", names, "; ".join(reasons), verdict)
