"""TerminationLoop: what goes down is cut, once, after changes have gathered; and looked after until that is done."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from socklb import (
    AuditError,
    Backend,
    BackendTable,
    InetSocket,
    KernelError,
    NetworkNamespace,
    NotPermitted,
    NotSupported,
    Outcome,
    Report,
    RunStopped,
    Support,
    TerminationLoop,
)
from socklb.kernel.discovery import DiscoveredNamespaces, UnsearchedNamespace
from socklb.kernel.namespaces import CannotEnter
from socklb.termination import loop as loop_module
from socklb.termination import schedule
from socklb.termination.loop import Pass

from ..fake_kernel import row
from ..networks import Network, networks
from ..sockets import Sockets, eventually, pending_error

A, B, C = (Backend(f"127.0.0.{n}", 9000, "udp") for n in (2, 3, 4))
ABORTED = "ECONNABORTED"
HERE = NetworkNamespace("current", "/proc/1/task/1/ns/net", 4, 1)
WEB = NetworkNamespace("web", "/run/netns/web", 4, 2)
DB = NetworkNamespace("tid 7 (db)", "/proc/6/task/7/ns/net", 4, 3)
_SOCKET = InetSocket(row(1, dst=str(A.address), dport=A.port), 17)
STILL_THERE = Outcome(_SOCKET, "failed", namespace=WEB)


class Terminations:
    """Stands for `terminate`: notes each call, and raises or reports what `answer` says: an outcome, or errors."""

    def __init__(self) -> None:
        self.calls: list[set[Backend]] = []
        self.namespaces: list[Any] = []
        self.answer: Callable[[list[Backend]], object] = lambda backends: None

    def __call__(self, backends: list[Backend], namespaces: object, **options: object) -> Report:
        self.calls.append({*backends})
        self.options = options
        self.namespaces.append(namespaces)
        report = Report(backends)
        for namespace in (WEB, *(() if isinstance(namespaces, str) else namespaces)):  # type: ignore[misc]
            report.add_namespace(namespace)
        answer = self.answer(backends)
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Outcome):
            report.outcomes.append(answer)
        if isinstance(answer, dict):
            report.errors.update(answer)
        return report


@pytest.fixture
def terminations() -> Iterator[Terminations]:
    made = Terminations()
    with (
        mock.patch.object(loop_module, "terminate", made),
        mock.patch.object(schedule, "PAUSES", (0.01, 0.02, 0.03)),
    ):
        yield made


@contextmanager
def running(loop: TerminationLoop) -> Iterator[list[BaseException]]:
    """While active, the loop runs in a thread; in the end it finishes its work. What it raises is in the list."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            loop.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
        loop.finish()
    except BaseException:
        loop.stop()
        raise
    finally:
        thread.join(20)
        assert not thread.is_alive()


def alive(*backends: Backend) -> BackendTable:
    table = BackendTable()
    for backend in backends:
        table.upsert(backend)
    return table


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"table": BackendTable}, TypeError),
        ({"second_pass": -1}, ValueError),
        ({"second_pass": float("nan")}, ValueError),
        ({"second_pass": float("inf")}, ValueError),
        ({"second_pass": 10**400}, ValueError),
        ({"second_pass": "1"}, TypeError),
        ({"second_pass": True}, TypeError),
        ({"rev_nat": 5}, TypeError),
        ({"audit": "audit.jsonl"}, TypeError),
        ({"on_pass": "x"}, TypeError),
        ({"namespaces": "web"}, ValueError),
        ({"namespaces": None}, TypeError),
        ({"namespaces": 5}, TypeError),
        ({"namespaces": [5]}, TypeError),
        ({"namespaces": b"all"}, TypeError),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_an_error_at_once(wrong: dict[str, Any], kind: type[Exception]) -> None:
    """And not when the first backend has gone down."""
    with pytest.raises(kind):
        TerminationLoop(**{"table": BackendTable(), **wrong})


class TestWhatIsCut:
    """Only what goes down; nothing at the start, and nothing that was never alive."""

    def test_a_backend_that_is_deleted(self, terminations: Terminations) -> None:
        table = alive(A, B)
        with running(TerminationLoop(table, second_pass=None)):
            table.upsert(C, state="maintenance")
            table.delete(C)
            table.delete(A)
        assert terminations.calls == [{A}]

    def test_what_went_down_before_the_loop_ran(self, terminations: Terminations) -> None:
        table = alive(A, B)
        loop = TerminationLoop(table, second_pass=None)
        table.delete(A)
        with running(loop):
            pass
        assert terminations.calls == [{A}]


