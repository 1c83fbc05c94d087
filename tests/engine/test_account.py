"""What a run takes into account besides sockets that it destroys, and what follows when it has destroyed some."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from socklb import Counts, Outcome, RunStopped
from socklb.engine.run import Run

from ..conntrack.ctnetlink import flow
from ..fake_kernel import FakeKernel, StatefulTable, row
from .test_run import Record, carried_out, netns, report_of

HERE = netns(1)
FLOW = flow("10.96.0.10:53/UDP", "10.0.0.5:53/UDP")


def cut(verdict: str) -> Outcome:
    """Of an entry that no socket is known of."""
    return Outcome(None, verdict, "", None, HERE, FLOW)


def accounting(run: Run, *batches: list[Outcome]) -> Callable[[], None]:
    def work() -> None:
        for batch in batches:
            run.account(lambda batch=batch: batch)  # type: ignore[misc]

    return work


class TestAccount:
    """It is counted, limited, recorded, stopped and interrupted as destroying is."""

    def test_it_is_counted_and_recorded_with_its_target(self) -> None:
        records: list[Record] = []

        def target(outcome: Outcome) -> dict[str, Any]:
            return {"backend": str(run.report.backend_of(outcome))}

        run = Run(audit=records.append, target=target, after=lambda outcomes: [], backends=[FLOW.backend])
        report = run.carry_out(accounting(run, [cut("rerouted"), cut("skipped")]))
        assert report.counts == report.namespaces[HERE] == report.backends[FLOW.backend]
        assert report.counts == Counts(rerouted=1, skipped=1)
        said = [(record["namespace"], record["backend"], record["outcome"]) for record in records]
        assert said == [("net1", "10.0.0.5:53/UDP", "rerouted"), ("net1", "10.0.0.5:53/UDP", "skipped")]

    def test_what_was_achieved_uses_up_the_limit(self) -> None:
        run = Run(limit=3)
        with FakeKernel(StatefulTable([row(n) for n in range(1, 6)])).installed():
            run.carry_out(accounting(run, [cut("rerouted"), cut("cleared"), cut("gone"), cut("failed")]))
            assert carried_out(run).counts == Counts(1, rerouted=1, cleared=1, gone=1, failed=1, skipped=4)

    @pytest.mark.parametrize(
        ("end", "error"),
        [(lambda run: signal.raise_signal(signal.SIGINT), KeyboardInterrupt), (lambda run: run.stop("x"), RunStopped)],
        ids=["signal", "stop"],
    )
    def test_what_has_begun_is_recorded_and_the_next_is_not_begun(self, end: Any, error: type[BaseException]) -> None:
        records: list[Record] = []
        begun: list[str] = []
        run = Run(audit=records.append)

        def act() -> list[Outcome]:
            if not begun:
                end(run)
            begun.append("act")
            return [cut("rerouted")]

        def work() -> None:
            for _ in range(2):
                run.obey_signals()
                run.account(act)

        with pytest.raises(error) as caught:
            run.carry_out(work)
        assert report_of(caught.value).counts == Counts(rerouted=1)
        assert (len(begun), [record["outcome"] for record in records]) == (1, ["rerouted"])

    def test_what_stands_instead_of_others_is_unrecorded_if_the_audit_fails(self) -> None:
        before, other, unknown, failed = cut("rerouted"), cut("rerouted"), cut("rerouted"), cut("failed")

        def audit(record: Record) -> None:
            if record["outcome"] == "failed":
                raise ZeroDivisionError

        run = Run(audit=audit)
        run.carry_out(accounting(run, [before, other]))
        with pytest.raises(ZeroDivisionError):
            run.carry_out(lambda: run.account(lambda: [failed], instead_of=[unknown, before]))
        assert [*map(id, run.report.outcomes)] == [id(other), id(failed)]
        assert run.report.unrecorded == [failed]


def test_outcomes_are_reported_as_the_hook_gives_them_and_it_comes_before_the_record() -> None:
    events: list[str] = []

    def after(outcomes: list[Outcome]) -> list[Outcome]:
        events.append("after")
        return [outcome._replace(reason="told", flow=FLOW) for outcome in outcomes]

    run = Run(after=after, audit=lambda record: events.append(f"{record['reason']} {record['conntrack_id']}"))
    with FakeKernel(StatefulTable([row(1), row(2)])).installed():
        report = carried_out(run)
    assert events == ["after", *[f"told {FLOW.id}"] * 2]
    assert [(one.verdict, one.reason, one.flow) for one in report.outcomes] == [("destroyed", "told", FLOW)] * 2
