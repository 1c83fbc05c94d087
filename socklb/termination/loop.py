# SPDX-License-Identifier: MIT
"""The loop that is told which backends there are, and cuts the connections to those that fall."""

from __future__ import annotations

from collections import namedtuple
from queue import Empty, SimpleQueue
from time import monotonic

from ..errors import AuditError, NotPermitted, NotSupported, SocklbError
from .terminate import TerminationReport, terminate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NamedTuple, Optional, Union

    from ..engine.ledger import Audit
    from ..filters.backend import Backend
    from ..kernel.namespaces import NetworkNamespace
    from ..reverse_nat.maps import RevNatMaps
    from .table import BackendTable

    Some = Optional[Iterable[NetworkNamespace]]
    Namespaces = Union[Some, Callable[[], Some]]

GATHER_SECONDS = 0.05
"""Changes gather for so long from the first, and go as one batch."""

PAUSES = (1, 2, 4, 8, 16, 32, 60, 60, 60)
"""Seconds between the attempts at a backend whose pass failed; behind the last it is given up."""

_PATIENCE_SECONDS = 1.0  # Python may miss a signal that comes just as a wait begins; it is seen after so long

if TYPE_CHECKING:

    class Pass(NamedTuple):
        """One pass of the loop: for which backends, and its report or (with what there is of a report) its error.

        `given_up` are the backends that were attempted too often; `is_second_look`: all were cut before.
        """

        backends: list[Backend]
        report: Optional[TerminationReport]
        error: Optional[Exception]
        given_up: list[Backend]
        is_second_look: bool

else:
    Pass = namedtuple("Pass", "backends report error given_up is_second_look")


class _Due(namedtuple("_Due", "time failures is_second_look")):
    """When a fallen backend is to be cut, how often that has failed, and whether it is the look after the cut."""

    __slots__ = ()


class TerminationLoop:
    """Cuts the connections to each backend of a table that falls, in passes of `terminate_connections`.

    Changes gather for 50 ms from the first and go as one batch; what is alive again by then is not cut. A second look,
    `second_look` seconds after the cut (None: no such look), catches what was connecting meanwhile, unless the backend
    is alive again. A backend whose pass failed is attempted again, with growing pauses and not for ever.

    `namespaces` are those to search: None for all that can be discovered at each pass, some, or a function that is
    asked for them at each pass. `on_pass` is called with a Pass after each; without it, failures are logged.
    """

    def __init__(
        self,
        table: BackendTable,
        *,
        namespaces: Namespaces = None,
        rev_nat: RevNatMaps | None = None,
        audit: Audit | None = None,
        second_look: float | None = 1.0,
        on_pass: Callable[[Pass], object] | None = None,
    ) -> None:
        if second_look is not None and second_look < 0:
            raise ValueError(f"second_look {second_look} is below 0")
        self._table = table
        self._namespaces = namespaces if namespaces is None or callable(namespaces) else tuple(namespaces)
        self._rev_nat, self._audit, self._second_look = rev_nat, audit, second_look
        self._on_pass = on_pass or _log
        self._due: dict[Backend, _Due] = {}
        self._stopped = self._finishing = False
        self._wake: SimpleQueue[None] = SimpleQueue()  # its put() may be called from a signal handler

    def stop(self) -> None:
        """Let `run` return after the batch at hand: what has fallen by then is cut. Signal handlers may call this."""
        self._stopped = True
        self._wake_up()

    def finish(self) -> None:
        """Let `run` return when all is done that was told by now, second looks included. For the end of the input."""
        self._finishing = True
        self._wake_up()

    @property
    def outstanding(self) -> list[Backend]:
        """Backends that have fallen and are not done with."""
        return list(self._due)

    def run(self) -> None:
        """Run until `stop()` or `finish()`.

        Raises NotSupported, NotPermitted (no namespace would allow it) and what the audit raises: nothing is gained by
        another attempt then. What had been done by then is in `.report` of the error.
        """
        with self._table.told_of_falls(self._wake_up):
            self._run()

    def _run(self) -> None:
        gathered: float | None = None  # when the batch that is gathering is to go
        while True:
            now, stopping = monotonic(), self._stopped
            if gathered is None and self._table.has_fallen():
                gathered = now + GATHER_SECONDS
            if gathered is not None and (now >= gathered or stopping):
                gathered = None
                self._due.update(dict.fromkeys(self._table.take_fallen(), _Due(now, 0, False)))
            self._look_after([backend for backend, due in self._due.items() if due.time <= now])
            if stopping or (self._finishing and not self._has_more_to_do()):
                return
            self._wait(gathered)

    def _has_more_to_do(self) -> bool:
        """What has failed is not waited for."""
        return self._table.has_fallen() or any(not due.failures for due in self._due.values())

    def _wait(self, gathered: float | None) -> None:
        """Until the next thing is due, or something changes."""
        times = [due.time for due in self._due.values()] + ([] if gathered is None else [gathered])
        try:
            self._wake.get(timeout=max(0.0, min([*times, monotonic() + _PATIENCE_SECONDS]) - monotonic()))
        except Empty:
            return

    def _wake_up(self) -> None:
        if self._wake.empty():
            self._wake.put(None)

    def _look_after(self, backends: list[Backend]) -> None:
        """One pass for those of the backends that are not alive again; it settles when they are due next, if ever."""
        fallen = []
        for backend in backends:
            if self._table.is_alive(backend):
                del self._due[backend]
            else:
                fallen.append(backend)
        if not fallen:
            return
        is_second_look = all(self._due[backend].is_second_look for backend in fallen)
        report, error = self._pass(fallen)
        given_up = [backend for backend in fallen if not self._reschedule(backend, _has_failed(backend, report, error))]
        self._on_pass(Pass(fallen, report, error, given_up, is_second_look))

    def _pass(self, backends: list[Backend]) -> tuple[TerminationReport | None, Exception | None]:
        try:
            if self._rev_nat is not None:
                self._rev_nat.reopen()
            namespaces = self._namespaces() if callable(self._namespaces) else self._namespaces
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
        """Say when the backend is due next, if it is; False if it is given up."""
        due = self._due.pop(backend)
        if has_failed:
            if due.failures >= len(PAUSES):
                return False
            self._due[backend] = _Due(monotonic() + PAUSES[due.failures], due.failures + 1, due.is_second_look)
        elif not due.is_second_look and self._second_look is not None:
            self._due[backend] = _Due(monotonic() + self._second_look, 0, True)
        return True


def _has_failed(backend: Backend, report: TerminationReport | None, error: Exception | None) -> bool:
    """Whether some namespace was not searched to the end, or a socket of the backend is still there."""
    return error is not None or report is None or bool(report.errors) or report.backends[backend].failed > 0


def _log(done: Pass) -> None:
    """Failures go to the log when nobody is told of passes."""
    reasons = [str(error) for error in done.report.errors.values()] if done.report else []
    if done.error is not None:
        reasons.append(str(done.error))
    if reasons or done.given_up:
        from logging import getLogger  # few need it

        names = ", ".join(map(str, done.backends))
        verdict = "given up" if done.given_up else "to be tried again"
        getLogger("socklb").warning("terminate connections to %s: %s (%s)", names, "; ".join(reasons), verdict)
