"""Who is balanced to a backend that is gone, in a kernel that is a function: entries that change, and interrupts."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType
from typing import Any
from unittest import mock

import pytest

from socklb import Flow, Report
from socklb.conntrack.layout import IPS_DST_NAT
from socklb.engine import run as run_module
from socklb.kernel import netlink_socket
from socklb.termination import balanced as balanced_module
from socklb.termination import conntrack_join as join_module
from socklb.termination import terminate as terminating
from socklb.termination.balanced import Balanced
from socklb.termination.conntrack_join import ConntrackJoin
from socklb.termination.reasons import PERHAPS_DELETED, STILL_BALANCED
from socklb.termination.terminate import terminate

from ..conntrack.ctnetlink import Entry, FakeConntrack, flow
from ..engine.test_run import Record, netns, report_of
from ..engine.test_run_ended import Interrupt, handling
from ..fake_kernel import FakeKernel, StatefulTable, row, table

HERE = netns(1)
BACKENDS = "10.0.0.5:53/UDP", "10.0.0.6:53/UDP"


def entry(backend: str = BACKENDS[0], *, sport: int = 1024, id: int = 1) -> Entry:
    return Entry(flow("10.96.0.10:53/UDP", backend, sport=sport, status=IPS_DST_NAT, id=id))


@contextmanager
def installed(kernel: FakeConntrack) -> Iterator[None]:
    with FakeKernel(table([])).installed(), kernel.installed():
        yield


class TestAnEntryThatChanges:
    """It is deleted only if it is still the same one, with the same id, and leads to the same backend."""

    @pytest.mark.parametrize("id", [1, 2])
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_before_it_is_deleted(self, id: int, backend: str) -> None:
        before, now = entry(), entry(backend, id=id)
        kernel = FakeConntrack([before])
        with installed(kernel), Balanced([before.flow.backend], [HERE]) as balanced:
            balanced.find(None)
            (case,) = balanced.cases
            kernel.entries[:] = [now]
            assert balanced.is_still_there(case) == (now == before)
            assert balanced.delete([case]) == [0 if now == before else errno.ENOENT]
        assert kernel.entries == ([] if now == before else [now])


def test_a_client_that_counts_by_its_socket_does_not_by_its_entry_when_that_comes_back() -> None:
    """Its last packets may have made it anew. Nor has it failed: the socket is gone."""
    there = Entry(flow("10.96.0.10:80/TCP", "10.0.0.5:8080/TCP", status=IPS_DST_NAT))
    client, kernel = row(1, src="10.0.0.1", sport=1024, dst="10.96.0.10", dport=80), FakeConntrack([there])
    come_back = mock.patch.object(terminating, "sleep", side_effect=lambda _: kernel.entries.append(there))
    is_loose = mock.patch.object(balanced_module, "is_loose", return_value=True)
    with FakeKernel(StatefulTable([client])).installed(), kernel.installed(), come_back, is_loose:
        report = terminate([there.flow.backend], [HERE], join=ConntrackJoin(external=True), looks=(2,))
    assert ([one.verdict for one in report.outcomes], kernel.entries) == (["destroyed"], [])


class SecondInterrupt(Interrupt):
    """The first one waits for the end of the batch, this one does not."""

    FILES = (run_module.__file__, join_module.__file__, balanced_module.__file__)

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and not self._left:
            self.where = frame.f_code.co_name
            signal.raise_signal(signal.SIGINT)
        return super()._line(frame, event, argument)


class Deleting(FakeConntrack):
    """Remembers what it was told to delete."""

    def __init__(self, entries: list[Entry]) -> None:
        super().__init__(entries)
        self.deleted: set[Flow] = set()

    def _delete(self, asked: dict[int, bytes]) -> int:
        before = {one.flow for one in self.entries}
        code = super()._delete(asked)
        self.deleted |= before - {one.flow for one in self.entries}
        return code


class TestASecondInterrupt:
    """Whatever the kernel was told to delete is in the report and in the audit, once, or is named there as in doubt."""

    def test_at_any_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (netlink_socket, run_module):
            monkeypatch.setattr(module, "BATCH", 2)
        interrupted = {*iter(map(self.run, count()).__next__, "")}
        assert {"_cut_entries", "_delete_in", "_fail", "_account", "account", "_take", "delete"} <= interrupted

    def run(self, after: int) -> str:
        """Where it was interrupted, "" if it came to its end before. The last look finds two of three once more."""
        there = [entry(sport=port, id=port) for port in (1, 2, 3)]
        kernel, records, interrupt = Deleting(there), list[Record](), SecondInterrupt(after)
        again = mock.patch.object(terminating, "sleep", side_effect=lambda _: kernel.entries.extend(there[:2]))
        with FakeKernel(table([])).installed() as diag, kernel.installed() as conntrack, again:
            try:
                with handling(signal.SIGINT, signal.default_int_handler), interrupt:
                    report = terminate(
                        [there[0].flow.backend], [HERE], join=ConntrackJoin(), looks=(2,), audit=records.append
                    )
            except KeyboardInterrupt as error:
                for made in (*diag.sockets, *conntrack.sockets):
                    made.close()
                if kernel.deleted and interrupt.where != "carry_out":  # there before or after all else
                    self.check(report_of(error), kernel, records, interrupt.where)
            else:
                assert [(one.verdict, one.reason) for one in report.outcomes] == [
                    ("rerouted", ""),
                    *[("failed", STILL_BALANCED)] * 2,
                ]
                self.check(report, kernel, records, "")
        return interrupt.where

    def check(self, report: Report, kernel: Deleting, records: list[Record], where: str) -> None:
        told = {one.flow: one.verdict for one in report.outcomes}
        assert len(told) == len(report.outcomes), where
        assert kernel.deleted <= told.keys(), where
        doubtful = {one.flow for one in report.outcomes if one.reason == PERHAPS_DELETED}
        assert {*told} - doubtful <= kernel.deleted, where
        last = {record["sport"]: record["outcome"] for record in records}
        unrecorded = {one.client.sport: one.verdict for one in report.unrecorded}
        assert {**last, **unrecorded} == {one.client.sport: one.verdict for one in report.outcomes}, where


def test_what_an_interrupted_look_did_not_try_again_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the report as in the audit."""
    there = [entry(), Entry(flow("10.96.0.10:80/TCP", "10.0.0.5:53/TCP", status=IPS_DST_NAT, sport=7, id=7))]
    records: list[Record] = []
    find, looks = Balanced.find, count()

    def find_once(balanced: Balanced, here: Any) -> None:
        if next(looks):
            raise KeyboardInterrupt
        find(balanced, here)

    monkeypatch.setattr(Balanced, "find", find_once)
    monkeypatch.setattr(terminating, "sleep", lambda _: None)
    backends = [one.flow.backend for one in there]
    with installed(FakeConntrack(there)), pytest.raises(KeyboardInterrupt) as interrupt:
        terminate(backends, [HERE], join=ConntrackJoin(), looks=(2,), audit=records.append)
    told = [(one.verdict, one.reason) for one in report_of(interrupt.value).outcomes]
    assert sorted(told) == sorted((record["outcome"], record["reason"]) for record in records)
    assert len(told) == 2
