"""The calls that cut connections to backends, in the form that `calls` gives to all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any
from unittest import mock

from socklb import DestroyReport, NetworkNamespace, NotPermitted, NotSupported, SocklbError
from socklb.filters.backend import Backend
from socklb.termination import TerminationLoop, TerminationReport, loop, terminate_connections
from socklb.termination.loop import Pass
from socklb.termination.table import BackendTable

from ..fake_kernel import verdicts
from .calls import VERDICTS, End, Ended, Told

BACKENDS = [
    Backend.parse(f"{address}:80/{protocol}") for protocol in ("TCP", "UDP") for address in ("10.0.0.5", "[fd00::5]")
]


def terminate() -> Ended:
    ended = None
    try:
        report = terminate_connections(BACKENDS, namespaces=[NetworkNamespace.current()])
    except (NotPermitted, NotSupported) as error:  # any other is that namespace's
        ended, report = error, error.report
    return Ended(End.of(ended or error_in(report)), told_by(report))


def run_loop() -> Ended:
    """All backends fall at once, and a pass that fails is not repeated."""
    passes: list[Pass] = []
    table = BackendTable()
    namespaces = [NetworkNamespace.current()]
    cutting = TerminationLoop(table, namespaces=namespaces, second_look=None, on_pass=passes.append)
    for backend in BACKENDS:
        table.upsert(backend)
    for backend in BACKENDS:
        table.delete(backend)
    cutting.finish()
    ended = None
    with mock.patch.object(loop, "PAUSES", ()), mock.patch.object(loop, "GATHER_SECONDS", 0):
        try:
            cutting.run()
        except (NotPermitted, NotSupported) as error:
            ended, report = error, error.report
        else:
            (done,) = passes
            report = done.report
            assert done.error is None
            assert bool(done.given_up) == bool(report and (report.errors or report.failed))
    assert isinstance(report, TerminationReport)
    return Ended(End.of(ended or error_in(report)), told_by(report))


def error_in(report: TerminationReport) -> SocklbError | None:
    """What ended it in the only namespace that was searched."""
    (result,) = report.namespaces.values()
    return result if isinstance(result, SocklbError) else None


def told_by(report: TerminationReport) -> Told:
    """By cookie, the verdicts. The sums law holds for each namespace, for the backends together and for the whole."""
    told: dict[Any, str] = {outcome.socket.cookie: outcome.verdict for _, outcome in report.outcomes}
    assert len(told) == len(report.outcomes)
    for result in report.namespaces.values():
        if isinstance(result, DestroyReport):
            assert verdicts(result) == told
    assert report.sums() == total(counts.sums() for counts in report.backends.values())
    counts = Counter(told.values())
    assert report.sums() == {"matched": len(told), **{name: counts[name] for name in VERDICTS}}
    return told


def total(many: Any) -> Mapping[str, int]:
    sums: dict[str, int] = {}
    for one in many:
        for name, count in one.items():
            sums[name] = sums.get(name, 0) + count
    return sums
