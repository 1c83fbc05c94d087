"""What became of the sockets: outcomes, their sums, and the report that an error carries."""

from __future__ import annotations

import copy
import errno
import pickle
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import (
    AuditError,
    Backend,
    Counts,
    FilterSyntaxError,
    InetSocket,
    KernelError,
    MalformedMessage,
    NetworkNamespace,
    NotPermitted,
    NotSupported,
    Outcome,
    Report,
    RunStopped,
    SocketFilter,
    SocklbError,
    UnboundedFilter,
    UnsearchedNamespace,
    destroy_sockets,
    dst,
)
from socklb.engine.destroy import SUBFLOW
from socklb.engine.report import outcome_record
from socklb.kernel.names import UnknownName
from socklb.wire.netlink import encode_attribute

from ..conntrack.ctnetlink import flow
from ..fake_kernel import FakeKernel, StatefulTable, row

VERDICTS = ("destroyed", "rerouted", "cleared", "would_destroy", "gone", "skipped", "failed")
NAMESPACES = [NetworkNamespace(f"net{n}", f"/run/netns/net{n}", 4, n) for n in range(3)]
BACKENDS = [Backend(f"10.0.0.{n}", 80, "tcp") for n in range(5, 8)]
TCP = 6

ways_to_copy = pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],
    ids=["copy", "deepcopy", "pickle"],
)


def outcome(verdict: str, namespace: int = 0, backend: int = 0) -> Outcome:
    socket = InetSocket(row(1, dst=str(BACKENDS[backend].address)), TCP)
    return Outcome(socket, verdict, namespace=NAMESPACES[namespace])


def report_with(outcomes: list[Outcome]) -> Report:
    report = Report(BACKENDS)
    for namespace in NAMESPACES:
        report.add_namespace(namespace)
    report.outcomes += outcomes
    return report


def counts(verdicts: list[str]) -> Counts:
    return Counts(*map(verdicts.count, VERDICTS))


class TestSums:
    """Of the run, of each namespace and of each backend; matched is the sum of the others."""

    @given(st.lists(st.tuples(st.sampled_from(VERDICTS), st.integers(0, 2), st.integers(0, 2))))
    def test_they_are_those_of_the_outcomes(self, drawn: list[tuple[str, int, int]]) -> None:
        report = report_with([outcome(*one) for one in drawn])
        sums = report.counts.as_dict()
        assert (report.counts, sums["matched"]) == (counts([verdict for verdict, _, _ in drawn]), len(drawn))
        assert all(getattr(report, name) == count for name, count in sums.items())
        assert report.namespaces == {
            namespace: counts([verdict for verdict, where, _ in drawn if where == n])
            for n, namespace in enumerate(NAMESPACES)
        }
        assert report.backends == {
            backend: counts([verdict for verdict, _, to in drawn if to == n]) for n, backend in enumerate(BACKENDS)
        }
        assert repr(report) == f"<Report {' '.join(f'{name}={count}' for name, count in sums.items())}>"

    def look(self, report: Report) -> None:
        for name in ("counts", "namespaces", "backends", "matched", *VERDICTS):
            getattr(report, name)

    def test_outcomes_are_counted_once_until_there_are_more(self) -> None:
        report = report_with([outcome("destroyed")] * 1000)
        with mock.patch.object(Report, "backend_of", autospec=True, side_effect=Report.backend_of) as looked_at:
            for _ in range(3):
                self.look(report)
            assert looked_at.call_count == 1000
            report.outcomes.append(outcome("gone"))
            assert (report.gone, report.destroyed) == (1, 1000)
            assert looked_at.call_count == 2001

    def test_a_namespace_that_is_tried_later_counts_as_well(self) -> None:
        report = report_with([])
        assert report.matched == 0
        another = NetworkNamespace("another", "/a", 4, 99)
        report.add_namespace(another)
        assert report.namespaces[another] == Counts()

    def test_what_is_withdrawn_counts_no_longer(self) -> None:
        """Also where another one has taken its place, and those that are equal count on."""
        first, twin = outcome("destroyed"), outcome("destroyed")
        report = report_with([first, twin])
        assert report.destroyed == 2
        for _ in range(2):
            report.withdraw([first, outcome("destroyed")])
        report.outcomes.append(outcome("failed"))
        assert (report.counts, report.outcomes[0] is twin) == (Counts(destroyed=1, failed=1), True)

    def test_an_interrupt_while_they_are_counted_leaves_nothing_half_done(self) -> None:
        report = report_with([outcome("destroyed")])
        interrupted = mock.patch.object(Report, "backend_of", side_effect=KeyboardInterrupt)
        with interrupted, pytest.raises(KeyboardInterrupt):
            self.look(report)
        self.look(report)
        assert report.counts == report.namespaces[NAMESPACES[0]] == report.backends[BACKENDS[0]] == Counts(destroyed=1)


