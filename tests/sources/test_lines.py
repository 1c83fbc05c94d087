"""Changes as lines, over real pipes: a bad line is reported with its number and passed over, the next one counts."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import Backend
from socklb.sources import LineSource, lines
from socklb.sources.protocol import parse_line

from ..sockets import eventually
from .followed import Followed, followed
from .test_protocol import changes, line_of

A, B = Backend.parse("10.0.0.1:80/TCP"), Backend.parse("10.0.0.2:80/TCP")
UPSERT_A = b'{"op": "upsert", "backend": "10.0.0.1:80/TCP"}'
UPSERT_B = b'{"op": "upsert", "backend": "10.0.0.2:80/TCP"}'
DELETE_A = b'{"op": "delete", "backend": "10.0.0.1:80/TCP"}'


class Pipe:
    """A pipe whose reading end is a source's."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        self._open = {self.reader, self._writer}

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._writer, data) :]

    def end(self) -> None:
        self._close(self._writer)

    def close(self) -> None:
        for descriptor in tuple(self._open):
            self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        self._open.remove(descriptor)
        os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    try:
        yield made
    finally:
        made.close()


def followed_to_the_end(pipe: Pipe, data: bytes) -> Followed:
    with followed(LineSource(pipe.reader)) as source:
        pipe.write(data)
        pipe.end()
        source.wait()
    return source


class TestChanges:
    def test_a_line_counts_as_soon_as_it_is_there_and_half_a_line_waits_for_the_rest(self, pipe: Pipe) -> None:
        with followed(LineSource(pipe.reader)) as source:
            pipe.write(UPSERT_A + b"\n" + UPSERT_B + b"\n" + DELETE_A[:20])
            source.until(lambda s: s.alive(A, B) == [True, True], "two upserts")
            assert source.table.changes == [parse_line(UPSERT_A), parse_line(UPSERT_B)]
            pipe.write(DELETE_A[20:])
            pipe.write(b"\n")
            source.until(lambda s: s.alive(A, B) == [False, True], "the delete")
            assert source.table.drain_down() == [A]
        assert source.warnings == []

    @pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\n\n \t\n"])
    def test_the_end_of_the_input_ends_it_and_the_last_line_needs_no_newline(self, pipe: Pipe, newline: bytes) -> None:
        """The table and the descriptor stay. Blank lines are passed over."""
        source = followed_to_the_end(pipe, newline + UPSERT_A + newline + UPSERT_B)
        assert (source.alive(A, B), source.warnings, source.table.has_down()) == ([True, True], [], False)
        assert os.read(pipe.reader, 1) == b""

    def test_a_regular_file_can_be_read_too(self, tmp_path: Path) -> None:
        """`watch --source - < FILE`"""
        path = tmp_path / "lines"
        path.write_bytes(UPSERT_A + b"\n" + UPSERT_B)
        with open(path, "rb") as file, followed(LineSource(file.fileno())) as source:
            source.wait()
        assert source.alive(A, B) == [True, True]

    def test_more_than_is_read_at_once(self, pipe: Pipe) -> None:
        backends = [f"10.1.{number // 250}.{1 + number % 250}:80/TCP" for number in range(5000)]
        data = b"".join(b'{"op": "upsert", "backend": "%s"}\n' % backend.encode() for backend in backends)
        assert len(data) > 3 * lines._READ_SIZE
        source = followed_to_the_end(pipe, data)
        assert (len(source.table.changes), source.warnings) == (5000, [])
        assert all(source.alive(*map(Backend.parse, backends)))


class TestFragments:
    """A stream gives the same changes however it is cut into pieces."""

    @given(st.lists(changes.map(line_of) | st.sampled_from((b"", b"bad", b"{}")), max_size=6), st.data())
    def test_any(self, several: list[bytes], data: st.DataObject) -> None:
        stream = b"\n".join(several)
        cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
        pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)])]
        whole, cut = self.follow([stream]), self.follow(pieces)
        assert (cut.table.changes, cut.warnings) == (whole.table.changes, whole.warnings)
        assert whole.table.changes == [parse_line(line) for line in several if line not in (b"", b"bad", b"{}")]
        bad = [number for number, line in enumerate(several, 1) if line in (b"bad", b"{}")]
        assert [int(warning.split()[1]) for warning in whole.warnings] == bad

    def follow(self, pieces: list[bytes]) -> Followed:
        """Each piece is one read: a packet of its own."""
        reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with reader, writer:
            source = Followed(LineSource(reader.fileno()))
            source.thread.start()
            for piece in filter(None, pieces):
                writer.send(piece)
            writer.close()
            source.wait()
        assert source.errors == []
        return source


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"bad", "not JSON: "),
        (b"{}", "no 'op'"),
        (b"\xff", "not UTF-8 at column 1"),
        (UPSERT_A + UPSERT_A, "not JSON: "),
        (
            b'{"op": "replace", "backends": [{"backend": "10.0.0.2:80/TCP"}, {"backend": "x"}]}',
            "backend number 2: backend 'x' names no protocol: it must end with /TCP or /UDP",
        ),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_line_is_reported_with_number_and_reason_and_the_next_counts(
    pipe: Pipe, line: bytes, reason: str
) -> None:
    source = followed_to_the_end(pipe, UPSERT_A + b"\n\n" + line + b"\n" + UPSERT_B + b"\n" + line)
    assert source.table.changes == [parse_line(UPSERT_A), parse_line(UPSERT_B)]
    assert len(source.warnings) == 2
    for number, warning in zip((3, 5), source.warnings):
        assert warning.startswith(f"line {number} is passed over: {reason}")


