"""The audit: a record of each verdict, and the file that takes each as a line, whatever disk, readers and others do."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import select
import signal
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import AuditError, SocketFilter, destroy_sockets, dport
from socklb.engine import audit as module
from socklb.engine.audit import AuditFile
from socklb.wire.socket_id import AF_INET6

from ..fake_kernel import FakeKernel, row, table
from ..sockets import eventually, in_child
from ..world import small_disk

PAGE = os.sysconf("SC_PAGE_SIZE")
RECORD = {"namespace": "current", "cookie": 1, "outcome": "destroyed"}
LINE = json.dumps(RECORD).encode() + b"\n"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
records = st.dictionaries(st.text(), json_values, max_size=4)


class TestRecords:
    """One dict for each verdict: when, which operation, who, what was done to which socket, matched by what."""

    def run(self, **options: Any) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        rows = [row(1, inode=7), row(2, family=AF_INET6, src="::ffff:10.0.0.1", dst="::ffff:10.0.0.5", sport=5000)]
        with FakeKernel(table(rows, lambda which, _: errno.EIO if which.cookie == 2 else 0)).installed():
            destroy_sockets(SocketFilter("tcp", dport(80)), audit=made.append, **options)
        return made

    def test_what_it_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SUDO_USER", "alice")
        monkeypatch.setattr(sys, "argv", ["socklb", "destroy", "dport = 80"])
        monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_007_999_999)
        first, second = self.run()
        assert re.fullmatch("[0-9a-f]{16}", second["operation"])
        assert second == {
            "time": "2023-11-14T22:13:20.007Z",
            "operation": first["operation"],
            "actor": {"uid": os.getuid(), "pid": os.getpid(), "sudo_user": "alice"},
            "namespace": "current",
            "filter": "dport = 80",
            "dry_run": False,
            "protocol": "tcp",
            "state": "ESTABLISHED",
            "interface": 0,
            "device": None,
            "cgroup_id": None,
            "timer": 0,
            "retransmits": 0,
            "expires_ms": 0,
            "src": "::ffff:10.0.0.1",
            "sport": 5000,
            "dst": "::ffff:10.0.0.5",
            "dport": 80,
            "cookie": 2,
            "uid": 0,
            "inode": 0,
            "outcome": "failed",
            "reason": os.strerror(errno.EIO),
            "error": errno.EIO,
        }
        assert (first["outcome"], first["reason"], first["error"], first["inode"]) == ("destroyed", "", None, 7)
        assert first.keys() - second.keys() == {"command"}
        assert first["command"] == "socklb destroy dport = 80"
        assert json.loads(json.dumps(first)) == first

    def test_each_run_has_an_operation_of_its_own(self) -> None:
        real, dry = self.run(), self.run(dry_run=True)
        assert len({record["operation"] for record in real}) == len({record["operation"] for record in dry}) == 1
        assert real[0]["operation"] != dry[0]["operation"]
        assert [(record["dry_run"], record["outcome"]) for record in dry] == [(True, "would_destroy")] * 2
        assert ["command" in record for record in real + dry] == [True, False] * 2

    def test_nobody_became_root_and_an_embedded_interpreter_has_no_arguments(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SUDO_USER", raising=False)
        monkeypatch.delattr(sys, "argv")
        first, _ = self.run()
        assert (first["command"], first["actor"]["sudo_user"]) == ("", None)

    def test_a_long_command_line_is_shortened(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["x" * 4000, "y" * 96])
        assert self.run()[0]["command"] == f"{'x' * 4000} {'y' * 95} [...]"
        monkeypatch.setattr(sys, "argv", ["x" * 4096])
        assert self.run()[0]["command"] == "x" * 4096


# -------------------------------------------------------------------------------------------- the file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is written, one for each write."""
    seen: list[bytes] = []
    usual = os.write

    def write(descriptor: int, data: bytes) -> int:
        seen.append(bytes(data))
        return usual(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    return seen


def cookies_in(path: Path) -> list[int]:
    """Of whole lines only."""
    data = path.read_bytes()
    assert not data or data.endswith(b"\n")
    return [json.loads(line)["cookie"] for line in data.splitlines()]


def readable_cookies_in(path: Path) -> list[int]:
    """Of lines that hold one record, as a reader sees them that passes over what it cannot read."""
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        with suppress(ValueError):
            found.append(json.loads(line)["cookie"])
    return found


def write_until_it_fails(audit: AuditFile, longest: int = 97) -> tuple[int, AuditError]:
    """How many records of growing cookies went in, and the error of the next one."""
    for number in range(1_000_000):
        try:
            audit({"cookie": number, "filler": "x" * (number * 3701 % longest)})
        except AuditError as error:
            return number, error
    raise AssertionError("it never fills up")


class TestAppending:
    """Each record is a line in one O_APPEND write: whoever else writes, lines do not mix."""

    @given(st.lists(records, max_size=4))
    def test_any_records_read_back_a_line_each(self, several: list[dict[str, Any]]) -> None:
        descriptor = os.memfd_create("audit")
        try:
            with AuditFile(f"/dev/fd/{descriptor}") as audit:
                for record in several:
                    audit(record)
            data = os.pread(descriptor, 1 << 20, 0)
        finally:
            os.close(descriptor)
        assert data.isascii()
        assert [json.loads(line) for line in data.splitlines()] == several
        assert data.count(b"\n") == len(several)

    def test_two_writers_and_a_file_that_is_cut_meanwhile(self, path: Path, writes: list[bytes]) -> None:
        """Cut as logrotate's copytruncate does."""
        path.write_bytes(LINE)
        with AuditFile(str(path)) as one, AuditFile(str(path)) as two:
            for number in range(2, 6):
                (one, two)[number % 2]({**RECORD, "cookie": number})
                assert cookies_in(path) == list(range(1, number + 1))
            os.truncate(path, 0)
            one(RECORD)
        assert path.read_bytes() == LINE
        assert writes == [LINE.replace(b"1", b"%d" % number) for number in (2, 3, 4, 5, 1)]

    def test_only_owner_and_group_may_read_it(self, path: Path) -> None:
        before = os.umask(0)
        try:
            AuditFile(str(path)).close()
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    @pytest.mark.parametrize("name", ["file", "-"])
    def test_it_is_closed_in_the_end_and_children_do_not_inherit_it(self, path: Path, name: str) -> None:
        def open_files() -> tuple[int, int]:
            inherited = subprocess.check_output(["ls", "/proc/self/fd"], close_fds=False)
            return len(os.listdir("/proc/self/fd")), len(inherited.split())

        own, inherited = open_files()
        with AuditFile(str(path) if name == "file" else name):
            assert open_files() == (own + 1, inherited)
        assert open_files() == (own, inherited)


class TestCannotBeOpened:
    """AuditError, before anything is destroyed; nothing stays open."""

    def refused(self, path: object) -> tuple[int | None, str]:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(AuditError) as caught:
            AuditFile(str(path))
        assert os.listdir("/proc/self/fd") == before
        return caught.value.errno, str(caught.value)

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        """A pipe that nobody reads is not waited for."""
        missing = tmp_path / "missing" / "audit"
        os.mkfifo(tmp_path / "pipe")
        assert self.refused(missing) == (
            errno.ENOENT,
            f"[Errno 2] the audit file {missing} cannot be opened: No such file or directory",
        )
        assert self.refused(tmp_path)[0] == errno.EISDIR
        assert self.refused(tmp_path / "pipe")[0] == errno.ENXIO

    @pytest.mark.kernel
    def test_a_half_line_that_cannot_be_ended(self, tmp_path: Path) -> None:
        with small_disk(str(tmp_path), PAGE):
            (tmp_path / "audit").write_bytes(b"x" * PAGE)
            code, text = self.refused(tmp_path / "audit")
        assert (code, "cannot be opened" in text) == (errno.ENOSPC, True)

    def test_a_symbolic_link(self, tmp_path: Path) -> None:
        """Whoever may write to the directory could lead the records of root into any file."""
        (tmp_path / "secret").write_text("precious")
        (tmp_path / "audit").symlink_to(tmp_path / "secret")
        code, text = self.refused(tmp_path / "audit")
        assert (code, (tmp_path / "secret").read_text()) == (errno.ELOOP, "precious")
        assert f"{tmp_path / 'audit'} cannot be opened: it is a symbolic link; give the path that it leads to" in text

    @pytest.mark.parametrize("make", [Path.touch, os.mkfifo], ids=["file", "pipe"])
    def test_what_others_may_write_to(self, tmp_path: Path, make: Callable[[Path], object]) -> None:
        path = tmp_path / "audit"
        make(path)
        path.chmod(0o664)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        assert "others may write to it" in self.refused(path)[1]
        path.chmod(0o640)
        AuditFile(str(path)).close()
        os.close(reader)

    def test_what_another_user_owns(self, tmp_path: Path) -> None:
        path = tmp_path / "audit"
        path.touch(0o640)
        try:
            os.chown(path, 1234, 1234)
        except OSError as error:
            pytest.skip(f"only root of the machine can give a file away: {error}")
        assert "it belongs to uid 1234" in self.refused(path)[1]

    def test_standard_error_that_is_closed(self) -> None:
        assert in_child(lambda: self.refused("-"), lambda: os.close(2)) == (
            errno.EBADF,
            "[Errno 9] the audit file standard error cannot be opened: Bad file descriptor",
        )


class TestNoRoom:
    """A write that comes out short leaves half a line; nothing is cut off, for others may have written since."""

    @pytest.mark.kernel
    @pytest.mark.parametrize("who", ["itself", "another"])
    def test_a_full_disk_and_then_room_again(self, tmp_path: Path, who: str) -> None:
        with small_disk(str(tmp_path), 3 * PAGE):
            path, filler = tmp_path / "audit", tmp_path / "filler"
            filler.write_bytes(b"x" * PAGE)
            with AuditFile(str(path)) as one, AuditFile(str(path)) as another:
                count, error = write_until_it_fails(one)
                assert str(error).startswith(f"[Errno 28] the audit file {path} cannot be written: ")
                assert readable_cookies_in(path) == list(range(count))
                assert count > 20
                filler.unlink()
                for cookie in (-1, -2):
                    (one if who == "itself" else another)({"cookie": cookie})
            assert readable_cookies_in(path) == [*range(count), -1, -2]

    @pytest.mark.parametrize("limit", [len(LINE), 2 * len(LINE) + 1, 3 * len(LINE) - 1])
    def test_a_limit_on_file_sizes(self, path: Path, limit: int) -> None:
        """RLIMIT_FSIZE cuts writes, and then refuses them with SIGXFSZ, which Python ignores."""

        def fill() -> tuple[int, int | None]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                with AuditFile(str(path)) as audit:
                    for written in range(10):
                        try:
                            audit(RECORD)
                        except AuditError as error:
                            return written, error.errno
                return 10, None
            finally:  # what measures the coverage has a file to write too
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        written, code = in_child(fill)
        assert written == limit // len(LINE)
        assert code in (errno.ENOSPC, errno.EFBIG)
        assert path.read_bytes() == (LINE * 4)[:limit]

    @pytest.mark.parametrize("room", [1, len(LINE) - 1])
    def test_another_writer_loses_nothing_whenever_it_comes(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, room: int
    ) -> None:
        """One finds no room, and before each of its system calls another writes."""
        written: list[int] = []
        turns: list[AuditFile] = []

        def after_another(name: str) -> Callable[..., Any]:
            usual = getattr(os, name)

            def call(*arguments: Any) -> Any:
                if not turns:
                    return usual(*arguments)
                another = turns.pop()
                written.append(len(written) + 100)
                another({"cookie": written[-1]})
                turns.append(another)
                return usual(arguments[0], arguments[1][:room]) if name == "write" else usual(*arguments)

            return call

        for name in ("write", "lseek", "fstat", "ftruncate"):
            monkeypatch.setattr(os, name, after_another(name))
        with AuditFile(str(path)) as one, AuditFile(str(path)) as another:
            one(RECORD)
            turns.append(another)
            with pytest.raises(AuditError) as caught:
                one({**RECORD, "cookie": 2})
            turns.clear()
            another({"cookie": 3})
            one({"cookie": 4})
        assert caught.value.errno == errno.ENOSPC
        assert len(written) > 1
        assert readable_cookies_in(path) == [1, *written, 3, 4]


class TestAfterARename:
    """logrotate renames the file: reopen() goes on in a new one."""

    def test_records_go_to_the_new_file(self, path: Path) -> None:
        old = path.with_suffix(".1")
        with AuditFile(str(path)) as audit:
            audit({"cookie": 1})
            path.rename(old)
            audit({"cookie": 2})
            before = os.listdir("/proc/self/fd")
            audit.reopen()
            assert os.listdir("/proc/self/fd") == before
            audit({"cookie": 3})
        audit.reopen()
        with pytest.raises(AuditError, match="Bad file descriptor"):
            audit(RECORD)
        assert (cookies_in(old), cookies_in(path)) == ([1, 2], [3])
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    @pytest.mark.parametrize(
        "make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("x")], ids=["directory", "pipe", "link"]
    )
    def test_the_old_one_stays_if_there_is_no_new_one(self, path: Path, make: Callable[[Path], object]) -> None:
        """A record longer than what a pipe takes in one piece is one write as before."""
        old, long = path.with_suffix(".1"), {"cookie": 2, "filler": "x" * 9999}
        with AuditFile(str(path)) as audit:
            audit({"cookie": 1})
            path.rename(old)
            make(path)
            before = os.listdir("/proc/self/fd")
            with pytest.raises(AuditError, match=f"{path} cannot be opened"):
                audit.reopen()
            assert os.listdir("/proc/self/fd") == before
            audit(long)
        assert cookies_in(old) == [1, 2]

    def test_half_a_line_is_left_behind(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usual = os.write
        with AuditFile(str(path)) as audit:
            with monkeypatch.context() as patched:
                patched.setattr(os, "write", lambda descriptor, data: usual(descriptor, data[:7]))
                with pytest.raises(AuditError):
                    audit(RECORD)
            path.rename(path.with_suffix(".1"))
            audit.reopen()
            audit(RECORD)
        assert path.read_bytes() == LINE

    def test_while_another_thread_writes(self, path: Path) -> None:
        """As SIGHUP comes while a pass is at work: each record is in one of the files, whole."""
        done = threading.Event()
        old = [path.with_suffix(f".{number}") for number in range(50)]
        written = 0

        def write() -> None:
            nonlocal written
            while not done.is_set():
                audit({"cookie": written})
                written += 1

        with AuditFile(str(path)) as audit:
            writer = threading.Thread(target=write)
            writer.start()
            try:
                for name in old:
                    eventually(lambda: path.stat().st_size > 0, "there are records")
                    path.rename(name)
                    audit.reopen()
            finally:
                done.set()
                writer.join()
        assert [cookie for file in [*old, path] for cookie in cookies_in(file)] == list(range(written))

    def test_standard_error_stays(self, capfd: pytest.CaptureFixture[str]) -> None:
        with AuditFile("-") as audit:
            audit.reopen()
            audit(RECORD)
        assert capfd.readouterr().err == LINE.decode()


class TestAfterAKilledWriter:
    """The line that it has left unfinished is ended; whole lines need nothing."""

    @pytest.mark.parametrize("left", [LINE[:-1], LINE + LINE[:7], b"{", b"", LINE, LINE * 2])
    def test_the_next_record_has_its_own_line(self, path: Path, left: bytes, writes: list[bytes]) -> None:
        path.write_bytes(left)
        with AuditFile(str(path)) as audit:
            audit(RECORD)
        end = b"" if left.endswith(b"\n") or not left else b"\n"
        assert path.read_bytes() == left + end + LINE
        assert writes == ([end] if end else []) + [LINE]

    def test_what_may_not_be_read_is_taken_for_whole(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.write_bytes(b"half")
        with monkeypatch.context() as patched:
            patched.setattr("builtins.open", refuse)
            with AuditFile(str(path)) as audit:
                audit(RECORD)
        assert path.read_bytes() == b"half" + LINE


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(errno.EACCES, "open")


class TestClosing:
    """A file system that has lost data may say so at the end; that hides nothing that says more."""

    def test_it_cannot_be_closed(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usual = os.close

        def close(descriptor: int) -> None:
            usual(descriptor)
            raise OSError(errno.EIO, "lost")

        audit, another = AuditFile(str(path)), AuditFile(str(path))
        with monkeypatch.context() as patched:
            patched.setattr(os, "close", close)
            with pytest.raises(AuditError, match=f"the audit file {path} cannot be closed: lost"):
                audit.__exit__(None, None, None)
            with pytest.raises(KeyError), another:
                raise KeyError


class TestStandardError:
    """`-` is standard error; others write there as well."""

    def test_records_go_there_and_it_stays_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """And never to a file of that name, whose half line is none of ours."""
        before = os.get_blocking(2)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "-").write_bytes(b"half")
        with AuditFile("-") as audit:
            audit(RECORD)
            assert os.get_blocking(2) == before
        os.write(2, b"still open\n")
        assert capfd.readouterr() == ("", LINE.decode() + "still open\n")
        assert (tmp_path / "-").read_bytes() == b"half"

    def test_a_half_line_there_is_somebody_else_s(self, path: Path) -> None:
        path.write_bytes(b"half")

        def write() -> None:
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), 2)
            with AuditFile("-") as audit:
                audit(RECORD)

        in_child(write)
        assert path.read_bytes() == b"half" + LINE


class TestReaders:
    """A slow one is waited for; one that is stuck (unless it is a person at a terminal) or has gone is an error."""

    @pytest.fixture
    def fifo(self, path: Path) -> Path:
        os.mkfifo(path)
        return path

    def test_everything_gets_through_to_a_slow_one(self, fifo: Path) -> None:
        """Much more than a pipe holds, in records longer than what it takes in one piece."""
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        failed: list[AuditError] = []
        with AuditFile(str(fifo)) as audit:

            def write() -> None:
                try:
                    for number in range(100):
                        audit({"cookie": number, "filler": "x" * 5000})
                except AuditError as error:
                    failed.append(error)

            writer = threading.Thread(target=write)
            writer.start()
            eventually(lambda: not writer.is_alive() or is_full(fifo), "the pipe is full")
            with os.fdopen(reader, "rb") as lines:
                got = [json.loads(lines.readline()) for _ in range(100)] if not failed else []
                writer.join()
        assert failed == []
        assert got == [{"cookie": number, "filler": "x" * 5000} for number in range(100)]

    def test_another_writer_may_take_the_room_first(self, fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between poll() and write()."""
        reader, usual, refusals = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), os.write, [BlockingIOError()]

        def write(descriptor: int, data: bytes) -> int:
            if refusals:
                raise refusals.pop()
            return usual(descriptor, data)

        with AuditFile(str(fifo)) as audit:
            monkeypatch.setattr(os, "write", write)
            audit(RECORD)
        assert os.read(reader, 1000) == LINE
        os.close(reader)

    def test_a_signal_between_the_pieces_of_a_record(self, fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What it leaves is a line that cannot be read, and no more than that."""
        reader, usual = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), os.write

        def interrupted(descriptor: int, data: bytes) -> int:
            usual(descriptor, data)
            raise KeyboardInterrupt

        with AuditFile(str(fifo)) as audit:
            with monkeypatch.context() as patched:
                patched.setattr(os, "write", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    audit({**RECORD, "filler": "x" * 5000})
            audit(RECORD)
            audit(RECORD)
        half, *lines = os.read(reader, 10_000).splitlines(keepends=True)
        os.close(reader)
        assert half == json.dumps({**RECORD, "filler": "x" * 5000}).encode()[: select.PIPE_BUF] + b"\n"
        assert lines == [LINE, LINE]

    def test_one_that_has_gone(self, fifo: Path) -> None:
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        before = signal.getsignal(signal.SIGPIPE)
        with AuditFile(str(fifo)) as audit:
            audit(RECORD)
            os.close(reader)
            with pytest.raises(AuditError, match="cannot be written: Broken pipe") as caught:
                audit(RECORD)
        assert caught.value.errno == errno.EPIPE
        assert signal.getsignal(signal.SIGPIPE) == before

    @pytest.mark.parametrize("name", ["-", "fifo"])
    @pytest.mark.parametrize("longest", [97, 9973])
    def test_one_that_is_stuck(self, fifo: Path, name: str, longest: int) -> None:
        """Also where a write would wait for ever: standard error stays as whoever made it wants it."""
        reader, writer = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), os.open(fifo, os.O_WRONLY)

        def write() -> str:
            signal.alarm(20)
            os.dup2(writer, 2)
            module._PATIENCE_MS = 100
            with AuditFile("-" if name == "-" else str(fifo)) as audit:
                _, error = write_until_it_fails(audit, longest)
            assert error.errno == errno.ETIMEDOUT
            return str(error.strerror)

        shown = "standard error" if name == "-" else fifo
        assert in_child(write) == f"the audit file {shown} cannot be written: there was no room in it for 0.1 seconds"
        assert os.get_blocking(writer)
        os.close(reader)
        os.close(writer)

    def test_a_person_at_a_stopped_terminal(self) -> None:
        reader, terminal = os.openpty()

        def write_to_a_stopped_one() -> tuple[bool, list[str]]:
            signal.alarm(20)
            os.dup2(terminal, 2)
            module._PATIENCE_MS = 10
            failed: list[str] = []

            def write() -> None:
                try:
                    with AuditFile("-") as audit:
                        audit(RECORD)
                except AuditError as error:
                    failed.append(str(error))

            termios.tcflow(terminal, termios.TCOOFF)
            writer = threading.Thread(target=write)
            writer.start()
            writer.join(0.1)
            waited = writer.is_alive()
            termios.tcflow(terminal, termios.TCOON)
            writer.join()
            return waited, failed

        assert in_child(write_to_a_stopped_one) == (True, [])
        assert os.read(reader, 1000).split() == LINE.split()
        os.close(reader)
        os.close(terminal)


def is_full(fifo: Path) -> bool:
    """Whether nothing more gets into it at the moment."""
    writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    try:
        return not select.select([], [writer], [], 0)[1]
    finally:
        os.close(writer)
