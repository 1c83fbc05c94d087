"""Changes as a file that is followed, on a real file system: whatever is done to it, the last whole table stays."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from socklb import Backend
from socklb.sources import FileSource
from socklb.sources import file as file_module

from .followed import Followed, followed

A, B, C = (Backend.parse(f"10.0.0.{number}:80/TCP") for number in (1, 2, 3))


def table_of(*backends: Backend, **more: object) -> bytes:
    instances = [{"backend": str(backend), **more} for backend in backends]
    return json.dumps({"op": "replace", "backends": instances}).encode()


def reasons(source: Followed) -> list[str]:
    """What it complained of, without the name of the file and what is the same each time."""
    end = "; the last table stays"
    assert all(told.endswith(end) for told in source.complaints)
    return [told[: -len(end)].partition(" ")[2] for told in source.complaints]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "backends.json"


class CountedSource(FileSource):
    """Counts its looks at the file, and how often it had to read it."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.looks = 0

    def _look(self, last: Any) -> Any:
        look = super()._look(last)
        self.looks += 1
        return look


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "_PAUSE_SECONDS", 0.005)


@pytest.fixture
def source(path: Path) -> Iterator[Followed]:
    """Follows a file that has A and B."""
    path.write_bytes(table_of(A, B))
    with followed(CountedSource(str(path))) as made:
        made.until(lambda s: s.alive(A, B) == [True, True], "the first table")
        yield made


def is_looked_at(source: Followed) -> None:
    """What is there now has been seen, more than once."""
    assert isinstance(source.source, CountedSource)
    before = source.source.looks
    source.until(lambda s: isinstance(s.source, CountedSource) and s.source.looks >= before + 4, "looks")


def stays(source: Followed, *complaints: str) -> None:
    """The table is the first one still, nothing has fallen, and this was told, each once."""
    is_looked_at(source)
    assert source.alive(A, B, C) == [True, True, False]
    assert not source.table.has_fallen()
    assert reasons(source) == [*complaints]


def becomes(source: Followed, *backends: Backend) -> None:
    wanted = [backend in backends for backend in (A, B, C)]
    source.until(lambda s: s.alive(A, B, C) == wanted, f"the table becomes {wanted}")


