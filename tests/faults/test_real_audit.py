"""The audit when its disk is full, and when the process is killed: who was destroyed is in it, or in the report."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from socklb import AuditError, NetworkNamespace, SocketFilter, destroy_sockets, dst, terminate_connections
from socklb.engine.audit import AuditFile
from socklb.filters.backend import Backend
from socklb.kernel.netlink_socket import BATCH

from ..cli.runner import run
from ..sockets import Sockets, cookie_of, pending_error
from ..world import small_disk
from .calls import verdicts_in

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
UDP = SocketFilter("udp", dst(ADDRESS, PORT))
COUNT = 200
PAGE = os.sysconf("SC_PAGE_SIZE")
CALLS: dict[str, Callable[[AuditFile], object]] = {
    "destroy_sockets": lambda audit: destroy_sockets(UDP, audit=audit),
    "terminate_connections": lambda audit: terminate_connections(
        [Backend(ADDRESS, PORT, "udp")], namespaces=[NetworkNamespace.current()], audit=audit
    ),
}


def connect(sockets: Sockets) -> dict[int, socket.socket]:
    made = (sockets.udp(ADDRESS, PORT) for _ in range(COUNT))
    return {cookie_of(client): client for client in made}


def cookies_in(lines: bytes) -> list[int]:
    """But for half a line at the end, which a full disk or a killed writer leaves."""
    return [json.loads(line)["cookie"] for line in lines.split(b"\n")[:-1]]


def destroyed(clients: dict[int, socket.socket]) -> set[int]:
    """Whose owner got an error; it gets it once."""
    return {cookie for cookie, client in clients.items() if pending_error(client)}


class TestAFullDisk:
    """The run stops. At most one batch is unrecorded, and the report names it."""

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    @pytest.mark.parametrize("pages", [1, 9])
    def test_who_is_not_in_the_audit_is_unrecorded_in_the_report(
        self, sockets: Sockets, tmp_path: Path, call: Callable[[AuditFile], object], pages: int
    ) -> None:
        clients, path = connect(sockets), tmp_path / "audit"
        with small_disk(str(tmp_path), pages * PAGE):
            with AuditFile(str(path)) as audit, pytest.raises(AuditError) as caught:
                call(audit)
            recorded = cookies_in(path.read_bytes())
        assert caught.value.errno == errno.ENOSPC
        report: Any = caught.value.report
        verdicts = verdicts_in(report)
        unrecorded = {outcome.socket.cookie for outcome in report.unrecorded}
        assert verdicts.keys() == clients.keys()
        assert destroyed(clients) == {cookie for cookie, verdict in verdicts.items() if verdict == "destroyed"}
        assert 0 < len(unrecorded) <= BATCH
        assert not unrecorded & set(recorded)
        assert unrecorded | set(recorded) == {cookie for cookie, verdict in verdicts.items() if verdict != "failed"}

    def test_the_command_ends_with_1_and_names_the_unrecorded(self, sockets: Sockets, tmp_path: Path) -> None:
        clients, path = connect(sockets), tmp_path / "audit"
        with small_disk(str(tmp_path), 9 * PAGE):
            result = run("destroy", "--udp", f"dst {ADDRESS}:{PORT}", "--json", "--audit", str(path))
            recorded = cookies_in(path.read_bytes())
        assert (result.code, result.json["matched"]) == (1, COUNT)
        assert {"the disk is full", os.strerror(errno.ENOSPC)} & {*re.split(r": |,", result.json["error"])}
        assert destroyed(clients) == {*recorded, *result.json["unrecorded"]}


def test_killed_at_any_time_at_most_one_batch_is_not_in_the_audit(network: None, tmp_path: Path) -> None:
    """By SIGKILL, which may leave half a line behind; the next writer ends it, and goes on."""
    chance = random.Random(7)
    was_cut_short = 0
    for number in range(20):
        path = tmp_path / str(number)
        with Sockets() as sockets:
            clients = connect(sockets)
            destroy_and_be_killed(path, chance.randrange(COUNT), chance.random() / 2000)
            before = path.read_bytes()
            *lines, half = before.split(b"\n")
            cookies = [json.loads(line)["cookie"] for line in lines]
            killed = destroyed(clients)
            assert len(set(cookies)) == len(cookies)
            assert set(cookies) <= killed
            assert len(killed) - len(cookies) <= BATCH
            was_cut_short += len(killed) < COUNT
            with AuditFile(str(path)) as audit:
                report = destroy_sockets(UDP, audit=audit)
            ending = b"\n" if half else b""
            written = path.read_bytes()[len(before) :]
            assert report.destroyed == COUNT - len(killed)
            assert written.startswith(ending)
            assert cookies_in(written[len(ending) :]) == list(verdicts_in(report))
    assert was_cut_short, "some were killed in the middle"


def destroy_and_be_killed(path: Path, records: int, seconds: float) -> None:
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