class TestBatches:
    """Changes gather from the first and go as one batch; what has come back by its end is not cut."""

    def test_changes_go_together_and_what_is_back_is_not_cut(self, terminations: Terminations) -> None:
        table = alive(A, B, C)
        with mock.patch.object(loop_module, "GATHER_SECONDS", 0.3), running(TerminationLoop(table, second_pass=None)):
            for backend in (A, B, C):
                table.delete(backend)
            table.upsert(A)
        assert terminations.calls == [{B, C}]

    def test_what_goes_down_during_a_pass_is_in_the_next(self, terminations: Terminations) -> None:
        table = alive(A, B)
        terminations.answer = lambda backends: table.delete(B)
        with running(TerminationLoop(table, second_pass=None)):
            table.delete(A)
        assert terminations.calls == [{A}, {B}]

    def test_stop_cuts_what_is_down(self, terminations: Terminations) -> None:
        """After the batch at hand, without the second pass."""
        table = alive(A)
        loop = TerminationLoop(table, second_pass=30)
        with mock.patch.object(loop_module, "GATHER_SECONDS", 30), running(loop):
            table.delete(A)
            loop.stop()
        assert terminations.calls == [{A}]


class TestSecondPass:
    """A while after the first, unless the backend has come back."""

    def test_there_is_one(self, terminations: Terminations) -> None:
        table, passes = alive(A, B), list[Pass]()
        with running(TerminationLoop(table, second_pass=0.05, on_pass=passes.append)):
            table.delete(A)
        assert terminations.calls == [{A}, {A}]
        assert [done.is_second_pass for done in passes] == [False, True]

    def test_a_dry_run_has_none(self, terminations: Terminations) -> None:
        """Nor another attempt where something fails."""
        table, passes = alive(A, B), list[Pass]()
        terminations.answer = lambda backends: {WEB: NotPermitted(1, "no")}
        with running(TerminationLoop(table, second_pass=0.01, dry_run=True, on_pass=passes.append)):
            table.delete(A)
        assert ([done.backends for done in passes], terminations.options["dry_run"]) == ([[A]], True)

    def test_not_for_what_is_back(self, terminations: Terminations) -> None:
        table = alive(A, B)
        with running(TerminationLoop(table, second_pass=0.3)):
            table.delete(A)
            table.delete(B)
            eventually(lambda: len(terminations.calls) == 1, "the cut")
            table.upsert(A)
        assert terminations.calls == [{A, B}, {B}]

    def test_it_does_not_wait_for_a_place_that_fails(self, terminations: Terminations) -> None:
        """There the next attempt is part of it; after it, attempts are made there alone."""
        table, passes = alive(A), list[Pass]()
        terminations.answer = lambda backends: {WEB: NotPermitted(1, "no")}
        loop = TerminationLoop(table, namespaces=[WEB, DB], second_pass=0.01, on_pass=passes.append)
        with running(loop):
            table.delete(A)
            eventually(lambda: len(passes) == 3, "two attempts more")
        assert terminations.namespaces[:3] == [[WEB, DB], [WEB, DB], [WEB]]
        assert [(done.is_second_pass, done.is_retry) for done in passes[:3]] == [
            (False, False),
            (True, True),
            (False, True),
        ]

    def test_it_joins_the_pass_that_waits_for_processor_time(self, terminations: Terminations) -> None:
        """And what is back by then is in none."""
        table, passes = alive(A, B, C), list[Pass]()
        loop = TerminationLoop(table, second_pass=0.01, on_pass=passes.append)
        with running(loop):
            loop._duty_cycle._credit = -0.06
            for backend in (A, B):
                table.delete(backend)
            eventually(lambda: not table.has_down(), "it waits")
            assert passes == []
            table.upsert(B)
            eventually(lambda: len(passes) == 1, "the cut")
            loop._duty_cycle._credit = -0.06
            table.delete(C)
            eventually(lambda: len(passes) == 2, "the second look and the other cut")
        assert terminations.calls[:2] == [{A}, {A, C}]
        assert [done.waited > 0 for done in passes[:2]] == [True, True]

    def test_a_backend_that_goes_down_again_is_cut_again(self, terminations: Terminations) -> None:
        table = alive(A)
        with running(TerminationLoop(table, second_pass=None)):
            for number in (1, 2):
                table.delete(A)
                eventually(lambda number=number: len(terminations.calls) == number, "the cut")  # type: ignore[misc]
                table.upsert(A)
        assert terminations.calls == [{A}, {A}]