def rename_over(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.rename(path)


class TestChanges:
    def test_renamed_over(self, source: Followed, path: Path) -> None:
        rename_over(path, table_of(B, C))
        becomes(source, B, C)
        assert source.table.take_fallen() == [A]
        assert source.complaints == []

    def test_rewritten_in_place(self, source: Followed, path: Path) -> None:
        path.write_bytes(table_of(C))
        becomes(source, C)
        assert source.table.take_fallen() == [A, B]

    def test_again_and_again(self, source: Followed, path: Path) -> None:
        for wanted in [(A,), (B, C), (A, B, C), ()] * 3:
            rename_over(path, table_of(*wanted))
            becomes(source, *wanted)
        assert source.complaints == []

    def test_a_link_that_leads_elsewhere_now(self, tmp_path: Path) -> None:
        """As a mounted ConfigMap is changed: a directory is replaced by a link."""
        for name, content in (("1", table_of(A)), ("2", table_of(B))):
            (tmp_path / name).mkdir()
            (tmp_path / name / "backends").write_bytes(content)
        (tmp_path / "data").symlink_to("1")
        with followed(FileSource(str(tmp_path / "data" / "backends"))) as source:
            becomes(source, A)
            (tmp_path / "new").symlink_to("2")
            (tmp_path / "new").rename(tmp_path / "data")
            becomes(source, B)
        assert source.complaints == []

    def test_what_says_the_same_is_applied_once(self, source: Followed, path: Path) -> None:
        rename_over(path, path.read_bytes())
        os.utime(path)
        is_looked_at(source)
        assert len(source.table.told) == 1

    def test_only_an_explicit_empty_list_empties_the_table(self, source: Followed, path: Path) -> None:
        rename_over(path, b'{"op": "replace", "backends": []}')
        becomes(source)
        assert set(source.table.take_fallen()) == {A, B}
        assert source.complaints == []

    def test_states_and_health_count(self, source: Followed, path: Path) -> None:
        rename_over(path, table_of(A, B, unhealthy=True))
        becomes(source)
        rename_over(path, table_of(A, B, state="terminating"))
        becomes(source, A, B)

    def test_white_space_and_lines_mean_nothing(self, source: Followed, path: Path) -> None:
        rename_over(path, b"\n" + json.dumps(json.loads(table_of(C)), indent=2).encode() + b"\n\n")
        becomes(source, C)

    def test_nothing_is_left_open(self, source: Followed, path: Path) -> None:
        before = os.listdir("/proc/self/fd")
        for wanted in [(A,), (B,)] * 5:
            rename_over(path, table_of(*wanted))
            becomes(source, *wanted)
        source.source.stop()
        source.wait()
        assert len(os.listdir("/proc/self/fd")) <= len(before)


class TestWhatIsWrong:
    """Empty, cut, unparsable or deleted is reported, each once, and the last table stays."""

    @pytest.mark.parametrize("content", [b"", b" \n"])
    def test_emptied(self, source: Followed, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        stays(source, "is empty")
        path.write_bytes(table_of(C))
        becomes(source, C)

    def test_half_written_and_then_completed(self, source: Followed, path: Path) -> None:
        content = table_of(A, C)
        with path.open("wb", buffering=0) as file:
            file.write(content[:40])
            source.until(lambda s: bool(s.complaints), "a complaint")
            assert "does not hold a replace: no JSON: " in source.complaints[-1]
            told = len(source.complaints)  # it may have been empty for a moment
            stays(source, *reasons(source))
            assert len(source.complaints) == told
            file.write(content[40:])
        becomes(source, A, C)
        assert source.table.take_fallen() == [B]
        assert len(source.complaints) == told

    def test_every_cut_of_it(self, source: Followed, path: Path) -> None:
        """None of them is taken for a table."""
        content = table_of(C)
        for length in range(1, len(content), 7):
            rename_over(path, content[:length])
            is_looked_at(source)
        assert source.alive(A, B, C) == [True, True, False]
        assert len(source.table.told) == 1
        assert source.complaints

    def test_deleted_and_made_again(self, source: Followed, path: Path) -> None:
        path.unlink()
        stays(source, "cannot be read: No such file or directory")
        path.write_bytes(table_of(B))
        becomes(source, B)
        path.unlink()
        source.until(lambda s: len(s.complaints) == 2, "a second complaint")
        assert source.complaints[0] == source.complaints[1]

    def test_deleted_and_made_again_as_it_was(self, source: Followed, path: Path) -> None:
        content = path.read_bytes()
        path.unlink()
        stays(source, "cannot be read: No such file or directory")
        path.write_bytes(content)
        stays(source, "cannot be read: No such file or directory")

    @pytest.mark.parametrize(
        "content",
        [
            b'{"op": "upsert", "backend": "10.0.0.3:80/TCP"}',
            b'{"op": "delete", "backend": "10.0.0.1:80/TCP"}',
        ],
        ids=["upsert", "delete"],
    )
    def test_another_op(self, source: Followed, path: Path, content: bytes) -> None:
        rename_over(path, content)
        stays(source, 'does not hold a replace: its op is not "replace"')

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (table_of(C) + table_of(C), "no JSON: Extra data"),
            (b"\xff", "no UTF-8 at byte 0"),
            (b"{}", "no 'op'"),
            (b"[]", "a change is an object, not an array"),
            (b"null", "a change is an object, not null"),
            (b'{"op": "replace"}', "no 'backends'"),
            (table_of(C, unhealty=True), "backend number 1: unknown key 'unhealty'"),
        ],
        ids=lambda value: str(value)[:24],
    )
    def test_what_is_no_replace(self, source: Followed, path: Path, content: bytes, reason: str) -> None:
        rename_over(path, content)
        source.until(lambda s: bool(s.complaints), "a complaint")
        assert reasons(source)[0].startswith(f"does not hold a replace: {reason}")
        stays(source, reasons(source)[0])

    @pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
    def test_no_regular_file(self, source: Followed, path: Path, make: Any) -> None:
        """And a pipe is not waited for."""
        path.unlink()
        make(path)
        source.until(lambda s: s.complaints[-1:] == [f"{path} is no regular file; the last table stays"], "a complaint")
        count = len(source.complaints)
        is_looked_at(source)
        assert len(source.complaints) == count
        assert source.alive(A, B) == [True, True]

    def test_what_cannot_be_looked_at(self, source: Followed, path: Path) -> None:
        loop = path.with_suffix(".new")
        loop.symlink_to(path.name)
        loop.rename(path)
        stays(source, "cannot be read: Too many levels of symbolic links")

    def test_one_problem_after_another_each_is_told(self, source: Followed, path: Path) -> None:
        rename_over(path, b"")
        stays(source, "is empty")
        path.unlink()
        stays(source, "is empty", "cannot be read: No such file or directory")
        rename_over(path, b"")
        stays(source, "is empty", "cannot be read: No such file or directory", "is empty")

    def test_the_same_problem_in_another_file_is_told_no_more(self, source: Followed, path: Path) -> None:
        for content in (b"", b" ", b"  "):
            rename_over(path, content)
            stays(source, "is empty")


