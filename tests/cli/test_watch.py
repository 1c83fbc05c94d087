"""`socklb watch`: told which backends there are, it cuts the connections to those that fall."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from ..networks import networks, pinned
from ..sockets import Sockets, eventually, pending_error, talk
from .runner import ROOT, SECONDS, command, drop_privilege, environment

pytestmark = pytest.mark.kernel

PORT = 9000
A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
ABORTED = "ECONNABORTED"


def backend(host: str, protocol: str = "UDP") -> str:
    return f"{host}:{PORT}/{protocol}"


def upsert(host: str, **more: object) -> dict[str, Any]:
    return {"op": "upsert", "backend": backend(host), **more}


def delete(host: str, **more: object) -> dict[str, Any]:
    return {"op": "delete", "backend": backend(host), **more}


class Watch:
    """A running `socklb watch`."""

    def __init__(self, *words: str, preexec: Callable[[], None] | None = None, stdin: int = subprocess.PIPE) -> None:
        self.process = subprocess.Popen(
            command(("watch", *words)),
            cwd=ROOT,
            env=environment(),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            preexec_fn=preexec,
        )

    def say(self, *changes: dict[str, Any] | str) -> None:
        assert self.process.stdin is not None
        for change in changes:
            self.process.stdin.write((change if isinstance(change, str) else json.dumps(change)) + "\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """The next line of standard output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def complaint(self) -> str:
        """The next line of standard error."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        """(exit code, the rest of standard output, that of standard error) after a signal, or the end of the input."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out, err


@contextmanager
def watching(*words: str, **options: Any) -> Iterator[Watch]:
    watch = Watch(*words, **options)
    try:
        yield watch
    finally:
        watch.process.kill()
        for pipe in (watch.process.stdin, watch.process.stdout, watch.process.stderr):
            if pipe is not None:
                _close(pipe)
        watch.process.wait()


