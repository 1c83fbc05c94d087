"""What became of the sockets: reports, audit dicts, and the errors that end a run and carry its report."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import socket
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import (
    AuditError,
    DestroyReport,
    InetSocket,
    KernelError,
    NetworkNamespace,
    NotPermitted,
    Outcome,
    SocketFilter,
    UnboundedFilter,
    destroy_sockets,
    dport,
    dst,
    src,
)
from socklb.engine.destroy import Operation, destroy_each

from ..fake_kernel import row
from ..sockets import Sockets, cookie_of, left_behind, pending_error, talk, without_privilege

ADDRESS, PORT = "127.0.0.2", 9000
VERDICTS = ("destroyed", "gone", "skipped", "failed")
EACH = (SocketFilter("tcp", dst(ADDRESS, PORT)), SocketFilter("udp", dst(ADDRESS, PORT)))


class TestReport:
    """counts matched, destroyed, gone, skipped, failed (matched is the sum of the others)"""

    @given(st.lists(st.sampled_from(VERDICTS)))
    def test_the_sums_are_those_of_the_outcomes(self, verdicts: list[str]) -> None:
        report = DestroyReport()
        for number, verdict in enumerate(verdicts):
            report.outcomes.append(Outcome(InetSocket(row(number), socket.IPPROTO_UDP), verdict))
        sums = report.sums()
        assert sums == {"matched": len(verdicts), **{verdict: verdicts.count(verdict) for verdict in VERDICTS}}
        assert sums["matched"] == sum(sums[verdict] for verdict in VERDICTS)
        assert [outcome.verdict for outcome in report.outcomes] == verdicts
        assert all(getattr(report, name) == count for name, count in sums.items())
        assert all(f"{name}={count}" in repr(report) for name, count in sums.items())

    def test_an_outcome_has_a_socket_a_verdict_a_reason_and_an_error(self) -> None:
        a_socket = InetSocket(row(1), socket.IPPROTO_UDP)
        assert Outcome(a_socket, "destroyed") == (a_socket, "destroyed", "", None)
        assert Outcome._fields == ("socket", "verdict", "reason", "error")


AUDIT_KEYS = {
    *(
        "time",
        "operation",
        "actor",
        "namespace",
        "filter",
        "protocol",
        "state",
        "src",
        "sport",
        "dst",
        "dport",
        "cookie",
        "uid",
        "inode",
    ),
    *("outcome", "reason", "error", "dry_run"),
}


@pytest.mark.kernel
class TestAudit:
    """audit is called with one dict a verdict"""

    def test_each_verdict_has_one_with_the_documented_keys(self, sockets: Sockets) -> None:
        sockets.tcp(ADDRESS, PORT)
        sockets.udp(f"::ffff:{ADDRESS}", PORT)
        sockets.udp_bound(ADDRESS, PORT)
        records: list[dict[str, Any]] = []
        filters = [SocketFilter(protocol, dst(ADDRESS) | src(ADDRESS, PORT)) for protocol in ("tcp", "udp")]
        report = destroy_each(filters, audit=records.append)
        assert len(records) == report.matched == 5
        assert Counter(record["outcome"] for record in records) == {
            verdict: count for verdict, count in report.sums().items() if count and verdict != "matched"
        }
        for record, outcome in zip(records, report.outcomes):
            assert record.keys() == AUDIT_KEYS
            assert json.loads(json.dumps(record)) == record
            assert record["cookie"] == outcome.socket.cookie
            assert (record["outcome"], record["reason"], record["error"]) == outcome[1:]

    def test_it_says_what_the_socket_was(self, sockets: Sockets) -> None:
        """state is the name, cookie and inode are numbers"""
        client = sockets.udp(f"::ffff:{ADDRESS}", PORT)
        records: list[dict[str, Any]] = []
        (outcome,) = destroy_sockets(EACH[1], audit=records.append, dry_run=True).outcomes
        (record,) = records
        who = {"uid": os.getuid(), "pid": os.getpid(), "command": " ".join(sys.argv), "sudo_user": None}
        assert record.pop("actor") == who
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
        assert re.fullmatch("[0-9a-f]{16}", record.pop("operation"))
        assert records == [
            {
                "namespace": "host",
                "filter": f"( dst {ADDRESS} and dport = {PORT} )",
                "protocol": "udp",
                "state": "ESTABLISHED",
                "src": "::ffff:127.0.0.1",
                "sport": client.getsockname()[1],
                "dst": f"::ffff:{ADDRESS}",
                "dport": PORT,
                "cookie": cookie_of(client),
                "uid": outcome.socket.uid,
                "inode": outcome.socket.inode,
                "outcome": "skipped",
                "reason": "dry run",
                "error": None,
                "dry_run": True,
            }
        ]

    def test_it_names_the_namespace(self, sockets: Sockets) -> None:
        sockets.udp(ADDRESS, PORT)
        records: list[dict[str, Any]] = []
        with left_behind() as pid:
            destroy_sockets(EACH[1], namespace=NetworkNamespace.from_pid(pid), audit=records.append)
        assert [record["namespace"] for record in records] == [f"pid {pid}"]

    @pytest.mark.parametrize(
        ("error", "why"),
        [
            (AuditError(errno.ENOSPC, "the disk is full"), "the disk is full"),
            (OSError(errno.ENOSPC, "full"), "ended by OSError"),
            (KeyboardInterrupt(), "interrupted"),
        ],
        ids=["full", "another error", "interrupt"],
    )
    def test_when_it_cannot_be_written_the_run_stops(self, sockets: Sockets, error: BaseException, why: str) -> None:
        """At most one batch (64) is unrecorded. What the audit met with is no errno of a socket."""
        clients = [sockets.udp(ADDRESS, PORT) for _ in range(150)]

        def refuse(record: dict[str, Any]) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            destroy_sockets(EACH[1], audit=refuse)
        assert sum(pending_error(client) == "ECONNABORTED" for client in clients) <= 64
        report = caught.value.report  # type: ignore[attr-defined]
        assert (report.matched, report.destroyed) == (150, 64), "the batch is in the report before it is in the audit"
        assert [tuple(o[1:]) for o in report.outcomes if o.verdict != "destroyed"] == [("failed", why, None)] * 86


def test_nothing_unbounded_is_destroyed_unless_that_is_said() -> None:
    """Wherever an operation comes from: the default spares."""
    everything = SocketFilter("udp")
    with pytest.raises(UnboundedFilter):
        Operation([everything])
    with pytest.raises(UnboundedFilter):
        destroy_each([everything])
    Operation([everything], allow_unbounded=True)


@pytest.mark.kernel
@pytest.mark.parametrize("seen", range(3))
def test_when_judging_fails_those_without_a_verdict_failed(sockets: Sockets, seen: int) -> None:
    """A reader of maps that gives up in the middle: nobody has died, and the report has everybody."""
    pairs = [sockets.udp_pair(ADDRESS, PORT) for _ in range(3)]
    asked: list[InetSocket] = []

    def spare(socket: InetSocket) -> str:
        asked.append(socket)
        if len(asked) > seen:
            raise KernelError(errno.EIO, "read the map")
        return "spared"

    with pytest.raises(KernelError) as caught:
        Operation(EACH[1:], spare=spare).run_in(None)
    assert caught.value.report is not None
    told = {outcome.socket.cookie: tuple(outcome[1:]) for outcome in caught.value.report.outcomes}
    failed = ("failed", os.strerror(errno.EIO), errno.EIO)
    expected = [("skipped", "spared", None)] * seen + [failed] * (3 - seen)
    assert told.keys() == {cookie_of(client) for client, _ in pairs}
    assert [told[socket.cookie] for socket in asked] == expected[: seen + 1]
    assert sorted(told.values(), key=str) == sorted(expected, key=str)
    for client, server in pairs:
        talk(client, server)


@pytest.mark.kernel
class TestPrivilege:
    """EPERM ends the run: NotPermitted is raised and carries the report so far in `.report`."""

    def test_without_it_nothing_dies_and_the_error_carries_the_report(self, sockets: Sockets) -> None:
        pairs = [sockets.tcp(ADDRESS, PORT), sockets.udp_pair(ADDRESS, PORT)]

        def run() -> list[Any]:
            told = []
            for filter in EACH:
                with pytest.raises(NotPermitted, match="CAP_NET_ADMIN") as caught:
                    destroy_sockets(filter)
                report = caught.value.report
                assert report is not None
                told.append((caught.value.errno, [tuple(o[1:]) for o in report.outcomes]))
            return told

        assert without_privilege(run) == [(errno.EPERM, [("failed", "Operation not permitted", errno.EPERM)])] * 2
        for client, server in pairs:
            talk(client, server)

    @pytest.mark.parametrize(
        ("port", "options", "expected"),
        [
            pytest.param(PORT, {"dry_run": True}, {"matched": 2, "skipped": 2}, id="dry run"),
            pytest.param(PORT + 1, {}, {"matched": 0, "skipped": 0}, id="nothing matched"),
        ],
    )
    def test_what_destroys_nothing_needs_none(
        self, sockets: Sockets, port: int, options: dict[str, Any], expected: dict[str, int]
    ) -> None:
        sockets.tcp(ADDRESS, PORT)
        sockets.udp(ADDRESS, PORT)
        filters = [SocketFilter(protocol, dport(port)) for protocol in ("tcp", "udp")]
        assert without_privilege(lambda: destroy_each(filters, **options).sums()).items() >= expected.items()


def test_outcomes_can_be_sent_to_another_process() -> None:
    outcome = Outcome(InetSocket(row(1), socket.IPPROTO_UDP), "skipped", "limit")
    assert pickle.loads(pickle.dumps(outcome)) == outcome
