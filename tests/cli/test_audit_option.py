"""`--audit FILE`: a JSON line for each verdict; where it cannot be written, nothing is destroyed any more."""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from socklb import SocketFilter
from socklb.kernel.diag import BATCH

from .. import world
from ..networks import pinned_networks
from ..sockets import Sockets, cookie_of, eventually, pending_error
from .agent import delete, upsert, watching
from .runner import Result, drop_privilege, run

pytestmark = pytest.mark.kernel

FILTER, BACKEND = "dst 127.0.0.2:9000", "127.0.0.2:9000/UDP"
FILTER_SAID = str(SocketFilter.parse(FILTER, "udp"))
COMMANDS = {
    "destroy": ["destroy", "--netns", "all", "--udp", FILTER],
    "terminate": ["terminate", "--netns", "all", BACKEND],
}
ANY_COMMAND = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
ABORTED = "ECONNABORTED"


def connect(sockets: Sockets) -> socket.socket:
    return sockets.udp("127.0.0.2", 9000)


def records(text: str) -> list[dict[str, Any]]:
    """What a file holds, which has to be whole lines."""
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


class TestRecords:
    """Appended, one a verdict; the operation is one id a call."""

    @ANY_COMMAND
    def test_what_is_in_one(self, sockets: Sockets, tmp_path: Path, command: list[str]) -> None:
        client, audit = connect(sockets), tmp_path / "audit"
        result = run(*command, "--json", "--audit", str(audit), env={"SUDO_USER": "alice"})
        assert (result.code, result.err, pending_error(client)) == (0, "", ABORTED)
        (record,) = records(audit.read_text())
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
        assert re.fullmatch(r"[0-9a-f]{16}", record.pop("operation"))
        actor = record.pop("actor")
        assert (actor["uid"], actor["sudo_user"]) == (os.getuid(), "alice")
        assert actor["command"].endswith(" ".join([*command, "--json", "--audit", str(audit)]))
        assert [record] == result.json["sockets"]
        assert (record["cookie"], record["outcome"]) == (cookie_of(client), "destroyed")
        meant = {name: record[name] for name in ("backend", "filter") if name in record}
        assert meant == ({"backend": BACKEND} if command[0] == "terminate" else {"filter": FILTER_SAID})

    @ANY_COMMAND
    def test_each_call_has_an_operation_of_its_own(self, sockets: Sockets, tmp_path: Path, command: list[str]) -> None:
        audit = tmp_path / "audit"
        audit.write_text('{"older": true}\n')
        for _ in range(2):
            made = [connect(sockets) for _ in range(3)]
            assert run(*command, "--audit", str(audit)).code == 0
            assert [pending_error(client) for client in made] == [ABORTED] * 3
        older, *written = records(audit.read_text())
        assert older == {"older": True}
        operations = [record["operation"] for record in written]
        assert [len(set(operations)), len(set(operations[:3])), len(set(operations[3:]))] == [2, 1, 1]

    @ANY_COMMAND
    def test_several_namespaces_are_one_operation(self, sockets: Sockets, tmp_path: Path, command: list[str]) -> None:
        audit = tmp_path / "audit"
        with pinned_networks("web", "db") as nets:
            made = [connect(sockets), *(net.make(connect) for net in nets)]
            assert run(*command, "--audit", str(audit)).code == 0
            assert {pending_error(client) for client in made} == {ABORTED}
        written = records(audit.read_text())
        assert {record["namespace"] for record in written} == {"host", "web", "db"}
        assert len({record["operation"] for record in written}) == 1

    @ANY_COMMAND
    def test_what_was_spared_and_what_failed_is_recorded_too(
        self, sockets: Sockets, tmp_path: Path, command: list[str]
    ) -> None:
        connect(sockets)
        audit = tmp_path / "audit"
        assert run(*command, "--dry-run", "--audit", str(audit)).code == 0
        assert run(*command, "--audit", str(audit), preexec=drop_privilege).code == 4
        told = [(r["outcome"], r["reason"], r["error"], r["dry_run"]) for r in records(audit.read_text())]
        assert told == [("skipped", "dry run", None, True), ("failed", "Operation not permitted", 1, False)]

    def test_a_file_is_for_its_owner_and_group(self, network: None, tmp_path: Path) -> None:
        audit = tmp_path / "audit"
        assert run(*COMMANDS["terminate"], "--audit", str(audit), preexec=lambda: os.umask(0)).code == 0
        assert (audit.read_bytes(), audit.stat().st_mode & 0o777) == (b"", 0o640)

    @ANY_COMMAND
    @pytest.mark.parametrize("json", [[], ["--json"]], ids=["lines", "json"])
    def test_a_dash_is_standard_error(self, sockets: Sockets, command: list[str], json: list[str]) -> None:
        client = connect(sockets)
        result = run(*command, "--audit", "-", *json)
        (record,) = records(result.err)
        assert (result.code, record["cookie"]) == (0, cookie_of(client))
        assert result.json["destroyed"] == 1 if json else result.out.startswith("destroyed ")

    def test_watch_has_an_operation_for_each_pass(self, sockets: Sockets, tmp_path: Path) -> None:
        audit = tmp_path / "audit"
        with watching("--netns", "host", "--audit", str(audit)) as agent:
            for number in (1, 2):
                connect(sockets)
                agent.tell(upsert(BACKEND), delete(BACKEND))
                eventually(lambda number=number: len(audit.read_text().splitlines()) == number, "a record")  # type: ignore[misc]
            assert agent.stop().code == 0
        written = records(audit.read_text())
        assert [record["backend"] for record in written] == [BACKEND] * 2
        assert len({record["operation"] for record in written}) == 2


