"""The audit file: one JSON line for each verdict, whole lines only, whatever the disk and other writers do."""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import stat
import subprocess
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import AuditError
from socklb.engine import audit as module
from socklb.engine.audit import AuditFile

from ..sockets import eventually, in_child
from ..world import small_disk

PAGE = os.sysconf("SC_PAGE_SIZE")
RECORD = {"namespace": "host", "cookie": 1, "outcome": "destroyed"}
LINE = json.dumps(RECORD).encode() + b"\n"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
records = st.dictionaries(st.text(), json_values, max_size=4)


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


def write_until_it_fails(audit: AuditFile, longest: int = 97) -> tuple[int, AuditError]:
    """How many records of growing cookies went in, and what the next one got."""
    for number in range(1_000_000):
        try:
            audit({"cookie": number, "filler": "x" * (number % longest)})
        except AuditError as error:
            return number, error
    raise AssertionError("it never fills up")


class TestRecords:
    """One O_APPEND write a record."""

    def test_each_is_one_line_in_one_write(self, path: Path, writes: list[bytes]) -> None:
        with AuditFile(str(path)) as audit:
            for _ in range(3):
                audit(RECORD)
        assert writes == [LINE] * 3
        assert path.read_bytes() == LINE * 3

    def test_it_can_be_read_as_soon_as_it_is_written(self, path: Path) -> None:
        with AuditFile(str(path)) as audit:
            for number in range(3):
                audit({"cookie": number})
                assert cookies_in(path) == list(range(number + 1))

    @given(st.lists(records, max_size=4))
    def test_any_records_read_back_a_line_each(self, several: list[dict[str, Any]]) -> None:
        descriptor = os.memfd_create("audit")
        try:
            with AuditFile(f"/proc/self/fd/{descriptor}") as audit:
                for record in several:
                    audit(record)
            data = os.pread(descriptor, 1 << 20, 0)
        finally:
            os.close(descriptor)
        assert data.isascii()
        assert [json.loads(line) for line in data.splitlines()] == several
        assert data.count(b"\n") == len(several)

    def test_what_is_there_is_left_as_it_is(self, path: Path) -> None:
        for number in range(3):
            with AuditFile(str(path)) as audit:
                audit({"cookie": number})
        assert cookies_in(path) == [0, 1, 2]

    def test_it_goes_to_the_end_even_if_another_has_appended_meanwhile(self, path: Path) -> None:
        with AuditFile(str(path)) as one, AuditFile(str(path)) as two:
            for number in range(6):
                (one, two)[number % 2]({"cookie": number})
        assert cookies_in(path) == list(range(6))

    def test_it_begins_anew_where_it_was_cut(self, path: Path) -> None:
        """As logrotate's copytruncate does."""
        with AuditFile(str(path)) as audit:
            audit({"cookie": 1})
            os.truncate(path, 0)
            audit({"cookie": 2})
        assert cookies_in(path) == [2]

    def test_not_everybody_may_read_it(self, path: Path) -> None:
        before = os.umask(0)
        try:
            AuditFile(str(path)).close()
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def test_nothing_is_left_open(self, path: Path) -> None:
        before = os.listdir("/proc/self/fd")
        with AuditFile(str(path)) as audit:
            assert len(os.listdir("/proc/self/fd")) == len(before) + 1
            audit(RECORD)
        assert os.listdir("/proc/self/fd") == before

    @pytest.mark.parametrize("name", ["file", "-"])
    def test_children_do_not_inherit_it(self, path: Path, name: str) -> None:
        def inherited() -> int:
            return len(subprocess.check_output(["ls", "/proc/self/fd"], close_fds=False).split())

        before = inherited()
        with AuditFile(str(path) if name == "file" else name):
            assert inherited() == before


class TestTwoProcesses:
    """Their records do not mix."""

    COUNT = 500

    def test_appending_at_once(self, path: Path) -> None:
        reader, writer = os.pipe()
        children = [self.start(number, path, reader, writer) for number in range(2)]
        os.close(reader)
        os.close(writer)  # now all begin
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        found = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert len(found) == 2 * self.COUNT
        for who in range(2):
            assert [record["cookie"] for record in found if record["who"] == who] == list(range(self.COUNT))

    def start(self, who: int, path: Path, reader: int, writer: int) -> int:
        child = os.fork()
        if not child:
            status = 1
            try:
                os.close(writer)
                os.read(reader, 1)
                with AuditFile(str(path)) as audit:
                    for number in range(self.COUNT):
                        audit({"who": who, "cookie": number, "filler": "x" * 300})
                status = 0
            finally:
                os._exit(status)
        return child


