"""A run that an audit, an interrupt or an error ends: one outcome a socket, and all that died recorded or named."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import count, repeat
from types import FrameType
from typing import Any

import pytest

from socklb import (
    AuditError,
    Counts,
    NetworkNamespace,
    NotPermitted,
    NotSupported,
    Report,
    RunStopped,
    SocketFilter,
    destroy_sockets,
    device,
    dport,
)
from socklb.engine import audit as audit_module
from socklb.engine import destroy as destroy_module
from socklb.engine import run as run_module
from socklb.kernel.names import UnknownName
from socklb.kernel.netlink_socket import BATCH
from socklb.wire.request import SOCK_DESTROY

from ..fake_kernel import Datagram, FakeKernel, Request, StatefulTable, row, table, verdicts
from ..sockets import socket_of
from .test_parallel import processors
from .test_run import TCP, Record, netns, report_of


class Full(Exception):
    """What an audit raises."""


class TestAnAuditThatFails:
    """Destroying stops: at most one batch is unrecorded, and the report names it."""

    @pytest.mark.parametrize("taken", [0, 1, BATCH - 1, BATCH, 3 * BATCH + 5])
    @pytest.mark.parametrize("threads", [1, 2, 5])
    @pytest.mark.parametrize(
        ("error", "why"),
        [
            (AuditError(errno.ENOSPC, "the disk is full"), "the disk is full"),
            (Full("x"), "ended by Full"),
            (KeyboardInterrupt(), "interrupted"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_whatever_threads_there_are(self, threads: int, taken: int, error: BaseException, why: str) -> None:
        records: list[Record] = []
        calls = count()

        def audit(record: Record) -> None:
            if next(calls) >= taken:
                raise error
            records.append(record)

        kernel = FakeKernel(table([row(n) for n in range(1, 4 * BATCH + 1)]))
        with kernel.installed(), processors(threads), pytest.raises(type(error)) as caught:
            destroy_sockets(TCP, namespaces=[netns(n) for n in range(1, 6)], audit=audit)
        report = report_of(caught.value)
        assert caught.value is error
        assert next(calls) == taken + 1, "it is left alone then"
        destroyed = [(o.namespace.name, socket_of(o).cookie) for o in report.outcomes if o.verdict == "destroyed"]
        recorded = [(record["namespace"], record["cookie"]) for record in records]
        assert recorded + [(o.namespace.name, socket_of(o).cookie) for o in report.unrecorded] == destroyed
        assert len(destroyed) == sum(map(len, kernel.destroys)) == (taken // BATCH + 1) * BATCH
        assert 1 <= len(report.unrecorded) <= BATCH
        failed = {(outcome.reason, outcome.error) for outcome in report.outcomes if outcome.verdict == "failed"}
        assert (why, None) in failed or taken > 3 * BATCH
        assert failed <= {(why, None), ("the audit failed", None)}, "its errno says nothing about a socket"
        assert {str(error) for error in report.errors.values()} <= {str(error), "the audit failed", "not begun"}
        assert len(report.namespaces) == 5

    def test_it_is_noticed_by_what_is_spared_before_anything_is_destroyed(self) -> None:
        def audit(record: Record) -> None:
            raise Full

        rows = [row(1, state=10), *(row(n) for n in range(2, 2 * BATCH))]
        with FakeKernel(StatefulTable(rows)).installed() as kernel, pytest.raises(Full) as caught:
            destroy_sockets(TCP, audit=audit)
        assert kernel.destroys == []
        assert report_of(caught.value).counts == Counts(skipped=1, failed=2 * BATCH - 2)

    def test_a_dry_run_stops_as_well(self) -> None:
        def audit(record: Record) -> None:
            raise Full

        with FakeKernel(table([row(n) for n in range(1, 4 * BATCH + 1)])).installed(), pytest.raises(Full) as caught:
            destroy_sockets(TCP, dry_run=True, audit=audit)
        report = report_of(caught.value)
        assert (report.would_destroy, report.failed) == (BATCH, 3 * BATCH)
        assert report.unrecorded == report.outcomes[:BATCH]


class Interrupt:
    """SIGINT comes at the n-th line of the engine that runs within it; `where` is the function then."""

    FILES = (run_module.__file__, destroy_module.__file__, audit_module.__file__)

    def __init__(self, after: int) -> None:
        self._left = after
        self.where = ""

    def __enter__(self) -> Interrupt:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, _: object) -> Any:
        return self._line if frame.f_code.co_filename in self.FILES else None

    def _line(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            if not self._left:
                self.where = frame.f_code.co_name
                signal.raise_signal(signal.SIGINT)
            self._left -= 1
        return self._line


@contextmanager
def handling(number: int, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


class Busy(StatefulTable):
    """Sockets of every fate: twins, one that is gone and one that has moved when they are to be destroyed."""

    def __init__(self) -> None:
        super().__init__([row(1, sport=7000), row(2, sport=7000), *map(row, range(3, 6)), row(6, state=10)])

    def __call__(self, requests: Sequence[Request]) -> Iterable[Datagram]:
        if requests[0].type == SOCK_DESTROY and len(self.rows) == 6:
            del self.rows[2]
            self.rows[2] = row(4, sport=7004)
        return super().__call__(requests)


class TestAnInterrupt:
    """Between any two steps: each socket has one outcome and one record, and what was destroyed is reported so."""

    @pytest.mark.parametrize("with_audit", [False, True], ids=["", "audit"])
    def test_at_any_line(self, monkeypatch: pytest.MonkeyPatch, with_audit: bool) -> None:
        monkeypatch.setattr(run_module, "BATCH", 2)
        interrupted = {*iter(map(self.run, count(), repeat(with_audit)).__next__, "")}
        assert {"_destroy", "_take", "destroy", "look_again", "settle", "_reasons", "decide"} <= interrupted

    def run(self, after: int, with_audit: bool) -> str:
        """Where it was interrupted, "" if it came to its end before."""
        world, records, interrupt = Busy(), list[Record](), Interrupt(after)
        with FakeKernel(world).installed() as kernel:
            try:
                with interrupt:
                    report = destroy_sockets(TCP, audit=records.append if with_audit else None)
            except KeyboardInterrupt as error:
                for made in kernel.sockets:
                    made.close()  # Python closes nothing if it is interrupted just as a `with` block ends
                # In these it comes before anything is known, or after all is over.
                if kernel.sent and interrupt.where not in ("carry_out", "destroy_sockets"):
                    report = report_of(error)
                    self.check(report, world.killed, [r["cookie"] for r in records], interrupt.where, with_audit)
            else:
                self.check(report, world.killed, [r["cookie"] for r in records], "", with_audit)
        return interrupt.where

    def test_by_a_second_one_while_the_handlers_are_put_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The other signals are handled by whom they were before."""
        usual, came = signal.signal, list[int]()

        def put(number: int, handler: Any) -> Any:
            before = usual(number, handler)
            if handler is signal.default_int_handler:
                signal.raise_signal(signal.SIGINT)
            return before

        with handling(signal.SIGTERM, lambda number, frame: came.append(number)), monkeypatch.context() as patch:
            patch.setattr(signal, "signal", put)
            with FakeKernel(table([row(1)])).installed(), pytest.raises(KeyboardInterrupt) as caught:
                destroy_sockets(TCP)
            signal.raise_signal(signal.SIGTERM)
        assert (came, report_of(caught.value).destroyed) == ([signal.SIGTERM], 1)

    def test_whose_handler_exits_behind_an_error(self) -> None:
        def fail(record: Record) -> None:
            signal.raise_signal(signal.SIGTERM)
            raise ZeroDivisionError

        with (
            handling(signal.SIGTERM, lambda number, frame: sys.exit()),
            FakeKernel(table([row(1)])).installed(),
            pytest.raises(SystemExit) as caught,
        ):
            destroy_sockets(TCP, audit=fail)
        assert report_of(caught.value).destroyed == 1

    @pytest.mark.parametrize(
        ("end", "error"),
        [(lambda run: signal.raise_signal(signal.SIGINT), KeyboardInterrupt), (lambda run: run.stop("x"), RunStopped)],
        ids=["signal", "stop"],
    )
    def test_while_one_filter_finds_nothing_the_next_is_not_begun(self, end: Any, error: type[BaseException]) -> None:
        fruitless = SocketFilter("tcp", TCP.where, predicate=lambda socket: end(run))
        run, here = run_module.Run(), [NetworkNamespace.current()]
        with FakeKernel(table([row(1)])).installed(), pytest.raises(error) as caught:
            run.carry_out(lambda: run.search([fruitless, TCP], here, is_one=True))
        assert report_of(caught.value).outcomes == []

    def check(self, report: Report, killed: list[int], recorded: list[int], where: str, with_audit: bool) -> None:
        verdict_of = verdicts(report)
        destroyed = {cookie for cookie, verdict in verdict_of.items() if verdict == "destroyed"}
        assert verdict_of.keys() in ({*range(1, 7)}, set()), where
        assert destroyed == {*killed}, where
        assert sorted(recorded) == sorted(verdict_of) or not with_audit


