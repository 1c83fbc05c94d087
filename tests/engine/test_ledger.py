"""The books of one operation: the report first, then the audit; when that fails, nobody destroys any more."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import DestroyReport, InetSocket, Outcome
from socklb.engine.ledger import Ledger
from socklb.errors import RunStopped

from ..fake_kernel import row

PATIENCE = 30  # seconds until a test that hangs fails instead
BATCH = 64
Record = dict[str, Any]


def outcomes(first: int, count: int = 1, verdict: str = "destroyed") -> list[Outcome]:
    """Of sockets with these cookies."""
    return [Outcome(InetSocket(row(cookie), socket.IPPROTO_TCP), verdict) for cookie in range(first, first + count)]


def cookies(entered: list[Outcome]) -> list[int]:
    return [outcome.socket.cookie for outcome in entered]


def subject(of: InetSocket) -> dict[str, str]:
    return {"filter": f"socket {of.cookie}"}


def enter(ledger: Ledger, report: DestroyReport, entered: list[Outcome]) -> None:
    ledger.enter(report, entered, "net0", subject)


class Full(Exception):
    """What an audit raises."""


def failing_after(count: int, kept: Optional[list[Record]] = None) -> Callable[[Record], None]:
    """An audit that takes so many records, and never one more."""
    taken: list[Record] = [] if kept is None else kept

    def audit(record: Record) -> None:
        if len(taken) == count:
            raise Full("the audit is full")
        taken.append(record)

    return audit


class TestEntries:
    """All into the report, and then into the audit."""

    def test_each_verdict_is_in_the_report_and_has_a_record(self) -> None:
        records: list[Record] = []
        report = DestroyReport()
        entered = [*outcomes(1, 2), Outcome(outcomes(3)[0].socket, "failed", "why", 5)]
        enter(Ledger(records.append, dry_run=False), report, entered)
        assert report.outcomes == entered
        assert (report.destroyed, report.failed, report.unrecorded) == (2, 1, [])
        assert [(record["cookie"], record["filter"]) for record in records] == [(n, f"socket {n}") for n in (1, 2, 3)]
        assert {record["namespace"] for record in records} == {"net0"}
        assert [(r["outcome"], r["reason"], r["error"]) for r in records] == [o[1:] for o in entered]

    @pytest.mark.parametrize("dry_run", [True, False])
    def test_a_dry_run_is_in_the_record(self, dry_run: bool) -> None:
        records: list[Record] = []
        enter(Ledger(records.append, dry_run=dry_run), DestroyReport(), outcomes(1))
        assert records[0]["dry_run"] is dry_run

    def test_the_report_comes_before_the_audit(self) -> None:
        """So that what died is told even if it cannot be recorded."""
        report = DestroyReport()
        seen: list[int] = []
        enter(Ledger(lambda record: seen.append(report.destroyed), dry_run=False), report, outcomes(1, 3))
        assert seen == [3, 3, 3]

    def test_without_an_audit_there_is_the_report_alone(self) -> None:
        report = DestroyReport()
        enter(Ledger(None, dry_run=False), report, outcomes(1, 3))
        assert (report.destroyed, report.unrecorded) == (3, [])

    @pytest.mark.parametrize("audit", ["file", 1, {}])
    def test_an_audit_is_a_function(self, audit: Any) -> None:
        with pytest.raises(TypeError, match="audit is a function that takes a dict, not "):
            Ledger(audit, dry_run=False)


class TestStamp:
    """time (RFC 3339, UTC), operation (one id per call), actor (uid, pid, command, sudo_user)"""

    def records(self, *ledgers: tuple[int, bool]) -> list[Record]:
        kept: list[Record] = []
        for count, dry_run in ledgers:
            ledger = Ledger(kept.append, dry_run=dry_run)
            for number in range(count):
                enter(ledger, DestroyReport(), outcomes(number))
        return kept

    def test_one_operation_has_one_id_and_another_another(self) -> None:
        ids = [record["operation"] for record in self.records((3, False), (2, True))]
        assert ids[:3] == [ids[0]] * 3
        assert ids[3:] == [ids[3]] * 2
        assert ids[0] != ids[3]

    def test_the_time_is_between_before_and_after(self) -> None:
        before = datetime.now(timezone.utc)
        (record,) = self.records((1, False))
        after = datetime.now(timezone.utc)
        assert record["time"].endswith("Z")
        told = datetime.fromisoformat(record["time"][:-1] + "+00:00")
        assert before.replace(microsecond=before.microsecond // 1000 * 1000) <= told <= after

    def test_the_actor_is_who_runs_this(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SUDO_USER", "alice")
        monkeypatch.setattr(sys, "argv", ["socklb", "destroy", "dst 10.0.0.1"])
        (record,) = self.records((1, False))
        assert record["actor"] == {
            "uid": os.getuid(),
            "pid": os.getpid(),
            "command": "socklb destroy dst 10.0.0.1",
            "sudo_user": "alice",
        }

    def test_nobody_became_root_and_nobody_has_arguments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An interpreter that is embedded has no sys.argv."""
        monkeypatch.delenv("SUDO_USER", raising=False)
        monkeypatch.delattr(sys, "argv")
        (record,) = self.records((1, False))
        assert (record["actor"]["command"], record["actor"]["sudo_user"]) == ("", None)