class TestCannotBeOpened:
    """An error before anything dies."""

    def refused(self, path: object) -> AuditError:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(AuditError) as caught:
            AuditFile(str(path))
        assert os.listdir("/proc/self/fd") == before
        return caught.value

    def test_no_such_directory(self, tmp_path: Path) -> None:
        path = tmp_path / "missing" / "audit"
        error = self.refused(path)
        assert error.errno == errno.ENOENT
        assert str(error) == f"[Errno 2] the audit file {path} cannot be opened: No such file or directory"

    def test_a_directory(self, tmp_path: Path) -> None:
        assert self.refused(tmp_path).errno == errno.EISDIR

    def test_a_pipe_that_nobody_reads(self, path: Path) -> None:
        """And it does not wait for a reader."""
        os.mkfifo(path)
        assert self.refused(path).errno == errno.ENXIO

    @pytest.mark.kernel
    def test_a_half_line_that_cannot_be_ended(self, tmp_path: Path) -> None:
        with small_disk(str(tmp_path), PAGE):
            path = tmp_path / "audit"
            path.write_bytes(b"x" * PAGE)
            error = self.refused(path)
            assert error.errno == errno.ENOSPC
            assert "cannot be written" in str(error)

    def test_standard_error_that_is_closed(self) -> None:
        def look() -> str:
            os.close(2)
            with pytest.raises(AuditError) as caught:
                AuditFile("-")
            return str(caught.value)

        assert in_child(look) == "[Errno 9] the audit file standard error cannot be opened: Bad file descriptor"


@pytest.mark.kernel
class TestAFullFileSystem:
    """A short write is cut back, so that the file holds whole lines only."""

    @pytest.mark.parametrize("pages", [1, 3])
    def test_whole_lines_only(self, tmp_path: Path, pages: int) -> None:
        with small_disk(str(tmp_path), pages * PAGE):
            path = tmp_path / "audit"
            with AuditFile(str(path)) as audit:
                count, error = write_until_it_fails(audit)
                assert error.errno == errno.ENOSPC
                assert str(error) == f"[Errno 28] the audit file {path} cannot be written: No space left on device"
                assert cookies_in(path) == list(range(count))
                assert count > 20

    def test_once_there_is_room_again_it_goes_on_with_a_whole_line(self, tmp_path: Path) -> None:
        with small_disk(str(tmp_path), 2 * PAGE):
            path, other = tmp_path / "audit", tmp_path / "other"
            other.write_bytes(b"x" * PAGE)
            with AuditFile(str(path)) as audit:
                count, _ = write_until_it_fails(audit)
                other.unlink()
                audit({"cookie": -1})
            assert cookies_in(path) == [*range(count), -1]


class TestALimitOnFileSizes:
    """RLIMIT_FSIZE cuts writes, and then refuses them with SIGXFSZ, which Python ignores."""

    @pytest.mark.parametrize("limit", [len(LINE), 2 * len(LINE), 2 * len(LINE) + 1, 3 * len(LINE) - 1])
    def test_whole_lines_only(self, path: Path, limit: int) -> None:
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
        assert path.read_bytes() == LINE * written


class TestCutBack:
    """Only one's own short write is cut back."""

    @pytest.fixture
    def short(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bytes], None]:
        """The next writes come out so long at most; then another writer appends some bytes."""
        usual = os.write

        def arrange(length: int, others: bytes) -> None:
            def write(descriptor: int, data: bytes) -> int:
                written = usual(descriptor, data[:length])
                with open(path, "ab") as other:
                    other.write(others)
                return written

            monkeypatch.setattr(os, "write", write)

        return arrange

    @pytest.mark.parametrize("length", [0, 1, len(LINE) - 1])
    def test_to_where_it_began(self, path: Path, short: Callable[[int, bytes], None], length: int) -> None:
        path.write_bytes(LINE)
        with AuditFile(str(path)) as audit:
            short(length, b"")
            with pytest.raises(AuditError) as caught:
                audit(RECORD)
        assert caught.value.errno == errno.ENOSPC
        assert path.read_bytes() == LINE

    def test_not_what_another_has_appended_meanwhile(self, path: Path, short: Callable[[int, bytes], None]) -> None:
        path.write_bytes(LINE)
        with AuditFile(str(path)) as audit:
            short(5, b"another's\n")
            with pytest.raises(AuditError):
                audit(RECORD)
        assert path.read_bytes() == LINE + LINE[:5] + b"another's\n"