class TestFailedPasses:
    """Repeated with growing pauses, and not for ever."""

    @pytest.mark.parametrize(
        "failure",
        [
            KernelError(errno.ETIMEDOUT, "slow"),
            NotPermitted(1, "no"),
            CannotEnter(errno.ENOSYS, "no setns"),
            ValueError("no such one"),
            {WEB: NotPermitted(1, "no")},
            STILL_THERE,
        ],
        ids=[
            "an error",
            "not permitted",
            "no setns",
            "no namespace",
            "a namespace that failed",
            "a socket that is still there",
        ],
    )
    def test_repeated_until_it_works(self, terminations: Terminations, failure: object) -> None:
        table, passes = alive(A), list[Pass]()
        terminations.answer = lambda backends: failure if len(terminations.calls) < 3 else None
        loop = TerminationLoop(table, second_pass=None, on_pass=passes.append)
        with running(loop):
            table.delete(A)
            eventually(lambda: len(terminations.calls) == 3, "the third attempt")
        assert [bool(done.given_up) for done in passes] == [False, False, False]
        assert loop.outstanding == []

    def test_given_up_at_last(self, terminations: Terminations) -> None:
        table, passes = alive(A, B), list[Pass]()
        terminations.answer = lambda backends: STILL_THERE
        with running(TerminationLoop(table, second_pass=None, on_pass=passes.append)):
            table.delete(A)
            table.delete(B)
            eventually(lambda: len(passes) == 4, "three attempts more")
        assert terminations.calls == [{A, B}, {A}, {A}, {A}]
        assert [(done.failed, done.given_up) for done in passes] == [([A], []), ([A], []), ([A], []), ([], [A])]
        assert min(done.seconds for done in passes) > 0

    def test_not_for_what_is_back(self, terminations: Terminations) -> None:
        table = alive(A)

        def fail_and_come_back(backends: list[Backend]) -> object:
            table.upsert(A)
            return KernelError(errno.ETIMEDOUT, "slow")

        terminations.answer = fail_and_come_back
        loop = TerminationLoop(table, second_pass=0)
        with running(loop):
            table.delete(A)
            eventually(lambda: bool(terminations.calls) and not loop.outstanding, "the attempt is dropped")
        assert terminations.calls == [{A}]

    def test_a_failure_does_not_hold_up_the_end(self, terminations: Terminations) -> None:
        """`finish` waits for second passes, and not for attempts that fail; these are `outstanding`."""
        table = alive(A)
        terminations.answer = lambda backends: KernelError(errno.ETIMEDOUT, "slow")
        loop = TerminationLoop(table)
        with mock.patch.object(schedule, "PAUSES", (60,)), running(loop):
            table.delete(A)
        assert (terminations.calls, loop.outstanding) == ([{A}], [A])

    @pytest.mark.parametrize("kind", [NotSupported, AuditError])
    def test_what_no_attempt_would_mend_ends_the_loop(self, terminations: Terminations, kind: type[OSError]) -> None:
        table = alive(A)
        terminations.answer = lambda backends: kind(errno.EPERM, "no")
        with running(TerminationLoop(table)) as raised:
            table.delete(A)
            eventually(lambda: bool(raised), "it is raised")
        assert [type(error) for error in raised] == [kind]

    def test_in_that_place_alone(self, terminations: Terminations) -> None:
        """Where a namespace failed or a socket is still there, for its backend; not where it is done."""
        table = alive(A, B)

        def answer(backends: list[Backend]) -> object:
            return [STILL_THERE, {WEB: KernelError(errno.ETIMEDOUT, "slow")}, None][len(terminations.calls) - 1]

        terminations.answer = answer
        with running(TerminationLoop(table, namespaces=[WEB, DB], second_pass=None)):
            table.replace([])
            eventually(lambda: len(terminations.calls) == 3, "two attempts more")
        assert list(zip(terminations.calls, terminations.namespaces)) == [
            ({A, B}, [WEB, DB]),
            ({A}, [WEB]),
            ({A}, [WEB]),
        ]

    @pytest.mark.parametrize("readable_only", [False, True])
    def test_what_could_not_be_searched(self, terminations: Terminations, readable_only: bool) -> None:
        """Is tried again, though nothing else is searched; unless it is expected."""
        table, passes = alive(A), list[Pass]()
        found = DiscoveredNamespaces([WEB])
        found.refused = (UnsearchedNamespace("/run/netns/x", "Permission denied", 1),)

        def look() -> DiscoveredNamespaces:
            if len(passes) == 2:
                found.refused = ()
            return found

        loop = TerminationLoop(
            table, namespaces=look, second_pass=None, readable_only=readable_only, on_pass=passes.append
        )
        with running(loop):
            table.delete(A)
            eventually(lambda: bool(passes) and not loop.outstanding, "it is done")
        assert terminations.namespaces == [(WEB,)] + [()] * (0 if readable_only else 2)
        unsearched = [done.report.unsearched for done in passes if done.report is not None]
        assert [len(each) for each in unsearched] == ([1] if readable_only else [1, 1, 0])
        assert [done.failed for done in passes] == ([[]] if readable_only else [[A], [A], []])

    def test_who_may_not_be_looked_at_is_compared_with_all_that_could_be_searched(
        self, terminations: Terminations, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table, compared = alive(A), list[set[NetworkNamespace]]()

        def unsearched(refused: object, searched: list[NetworkNamespace]) -> list[UnsearchedNamespace]:
            compared.append({*searched})
            return []

        monkeypatch.setattr(loop_module, "unsearched", unsearched)
        terminations.answer = lambda _: None if compared else {DB: KernelError(errno.ETIMEDOUT, "slow")}
        with running(TerminationLoop(table, namespaces=[WEB, DB], second_pass=None)):
            table.delete(A)
            eventually(lambda: len(compared) == 2, "another attempt")
        assert compared == [{WEB}, {WEB, DB}]

    def test_a_namespace_that_may_not_be_searched_is_expected_with_readable_only(
        self, terminations: Terminations
    ) -> None:
        table = alive(A)
        terminations.answer = lambda backends: {WEB: NotPermitted(1, "no")}
        loop = TerminationLoop(table, namespaces=[WEB], second_pass=None, readable_only=True)
        with running(loop):
            table.delete(A)
            eventually(lambda: bool(terminations.calls) and not loop.outstanding, "it is done")
        assert terminations.calls == [{A}]

    def test_a_protocol_that_this_kernel_cannot_list_does_not_end_it(self, terminations: Terminations) -> None:
        """Its backends are given up, and the others are terminated."""
        tcp, passes = A._replace(protocol="tcp"), list[Pass]()
        table = alive(A, tcp)
        terminations.answer = lambda backends: NotSupported(errno.ENOENT, "no udp_diag") if A in backends else None
        answers = {("tcp", 2): Support("supported"), ("udp", 2): Support("no_diag")}
        with (
            mock.patch.object(loop_module, "probe", return_value=answers),
            running(TerminationLoop(table, second_pass=None, on_pass=passes.append)),
        ):
            table.replace([])
            eventually(lambda: len(passes) == 2, "both passes")
        assert terminations.calls == [{A, tcp}, {tcp}]
        assert [(done.failed, done.given_up) for done in passes] == [([tcp], [A]), ([], [])]

    def test_failures_are_logged_where_no_function_takes_them(
        self, terminations: Terminations, caplog: pytest.LogCaptureFixture
    ) -> None:
        table = alive(A)
        terminations.answer = lambda backends: KernelError(errno.ETIMEDOUT, "the kernel is slow")
        with caplog.at_level(logging.WARNING, "socklb"), running(TerminationLoop(table)):
            table.delete(A)
        assert [record.name for record in caplog.records] == ["socklb"]
        assert "127.0.0.2:9000/UDP" in caplog.text
        assert "the kernel is slow (to be tried again)" in caplog.text


class Maps:
    """Stands for RevNatMaps."""

    def __init__(self) -> None:
        self.reopened = 0

    def reopen(self) -> None:
        self.reopened += 1
        if self.reopened == 1:
            raise ValueError("no reverse-NAT map")


def test_maps_are_reopened_before_each_pass_and_a_missing_one_is_a_failed_pass(terminations: Terminations) -> None:
    """They are replaced when a balancer is upgraded."""
    table, maps = alive(A), Maps()
    with running(TerminationLoop(table, rev_nat=maps, second_pass=0.01)):  # type: ignore[arg-type]
        table.delete(A)
        eventually(lambda: len(terminations.calls) == 2, "both passes")
    assert maps.reopened == 3


class TestNamespaces:
    """Those of `destroy_sockets`, or what a function gives at each pass; all are discovered anew at each."""

    def searched(self, terminations: Terminations, passes: int, **options: Any) -> list[Any]:
        table = alive(A)
        with running(TerminationLoop(table, second_pass=None, **options)):
            for number in range(1, passes + 1):
                table.upsert(A)
                table.delete(A)
                eventually(lambda number=number: len(terminations.calls) == number, "a pass")  # type: ignore[misc]
        return terminations.namespaces

    @pytest.mark.parametrize("choice", ["current", WEB, (WEB, DB)], ids=["current", "one", "several"])
    def test_those_that_are_named(self, terminations: Terminations, choice: Any) -> None:
        expected = choice if choice == "current" else [WEB] if choice is WEB else [*choice]
        assert self.searched(terminations, 2, namespaces=choice) == [expected, expected]

    def test_an_iterator_lasts_for_every_pass(self, terminations: Terminations) -> None:
        assert self.searched(terminations, 2, namespaces=iter([WEB, DB])) == [[WEB, DB]] * 2


@pytest.mark.kernel
class TestOnTheKernel:
    """The real thing, in namespaces that come and go."""

    @pytest.fixture
    def nets(self, network: None) -> Iterator[list[Network]]:
        with networks(2) as made:
            yield made

    def test_a_namespace_that_appears_later_is_seen_by_the_next_pass(self, nets: list[Network]) -> None:
        known: list[NetworkNamespace] = []
        table = alive(A, B)
        clients = [net.make(lambda s: [s.udp("127.0.0.2", 9000), s.udp("127.0.0.3", 9000)]) for net in nets]
        with running(TerminationLoop(table, namespaces=lambda: known, second_pass=None)):
            known.append(nets[0].namespace)
            table.delete(A)
            eventually(lambda: pending_error(clients[0][0]) == ABORTED, "the first is cut")
            known.append(nets[1].namespace)
            table.delete(B)
        assert [[pending_error(client) for client in both] for both in clients] == [["", ABORTED], ["", ABORTED]]

    def test_what_connects_meanwhile_is_caught_by_the_second_pass(self, sockets: Sockets) -> None:
        table, late = alive(A), []

        def connect_again(done: Pass) -> None:
            if not done.is_second_pass:
                late.append(sockets.udp("127.0.0.2", 9000))

        client = sockets.udp("127.0.0.2", 9000)
        with running(TerminationLoop(table, namespaces="current", second_pass=0.05, on_pass=connect_again)):
            table.delete(A)
        assert [pending_error(each) for each in (client, *late)] == [ABORTED, ABORTED]

    def test_stop_called_again_ends_it_after_the_batch_at_hand(self, sockets: Sockets) -> None:
        """Here while the first batch is recorded. What is left is still there, and known."""
        clients = [sockets.udp("127.0.0.2", 9000) for _ in range(150)]
        table, passes = alive(A), list[Pass]()

        def stop_twice(record: object) -> None:
            loop.stop()

        loop = TerminationLoop(table, namespaces="current", audit=stop_twice, on_pass=passes.append)
        table.delete(A)
        loop.run()
        assert sum(pending_error(client) == ABORTED for client in clients) == 64
        (done,) = passes
        assert (type(done.error), loop.outstanding) == (RunStopped, [A])
        assert done.report is not None
        assert (done.report.destroyed, done.report.failed) == (64, 86)

    def test_an_audit_that_fails_ends_it_whatever_it_raises(self, sockets: Sockets) -> None:
        """Or another attempt would destroy what nobody records."""
        clients = [sockets.udp("127.0.0.2", 9000) for _ in range(150)]
        table, here = alive(A), [NetworkNamespace.current()]

        def closed(record: object) -> None:
            raise ValueError("I/O operation on closed file")

        with running(TerminationLoop(table, namespaces=here, audit=closed)) as raised:
            table.delete(A)
            eventually(lambda: bool(raised), "it is raised")
        assert [type(error) for error in raised] == [ValueError]
        assert sum(pending_error(client) == ABORTED for client in clients) <= 64

    def test_threads_and_descriptors_stay_as_they_are(self, nets: list[Network]) -> None:
        table, passes, counts = BackendTable(), list[Pass](), list[int]()
        namespaces, threads = [net.namespace for net in nets], len(os.listdir("/proc/self/task"))
        with (
            running(TerminationLoop(table, namespaces=namespaces, second_pass=None, on_pass=passes.append)),
            mock.patch.object(loop_module, "GATHER_SECONDS", 0),
        ):
            for number in range(1, 101):
                table.upsert(A)
                table.delete(A)
                eventually(lambda number=number: len(passes) >= number, "a pass")  # type: ignore[misc]
                counts.append(len(os.listdir("/proc/self/fd")))
        assert max(counts[10:]) <= max(counts[:10])
        eventually(lambda: len(os.listdir("/proc/self/task")) <= threads, "no more threads than before")