class TestAtStart:
    def test_a_file_that_is_not_there_yet(self, path: Path) -> None:
        with followed(CountedSource(str(path))) as source:
            source.until(lambda s: bool(s.complaints), "a complaint")
            is_looked_at(source)
            rename_over(path, table_of(A))
            becomes(source, A)
        assert source.complaints == [f"{path} cannot be read: No such file or directory; the last table stays"]

    def test_an_old_file_is_read_once(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """And then it is only looked at."""
        path.write_bytes(table_of(A))
        later = time.time() + 100
        monkeypatch.setattr(time, "time", lambda: later)
        with followed(CountedSource(str(path))) as source:
            becomes(source, A)
            is_looked_at(source)
            opened: list[object] = []
            monkeypatch.setattr("builtins.open", lambda *arguments, **_: opened.append(arguments))
            is_looked_at(source)
            monkeypatch.undo()
        assert opened == []
        assert source.complaints == []

    def test_stopped_before(self, path: Path) -> None:
        path.write_bytes(table_of(A))
        source = FileSource(str(path))
        source.stop()
        with followed(source) as made:
            made.wait()
        assert made.table.told == []

    def test_stopped_while_it_pauses(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(file_module, "_PAUSE_SECONDS", 1000)
        path.write_bytes(table_of(A))
        with followed(FileSource(str(path))) as source:
            becomes(source, A)
            source.source.stop()
            source.wait()


class TestWithinOneTick:
    """A file system's clock ticks slower than files are written: a change may leave size and times as they were."""

    def test_a_change_of_the_same_size_right_after_the_last(self, source: Followed, path: Path) -> None:
        for number in range(30):
            wanted = (A, B, C)[number % 3]
            path.write_bytes(table_of(wanted))
            becomes(source, wanted)

    @pytest.mark.parametrize("age", [0, 10_000], ids=["new", "its time is an old one's"])
    def test_where_the_clock_stands_still(self, path: Path, monkeypatch: pytest.MonkeyPatch, age: int) -> None:
        """As it does within a tick. `cp -p`, or unpacking an archive, gives a new file the time of an old one."""

        def write(backend: Backend) -> None:
            path.write_bytes(table_of(backend))
            os.utime(path, ns=(0, (path.stat().st_ctime_ns - age * 10**9)))

        monkeypatch.setattr(file_module, "_signature", lambda status: (status.st_size,))
        write(A)
        with followed(CountedSource(str(path))) as source:
            becomes(source, A)
            is_looked_at(source)
            write(B)
            becomes(source, B)


class TestWhileItIsRead:
    """It is read again if it changed while being read."""

    @pytest.mark.parametrize("content", [table_of(C), b"half"], ids=["whole", "half"])
    def test_what_was_read_then_counts_only_if_it_is_read_again(
        self, source: Followed, path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
    ) -> None:
        """A reader that is overtaken might have got the beginning of one and the end of another."""
        changing = [5]
        counted: list[bool] = []
        usual = os.fstat

        def fstat(descriptor: int) -> os.stat_result:
            if changing[0]:
                changing[0] -= 1
                counted.append(source.alive(C) == [True] or bool(source.complaints))
                return os.stat_result((*usual(descriptor)[:6], 1000 + changing[0], *usual(descriptor)[7:]))
            return usual(descriptor)

        monkeypatch.setattr(os, "fstat", fstat)
        rename_over(path, content)
        if content == b"half":
            stays(source, "does not hold a replace: no JSON: Expecting value at column 1")
        else:
            becomes(source, C)
        assert counted == [False] * 5
        assert len(source.complaints) == (content == b"half")

    def test_a_problem_is_not_told_anew_because_of_it(self, source: Followed, path: Path) -> None:
        rename_over(path, b"")
        stays(source, "is empty")
        with path.open("ab", buffering=0) as file:
            for _ in range(200):
                file.write(b" ")
        stays(source, "is empty")
