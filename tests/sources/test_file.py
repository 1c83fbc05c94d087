"""A file that is followed, on a real file system: whatever is done to it, its last good content is in the table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from socklb import Backend
from socklb.sources import FileSource, file

from .followed import Followed, followed

A, B = Backend.parse("10.0.0.1:80/TCP"), Backend.parse("10.0.0.2:80/TCP")


def replace(*backends: Backend) -> str:
    return json.dumps({"op": "replace", "backends": [{"backend": str(backend)} for backend in backends]})


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "_PAUSE_SECONDS", 0.002)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "backends.json"


@pytest.fixture
def source(path: Path) -> Iterator[Followed]:
    """Of a file that names A, which is in the table."""
    path.write_text(replace(A))
    with followed(FileSource(str(path))) as made:
        until_alive(made, A)
        yield made


def until_alive(source: Followed, *backends: Backend) -> None:
    wanted = [backend in backends for backend in (A, B)]
    source.until(lambda s: s.alive(A, B) == wanted, f"these are alive and no others: {backends}")


def until_warned(source: Followed, count: int) -> str:
    """The last of so many warnings; several looks later there are no more."""
    source.until(lambda s: len(s.warnings) >= count, f"{count} warnings")
    some_looks_later(source)
    assert len(source.warnings) == count, source.warnings
    return source.warnings[-1]


def some_looks_later(source: Followed) -> None:
    """The source has looked at the file again, five times."""
    looked: list[int] = []
    usual = source.source._look

    def look(last: object) -> object:
        looked.append(1)
        return usual(last)

    source.source._look = look
    source.until(lambda s: len(looked) >= 5, "some looks")
    source.source._look = usual


def rename_over(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def write_in_place(path: Path, text: str) -> None:
    """In one write, so that no half of it can be seen."""
    with open(path, "r+", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        opened.truncate()


class TestChanges:
    """Replaced atomically or rewritten in place, it is read again."""

    @pytest.mark.parametrize("change", [rename_over, write_in_place])
    def test_each_is_seen(self, source: Followed, path: Path, change: object) -> None:
        for backends in ((B,), (A, B), (A,), ()):
            change(path, replace(*backends))  # type: ignore[operator]
            until_alive(source, *backends)
        assert (source.table.drain_down(), source.warnings) == ([B, A], [])

    def test_through_a_link_that_is_changed(self, tmp_path: Path, path: Path) -> None:
        """As a mounted configuration map is: a directory of links, turned over at once."""
        for name, backend in (("first", A), ("second", B)):
            (tmp_path / name).write_text(replace(backend))
        path.symlink_to("first")
        with followed(FileSource(str(path))) as source:
            until_alive(source, A)
            (tmp_path / "link").symlink_to("second")
            (tmp_path / "link").rename(path)
            until_alive(source, B)
        assert source.warnings == []

    def test_it_is_not_applied_again_and_again(self, source: Followed, path: Path) -> None:
        some_looks_later(source)
        os.utime(path)
        some_looks_later(source)
        rename_over(path, replace(A))
        some_looks_later(source)
        assert len(source.table.changes) == 1

    def test_lines_and_blanks_within_it(self, source: Followed, path: Path) -> None:
        rename_over(path, "\n" + json.dumps(json.loads(replace(A, B)), indent=2) + "\n\n")
        until_alive(source, A, B)
        assert source.warnings == []


class TestSameSize:
    """A change that keeps the size, within one tick of the clock of the file system, is seen all the same."""

    @pytest.fixture
    def stopped_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The times that stat gives do not move on; the size and the inode stay the same by themselves."""
        usual = file._signature
        monkeypatch.setattr(file, "_signature", lambda status: usual(status)[:3])

    def test_in_place(self, stopped_clock: None, source: Followed, path: Path) -> None:
        assert len(replace(A)) == len(replace(B))
        for backend in (B, A, B):
            write_in_place(path, replace(backend))
            until_alive(source, backend)

    @pytest.mark.parametrize("settled", [False, True])
    def test_with_the_time_of_the_old_one(
        self, request: pytest.FixtureRequest, path: Path, monkeypatch: pytest.MonkeyPatch, settled: bool
    ) -> None:
        """Times can be set, as `cp -p` does: what was written long ago by its time may have been written just now."""
        if settled:
            monkeypatch.setattr(file, "_SETTLED_SECONDS", -1)
        else:
            request.getfixturevalue("stopped_clock")
        old = (1_000_000_000, 1_000_000_000)
        path.write_text(replace(A))
        os.utime(path, old)
        with followed(FileSource(str(path))) as source:
            until_alive(source, A)
            some_looks_later(source)
            write_in_place(path, replace(B))
            os.utime(path, old)
            until_alive(source, B)

    def test_what_has_settled_is_not_read_any_more(
        self, source: Followed, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(file, "_SETTLED_SECONDS", -1)
        some_looks_later(source)
        os.utime(path)  # changes it, so that it is read once more; from then on there is no need
        some_looks_later(source)
        opened: list[object] = []
        monkeypatch.setattr(file, "open", lambda *arguments: opened.append(arguments), raising=False)
        some_looks_later(source)
        assert (opened, source.alive(A)) == ([], [True])

    def test_what_changes_while_it_is_read_is_read_again(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first time it is read, somebody writes after the content was taken."""
        path.write_text(replace(A))
        while_it_is_read(monkeypatch, lambda: path.write_text(replace(A, B)))
        with followed(FileSource(str(path))) as source:
            until_alive(source, A, B)
        assert len(source.table.changes) == 1

    def test_what_is_replaced_while_it_is_read_counts(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.write_text(replace(A))
        while_it_is_read(monkeypatch, lambda: rename_over(path, replace(B)))
        with followed(FileSource(str(path))) as source:
            until_alive(source, B)
        assert source.table.drain_down() == [A]


def while_it_is_read(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """After its content was taken, before its second fstat()."""
    usual, calls = os.fstat, list[int]()

    def fstat(descriptor: int) -> os.stat_result:
        calls.append(descriptor)
        if len(calls) == 2:
            change()
        return usual(descriptor)

    monkeypatch.setattr(os, "fstat", fstat)


BAD = {
    "empty": ("", "is empty"),
    "blank": (" \n\t\n", "is empty"),
    "cut": (replace(A, B)[:-5], "does not hold a replace: not JSON: "),
    "two": (replace(A) + "\n" + replace(B), "does not hold a replace: not JSON: Extra data"),
    "a delete": ('{"op": "delete", "backend": "10.0.0.1:80/TCP"}', 'does not hold a replace: its op is not "replace"'),
    "no backends": ('{"op": "replace"}', "does not hold a replace: no 'backends'"),
    "an array": ("[]", "does not hold a replace: a change is an object, not an array"),
    "a bad entry": (
        '{"op": "replace", "backends": [{"backend": "10.0.0.2:80/TCP"}, {"backend": "10.0.0.1/TCP"}]}',
        "does not hold a replace: backend number 2: backend '10.0.0.1/TCP' has no port",
    ),
    "NUL bytes": ("\0" * 100, "does not hold a replace: not JSON: "),  # what a crash leaves on some file systems
    "not UTF-8": ("\udcff", "does not hold a replace: not UTF-8 at column 1"),
}


class TestProblems:
    """Empty, cut, unparsable or deleted is reported, once, and the last table stays."""

    @pytest.mark.parametrize("way", ["in place", "renamed over"])
    @pytest.mark.parametrize("name", BAD)
    def test_content(self, source: Followed, path: Path, name: str, way: str) -> None:
        text, problem = BAD[name]
        bad = path if way == "in place" else path.with_suffix(".new")
        bad.write_text(text, errors="surrogateescape")  # in place, "is empty" may be seen
        bad.rename(path)
        source.until(lambda s: any(f" {problem}" in warning for warning in s.warnings), problem)
        some_looks_later(source)
        (warning,) = (text for text in source.warnings if problem == "is empty" or "is empty" not in text)
        assert re.fullmatch(rf"{path} {re.escape(problem)}.*; the last table stays", warning)
        assert (source.alive(A, B), len(source.table.changes)) == ([True, False], 1)
        path.write_text(replace(B))
        until_alive(source, B)
        assert source.table.drain_down() == [A]

    def test_half_written_and_then_completed(self, source: Followed, path: Path) -> None:
        """A writer that takes its time: nothing goes down that is in the second half."""
        text = replace(B, A)
        with open(path, "w", encoding="utf-8") as opened:
            opened.write(text[:40])
            opened.flush()
            source.until(lambda s: any("not JSON" in warning for warning in s.warnings), "it is reported")
            assert source.alive(A, B) == [True, False]
            opened.write(text[40:])
        until_alive(source, A, B)
        assert not source.table.has_down()

    def test_not_there_at_the_start_and_deleted_later(self, path: Path) -> None:
        missing = f"{path} cannot be read: No such file or directory; a hint; the last table stays"
        with followed(FileSource(str(path), if_missing="; a hint")) as source:
            assert until_warned(source, 1) == missing
            assert source.table.changes == []
            rename_over(path, replace(A))
            until_alive(source, A)
            path.unlink()
            assert until_warned(source, 2) == missing
            assert source.alive(A, B) == [True, False]
            rename_over(path, replace(B))
            until_alive(source, B)
            path.unlink()
            assert until_warned(source, 3) == missing
            rename_over(path, replace(B))
            some_looks_later(source)
        assert (source.alive(A, B), source.table.drain_down(), len(source.warnings)) == ([False, True], [A], 3)

    def test_a_directory_or_a_pipe(self, path: Path) -> None:
        """A pipe is not waited for."""
        path.mkdir()
        with followed(FileSource(str(path))) as source:
            assert until_warned(source, 1) == f"{path} is not a regular file; the last table stays"
            path.rmdir()
            rename_over(path, replace(B))
            until_alive(source, B)
            source.warnings.clear()
            os.mkfifo(path.with_suffix(".new"))
            path.with_suffix(".new").rename(path)
            assert until_warned(source, 1) == f"{path} is not a regular file; the last table stays"

    @pytest.mark.parametrize("target", ["fifo", "/dev/zero"])
    def test_what_is_put_in_its_place_as_it_is_opened(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, target: str
    ) -> None:
        """Neither waited for nor read: memory has an end."""
        os.mkfifo(path.with_name("fifo"))
        path.write_text(replace(A))
        usual, regular = os.stat, os.stat(path)

        def stat(name: object, **options: Any) -> os.stat_result:
            return regular if name == str(path) else usual(name, **options)  # type: ignore[arg-type]

        with followed(FileSource(str(path))) as source, monkeypatch.context() as patch:
            until_alive(source, A)
            patch.setattr(os, "stat", stat)
            patch.setattr(file, "_signature", lambda status: os.urandom(8))
            path.with_name("link").symlink_to(target)
            path.with_name("link").rename(path)
            source.until(lambda s: s.warnings == [f"{path} is not a regular file; the last table stays"], "it is seen")

    def test_a_sparse_one(self, source: Followed, path: Path) -> None:
        """A terabyte takes nothing to write, and much to read."""
        os.truncate(path, 1 << 40)
        assert until_warned(source, 1) == f"{path} is larger than 64 MiB; the last table stays"
        rename_over(path, replace(B))
        until_alive(source, B)

    def test_what_should_be_a_directory_is_a_file(self, path: Path) -> None:
        path.touch()
        with followed(FileSource(str(path / "deeper"))) as source:
            assert "cannot be read: Not a directory" in until_warned(source, 1)

    def test_each_problem_is_reported_once_until_there_is_another_one_or_none(
        self, source: Followed, path: Path
    ) -> None:
        steps = (("", 1), (" ", 1), ("[]", 2), ("\n\n", 3), (replace(B), 3), ("", 4))
        for text, count in steps:
            rename_over(path, text)
            until_warned(source, count)
        assert ["is empty" in warning for warning in source.warnings] == [True, False, True, True]
        assert source.alive(A, B) == [False, True]


@pytest.mark.parametrize(("path", "kind"), [(5, TypeError), (None, TypeError), ("a\0b", ValueError)])
def test_a_path_is_a_path(path: Any, kind: type[Exception]) -> None:
    """A number would be a descriptor, and be closed."""
    with pytest.raises(kind):
        FileSource(path)


class TestStop:
    def test_at_once_though_it_looks_seldom(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(file, "_PAUSE_SECONDS", 600)
        path.write_text(replace(A))
        with followed(FileSource(str(path))) as source:
            until_alive(source, A)
            source.source.stop()
            source.wait()

    def test_before_it_begins(self, path: Path) -> None:
        path.write_text(replace(A))
        source = FileSource(str(path))
        source.stop()
        with followed(source) as made:
            made.wait()
        assert made.table.changes == []

    def test_nothing_stays_open(self, source: Followed, path: Path) -> None:
        some_looks_later(source)
        source.source.stop()
        source.wait()
        assert str(path) not in {os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