class TestAfterAKilledWriter:
    """What it has left half done stands alone."""

    @pytest.mark.parametrize("left", [LINE[:-1], LINE + LINE[:7], b"{"], ids=["no newline", "half", "brace"])
    def test_a_half_line_is_ended(self, path: Path, left: bytes, writes: list[bytes]) -> None:
        path.write_bytes(left)
        with AuditFile(str(path)) as audit:
            audit(RECORD)
        assert path.read_bytes() == left + b"\n" + LINE
        assert writes == [b"\n", LINE]

    @pytest.mark.parametrize("left", [b"", LINE, LINE * 2], ids=["empty", "one", "two"])
    def test_whole_lines_need_nothing(self, path: Path, left: bytes, writes: list[bytes]) -> None:
        path.write_bytes(left)
        AuditFile(str(path)).close()
        assert path.read_bytes() == left
        assert writes == []

    def test_one_that_may_not_be_read_is_taken_for_whole(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.write_bytes(b"half")

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "open")

        monkeypatch.setattr("builtins.open", refuse)
        with AuditFile(str(path)) as audit:
            audit(RECORD)
        monkeypatch.undo()
        assert path.read_bytes() == b"half" + LINE


class TestStandardError:
    """`-` is standard error."""

    def test_records_go_there(self, capfd: pytest.CaptureFixture[str]) -> None:
        with AuditFile("-") as audit:
            audit(RECORD)
        assert capfd.readouterr() == ("", LINE.decode())

    def test_it_stays_open_when_the_audit_is_closed(self, capfd: pytest.CaptureFixture[str]) -> None:
        AuditFile("-").close()
        os.write(2, b"still here\n")
        assert capfd.readouterr().err == "still here\n"

    def test_no_file_of_that_name_is_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with AuditFile("-") as audit:
            audit(RECORD)
        assert os.listdir() == []

    def test_it_is_left_as_blocking_as_it_was(self) -> None:
        """Others write there as well."""
        before = os.get_blocking(2)
        with AuditFile("-"):
            assert os.get_blocking(2) == before

    def test_what_stands_in_its_file_is_not_looked_at(self, path: Path) -> None:
        """A half line there is another's business, who may still be at it."""
        path.write_bytes(b"half")

        def write() -> None:
            os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), 2)
            with AuditFile("-") as audit:
                audit(RECORD)

        in_child(write)
        assert path.read_bytes() == b"half" + LINE


class TestPipes:
    """A reader that is slow is waited for; one that has gone is an error."""

    @pytest.fixture
    def fifo(self, path: Path) -> Path:
        os.mkfifo(path)
        return path

    def test_everything_gets_through_to_a_slow_reader(self, fifo: Path) -> None:
        """Much more than a pipe holds."""
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        with AuditFile(str(fifo)) as audit:
            record = {"filler": "x" * 5000}  # longer than what a pipe takes in one piece
            failed: list[AuditError] = []

            def write() -> None:
                try:
                    for number in range(100):
                        audit({"cookie": number, **record})
                except AuditError as error:
                    failed.append(error)

            writer = threading.Thread(target=write)
            writer.start()
            eventually(lambda: not writer.is_alive() or is_full(fifo), "the pipe is full")
            with os.fdopen(reader, "rb") as lines:
                got = [json.loads(lines.readline())["cookie"] for _ in range(100)] if not failed else []
                writer.join()
        assert failed == []
        assert got == list(range(100))

    def test_a_reader_that_has_gone(self, fifo: Path) -> None:
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        before = signal.getsignal(signal.SIGPIPE)
        with AuditFile(str(fifo)) as audit:
            audit(RECORD)
            os.close(reader)
            with pytest.raises(AuditError, match="cannot be written: Broken pipe") as caught:
                audit(RECORD)
        assert caught.value.errno == errno.EPIPE
        assert signal.getsignal(signal.SIGPIPE) == before

    @pytest.mark.parametrize("blocking", [True, False])
    def test_standard_error_may_be_a_pipe(self, blocking: bool) -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, blocking)

        def write() -> None:
            os.dup2(writer, 2)
            with AuditFile("-") as audit:
                audit(RECORD)

        in_child(write)
        assert os.read(reader, 1000) == LINE
        os.close(reader)
        os.close(writer)

    @pytest.mark.parametrize("name", ["-", "fifo"])
    @pytest.mark.parametrize("longest", [97, 9973])
    def test_a_reader_that_is_stuck_is_an_error(self, fifo: Path, name: str, longest: int) -> None:
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

        said = "standard error" if name == "-" else fifo
        assert in_child(write) == f"the audit file {said} cannot be written: there was no room in it for 0.1 seconds"
        assert os.get_blocking(writer)
        os.close(reader)
        os.close(writer)

    def test_a_person_at_a_terminal_is_waited_for(self) -> None:
        """However long the screen has been stopped."""
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