class TestTheAuditFails:
    """The run stops: at most one batch is unrecorded, and the report names it."""

    @given(st.integers(0, 10), st.integers(1, 10))
    def test_the_report_names_those_that_are_not_recorded(self, taken: int, count: int) -> None:
        records: list[Record] = []
        report = DestroyReport()
        ledger = Ledger(failing_after(taken, records), dry_run=False)
        if taken >= count:
            enter(ledger, report, outcomes(1, count))
        else:
            with pytest.raises(Full):
                enter(ledger, report, outcomes(1, count))
        assert [record["cookie"] for record in records] + cookies(report.unrecorded) == [*range(1, count + 1)]
        assert report.destroyed == count
        assert ledger.is_closed == (taken < count)

    @pytest.mark.parametrize("error", [Full("x"), KeyboardInterrupt(), SystemExit()], ids=repr)
    def test_whatever_it_raises_is_raised_and_closes_the_ledger(self, error: BaseException) -> None:
        def audit(record: Record) -> None:
            raise error

        ledger = Ledger(audit, dry_run=False)
        with pytest.raises(type(error)) as caught:
            enter(ledger, DestroyReport(), outcomes(1))
        assert caught.value is error
        with pytest.raises(RunStopped, match="the audit failed"), ledger:
            pytest.fail("let in")

    def test_it_is_left_alone_then_and_the_report_goes_on(self) -> None:
        """What was not destroyed any more is still told."""
        calls: list[Record] = []

        def audit(record: Record) -> None:
            calls.append(record)
            raise Full

        report = DestroyReport()
        ledger = Ledger(audit, dry_run=False)
        with pytest.raises(Full):
            enter(ledger, report, outcomes(1, 2))
        enter(ledger, report, outcomes(3, 2, "failed"))
        assert len(calls) == 1
        assert report.sums() == {"matched": 4, "destroyed": 2, "gone": 0, "skipped": 0, "failed": 2}
        assert cookies(report.unrecorded) == [1, 2]

    def test_a_record_that_cannot_be_made_is_one_that_is_missing(self) -> None:
        def broken(of: InetSocket) -> dict[str, str]:
            raise ZeroDivisionError

        report = DestroyReport()
        ledger = Ledger(lambda record: None, dry_run=False)
        with pytest.raises(ZeroDivisionError) as caught:
            ledger.enter(report, outcomes(1, 2), "host", broken)
        assert ledger.audit_error is caught.value
        assert cookies(report.unrecorded) == [1, 2]
        assert ledger.is_closed

    @pytest.mark.parametrize("taken", [0, 1, BATCH - 1, BATCH, 3 * BATCH + 5])
    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_of_several_threads_one_batch_at_most_is_unrecorded(self, threads: int, taken: int) -> None:
        """Each destroys in batches, as fast as it can; those that are waiting to go in are turned away."""
        records: list[Record] = []
        ledger = Ledger(failing_after(taken, records), dry_run=False)
        dead: list[int] = []
        reports = [DestroyReport() for _ in range(threads)]
        ends: list[str] = []
        begin = threading.Barrier(threads)

        def destroy(number: int) -> None:
            begin.wait(PATIENCE)
            try:
                for batch in range(10):
                    with ledger:
                        doomed = outcomes(1 + 10_000 * number + batch * BATCH, BATCH)
                        dead.extend(cookies(doomed))
                        enter(ledger, reports[number], doomed)
            except (Full, RunStopped) as error:
                ends.append(type(error).__name__)

        run_each(destroy, threads)
        unrecorded = [cookie for report in reports for cookie in cookies(report.unrecorded)]
        assert sorted(ends) == ["Full"] + ["RunStopped"] * (threads - 1)
        assert sorted(dead) == sorted([record["cookie"] for record in records] + unrecorded)
        assert len(dead) == len(set(dead)) == (taken // BATCH + 1) * BATCH
        assert 1 <= len(unrecorded) <= BATCH


def run_each(function: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=function, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


class TestOneAtATime:
    """Who destroys is within `with ledger:`, one thread at a time, and none once it is closed."""

    def test_nobody_is_in_there_with_another(self) -> None:
        ledger = Ledger(None, dry_run=False)
        is_in, another_is_in = threading.Event(), threading.Event()
        seen: list[bool] = []

        def first(number: int) -> None:
            with ledger:
                is_in.set()
                seen.append(another_is_in.wait(0.05))  # it is never set if the other waits, as it should

        def second(number: int) -> None:
            assert is_in.wait(PATIENCE)
            with ledger:
                another_is_in.set()

        run_each(lambda number: (first, second)[number](number), 2)
        assert (seen, another_is_in.is_set()) == ([False], True)

    def test_verdicts_are_entered_by_nobody_else_while_one_is_in_there(self) -> None:
        """What did not die (skipped, failed) is entered from outside, and waits."""
        records: list[Record] = []
        ledger = Ledger(records.append, dry_run=False)
        is_in, others_wait = threading.Event(), threading.Event()

        def destroy(number: int) -> None:
            with ledger:
                is_in.set()
                others_wait.wait(0.05)  # it is never set if the other waits, as it should
                enter(ledger, DestroyReport(), outcomes(1))

        def spare(number: int) -> None:
            assert is_in.wait(PATIENCE)
            enter(ledger, DestroyReport(), outcomes(2, verdict="skipped"))
            others_wait.set()

        run_each(lambda number: (destroy, spare)[number](number), 2)
        assert [record["cookie"] for record in records] == [1, 2]

    def test_an_error_in_there_lets_the_next_one_in(self) -> None:
        ledger = Ledger(None, dry_run=False)
        with pytest.raises(ZeroDivisionError), ledger:
            raise ZeroDivisionError
        got_in: list[int] = []

        def go_in(number: int) -> None:
            with ledger:
                got_in.append(number)

        run_each(go_in, 1)
        assert got_in == [0]


class TestClosed:
    """Nobody is let in any more, and is told why."""

    def test_why(self) -> None:
        ledger = Ledger(None, dry_run=False)
        assert not ledger.is_closed
        ledger.close("an interrupt")
        assert ledger.is_closed
        for _ in range(2):
            with pytest.raises(RunStopped, match="an interrupt"), ledger:
                pytest.fail("let in")

    def test_the_first_reason_stays(self) -> None:
        ledger = Ledger(None, dry_run=False)
        ledger.close("first")
        ledger.close("second")
        with pytest.raises(RunStopped, match="first"), ledger:
            pytest.fail("let in")

    def test_who_was_turned_away_keeps_nobody_out_of_the_books(self) -> None:
        """The lock is free again: what came of the others is still entered."""
        ledger = Ledger(None, dry_run=False)
        ledger.close("why")
        with pytest.raises(RunStopped), ledger:
            pytest.fail("let in")
        report = DestroyReport()
        run_each(lambda number: enter(ledger, report, outcomes(number)), 2)
        assert report.destroyed == 2

    def test_who_is_in_there_enters_what_he_has_done(self) -> None:
        records: list[Record] = []
        ledger = Ledger(records.append, dry_run=False)
        report = DestroyReport()
        with ledger:
            ledger.close("another namespace failed")
            enter(ledger, report, outcomes(1, 3))
        assert len(records) == report.destroyed == 3
