"""Memory: what one process leaves in a file, and what the next one makes of it; with real files, and a real disk."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import Backend
from socklb.termination import remember
from socklb.termination.remember import Memory
from socklb.termination.table import PackedTable

from ..children import Child
from ..sockets import eventually
from ..world import small_disk

A, B, C, D = (Backend.parse(f"10.0.0.{n}:80/TCP") for n in (1, 2, 3, 4))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(remember, "_PAUSE_SECONDS", 0.002)
    monkeypatch.setattr(remember, "_TIMES_TAKEN", 0)
    return tmp_path / "memory"


class Life:
    """Of one process that follows a table."""

    def __init__(self, path: Path, identity: str = "file /a", keep_seconds: float = 900, dry_run: bool = False) -> None:
        self.table, self.source = PackedTable(), SimpleNamespace(identity=identity, last_version="")
        self.warnings: list[str] = []
        self.outstanding: list[Backend] = []
        self.looks = 0  # so often `run` has asked what is outstanding
        self.memory = Memory(
            path, self.source, self.table, self.warnings.append, keep_seconds=keep_seconds, dry_run=dry_run
        )
        self.memory.recall()

    def sees(self, *backends: Backend) -> list[Backend]:
        """These are alive, says the source. What goes down by that."""
        self.table.replace((backend,) for backend in backends)
        return self.table.drain_down()

    def _outstanding(self) -> list[Backend]:
        self.looks += 1
        return self.outstanding

    @contextmanager
    def kept(self) -> Iterator[None]:
        thread = threading.Thread(target=self.memory.run, args=(self._outstanding,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.memory.stop()
            thread.join(30)
            assert not thread.is_alive()

    def ends(self) -> None:
        self.memory.stop()
        self.memory.run(self._outstanding)

    def some_looks_later(self) -> None:
        before = self.looks
        eventually(lambda: self.looks > before + 9, "several looks")


def recalled(path: Path, identity: str = "file /a") -> set[Backend]:
    return {*Life(path, identity).table.backends()}


def wrote(path: Path, *alive: Backend, outstanding: Iterable[Backend] = ()) -> bytes:
    """What a life leaves that ended with this."""
    life = Life(path)
    life.sees(*alive)
    life.outstanding += outstanding
    life.ends()
    return path.read_bytes()


def test_what_went_down_meanwhile_or_was_not_done_with_goes_down_once(path: Path) -> None:
    Life(path).ends()
    assert not path.exists()  # its table was not whole: another time the file would know more
    wrote(path, A, B, outstanding=[C])
    assert path.stat().st_mode & 0o777 == 0o600
    life = Life(path)
    assert life.sees(A, D) == [B, C]  # A may be another pod's by now: it is alive
    life.outstanding += [B]
    life.ends()
    assert {*Life(path).sees(A)} == {B, D}


@pytest.mark.parametrize("said", ["before this boot", "for another source (file /a, and this is file /b)", "damaged"])
def test_a_file_that_is_not_believed_is_set_aside(path: Path, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote(path, A, B)
    if "boot" in said:
        monkeypatch.setattr(remember, "boot_id", lambda: "another")
    elif said == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    identity = "file /b" if "source" in said else "file /a"
    before, life = path.read_bytes(), Life(path, identity)
    [warning] = life.warnings
    assert said in warning
    dry_run = Life(path, identity, dry_run=True)
    assert [f"{text}, and the file becomes {path}.old" for text in dry_run.warnings] == [warning]
    assert (life.sees(A), dry_run.sees(A)) == ([], [])
    dry_run.ends()
    assert path.read_bytes() == before
    life.ends()
    assert Path(f"{path}.old").read_bytes() == before
    assert recalled(path, identity) == {A}


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_an_old_file_has_is_left_alone_and_said(path: Path, dry_run: bool) -> None:
    many = [Backend(f"10.1.0.{n}", 80, "tcp") for n in range(1, 13)]
    wrote(path, A, *many)
    before, life = path.read_bytes(), Life(path, keep_seconds=0, dry_run=dry_run)
    assert life.sees(A) == []
    with life.kept():
        if not dry_run:
            life.some_looks_later()
    [warning] = life.warnings
    assert "s old at the start: 12 backends that have gone since are left alone" in warning
    where = path if dry_run else Path(f"{path}.old")
    assert warning.endswith(f" socklb terminate {' '.join(map(str, many[:10]))} (the first 10; {where} has all)")
    assert (where.read_bytes(), recalled(path)) == (before, {A, *many} if dry_run else {A})


def test_it_is_written_when_something_has_changed_or_is_old(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(path)
    life.sees(A)
    with life.kept():
        eventually(path.exists, "the first file")
        life.source.last_version = "42"  # a cluster's bookmark, say
        eventually(lambda: Life(path).source.last_version == "42", "the next process knows the version")
        life.some_looks_later()
        before = path.read_bytes()
        life.some_looks_later()
        assert path.read_bytes() == before  # its time too
        monkeypatch.setattr(remember, "_RENEWED_SECONDS", 0)
        eventually(lambda: path.read_bytes() != before, "its time is renewed")
        monkeypatch.setattr(remember, "_TIMES_TAKEN", 1e9)  # from the next one on it takes too long
        life.some_looks_later()
        life.sees(A, B)
        life.some_looks_later()
        assert recalled(path) == {A}
    assert recalled(path) == {A, B}  # at the end it is written all the same


@pytest.mark.kernel
def test_a_full_disk_is_said_once_and_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [Backend("10.2.0.1", port, "udp") for port in range(1, 1000)]
    with small_disk(str(path.parent), 16 * 4096):
        life = Life(path)
        life.sees(A)
        with life.kept():
            eventually(path.exists, "the first file")
            (path.parent / "other").write_bytes(bytes(13 * 4096))
            life.sees(*many)
            eventually(lambda: bool(life.warnings), "the disk is full")
            life.some_looks_later()
            monkeypatch.setattr(remember, "_TIMES_TAKEN", 1e9)  # no more until the end
            life.some_looks_later()
            [warning] = life.warnings
            assert warning.startswith(f"{path} cannot be written: No space left on device; ")
            assert (Path(f"{path}.new").exists(), recalled(path)) == (False, {A})
            (path.parent / "other").unlink()
        assert (life.warnings[1:], recalled(path)) == ([f"{path} is written again"], {*many})


def test_whenever_the_process_is_killed_there_is_a_whole_file(path: Path) -> None:
    old, new = ([Backend(f"10.3.{n}.1", port, "tcp") for port in range(1, 1500)] for n in (1, 2))
    wrote(path, *old)

    def write(pipe: Connection) -> None:
        life = Life(path)
        for backends in [old, new] * 10_000:
            life.sees(*backends)
            life.ends()
            pipe.send("written")

    for number in range(10):
        with Child(write) as child:
            child.receive()
            time.sleep(number * 0.0023)  # at another moment each time
            os.kill(child.pid, signal.SIGKILL)
        assert recalled(path) in ({*old}, {*new})
    Path(f"{path}.new").write_text("of one that was killed")
    wrote(path, A)
    assert recalled(path) == {A}


def test_what_is_no_regular_file_is_refused(path: Path) -> None:
    os.mkfifo(path)  # or a device: a rename would put a file in its place
    with pytest.raises(ValueError, match="is not a regular file"):
        Life(path)


v4, v6 = st.ip_addresses(v=4, network="10.0.0.0/8"), st.ip_addresses(v=6, network="fd00::/8")
addresses = v4 | v6 | st.sampled_from(["fe80::1%eth0", "fe80::2%7", "fe80::3%\udcff\x01end"])
backends = st.builds(Backend, addresses, st.integers(1, 65535), st.sampled_from(("tcp", "udp")))


@given(st.lists(backends), st.data())
def test_a_file_is_what_was_written_or_damaged(
    tmp_path_factory: pytest.TempPathFactory, some: list[Backend], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("memory") / "memory"
    whole = wrote(path, *some, outstanding=some[:1])
    assert recalled(path) == {*some}
    place = data.draw(st.integers(0, 999)) * len(whole) // 1000  # its length is another one in each run
    rest = data.draw(st.sampled_from((0, 1, len(whole))))
    damaged = whole[:place] + data.draw(st.binary(max_size=4)) + whole[place + rest :]
    path.write_bytes(damaged)
    life = Life(path)
    assert (life.table.backends() == {} and life.warnings) or damaged == whole
