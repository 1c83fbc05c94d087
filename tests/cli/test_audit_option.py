"""`--audit FILE`: a JSON line for each verdict; where it cannot be written, destroying stops."""

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
from socklb.kernel.netlink_socket import BATCH

from .. import world
from ..networks import pinned_networks
from ..sockets import Sockets, cookie_of, eventually, pending_error
from .agent import delete, upsert, watching
from .runner import Result, drop_privilege, run

pytestmark = pytest.mark.kernel

FILTER, BACKEND = "dst 10.9.0.2:9000", "10.9.0.2:9000/UDP"
COMMANDS = {
    "destroy": ["destroy", "--netns", "all", "--udp", FILTER],
    "terminate": ["terminate", "--netns", "all", BACKEND],
}
ANY_COMMAND = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
ABORTED = "ECONNABORTED"
FULL = "the audit file {} cannot be written: (the disk is full|No space left)"  # the latter if the last record fits


def connect(sockets: Sockets) -> socket.socket:
    return sockets.udp("10.9.0.2", 9000)


def records(text: str) -> list[dict[str, Any]]:
    """What a file holds, but for half a line at the end, which a full disk leaves."""
    return [json.loads(line) for line in text.split("\n")[:-1]]


class TestRecords:
    """Appended, one for each verdict; a command is one operation, and a pass of `watch` is."""

    @ANY_COMMAND
    def test_several_namespaces_are_one_operation(self, sockets: Sockets, tmp_path: Path, command: list[str]) -> None:
        audit = tmp_path / "audit"
        audit.write_text('{"older": true}\n')
        with pinned_networks("web", "db") as nets:
            made = [connect(sockets), *(net.make(connect) for net in nets)]
            result = run(*command, "--json", "--audit", str(audit), env={"SUDO_USER": "alice"})
            assert (result.code, result.err, {pending_error(client) for client in made}) == (0, "", {ABORTED})
        older, *written = records(audit.read_text())
        assert older == {"older": True}
        assert written[0].pop("command").endswith(" ".join([*command, "--json", "--audit", str(audit)]))
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row.pop("time")) for row in written)
        (operation,) = {record.pop("operation") for record in written}
        assert re.fullmatch(r"[0-9a-f]{16}", operation)
        for actor in [record.pop("actor") for record in written]:
            assert (actor["uid"], actor["sudo_user"], len(actor)) == (os.getuid(), "alice", 3)
        assert written == result.json["sockets"]
        assert {(row["namespace"], row["outcome"]) for row in written} == {
            (name, "destroyed") for name in ("current", "web", "db")
        }
        targets = {(row.get("backend"), row.get("filter")) for row in written}
        filter_text = str(SocketFilter.parse(FILTER, "udp"))
        assert targets == {(BACKEND, None) if command[0] == "terminate" else (None, filter_text)}

    @ANY_COMMAND
    def test_what_was_spared_and_what_failed_is_recorded_too(
        self, sockets: Sockets, tmp_path: Path, command: list[str]
    ) -> None:
        connect(sockets)
        audit = tmp_path / "audit"
        assert run(*command, "--dry-run", "--audit", str(audit)).code == 0
        assert run(*command, "--audit", str(audit), preexec=drop_privilege).code == 4
        written = records(audit.read_text())
        assert [(row["outcome"], row["reason"], row["error"], row["dry_run"]) for row in written] == [
            ("would_destroy", "", None, True),
            ("failed", "Operation not permitted", 1, False),
        ]
        assert len({row["operation"] for row in written}) == 2

    @ANY_COMMAND
    @pytest.mark.parametrize(
        ("name", "json"), [("-", []), ("-", ["--json"]), ("/dev/stderr", [])], ids=["lines", "json", "device"]
    )
    def test_a_dash_is_standard_error(self, sockets: Sockets, command: list[str], name: str, json: list[str]) -> None:
        client = connect(sockets)
        result = run(*command, "--audit", name, *json)
        (record,) = records(result.err)
        assert (result.code, record["cookie"]) == (0, cookie_of(client))
        assert result.json["destroyed"] == 1 if json else result.out.startswith("destroyed ")

    def test_watch_has_an_operation_for_each_pass(self, sockets: Sockets, tmp_path: Path) -> None:
        audit = tmp_path / "audit"
        with watching("--netns", "current", "--audit", str(audit)) as agent:
            for number in (1, 2):
                connect(sockets)
                agent.send(upsert(BACKEND), delete(BACKEND))
                eventually(lambda number=number: len(audit.read_text().splitlines()) == number, "a record")  # type: ignore[misc]
            assert agent.stop().code == 0
        written = records(audit.read_text())
        assert [(record["backend"], "command" in record) for record in written] == [(BACKEND, True)] * 2
        assert len({record["operation"] for record in written}) == 2


