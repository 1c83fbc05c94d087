# SPDX-License-Identifier: MIT
"""One operation in many namespaces, several at once."""

from __future__ import annotations

from threading import Lock

from ..errors import NotPermitted, NotSupported, RunStopped, SocklbError
from ..kernel.discovery import VANISHED, SkippedNamespace, discover
from ..kernel.names import UnknownName
from ..kernel.namespaces import CannotEnter, NamespaceVanished, NetworkNamespace
from .parallel import in_parallel
from .report import Counts, DestroyReport, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Union

    from .destroy import Operation

    Result = Union[DestroyReport, BaseException]
    Progress = Callable[[int, int, NetworkNamespace], object]


class NamespacesReport(Counts):
    """What an operation did in many namespaces: `outcomes`, as (namespace, outcome) pairs, and their sums.

    `namespaces` has a DestroyReport for each, or the error that ended it there; `reports` has a DestroyReport in either
    case, of what its sockets had come to by then. `skipped_namespaces` could not be looked at, or vanished, as (path,
    reason) pairs. `unrecorded` are the outcomes whose audit failed: at most one batch.
    """

    __slots__ = ("namespaces", "outcomes", "reports", "skipped_namespaces", "unrecorded")

    def __init__(self) -> None:
        super().__init__()
        self.namespaces: dict[NetworkNamespace, Result] = {}
        self.reports: dict[NetworkNamespace, DestroyReport] = {}
        self.outcomes: list[tuple[NetworkNamespace, Outcome]] = []
        self.skipped_namespaces: list[SkippedNamespace] = []
        self.unrecorded: list[Outcome] = []

    @property
    def errors(self) -> dict[NetworkNamespace, BaseException]:
        """Those namespaces where an error (or an interrupt) ended it."""
        return {where: result for where, result in self.namespaces.items() if isinstance(result, BaseException)}

    def add(self, namespace: NetworkNamespace, result: Result) -> None:
        """Take in what came of one namespace."""
        if isinstance(result, NamespaceVanished):
            self.skipped_namespaces.append(SkippedNamespace(namespace.path, VANISHED))
            return
        self.namespaces[namespace] = result
        report = result if isinstance(result, DestroyReport) else getattr(result, "report", None) or DestroyReport()
        self.reports[namespace] = report
        self.unrecorded += report.unrecorded
        for outcome in report.outcomes:
            self._take(namespace, outcome)

    def _take(self, namespace: NetworkNamespace, outcome: Outcome) -> None:
        self.count(outcome.verdict)
        self.outcomes.append((namespace, outcome))


def run_everywhere(
    operation: Operation,
    namespaces: Iterable[NetworkNamespace] | None,
    report: NamespacesReport,
    progress: Progress | None = None,
) -> None:
    """Run the operation in each namespace (None: all that can be discovered), and put what came of it into the report.

    A namespace that fails does not stop the others. What does: NotSupported, for the kernel is the same everywhere; an
    audit that fails; an interrupt. At the end an error is raised if every namespace has the same kind: NotPermitted, or
    UnknownName for an interface (where only some lack it, there was nothing to match); and CannotEnter if any has it.
    Whatever is raised once it has begun has the report in `.report`.
    """
    chosen = _chosen(namespaces, report)
    lock = Lock()
    done = 0
    begun: set[NetworkNamespace] = set()

    def run(namespace: NetworkNamespace) -> None:
        nonlocal done
        begun.add(namespace)
        result: Result
        try:
            result = operation.run_in(namespace)
        except BaseException as error:
            result = error
        with lock:
            report.add(namespace, result)
            done += 1
            if progress is not None:
                progress(done, len(chosen), namespace)
        if isinstance(result, BaseException) and _ends_the_run(result, operation):
            raise result

    try:
        in_parallel(run, chosen, operation.stop)
        _judge(report)
    except BaseException as error:
        for namespace in chosen:
            if namespace not in begun and operation.is_stopped:
                report.add(namespace, RunStopped("not begun"))
        error.report = report  # type: ignore[attr-defined]
        raise


def _chosen(namespaces: Iterable[NetworkNamespace] | None, report: NamespacesReport) -> list[NetworkNamespace]:
    """Each namespace once, the caller's own first: a thread that has left it may not be allowed back."""
    if namespaces is None:
        found = discover()
        report.skipped_namespaces += found.skipped
        return list(found)
    chosen = list(dict.fromkeys(namespaces))
    for namespace in chosen:
        if not isinstance(namespace, NetworkNamespace):
            raise TypeError(f"namespaces are NetworkNamespaces, not {namespace!r}")
    here = NetworkNamespace.current()
    return sorted(chosen, key=lambda namespace: namespace != here)


def _ends_the_run(error: BaseException, operation: Operation) -> bool:
    if error is operation.audit_error or isinstance(error, NotSupported):
        return not isinstance(error, CannotEnter)
    return not isinstance(error, (SocklbError, ValueError))


def _judge(report: NamespacesReport) -> None:
    """Raise what every namespace has come to, or what this Python cannot; settle what is no failure."""
    errors = list(report.errors.values())
    for kind in (NotPermitted, UnknownName):
        if errors and len(errors) == len(report.namespaces) and all(isinstance(error, kind) for error in errors):
            raise errors[0]
    for namespace, error in report.errors.items():
        if isinstance(error, UnknownName):
            report.namespaces[namespace] = report.reports[namespace]
    for error in errors:
        if isinstance(error, CannotEnter):
            raise error