def _close(pipe: IO[str]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        pass


HOST = ("--netns", "host")


class TestLines:
    """One JSON object a line on standard input; the end of it, after the last batch is done, ends the run with 0."""

    def test_a_backend_that_is_deleted_is_cut_and_no_other(self, sockets: Sockets) -> None:
        gone, other = sockets.udp(A, PORT), sockets.udp(B, PORT)
        pair = sockets.tcp(A, PORT)
        with watching("--source", "-", *HOST) as watch:
            watch.say(upsert(A), upsert(B), delete(A))
            assert watch.line() == f"{backend(A)}: 1 matched: 1 destroyed, 0 gone, 0 skipped, 0 failed\n"
            assert watch.end() == (0, "", "")
        assert (pending_error(gone), pending_error(other)) == (ABORTED, "")
        talk(*pair)

    def test_a_backend_that_two_services_share_is_cut_when_the_last_lets_go(self, sockets: Sockets) -> None:
        client = sockets.udp(A, PORT)
        with watching("--source", "-", *HOST) as watch:
            watch.say(upsert(A, service="one"), upsert(A, service="two"), upsert(B))
            watch.say(delete(A, service="one"), delete(B))
            assert watch.line().startswith(backend(B))
            assert pending_error(client) == ""
            watch.say(delete(A, service="two"))
            assert watch.line().startswith(f"{backend(A)}: 1 matched")
        assert pending_error(client) == ABORTED

    @pytest.mark.parametrize(
        ("change", "is_cut"),
        [
            ({"state": "terminating"}, False),
            ({"state": "active"}, False),
            ({"state": "quarantined"}, True),
            ({"state": "maintenance"}, True),
            ({"unhealthy": True}, True),
        ],
        ids=str,
    )
    def test_terminating_is_alive(self, sockets: Sockets, change: dict[str, Any], is_cut: bool) -> None:
        client = sockets.udp(A, PORT)
        with watching("--source", "-", *HOST) as watch:
            watch.say(upsert(A), upsert(B), upsert(A, **change), delete(B))
            assert watch.end()[0] == 0
        assert pending_error(client) == (ABORTED if is_cut else "")

    def test_a_replace(self, sockets: Sockets) -> None:
        gone, kept = sockets.udp(A, PORT), sockets.udp(B, PORT)
        with watching("--source", "-", *HOST) as watch:
            watch.say({"op": "replace", "backends": [{"backend": backend(A)}, {"backend": backend(B)}]})
            watch.say({"op": "replace", "backends": [{"backend": backend(B)}]})
            assert watch.end()[0] == 0
        assert (pending_error(gone), pending_error(kept)) == (ABORTED, "")

    def test_nothing_is_cut_for_what_was_never_there(self, sockets: Sockets) -> None:
        client = sockets.udp(A, PORT)
        with watching("--source", "-", *HOST) as watch:
            watch.say(delete(A), upsert(A, state="maintenance"), delete(A))
            assert watch.end() == (0, "", "")
        assert pending_error(client) == ""

    def test_a_bad_line_is_told_with_its_number_and_the_next_counts(self, sockets: Sockets) -> None:
        client = sockets.udp(A, PORT)
        with watching("--source", "-", *HOST) as watch:
            watch.say(upsert(A), "{", upsert(A, sate="active"), upsert(A, backend="nonsense"), "", delete(A))
            code, _, err = watch.end()
        assert code == 0
        told = err.splitlines()
        assert [line.partition(" is passed over: ")[0] for line in told] == [f"socklb: line {n}" for n in (2, 3, 4)]
        assert ["no JSON" in told[0], "'sate'" in told[1], "'nonsense'" in told[2]] == [True] * 3
        assert pending_error(client) == ABORTED

    def test_the_end_waits_for_the_second_look(self, sockets: Sockets) -> None:
        """What was connecting while the backend was cut is cut too."""
        sockets.udp(A, PORT)
        with watching("--source", "-", *HOST) as watch:
            watch.say(upsert(A), delete(A))
            assert watch.line().startswith(backend(A))
            late = sockets.udp(A, PORT)
            code, out, err = watch.end()
        assert (code, err) == (0, "")
        assert out == f"{backend(A)}: 1 matched: 1 destroyed, 0 gone, 0 skipped, 0 failed\n"
        assert pending_error(late) == ABORTED

    def test_closed_standard_input(self, network: None) -> None:
        with watching("--source", "-", *HOST, preexec=lambda: os.close(0)) as watch:
            code, out, err = watch.end()
        assert (code, out) == (2, "")
        assert err == "socklb: standard input is closed\n"


class TestSignals:
    """SIGTERM ends it with 0, SIGINT with 130, both after the batch at hand."""

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["TERM", "INT"])
    def test_what_was_told_before_is_cut(self, sockets: Sockets, number: int, code: int) -> None:
        client = sockets.udp(A, PORT)
        with watching("--source", "-", *HOST) as watch:
            watch.say(upsert(A), upsert(B), upsert(C), delete(C))
            assert watch.line().startswith(backend(C))  # so the signal finds it at work
            watch.say(delete(A), "told")
            assert watch.complaint().startswith("socklb: line 6 is passed over")  # so the line before was read
            ended, out, err = watch.end(number)
        assert (ended, err) == (code, "")
        assert out.startswith(f"{backend(A)}: 1 matched")
        assert pending_error(client) == ABORTED

    @pytest.mark.parametrize("source", ["-", "{}/missing.json"])
    def test_while_nothing_happens(self, network: None, tmp_path: Path, source: str) -> None:
        with watching("--source", source.format(tmp_path), *HOST) as watch:
            if source == "-":
                watch.say("x")
            assert watch.complaint()  # it is at work
            assert watch.end(signal.SIGTERM)[0] == 0

    def test_ignored_signals_stay_ignored(self, sockets: Sockets) -> None:
        """As nohup(1) and a shell's background jobs have them."""
        with watching("--source", "-", *HOST, preexec=lambda: _ignore(signal.SIGINT)) as watch:
            watch.say("x")
            assert watch.complaint()
            watch.process.send_signal(signal.SIGINT)
            watch.say("y")
            assert watch.complaint().startswith("socklb: line 2")
            assert watch.end()[0] == 0


def _ignore(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)