def test_link_local_backends_without_a_link_are_left_out_and_that_is_said_once(pipe: Pipe) -> None:
    left_out = b'{"backend": "[fe80::1]:80/TCP"}, {"backend": "[fe80::2]:80/TCP"}'
    replace = b'{"op": "replace", "backends": [' + left_out + b', {"backend": "10.0.0.2:80/TCP"}]}'
    source = followed_to_the_end(pipe, b"\n".join([UPSERT_A, replace, UPSERT_A.replace(b"10.0.0.1", b"[fe80::1]")]))
    assert (source.alive(A, B), len(source.table.changes), len(source.warnings)) == ([False, True], 2, 1)
    assert source.warnings[0].startswith(
        "link-local backends without a link are left out: [fe80::1]:80/TCP and 1 more; "
    )


class TestLongLines:
    """One that is too long is passed over, and so much of it is kept as shows that."""

    LONGEST = 200

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lines, "LARGEST", self.LONGEST)
        monkeypatch.setattr(lines, "_READ_SIZE", 64)

    def padded(self, length: int) -> bytes:
        return UPSERT_A + b" " * (length - len(UPSERT_A))

    @pytest.mark.parametrize("last", [b"\n", b""], ids=["newline", "end"])
    @pytest.mark.parametrize("length", [LONGEST + 1, LONGEST + 64, 10 * LONGEST, 1000 * LONGEST])
    def test_it_is_reported_and_the_next_counts(self, pipe: Pipe, length: int, last: bytes) -> None:
        source = followed_to_the_end(pipe, UPSERT_B + b"\n" + self.padded(length) + last)
        assert source.table.changes == [parse_line(UPSERT_B)]
        assert [warning.partition(": ")[0] for warning in source.warnings] == ["line 2 is passed over"]
        assert "longer than" in source.warnings[0]

    def test_its_end_is_not_waited_for(self, pipe: Pipe) -> None:
        """There may be none, as in /dev/zero; then the line after it counts as ever."""
        with followed(LineSource(pipe.reader)) as source:
            pipe.write(bytes(5000))
            source.until(lambda s: len(s.warnings) == 1, "it is reported")
            pipe.write(bytes(5000) + b"\n" + UPSERT_B + b"\n")
            source.until(lambda s: s.alive(B) == [True], "the next counts")
            pipe.end()
        assert len(source.warnings) == 1

    def test_between_others(self, pipe: Pipe) -> None:
        source = followed_to_the_end(pipe, b"\n".join([UPSERT_A, self.padded(5000), b"bad", UPSERT_B]))
        assert source.table.changes == [parse_line(UPSERT_A), parse_line(UPSERT_B)]
        assert [warning.partition(":")[0] for warning in source.warnings] == [
            f"line {n} is passed over" for n in (2, 3)
        ]

    def test_the_longest_is_not_too_long(self, pipe: Pipe) -> None:
        source = followed_to_the_end(pipe, self.padded(self.LONGEST) + b"\n")
        assert (source.alive(A), source.warnings) == ([True], [])

    def test_memory_does_not_grow_with_it(self, pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []
        source = LineSource(pipe.reader)
        usual = source._lines

        def measured() -> Iterator[bytes]:
            for line in usual():
                seen.append(len(line))
                yield line

        monkeypatch.setattr(source, "_lines", measured)
        with followed(source) as made:
            pipe.write(self.padded(100_000) + b"\n" + UPSERT_B)
            pipe.end()
            made.wait()
        assert made.alive(B) == [True]
        assert self.LONGEST < seen[0] <= self.LONGEST + 2 * 64


class TestStop:
    """`stop()`, from any thread, also while nothing comes."""

    def test_while_nothing_comes(self, pipe: Pipe) -> None:
        """Half a line counts no more: whole as it looks, the rest may have been to come."""
        with followed(LineSource(pipe.reader)) as source:
            pipe.write(UPSERT_A + b"\n" + UPSERT_B)
            source.until(lambda s: s.alive(A) == [True], "the upsert")
            source.source.stop()
            source.wait()
        assert source.alive(A, B) == [True, False]
        assert source.warnings == []

    def test_before_it_begins(self, pipe: Pipe) -> None:
        pipe.write(UPSERT_A + b"\n")
        source = LineSource(pipe.reader)
        source.stop()
        with followed(source) as made:
            made.wait()
        assert made.table.changes == []

    def test_a_flood_does_not_keep_it(self) -> None:
        """Input that never ends is read no further."""
        with open("/dev/zero", "rb") as zeros, followed(LineSource(zeros.fileno())) as source:
            eventually(source.thread.is_alive, "it follows")


def test_another_process_that_is_first_to_read_is_no_error(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a descriptor that does not block: it is readable no more."""
    usual, tries = os.read, list[int]()

    def read(descriptor: int, size: int) -> bytes:
        tries.append(size)
        if len(tries) == 1:
            usual(descriptor, size)
        return usual(descriptor, size)

    os.set_blocking(pipe.reader, False)
    monkeypatch.setattr(os, "read", read)
    with followed(LineSource(pipe.reader)) as source:
        pipe.write(UPSERT_B + b"\n")
        source.until(lambda s: bool(tries), "it reads")
        pipe.write(UPSERT_A + b"\n")
        source.until(lambda s: s.alive(A, B) == [True, False], "the next line")


def test_what_cannot_be_read_is_raised(tmp_path: Path) -> None:
    """The command reports it."""
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        source = Followed(LineSource(directory))
        source.thread.start()
        source.wait()
    finally:
        os.close(directory)
    assert [type(error) for error in source.errors] == [IsADirectoryError]
