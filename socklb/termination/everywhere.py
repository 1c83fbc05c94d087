"""One operation in many namespaces, several at once."""

from __future__ import annotations

from threading import Lock

from ..errors import NotPermitted, NotSupported, RunStopped, SocklbError
from ..kernel.discovery import VANISHED, SkippedNamespace, discover
from ..kernel.namespaces import NamespaceVanished, NetworkNamespace
from ..kernel.parallel import in_parallel
from ..report import Counts, DestroyReport, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Union

    from ..destroy import Operation

    Result = Union[DestroyReport, BaseException]
    Progress = Callable[[int, int, NetworkNamespace], object]


class NamespacesReport(Counts):
    """What an operation did in many namespaces: `outcomes`, as (namespace, outcome) pairs, and their sums.

    `namespaces` has a DestroyReport for each, or the error that ended it there; what its sockets had come to by then
    counts. `skipped_namespaces` could not be looked at, or vanished, as (path, reason) pairs. `unrecorded` are the
    outcomes whose audit failed: at most one batch.
    """

    __slots__ = ("namespaces", "outcomes", "skipped_namespaces", "unrecorded")

    def __init__(self) -> None:
        super().__init__()
        self.namespaces: dict[NetworkNamespace, Result] = {}
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
        report: DestroyReport = result if isinstance(result, DestroyReport) else result.report  # type: ignore[attr-defined]
        for outcome in report.outcomes:
            self.count(outcome.verdict)
            self.outcomes.append((namespace, outcome))
        self.unrecorded += report.unrecorded


def run_everywhere(
    operation: Operation,
    namespaces: Iterable[NetworkNamespace] | None,
    report: NamespacesReport,
    progress: Progress | None = None,
) -> None:
    """Run the operation in each namespace (None: all that can be discovered), and put what came of it into the report.

    A namespace that fails does not stop the others. What does: NotSupported, for the kernel is the same everywhere; an
    audit that fails; an interrupt. NotPermitted is raised if every namespace answered so. Whatever is raised has the
    report in `.report`.
    """
    chosen = _chosen(namespaces, report)
    lock = Lock()
    done = 0

    def run(namespace: NetworkNamespace) -> None:
        nonlocal done
        result: Result
        fatal = None
        try:
            result = operation.run_in(namespace)
        except BaseException as error:
            result = error
            fatal = error if _ends_the_run(error, operation) else None
        with lock:
            report.add(namespace, result)
            done += 1
            if progress is not None:
                progress(done, len(chosen), namespace)
        if fatal is not None:
            raise fatal

    try:
        in_parallel(run, chosen, operation.stop)
        refusals = [error for error in report.errors.values() if isinstance(error, NotPermitted)]
        if refusals and len(refusals) == len(report.namespaces):
            raise refusals[0]
    except BaseException as error:
        error.report = report  # type: ignore[attr-defined]
        raise


def _chosen(namespaces: Iterable[NetworkNamespace] | None, report: NamespacesReport) -> list[NetworkNamespace]:
    """Each namespace once."""
    if namespaces is None:
        found = discover()
        report.skipped_namespaces += found.skipped
        return list(found)
    chosen = list(dict.fromkeys(namespaces))
    for namespace in chosen:
        if not isinstance(namespace, NetworkNamespace):
            raise TypeError(f"namespaces are NetworkNamespaces, not {namespace!r}")
    return chosen


def _ends_the_run(error: BaseException, operation: Operation) -> bool:
    """RunStopped does not: it came from what ended the run already."""
    if isinstance(error, (NotSupported, RunStopped)):
        return isinstance(error, NotSupported)
    return operation.is_stopped or not isinstance(error, (SocklbError, ValueError))