class TestTheReportOfAnError:
    """Whatever is raised once a run has begun has the report so far in `.report`."""

    @pytest.mark.parametrize("namespaces", ["current", [netns(1), netns(2)]], ids=["one", "many"])
    @pytest.mark.parametrize(
        ("kind", "where", "code", "options"),
        [
            (NotPermitted, TCP, errno.EPERM, {}),
            (NotPermitted, TCP, errno.EACCES, {}),
            (NotSupported, TCP, errno.EOPNOTSUPP, {}),
            (UnknownName, SocketFilter("tcp", dport(80) & device("nosuch")), 0, {}),
            (ZeroDivisionError, SocketFilter("tcp", dport(80), predicate=lambda socket: 1 // 0), 0, {}),
            (ZeroDivisionError, TCP, 0, {"audit": lambda record: 1 // 0}),
            (SystemExit, TCP, 0, {"audit": lambda record: sys.exit()}),
            (ValueError, TCP, 0, {"audit": lambda record: int("closed")}),
        ],
    )
    def test_it_is_there(
        self,
        monkeypatch: pytest.MonkeyPatch,
        namespaces: Any,
        kind: type[BaseException],
        where: Any,
        code: int,
        options: Any,
    ) -> None:
        monkeypatch.setattr(import_module("socklb.engine.probe"), "can_destroy", lambda *_: False)
        with FakeKernel(table([row(1)], lambda *_: code)).installed(), pytest.raises(kind) as caught:
            destroy_sockets(where, namespaces=namespaces, **options)
        report = report_of(caught.value)
        assert report.errors or namespaces == "current"

    @pytest.mark.parametrize("namespaces", ["current", [netns(1)]], ids=["one", "many"])
    def test_of_progress_as_well(self, namespaces: Any) -> None:
        with FakeKernel(table([row(1)])).installed(), pytest.raises(ZeroDivisionError) as caught:
            destroy_sockets(TCP, namespaces=namespaces, progress=lambda *step: 1 // 0)
        assert report_of(caught.value).destroyed == 1