class TestFile:
    """A FILE holds one `replace`, and is followed."""

    @staticmethod
    def write(path: Path, *hosts: str) -> None:
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps({"op": "replace", "backends": [{"backend": backend(host)} for host in hosts]}))
        draft.rename(path)

    def test_what_is_no_longer_in_it_is_cut(self, sockets: Sockets, tmp_path: Path) -> None:
        first, second = sockets.udp(A, PORT), sockets.udp(B, PORT)
        path = tmp_path / "backends.json"
        self.write(path, A, B)
        with watching("--source", str(path), *HOST) as watch:
            # An unreadable one is told when it has been looked at, and so the one before has been.
            self.spoil(path, watch)
            self.write(path, B)
            assert watch.line().startswith(f"{backend(A)}: 1 matched: 1 destroyed")
            path.unlink()
            assert "cannot be read: No such file" in watch.complaint()
            assert (pending_error(first), pending_error(second)) == (ABORTED, "")
            self.write(path)
            assert watch.line().startswith(f"{backend(B)}: 1 matched: 1 destroyed")
            assert watch.end(signal.SIGTERM) == (0, "", "")

    @staticmethod
    def spoil(path: Path, watch: Watch) -> None:
        path.write_text("")
        assert watch.complaint() == f"socklb: {path} is empty; the last table stays\n"


class TestNamespaces:
    """In all of them unless told otherwise; one that appears later is seen by the next pass."""

    def test_one_that_appears_later(self, sockets: Sockets) -> None:
        with watching("--source", "-") as watch:
            watch.say(upsert(A), upsert(B), delete(B))
            assert watch.line().startswith(backend(B))
            with networks(1) as (net,), pinned(net.namespace.path, "later"):
                client = net.make(lambda made: made.udp(A, PORT))
                watch.say(delete(A))
                assert watch.line().startswith(f"{backend(A)}: 1 matched: 1 destroyed")
                assert pending_error(client) == ABORTED


class TestRefused:
    """An agent that cannot cut says so when it is started."""

    def test_without_privilege(self, network: None) -> None:
        with watching("--source", "-", *HOST, preexec=drop_privilege) as watch:
            code, out, err = watch.end()
        assert (code, out) == (4, "")
        assert "CAP_NET_ADMIN" in err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--source", "-", "--netns", "nowhere"], "'nowhere'"),
            (["--source", "-", "--audit", "/nonexistent/audit"], "/nonexistent/audit"),
            (["--source", "-", "--rev-nat=/nonexistent"], "/nonexistent"),
            ([], "--source"),
        ],
        ids=["namespace", "audit", "maps", "no source"],
    )
    def test_bad_input(self, network: None, words: list[str], said: str) -> None:
        with watching(*words) as watch:
            code, out, err = watch.end()
        assert (code, out) == (2, "")
        assert said in err
        assert "Traceback" not in err


class TestOutput:
    """It goes on when nobody reads what it says."""

    def test_a_reader_that_leaves(self, sockets: Sockets) -> None:
        clients = [sockets.udp(host, PORT) for host in (A, B)]
        with watching("--source", "-", *HOST) as watch:
            assert watch.process.stdout is not None
            watch.process.stdout.close()
            watch.say(upsert(A), upsert(B), delete(A))
            eventually(lambda: pending_error(clients[0]) == ABORTED, "the first is cut")
            watch.say(delete(B))
            eventually(lambda: pending_error(clients[1]) == ABORTED, "the second is cut")
            watch.process.stdout = None
            assert watch.end() == (0, None, "")

    def test_records(self, sockets: Sockets, tmp_path: Path) -> None:
        """One operation id a pass."""
        for host in (A, A, B):
            sockets.udp(host, PORT)
        audit = tmp_path / "audit.jsonl"
        with watching("--source", "-", *HOST, "--audit", str(audit)) as watch:
            watch.say(upsert(A), upsert(B), delete(A))
            watch.line()
            watch.say(delete(B))
            assert watch.end()[0] == 0
        records = [json.loads(line) for line in audit.read_text().splitlines()]
        assert [record["backend"] for record in records] == [backend(A), backend(A), backend(B)]
        assert [record["operation"] == records[0]["operation"] for record in records] == [True, True, False]
        assert {record["outcome"] for record in records} == {"destroyed"}
