"""The audit when its disk is full, and when the process is killed: whole lines only, and who is not in it is named."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socklb import AuditError, NetworkNamespace, SocketFilter, destroy_sockets, dst
from socklb.engine.audit import AuditFile
from socklb.filters.backend import Backend
from socklb.kernel.diag import BATCH
from socklb.termination import terminate_connections

from ..cli.runner import run
from ..fake_kernel import verdicts
from ..sockets import Sockets, cookie_of, pending_error
from ..world import small_disk

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
UDP = SocketFilter("udp", dst(ADDRESS, PORT))
COUNT = 200
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def clients(sockets: Sockets) -> dict[int, socket.socket]:
    made = (sockets.udp(ADDRESS, PORT) for _ in range(COUNT))
    return {cookie_of(client): client for client in made}


def records_in(path: Path) -> list[dict[str, Any]]:
    """Those of an audit file, which has whole lines only."""
    data = path.read_bytes()
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def dead(clients: dict[int, socket.socket]) -> set[int]:
    """Whose owner is told so; it is told once."""
    return {cookie for cookie, client in clients.items() if pending_error(client)}


class TestAFullDisk:
    """The run stops. At most one batch is unrecorded, and the report names it."""

    @pytest.mark.parametrize("pages", [1, 2, 9, 13])
    def test_destroy_sockets(self, clients: dict[int, socket.socket], tmp_path: Path, pages: int) -> None:
        with small_disk(str(tmp_path), pages * PAGE):
            with AuditFile(str(tmp_path / "audit")) as audit, pytest.raises(AuditError) as caught:
                destroy_sockets(UDP, audit=audit)
            recorded = records_in(tmp_path / "audit")
        assert caught.value.errno == errno.ENOSPC
        self.look(caught.value.report, recorded, clients)

    @pytest.mark.parametrize("pages", [1, 13])
    def test_terminate_connections(self, clients: dict[int, socket.socket], tmp_path: Path, pages: int) -> None:
        backends, here = [Backend(ADDRESS, PORT, "udp")], [NetworkNamespace.current()]
        with small_disk(str(tmp_path), pages * PAGE):
            with AuditFile(str(tmp_path / "audit")) as audit, pytest.raises(AuditError) as caught:
                terminate_connections(backends, namespaces=here, audit=audit)
            recorded = records_in(tmp_path / "audit")
        report: Any = caught.value.report
        self.look(report, recorded, clients, [outcome for _, outcome in report.outcomes])

    def look(
        self, report: Any, recorded: list[dict[str, Any]], clients: dict[int, socket.socket], outcomes: Any = None
    ) -> None:
        told = {o.socket.cookie: o.verdict for o in (report.outcomes if outcomes is None else outcomes)}
        if outcomes is None:
            assert verdicts(report) == told
        unrecorded = {outcome.socket.cookie for outcome in report.unrecorded}
        assert recorded
        assert 0 < len(unrecorded) <= BATCH
        assert told.keys() == clients.keys()
        killed = dead(clients)
        assert killed == {cookie for cookie, verdict in told.items() if verdict == "destroyed"}
        written = {record["cookie"] for record in recorded if record["outcome"] == "destroyed"}
        assert killed - unrecorded == written
        assert not written & unrecorded

    def test_on_the_command_line_it_is_1(self, clients: dict[int, socket.socket], tmp_path: Path) -> None:
        with small_disk(str(tmp_path), 9 * PAGE):
            said = run("destroy", "--udp", f"dst {ADDRESS}:{PORT}", "--json", "--audit", str(tmp_path / "audit"))
            recorded = records_in(tmp_path / "audit")
        assert said.code == 1
        assert os.strerror(errno.ENOSPC) in said.json["error"]
        assert dead(clients) == {record["cookie"] for record in recorded} | set(said.json["unrecorded"])
        assert said.json["matched"] == COUNT


class TestADiskThatTakesHalf:
    """A record that does not fit into its last page is written in part, and cut back; a shorter one still goes in."""

    @pytest.mark.parametrize("filler", [PAGE - 100, PAGE, 3 * PAGE])
    def test_nothing_of_it_stays(self, tmp_path: Path, filler: int) -> None:
        path = tmp_path / "audit"
        with small_disk(str(tmp_path), PAGE), AuditFile(str(path)) as audit:
            audit({"cookie": 1, "filler": "x" * 100})
            with pytest.raises(AuditError) as caught:
                audit({"cookie": 2, "filler": "x" * filler})
            left = path.read_bytes()
            audit({"cookie": 3})
            assert caught.value.errno == errno.ENOSPC
            assert left.endswith(b"}\n")
            assert [record["cookie"] for record in records_in(path)] == [1, 3]


class TestPages:
    """A kill cuts a write where a page ends (generic_perform_write()): no record lies across, if it is no longer than
    one and not much longer than the record before it.
    """

    SMALLEST, MUCH = 4096, 128

    @given(
        first=st.integers(150, 2 * SMALLEST),
        steps=st.lists(st.integers(-MUCH, MUCH) | st.sampled_from((-MUCH, MUCH)), min_size=60, max_size=150),
    )
    @example(first=SMALLEST - 1, steps=[0, 1] * 30)  # one that ends where a page does
    def test_no_line_lies_across_two(self, first: int, steps: list[int]) -> None:
        descriptor = os.memfd_create("audit")
        try:
            with AuditFile(f"/proc/self/fd/{descriptor}") as audit:
                length = first
                for step in (0, *steps):
                    length = max(150, length + step)
                    audit({"filler": "x" * (length - len('{"filler": ""}\n'))})
            lines = os.pread(descriptor, os.fstat(descriptor).st_size, 0).splitlines(keepends=True)
        finally:
            os.close(descriptor)
        end = 0
        for line in lines:
            start, end = end, end + len(line)
            if len(json.dumps(json.loads(line))) < self.SMALLEST:
                assert start // self.SMALLEST == (end - 1) // self.SMALLEST
        assert len(lines) == 1 + len(steps)
        assert end > 2 * self.SMALLEST


class TestKilled:
    """SIGKILL in the middle of a run: whole lines only, and at most one batch of the dead is not in the file."""

    REPETITIONS = 20

    def test_the_file_has_whole_lines_and_a_later_run_goes_on(self, network: None, tmp_path: Path) -> None:
        chance = random.Random(7)
        missed = []
        for number in range(self.REPETITIONS):
            path = tmp_path / str(number)
            with Sockets() as made:
                clients = {cookie_of(client): client for client in (made.udp(ADDRESS, PORT) for _ in range(COUNT))}
                kill_meanwhile(path, chance.randrange(COUNT), chance.random() / 2000)
                cookies = [record["cookie"] for record in records_in(path)]
                killed = dead(clients)
                assert set(cookies) <= killed
                assert len(set(cookies)) == len(cookies)
                assert len(killed - set(cookies)) <= BATCH
                missed.append(len(killed) < COUNT)
                with AuditFile(str(path)) as audit:
                    report = destroy_sockets(UDP, audit=audit)
                assert report.destroyed == COUNT - len(killed)
                assert [r["cookie"] for r in records_in(path)] == [
                    *cookies,
                    *(o.socket.cookie for o in report.outcomes),
                ]
        assert any(missed), "some were killed in the middle"


def kill_meanwhile(path: Path, records: int, seconds: float) -> None:
    """Destroy in a process that is killed so long after so many records."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            audit = AuditFile(str(path))
            left = [None] * records

            def count(record: dict[str, Any]) -> None:
                audit(record)
                if left:
                    left.pop()
                if not left:
                    os.write(writer, b".")

            destroy_sockets(UDP, audit=count)
        finally:
            os._exit(0)
    os.close(writer)
    os.read(reader, 1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