ERRORS: list[BaseException] = [
    SocklbError("x"),
    MalformedMessage("cut header", offset=16, expected=16, got=3),
    KernelError(errno.EINVAL, "dump: Invalid argument"),
    NotPermitted(errno.EPERM, "destroy: not permitted"),
    NotSupported(errno.EOPNOTSUPP, "destroy: not supported"),
    AuditError(errno.ENOSPC, "full"),
    RunStopped("interrupted"),
    UnboundedFilter("no endpoint"),
    FilterSyntaxError("dst nope", "nope", 5, "no address"),
    UnknownName("no interface 'x'"),
    KeyboardInterrupt(),
]


class TestCopies:
    """Runs of many namespaces may be spread over processes."""

    @ways_to_copy
    @pytest.mark.parametrize(
        "value",
        [
            outcome("skipped"),
            Outcome(InetSocket(row(1), TCP), "failed", "why", errno.EPERM, NAMESPACES[1]),
            Counts(1, 2, 3, 4, 5),
            UnsearchedNamespace("/run/netns/x", "Permission denied", 1),
            NetworkNamespace("n", "/p", 4, 1000, ("/q", "/r"), 5, 6),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_a_value(self, copied: Callable[[Any], Any], value: Any) -> None:
        other = copied(value)
        assert (type(other), other, repr(other), hash(other)) == (type(value), value, repr(value), hash(value))

    @ways_to_copy
    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    def test_an_error_and_the_report_that_it_carries(self, copied: Callable[[Any], Any], error: BaseException) -> None:
        """Which has the error among those of its namespaces."""
        error = copy.copy(error)
        report = report_with([outcome("destroyed", 1, 2), outcome("failed", 1, 2)])
        report.errors[NAMESPACES[1]] = error
        report.unsearched.append(UnsearchedNamespace("/x", "Permission denied", 3))
        report.unrecorded = report.outcomes[:1]
        error.report = report  # type: ignore[attr-defined]
        other = copied(error)
        assert (type(other), str(other), other.args) == (type(error), str(error), error.args)
        assert {**vars(other), "report": 0} == {**vars(error), "report": 0}
        assert getattr(other, "errno", None) == getattr(error, "errno", None)
        theirs = other.report
        assert (theirs.outcomes, theirs.unrecorded) == (report.outcomes, report.unrecorded)
        assert theirs.unsearched == report.unsearched
        assert (theirs.counts, theirs.namespaces, theirs.backends) == (
            report.counts,
            report.namespaces,
            report.backends,
        )
        assert copied is copy.copy or theirs.errors == {NAMESPACES[1]: other}


def test_a_report_keeps_of_a_socket_its_cgroup_and_what_tells_a_subflow() -> None:
    """Not its tcp_info, which is three times as long as all else."""
    kept = [(19, encode_attribute(1, b"mptcp\0")), (21, bytes(8))]
    rows = [row(1, attributes=[(2, bytes(240)), *kept, (15, bytes(4))]), row(2, attributes=kept[1:])]
    with FakeKernel(StatefulTable(rows)).installed():
        reports = [destroy_sockets(SocketFilter("tcp", dst("10.0.0.5")), dry_run=dry_run) for dry_run in (True, False)]
    for report in reports:
        found = {socket.cookie: socket for one in report.outcomes if (socket := one.socket)}
        assert found == {1: InetSocket(row(1, attributes=kept), TCP), 2: InetSocket(rows[1], TCP)}
        assert [one.reason for one in report.outcomes] == [SUBFLOW, ""]


def test_printed_forms() -> None:
    assert repr(NAMESPACES[0]) == "<NetworkNamespace net0 /run/netns/net0 inode=0>"
    rest = "gone=0, skipped=2, failed=0"
    assert repr(Counts(1, skipped=2)) == f"Counts(destroyed=1, rerouted=0, cleared=0, would_destroy=0, {rest})"
    assert repr(UnsearchedNamespace("/x", "why", 2)) == "UnsearchedNamespace(path='/x', reason='why', count=2)"
    assert repr(outcome("gone")).startswith("Outcome(socket=<InetSocket 6 ESTABLISHED 10.0.0.1:1025 -> 10.0.0.5:80 ")
    assert repr(Report()) == f"<Report {' '.join(f'{name}=0' for name in ('matched', *VERDICTS))}>"


def test_the_record_of_a_flow_without_a_socket_has_null_for_what_only_a_socket_has() -> None:
    one = flow("[fd00::10]:443/TCP", "[fd00::5]:8443/TCP", client="fd00::1", sport=4711, id=77, zone=3)
    said = outcome_record(Outcome(None, "cleared", "", None, NAMESPACES[0], one), {"backend": "x"}, None, False)
    client = {"protocol": "tcp", "src": "fd00::1", "sport": 4711, "dst": "fd00::10", "dport": 443}
    assert {name: value for name, value in said.items() if value is not None} == client | {
        "namespace": "net0",
        "backend": "x",
        "dry_run": False,
        "outcome": "cleared",
        "reason": "",
        "service": "[fd00::10]:443",
        "conntrack_id": 77,
        "zone": 3,
    }
    of_a_socket = outcome_record(outcome("destroyed")._replace(flow=one), {"backend": "x"}, "eth0", False)
    assert of_a_socket.keys() == said.keys()
    assert {name for name, value in of_a_socket.items() if value is None} == {"cgroup_id", "error"}