class TestAFileThatCannotBeOpened:
    """2, before anything dies."""

    @pytest.mark.parametrize("command", [*COMMANDS.values(), ["watch", "--source", "-"]], ids=lambda c: c[0])
    @pytest.mark.parametrize(
        "kind", ["missing directory", "pipe that nobody reads", "no name", "symbolic link", "anyone's"]
    )
    def test_is_2(self, sockets: Sockets, tmp_path: Path, command: list[str], kind: str) -> None:
        client, path = connect(sockets), tmp_path / "audit"
        if kind == "pipe that nobody reads":
            os.mkfifo(path)
        elif kind == "symbolic link":
            path.symlink_to(tmp_path / "of another")
        elif kind == "anyone's":
            path.touch()
            path.chmod(0o666)
        name = {"missing directory": str(path / "deeper"), "no name": ""}.get(kind, str(path))
        result = run(*command, "--audit", name)
        assert (result.code, result.out, pending_error(client)) == (2, "", "")
        assert result.err.startswith(f"socklb: the audit file {name} cannot be opened: ")
        assert not (tmp_path / "of another").exists()
        if command[0] != "watch":
            assert run(*command, "--json", "--audit", name) == result

    @ANY_COMMAND
    def test_standard_error_that_is_closed(self, sockets: Sockets, command: list[str]) -> None:
        client = connect(sockets)
        result = run(*command, "--audit", "-", preexec=lambda: os.close(2))
        assert (result, pending_error(client)) == (Result(2, "", ""), "")


CANNOT_BE_CLOSED = """
import errno, os
usual = os.close
def close(descriptor):
    name = os.readlink(f"/proc/self/fd/{descriptor}")
    usual(descriptor)
    if name.endswith("/audit"):
        raise OSError(errno.EIO, "Input/output error")
os.close = close
"""


class TestAFileThatCannotBeClosed:
    """1, behind the whole report: a file system that has lost data may say so at the end."""

    @ANY_COMMAND
    def test_is_1(self, sockets: Sockets, tmp_path: Path, command: list[str]) -> None:
        connect(sockets)
        result = run(*command, "--json", "--audit", str(tmp_path / "audit"), patch=CANNOT_BE_CLOSED)
        text = f"the audit file {tmp_path / 'audit'} cannot be closed: Input/output error"
        assert (result.code, result.err) == (1, f"socklb: {text}\n")
        assert (result.json["destroyed"], result.json["error"]) == (1, text)

    def test_of_watch(self, tmp_path: Path) -> None:
        result = run("watch", "--source", "-", "--audit", str(tmp_path / "audit"), patch=CANNOT_BE_CLOSED)
        assert (result.code, "audit cannot be closed" in result.err) == (1, True)


class TestAFileThatFillsUp:
    """1, and it says so: destroying stops, and what is not recorded is named, at most one batch of 64."""

    @pytest.fixture
    def audit(self, network: None) -> Iterator[Path]:
        """A file on a disk of 32 KiB, which is room for some 70 records and a part of one more."""
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
            assert re.match(FULL.format(audit), said["error"])
            assert {f"socklb: {text}" for text in said["error"].split("; ")} == {*result.err.splitlines()}
            assert said["destroyed"] == self.account(made, audit, set(said["unrecorded"]))
            assert said["destroyed"] < len(made)

    @pytest.mark.parametrize("command", ["destroy", "watch"])
    def test_as_lines(self, sockets: Sockets, audit: Path, command: str) -> None:
        """On standard output, of `watch` on standard error."""
        made = {client.getsockname()[1]: client for client in (connect(sockets) for _ in range(200))}
        if command == "watch":
            with watching("--netns", "current", "--audit", str(audit)) as agent:
                agent.send(upsert(BACKEND), delete(BACKEND))
                result = agent.result()
        else:
            result = run(*COMMANDS[command], "--audit", str(audit))
        assert result.code == 1
        *warnings, last = result.err.splitlines()
        assert re.match(f"socklb: {FULL.format(audit)}", last)
        lines = warnings if command == "watch" else result.out.splitlines()
        marked = [line for line in lines if line.endswith("not in the audit)")]
        ports = [re.search(r":(\d+) -> ", line) for line in marked]
        self.account(list(made.values()), audit, {cookie_of(made[int(port[1])]) for port in ports if port})

    def test_one_that_is_full_from_the_start(self, sockets: Sockets) -> None:
        """A batch goes before that is known."""
        made = [connect(sockets) for _ in range(100)]
        result = run(*COMMANDS["terminate"], "--json", "--audit", "/dev/full")
        assert result.code == 1
        dead = {cookie_of(client) for client in made if pending_error(client)}
        assert (len(dead), set(result.json["unrecorded"])) == (BATCH, dead)
