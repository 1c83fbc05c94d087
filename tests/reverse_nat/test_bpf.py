"""BPF maps, read through bpf(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest

from socklb import KernelError, NotPermitted, NotSupported
from socklb.cli.output import exit_code
from socklb.reverse_nat import bpf
from socklb.reverse_nat.bpf import BpfMap, bpf_error
from socklb.reverse_nat.layout import BPF_MAP_LOOKUP_BATCH, BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH

from .. import this_kernel
from ..sockets import in_child, leave_descriptors, without_privilege
from .balancer import ebpf
from .bpf_maps import Maps, descriptors

LRU_PERCPU_HASH = 10
Walk = Callable[[BpfMap], list[bytes]]

kinds = pytest.mark.parametrize("type", [BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH], ids=["hash", "lru_hash"])


ways = pytest.mark.parametrize(
    "walk",
    [lambda opened: list(opened.keys()), lambda opened: [key for key, _ in opened.items()]],
    ids=["keys", "items"],
)


def number(value: int) -> bytes:
    return struct.pack("=Q", value)


@contextmanager
def meanwhile(action: Callable[[int], None]) -> Iterator[None]:
    """Another thread does it again and again, with 0, 1, 2 and so on, and has begun."""
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
    """A pinned map is opened for reading, and described; whatever else is there is refused."""

    def test_its_description(self, maps: Maps) -> None:
        with BpfMap.open(maps.lru("m", 28, 20, 4096)) as opened, BpfMap.open(maps.path("m")) as same:
            assert opened.path == maps.path("m")
            assert opened.info[:1] + opened.info[2:] == (BPF_MAP_TYPE_LRU_HASH, 28, 20, 4096, 0, "")
            with BpfMap.open(maps.lru("m", 28, 20)) as other:
                assert opened.info.id == same.info.id != other.info.id

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

    def test_a_path_that_no_file_has(self) -> None:
        with pytest.raises(ValueError, match="embedded null byte"):
            BpfMap.open("/m\0more")

    def test_a_pin_that_one_may_not_read(self, maps: Maps) -> None:
        path = maps.lru("m", 8, 8)
        os.chmod(path, 0)

        def open_it() -> str:
            with pytest.raises(NotPermitted) as caught:
                BpfMap.open(path)
            return str(caught.value)

        assert without_privilege(open_it) == str(bpf_error(this_kernel.refusal_of_a_pin(), f"open {path}"))


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
        """The kernel would write beyond the end: 8 bytes for every processor."""
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
    """Each key once, whatever is inserted and deleted meanwhile; all those that stay; and it ends."""

    @kinds
    @pytest.mark.parametrize("count", [0, 1, 2, 500])
    def test_a_map_that_nobody_changes(self, maps: Maps, type: int, count: int) -> None:
        with BpfMap.open(maps.make("m", type, 8, 8)) as opened:
            for key in range(count):
                maps.put("m", number(key), number(0))
            assert sorted(opened.keys()) == sorted(map(number, range(count)))

    @pytest.mark.parametrize("at_once", [1, 7, 2000])
    @pytest.mark.parametrize("is_old", [False, True], ids=["many at once", "before Linux 5.6"])
    def test_items_are_the_keys_and_their_values(
        self, maps: Maps, monkeypatch: pytest.MonkeyPatch, at_once: int, is_old: bool
    ) -> None:
        """However many the kernel is asked for at once, fewer than one of its buckets has for example."""
        call = bpf._Bpf.call

        def answer(self: bpf._Bpf, command: int, attr: Any) -> int:
            return -errno.EINVAL if is_old and command == BPF_MAP_LOOKUP_BATCH else call(self, command, attr)

        monkeypatch.setattr(bpf._Bpf, "call", answer)
        monkeypatch.setattr(bpf, "_ENTRIES_AT_ONCE", at_once)
        with BpfMap.open(maps.lru("m", 4, 8, 2000)) as opened:
            for key in range(1000):
                maps.put("m", number(key)[:4], number(key + 1))
            assert sorted(opened.items()) == sorted((number(key)[:4], number(key + 1)) for key in range(1000))

    def test_memory_does_not_grow_with_the_number_of_items(self, maps: Maps) -> None:
        def peak(count: int) -> int:
            with BpfMap.open(maps.make("m", BPF_MAP_TYPE_HASH, 8, 8, count)) as opened:
                for key in range(count):
                    maps.put("m", number(key), number(0))
                tracemalloc.start()
                try:
                    assert sum(1 for _ in opened.items()) == count
                    return tracemalloc.get_traced_memory()[1]
                finally:
                    tracemalloc.stop()

        assert peak(20_000) < peak(2_000) + 100_000  # bytes; 18,000 keys more would take ten times as much

    @pytest.mark.parametrize("every", [1, 2])
    def test_keys_are_deleted_as_the_walk_stands_on_them(self, maps: Maps, every: int) -> None:
        """The kernel starts again from the first key each time, which leads over those that were yielded already."""
        with BpfMap.open(maps.lru("m", 8, 8, 64)) as opened:
            for key in range(40):
                maps.put("m", number(key), number(0))
            yielded: list[bytes] = []
            for one in opened.keys():  # noqa: SIM118 - this is not a dict
                yielded.append(one)
                if int.from_bytes(one, sys.byteorder) % every == 0:
                    maps.delete("m", one)
            assert sorted(yielded) == sorted(map(number, range(40)))

    def test_it_ends_though_a_key_comes_for_each_that_goes(self, maps: Maps) -> None:
        with BpfMap.open(maps.make("m", BPF_MAP_TYPE_HASH, 8, 8, 50)) as opened:
            maps.put("m", number(0), number(0))
            yielded = []
            for count, key in enumerate(opened.keys(), 1):
                yielded.append(key)
                maps.delete("m", key)
                maps.put("m", number(count), number(0))
            assert len(yielded) == len({*yielded}) == 4 * 50 + 1000

    @kinds
    @ways
    def test_while_another_thread_inserts_and_deletes(self, maps: Maps, type: int, walk: Walk) -> None:
        staying = [number(key) for key in range(300)]
        coming_and_going = [number(key) for key in range(1000, 1100)]

        def churn(step: int) -> None:
            maps.put("m", coming_and_going[step % 100], number(0))
            maps.delete("m", coming_and_going[(step + 50) % 100])

        # An LRU map of this size evicts none of them.
        with BpfMap.open(maps.make("m", type, 8, 8, 10_000)) as opened:
            for key in staying:
                maps.put("m", key, number(0))
            with meanwhile(churn):
                walks = [walk(opened) for _ in range(20)]
        for yielded in walks:
            assert len({*yielded}) == len(yielded)
            assert {*staying} <= {*yielded} <= {*staying, *coming_and_going}

    @ways
    def test_a_full_lru_map_that_evicts_entries(self, maps: Maps, walk: Walk) -> None:
        with BpfMap.open(maps.lru("m", 8, 8, 128)) as opened:
            for key in range(2000):
                maps.put("m", number(key), number(key))
            full = walk(opened)
            assert 0 < len(full) == len({*full}) <= 128
            assert all(opened.lookup(key) == key for key in full)
            assert opened.lookup(number(0)) is None
            with meanwhile(lambda step: maps.put("m", number(2000 + step), number(2000 + step))):
                for _ in range(20):
                    yielded = walk(opened)
                    assert len({*yielded}) == len(yielded)
                    assert {opened.lookup(key) for key in yielded} <= {*yielded, None}


class TestErrors:
    """What is missing and how to get it: exit 4 for a privilege, 3 for a kernel or a Python that cannot."""

    @pytest.mark.parametrize(
        ("code", "kind", "exits", "words"),
        [
            (errno.EPERM, NotPermitted, 4, "not permitted: bpf(2) needs CAP_"),
            (errno.EACCES, NotPermitted, 4, "not permitted: it needs read permission to the pinned map and search"),
            (errno.ENOSYS, NotSupported, 3, "not supported: this kernel was built without CONFIG_BPF_SYSCALL"),
            (errno.ELOOP, KernelError, 1, "Too many levels of symbolic links"),
        ],
        ids=["EPERM", "EACCES", "ENOSYS", "ELOOP"],
    )
    def test_of_opening(
        self, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[KernelError], exits: int, words: str
    ) -> None:
        monkeypatch.setattr(bpf._Bpf, "call", lambda *_: -code)
        with pytest.raises(KernelError) as caught:
            BpfMap.open("/m")
        assert (type(caught.value), caught.value.errno, exit_code(caught.value)) == (kind, code, exits)
        assert str(caught.value.strerror).startswith(f"open /m: {words}")

    @pytest.mark.parametrize(
        ("last", "expected"),
        [("41", "CAP_BPF"), ("39", "CAP_BPF"), ("37", "CAP_SYS_ADMIN"), ("", "CAP_BPF"), (None, "CAP_BPF")],
        ids=["newer", "linux 5.8", "linux 5.7", "empty", "no such file"],
    )
    def test_the_capability_is_one_that_this_kernel_has(
        self, last: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "cap_last_cap"
        if last is not None:
            path.write_text(last)
        monkeypatch.setattr(bpf, "_CAP_LAST_CAP", str(path))
        said = str(bpf_error(errno.EPERM, "read m"))
        assert [word for word in said.split() if word.startswith("CAP_")] == [expected]

    @pytest.mark.parametrize("without", ["ctypes", "a C library", "the function"])
    def test_no_way_to_call_it(self, monkeypatch: pytest.MonkeyPatch, without: str) -> None:
        def no_library(*_: object, **__: object) -> None:
            raise OSError("dynamic loading not supported")

        if without == "ctypes":
            monkeypatch.setitem(sys.modules, "ctypes", None)
        else:
            monkeypatch.setattr(ctypes, "CDLL", no_library if without == "a C library" else lambda *_, **__: object())
        with pytest.raises(NotSupported, match="this Python has no working ctypes") as caught:
            BpfMap.open("/m")
        assert exit_code(caught.value) == 3

    def test_where_descriptors_have_run_out_it_is_not_said_to_be_missing(self) -> None:
        """It would never be tried again."""

        def open_without_descriptors() -> tuple[type[Exception], int | None]:
            for name in [name for name in sys.modules if name.partition(".")[0] in ("ctypes", "_ctypes")]:
                del sys.modules[name]
            leave_descriptors(0)
            with pytest.raises(KernelError) as caught:
                BpfMap.open("/m")
            return type(caught.value), caught.value.errno

        assert in_child(open_without_descriptors) == (KernelError, errno.EMFILE)


class TestMachines:
    """The number of the system call depends on the machine; it is not guessed."""

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
            ("sparc64", 64, None),
            ("riscv64", 32, None),
            ("i686", 64, None),
            ("", 64, None),
        ],
    )
    def test_numbers(self, monkeypatch: pytest.MonkeyPatch, machine: str, bits: int, expected: int | None) -> None:
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
        monkeypatch.setattr(sys, "maxsize", (1 << bits - 1) - 1)
        if expected is not None:
            assert bpf._Bpf()._number == expected
        else:
            with pytest.raises(NotSupported, match=f"the number of this system call is unknown for {machine}, only"):
                bpf._Bpf()

    @pytest.mark.skipif(not ebpf.system_call(), reason="the number is not known here")
    def test_this_one(self) -> None:
        """A command that no kernel has is EINVAL, or EPERM without privilege; another system call would differ."""
        called = bpf._Bpf()
        assert called.call(0x7FFF, called.buffer(bytes(16))) in (-errno.EINVAL, -errno.EPERM)