class TestAFileThatCannotBeOpened:
    """2, before anything dies."""

    @pytest.fixture(params=["missing directory", "directory", "pipe that nobody reads", "no name"])
    def path(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        path = tmp_path / "audit"
        if request.param == "missing directory":
            return str(path / "deeper")
        if request.param == "directory":
            path.mkdir()
        elif request.param == "pipe that nobody reads":
            os.mkfifo(path)
        return str(path) if request.param != "no name" else ""

    @ANY_COMMAND
    @pytest.mark.parametrize("json", [[], ["--json"]], ids=["lines", "json"])
    def test_is_2(self, sockets: Sockets, path: str, command: list[str], json: list[str]) -> None:
        client = connect(sockets)
        result = run(*command, *json, "--audit", path)
        assert (result.code, result.out, pending_error(client)) == (2, "", "")
        assert result.err.startswith(f"socklb: the audit file {path} cannot be opened: ")

    def test_watch_does_not_start(self, network: None, path: str) -> None:
        result = run("watch", "--source", "-", "--audit", path)
        assert (result.code, result.out) == (2, "")
        assert "cannot be opened" in result.err

    @ANY_COMMAND
    def test_standard_error_that_is_closed(self, sockets: Sockets, command: list[str]) -> None:
        client = connect(sockets)
        result = run(*command, "--audit", "-", preexec=lambda: os.close(2))
        assert (result, pending_error(client)) == (Result(2, "", ""), "")


class TestAFileThatFillsUp:
    """1, and it says so: nothing is destroyed any more, and what is not recorded is named, at most one batch of 64."""

    @pytest.fixture
    def audit(self, network: None) -> Iterator[Path]:
        """A file on a disk of 32 KiB, which is room for some 70 records."""
        with tempfile.TemporaryDirectory(dir="/run") as directory, world.small_disk(directory, 32 << 10):
            yield Path(directory, "audit")

    def account(self, made: list[socket.socket], audit: Path, unrecorded: set[int]) -> int:
        """Every socket that was destroyed is recorded or named; how many that are."""
        dead = {cookie_of(client) for client in made if pending_error(client) == ABORTED}
        recorded = {record["cookie"] for record in records(audit.read_text()) if record["outcome"] == "destroyed"}
        assert len(recorded) > 30
        assert recorded <= dead
        assert dead - recorded <= unrecorded
        assert 0 < len(unrecorded) <= BATCH
        return len(dead)

    @ANY_COMMAND
    def test_as_json(self, sockets: Sockets, audit: Path, command: list[str]) -> None:
        with pinned_networks("web") as (web,):
            made = [connect(sockets) for _ in range(200)] + web.make(lambda s: [connect(s) for _ in range(200)])
            result = run(*command, "--json", "--audit", str(audit))
            said = result.json
            assert result.code == 1
            assert said["error"] == f"the audit file {audit} cannot be written: No space left on device"
            assert f"socklb: {said['error']}" in result.err.splitlines()
            assert said["destroyed"] == self.account(made, audit, set(said["unrecorded"]))
            assert said["destroyed"] < len(made)

    @ANY_COMMAND
    def test_as_lines(self, sockets: Sockets, audit: Path, command: list[str]) -> None:
        made = {client.getsockname()[1]: client for client in (connect(sockets) for _ in range(200))}
        result = run(*command, "--audit", str(audit))
        assert result.code == 1
        assert result.err.endswith(f"socklb: the audit file {audit} cannot be written: No space left on device\n")
        marked = [line for line in result.out.splitlines() if line.endswith("not in the audit)")]
        assert {line.split()[0] for line in marked} <= {"destroyed", "failed"}
        unrecorded = {cookie_of(made[int(line.split()[3].rpartition(":")[2])]) for line in marked}
        self.account(list(made.values()), audit, unrecorded)

    def test_watch_ends(self, sockets: Sockets, audit: Path) -> None:
        made = {client.getsockname()[1]: client for client in (connect(sockets) for _ in range(200))}
        with watching("--netns", "host", "--audit", str(audit)) as agent:
            agent.tell(upsert(BACKEND), delete(BACKEND))
            result = agent.result()
        assert result.code == 1
        *lines, last = result.err.splitlines()
        assert last == f"socklb: the audit file {audit} cannot be written: No space left on device"
        marked = [line for line in lines if line.endswith("(not in the audit)")]
        unrecorded = {cookie_of(made[int(line.split()[4].rpartition(":")[2])]) for line in marked}
        self.account(list(made.values()), audit, unrecorded)

    @ANY_COMMAND
    def test_one_that_is_full_from_the_start(self, sockets: Sockets, command: list[str]) -> None:
        """A batch goes before that is known."""
        made = [connect(sockets) for _ in range(100)]
        result = run(*command, "--json", "--audit", "/dev/full")
        assert result.code == 1
        dead = {cookie_of(client) for client in made if pending_error(client)}
        assert (len(dead), set(result.json["unrecorded"])) == (BATCH, dead)
