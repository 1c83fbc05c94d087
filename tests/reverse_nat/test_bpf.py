"""BPF maps, read through bpf(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from socklb import KernelError, NotPermitted, NotSupported
from socklb.cli.output import exit_code
from socklb.reverse_nat import bpf
from socklb.reverse_nat.bpf import BpfMap, bpf_error
from socklb.reverse_nat.layout import BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH

from ..sockets import without_privilege
from .balancer import ebpf
from .bpf_maps import Maps

LRU_PERCPU_HASH = 10

kinds = pytest.mark.parametrize("type", [BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH], ids=["hash", "lru_hash"])


def number(value: int) -> bytes:
    return struct.pack("=Q", value)


def descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")


@contextmanager
def meanwhile(action: Callable[[int], None]) -> Iterator[None]:
    """Another thread does it again and again, with 0, 1, 2 and so on; it has begun."""
    begun, ended = Event(), Event()
    errors: list[BaseException] = []

    def work() -> None:
        step = 0
        try:
            while not ended.is_set():
                action(step)
                step += 1
                begun.set()
        except BaseException as error:
            errors.append(error)
            begun.set()

    worker = Thread(target=work)
    worker.start()
    try:
        begun.wait()
        yield
    finally:
        ended.set()
        worker.join()
    assert errors == []


@pytest.mark.kernel
class TestOpen:
    """A pinned map is opened for reading, and says what it is; whatever else is there is refused."""

    def test_it_says_what_it_is(self, maps: Maps) -> None:
        with BpfMap.open(maps.lru("m", 28, 20, 4096)) as opened:
            assert opened.path == maps.path("m")
            assert opened.info[:1] + opened.info[2:] == (BPF_MAP_TYPE_LRU_HASH, 28, 20, 4096, 0, "")

    def test_two_maps_have_two_ids(self, maps: Maps) -> None:
        with BpfMap.open(maps.lru("m", 8, 8)) as one, BpfMap.open(maps.path("m")) as same:
            assert one.info.id == same.info.id
            with BpfMap.open(maps.lru("m", 8, 8)) as other:
                assert other.info.id != one.info.id

    def test_it_can_only_read_and_no_child_program_has_it(self, maps: Maps) -> None:
        with BpfMap.open(maps.lru("m", 8, 8)) as opened:
            assert not os.get_inheritable(opened._descriptor)
            with pytest.raises(PermissionError):
                ebpf.update(opened._descriptor, number(1), number(2))
            with opened.duplicate() as other:
                assert not os.get_inheritable(other._descriptor)

    def test_nothing_there(self, maps: Maps) -> None:
        with pytest.raises(KernelError, match=f"open {maps.path('m')}: No such file or directory") as caught:
            BpfMap.open(maps.path("m"))
        assert caught.value.errno == errno.ENOENT

    def test_an_ordinary_file(self, maps: Maps, tmp_path: Path) -> None:
        (tmp_path / "m").touch()
        for path in (tmp_path / "m", tmp_path, Path(maps.directory)):
            with pytest.raises(ValueError, match=f"^{path} is not a pinned BPF map"):
                BpfMap.open(str(path))

    def test_a_program(self, maps: Maps) -> None:
        path = maps.make_program("p")
        before = descriptors()
        with pytest.raises(ValueError, match=f"^{path} is not a BPF map$"):
            BpfMap.open(path)
        assert descriptors() == before

    def test_a_path_that_no_file_has(self, maps: Maps) -> None:
        maps.lru("m", 8, 8)
        with pytest.raises(ValueError, match="embedded null byte"):
            BpfMap.open(maps.path("m\0more"))

    def test_a_pin_that_one_may_not_read(self, maps: Maps) -> None:
        path = maps.lru("m", 8, 8)
        os.chmod(path, 0)

        def open_it() -> str:
            with pytest.raises(NotPermitted) as caught:
                BpfMap.open(path)
            assert caught.value.errno == errno.EACCES
            return str(caught.value.strerror)

        assert without_privilege(open_it).startswith(
            f"open {path}: not permitted: it needs read permission to the pinned map"
        )


@pytest.mark.kernel
class TestClosed:
    """What is closed answers nothing, and its descriptor is gone."""

    def test_closing(self, maps: Maps) -> None:
        path = maps.lru("m", 8, 8)
        before = descriptors()
        opened = BpfMap.open(path)
        opened.close()
        opened.close()
        assert descriptors() == before
        for use in (lambda: opened.lookup(number(1)), lambda: next(opened.keys()), opened.duplicate):
            with pytest.raises(ValueError, match=f"{path} is closed"):
                use()

    def test_a_duplicate_lives_on(self, maps: Maps) -> None:
        opened = BpfMap.open(maps.lru("m", 8, 8))
        maps.put("m", number(1), number(2))
        with opened.duplicate() as other:
            opened.close()
            assert (other.lookup(number(1)), other.info, other.path) == (number(2), opened.info, opened.path)

    def test_an_error_while_it_is_asked_what_it_is(self, maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
        path = maps.lru("m", 8, 8)
        before = descriptors()
        call = bpf._Bpf.call

        def refuse(self: bpf._Bpf, command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
            return -errno.ENOMEM if command == 15 else call(self, command, attr)

        monkeypatch.setattr(bpf._Bpf, "call", refuse)
        with pytest.raises(KernelError, match=f"ask what {path} is: Cannot allocate memory"):
            BpfMap.open(path)
        assert descriptors() == before


@pytest.mark.kernel
class TestLookup:
    """The value of a key, None if it is not there."""

    @kinds
    def test_values(self, maps: Maps, type: int) -> None:
        with BpfMap.open(maps.make("m", type, 8, 3)) as opened:
            for key, value in ((1, b"one"), (2, b"two"), (0xFFFFFFFFFFFFFFFF, b"\0\0\0")):
                maps.put("m", number(key), value)
            assert [opened.lookup(number(key)) for key in (1, 2, 3, 2**64 - 1)] == [b"one", b"two", None, b"\0\0\0"]
            maps.delete("m", number(1))
            assert opened.lookup(number(1)) is None

    @pytest.mark.parametrize("length", [0, 7, 9, 32])
    def test_a_key_of_another_size_is_a_wrong_argument(self, maps: Maps, length: int) -> None:
        with (
            BpfMap.open(maps.lru("m", 8, 8)) as opened,
            pytest.raises(ValueError, match=f"keys of 8 bytes, not {length}"),
        ):
            opened.lookup(bytes(length))

    def test_a_map_whose_values_are_larger_than_it_says_is_not_asked(self, maps: Maps) -> None:
        """The kernel would write behind the end: 8 bytes for every processor."""
        path = maps.make("m", LRU_PERCPU_HASH, 8, 8)
        with BpfMap.open(path) as opened, pytest.raises(ValueError, match=f"{path}: no look-up in a map of type 10"):
            opened.lookup(number(1))

    def test_any_other_errno_is_an_error(self, maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
        with BpfMap.open(maps.lru("m", 8, 8)) as opened:
            monkeypatch.setattr(bpf._Bpf, "call", lambda *_: -errno.EPERM)
            uses: list[Callable[[], object]] = [lambda: opened.lookup(number(1)), lambda: next(opened.keys())]
            for use in uses:
                with pytest.raises(NotPermitted, match=f"read {opened.path}: not permitted: .*CAP_BPF"):
                    use()


@pytest.mark.kernel
class TestKeys:
    """Each key once, whatever is inserted and deleted meanwhile; those that stay are all given; it always ends."""

    @kinds
    @pytest.mark.parametrize("count", [0, 1, 2, 500])
    def test_a_map_that_nobody_changes(self, maps: Maps, type: int, count: int) -> None:
        with BpfMap.open(maps.make("m", type, 8, 8)) as opened:
            for key in range(count):
                maps.put("m", number(key), number(0))
            assert sorted(opened.keys()) == sorted(map(number, range(count)))

    def test_a_map_that_is_emptied_from_under_the_walk(self, maps: Maps) -> None:
        """The kernel starts from the first one again each time."""
        with BpfMap.open(maps.lru("m", 8, 8)) as opened:
            for one in range(200):
                maps.put("m", number(one), number(0))
            given: list[bytes] = []
            walk = opened.keys()
            for key in walk:
                given.append(key)
                maps.delete("m", key)
            assert sorted(given) == sorted(map(number, range(200)))

    def test_every_other_key_vanishes_as_the_walk_stands_on_it(self, maps: Maps) -> None:
        """Starting again leads over those that were given already."""
        with BpfMap.open(maps.lru("m", 8, 8, 64)) as opened:
            for one in range(40):
                maps.put("m", number(one), number(0))
            given: list[bytes] = []
            walk = opened.keys()
            for key in walk:
                given.append(key)
                if int.from_bytes(key, sys.byteorder) % 2:
                    maps.delete("m", key)
            assert sorted(given) == sorted(map(number, range(40)))

    def test_a_key_that_comes_for_each_that_goes_ends_too(self, maps: Maps) -> None:
        """At most four times as many steps as the map has entries, and 1000."""
        with BpfMap.open(maps.make("m", BPF_MAP_TYPE_HASH, 8, 8, 50)) as opened:
            maps.put("m", number(0), number(0))
            given = []
            for count, key in enumerate(opened.keys(), 1):
                given.append(key)
                maps.delete("m", key)
                maps.put("m", number(count), number(0))
            assert len(given) == len({*given}) == 4 * 50 + 1000

    @kinds
    def test_while_another_thread_inserts_and_deletes(self, maps: Maps, type: int) -> None:
        staying = [number(key) for key in range(300)]
        coming_and_going = [number(key) for key in range(1000, 1100)]

        def churn(step: int) -> None:
            maps.put("m", coming_and_going[step % 100], number(0))
            maps.delete("m", coming_and_going[(step + 50) % 100])

        # An LRU map has room for all, and to spare: nothing that stays is driven out.
        with BpfMap.open(maps.make("m", type, 8, 8, 10_000)) as opened:
            for key in staying:
                maps.put("m", key, number(0))
            with meanwhile(churn):
                walks = [list(opened.keys()) for _ in range(20)]
        for given in walks:
            assert len({*given}) == len(given)
            assert {*staying} <= {*given} <= {*staying, *coming_and_going}

    def test_a_full_lru_map_that_drives_entries_out(self, maps: Maps) -> None:
        with BpfMap.open(maps.lru("m", 8, 8, 128)) as opened:
            for key in range(2000):
                maps.put("m", number(key), number(key))
            full = list(opened.keys())
            assert 0 < len(full) == len({*full}) <= 128
            assert all(opened.lookup(key) == key for key in full)
            assert opened.lookup(number(0)) is None
            with meanwhile(lambda step: maps.put("m", number(2000 + step), number(2000 + step))):
                for _ in range(20):
                    given = list(opened.keys())
                    assert len({*given}) == len(given)
                    assert {opened.lookup(key) for key in given} <= {*given, None}


class TestErrors:
    """What is missing and how to get it: exit 4 for a privilege, 3 for a kernel or a Python that cannot."""

    @pytest.mark.parametrize(
        ("code", "kind", "exits", "words"),
        [
            (errno.EPERM, NotPermitted, 4, "not permitted: bpf(2) needs CAP_"),
            (errno.EACCES, NotPermitted, 4, "not permitted: it needs read permission to the pinned map and search"),
            (errno.ENOSYS, NotSupported, 3, "not supported: this kernel was built without CONFIG_BPF_SYSCALL"),
            (errno.ENOMEM, KernelError, 1, "Cannot allocate memory"),
        ],
        ids=["EPERM", "EACCES", "ENOSYS", "ENOMEM"],
    )
    def test_of_the_kernel(self, code: int, kind: type[KernelError], exits: int, words: str) -> None:
        error = bpf_error(code, "read m")
        assert (type(error), error.errno, exit_code(error)) == (kind, code, exits)
        assert str(error.strerror).startswith(f"read m: {words}")

    @pytest.mark.parametrize(
        ("last", "expected"),
        [("41", "CAP_BPF"), ("39", "CAP_BPF"), ("37", "CAP_SYS_ADMIN"), ("", "CAP_BPF"), (None, "CAP_BPF")],
        ids=["newer", "linux 5.8", "linux 5.7", "empty", "no such file"],
    )
    def test_one_capability_is_named_and_it_is_one_that_this_kernel_has(
        self, last: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "cap_last_cap"
        if last is not None:
            path.write_text(last)
        monkeypatch.setattr(bpf, "_CAP_LAST_CAP", str(path))
        said = str(bpf_error(errno.EPERM, "read m"))
        assert [word for word in said.split() if word.startswith("CAP_")] == [expected]
        assert "CAP_DAC_READ_SEARCH" in str(bpf_error(errno.EACCES, "read m"))

    @pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.ELOOP], ids=["EPERM", "ENOSYS", "ELOOP"])
    def test_of_opening(self, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        monkeypatch.setattr(bpf._Bpf, "call", lambda *_: -code)
        with pytest.raises(KernelError) as caught:
            BpfMap.open("/m")
        assert str(caught.value) == str(bpf_error(code, "open /m"))


class TestWithoutCtypes:
    """An error that says so."""

    @pytest.fixture(autouse=True, params=["no ctypes", "no C library", "no such function"])
    def _without(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        if request.param == "no ctypes":
            monkeypatch.setitem(sys.modules, "ctypes", None)
        elif request.param == "no C library":
            monkeypatch.setattr(ctypes, "CDLL", self.no_library)
        else:
            monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())

    def no_library(self, *_: object, **__: object) -> None:
        raise OSError("dynamic loading not supported")

    def test_a_map_cannot_be_opened(self) -> None:
        with pytest.raises(NotSupported, match="this Python has no working ctypes") as caught:
            BpfMap.open("/m")
        assert exit_code(caught.value) == 3


class TestMachines:
    """The number of the system call is the machine's; it is not guessed."""

    def on(self, monkeypatch: pytest.MonkeyPatch, machine: str, bits: int) -> int:
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
        monkeypatch.setattr(sys, "maxsize", (1 << bits - 1) - 1)
        return bpf._Bpf()._number

    @pytest.mark.parametrize(
        ("machine", "bits", "expected"),
        [
            ("x86_64", 64, 321),
            ("aarch64", 64, 280),
            ("riscv64", 64, 280),
            ("ppc64le", 64, 361),
            ("s390x", 64, 351),
            ("i686", 32, 357),
            ("x86_64", 32, 357),
            ("armv7l", 32, 386),
            ("aarch64", 32, 386),
        ],
    )
    def test_numbers(self, monkeypatch: pytest.MonkeyPatch, machine: str, bits: int, expected: int) -> None:
        assert self.on(monkeypatch, machine, bits) == expected

    @pytest.mark.parametrize(("machine", "bits"), [("sparc64", 64), ("riscv64", 32), ("i686", 64), ("", 64)])
    def test_an_unknown_one(self, monkeypatch: pytest.MonkeyPatch, machine: str, bits: int) -> None:
        with pytest.raises(NotSupported, match=f"the number of this system call is unknown for {machine}, only for"):
            self.on(monkeypatch, machine, bits)

    @pytest.mark.skipif(platform.machine() not in ebpf.SYSTEM_CALLS, reason="who knows the number here?")
    def test_this_one(self) -> None:
        """A command that no kernel has is EINVAL or, to who may not ask, EPERM; another system call would differ."""
        asked = bpf._Bpf()
        assert asked.call(0x7FFF, asked.buffer(bytes(16))) in (-errno.EINVAL, -errno.EPERM)
