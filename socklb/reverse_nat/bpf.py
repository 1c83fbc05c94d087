# SPDX-License-Identifier: MIT
"""Pinned BPF maps, read through bpf(2).

Neither Python nor the C library wraps bpf(2): it is called through ctypes, which is imported when first needed.
"""

from __future__ import annotations

import errno
import os
import sys

from ..errors import KernelError, NotPermitted, NotSupported
from ..features import INSTALL
from ..kernel.exhaustion import raise_if_exhausted
from .layout import (
    BPF_F_RDONLY,
    BPF_MAP_GET_NEXT_KEY,
    BPF_MAP_LOOKUP_BATCH,
    BPF_MAP_LOOKUP_ELEM,
    BPF_MAP_TYPE_HASH,
    BPF_MAP_TYPE_LRU_HASH,
    BPF_OBJ_GET,
    BPF_OBJ_GET_INFO_BY_FD,
    MAP_INFO_SIZE,
    decode_batch,
    decode_map_info,
    encode_batch,
    encode_element,
    encode_info,
    encode_object,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any

    from .layout import MapInfo

# The number of bpf(2) by the machine of uname(2), which is the kernel's; a 32-bit process has 32-bit numbers there too.
_NUMBERS_64 = {
    "aarch64": 280,
    "loongarch64": 280,
    "ppc64": 361,
    "ppc64le": 361,
    "riscv64": 280,
    "s390x": 351,
    "x86_64": 321,
}
_NUMBERS_32 = {
    **dict.fromkeys(("aarch64", "armv6l", "armv7l", "armv8l"), 386),
    **dict.fromkeys(("i386", "i486", "i586", "i686", "x86_64"), 357),
}

_CAP_LAST_CAP = "/proc/sys/kernel/cap_last_cap"
_CAP_BPF = 39  # linux/capability.h, since Linux 5.8; before, CAP_SYS_ADMIN stood for it

_PLAIN_TYPES = (BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH)

# An iteration ends after so many walks of a full map, and so many steps more, for a small one.
_WALKS = 4
_MORE_STEPS = 1000

_ENTRIES_AT_ONCE = 1024
_CURSOR_SIZE = 64  # of which the kernel uses the first four bytes: a bucket's number


class BpfMap:
    """A pinned map, open for reading; `info` describes it. A context manager.

    Several threads may read it, but none while another one closes it.
    """

    __slots__ = ("_bpf", "_descriptor", "info", "path")

    info: MapInfo

    def __init__(self, bpf: _Bpf, descriptor: int, path: str) -> None:
        self._bpf, self._descriptor, self.path = bpf, descriptor, path

    @classmethod
    def open(cls, path: str) -> BpfMap:
        """The map that is pinned at a path.

        Raises ValueError if something else is there, KernelError (ENOENT) if nothing is, NotPermitted, and NotSupported
        if this kernel or this Python has no bpf(2).
        """
        if "\0" in path:
            raise ValueError(f"embedded null byte in {path!r}")
        bpf = _Bpf()
        name = bpf.buffer(os.fsencode(path) + b"\0")
        descriptor = bpf.call(BPF_OBJ_GET, bpf.buffer(encode_object(bpf.address(name), BPF_F_RDONLY)))
        if descriptor < 0:
            raise _open_error(-descriptor, path)
        opened = cls(bpf, descriptor, path)
        try:
            opened._raise_if_not_a_map()
            opened.info = opened._read_info()
        except BaseException:
            opened.close()
            raise
        return opened

    def duplicate(self) -> BpfMap:
        """The same map with a descriptor of its own. Raises KernelError where descriptors have run out."""
        try:
            descriptor = os.dup(self._open_descriptor())
        except OSError as error:
            raise bpf_error(error.errno or 0, f"duplicate the descriptor of {self.path}") from None
        other = BpfMap(self._bpf, descriptor, self.path)
        other.info = self.info
        return other

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key, None if it is not there. Raises ValueError for a key of another size.

        Since Linux 5.2 a look-up from user space does not mark an entry of an LRU map as used
        (map_lookup_elem_sys_only), so it neither keeps an entry nor evicts another one.
        """
        if self.info.type not in _PLAIN_TYPES:  # of a per-CPU map the kernel writes value_size bytes for each CPU
            raise ValueError(f"{self.path}: no look-up in a map of type {self.info.type}")
        if len(key) != self.info.key_size:
            raise ValueError(f"{self.path} has keys of {self.info.key_size} bytes, not {len(key)}")
        value = self._bpf.buffer(bytes(self.info.value_size))
        return value.raw if self._element(BPF_MAP_LOOKUP_ELEM, key, value) else None

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Each key that stays in the map meanwhile, once, and its value, streamed; others may insert and delete.

        Since Linux 5.6 the kernel answers with many at once, bucket by bucket. Before, it goes from key to key: that
        takes longer, and memory for every key.
        """
        sizes = self.info.key_size, self.info.value_size
        room, begin, cursor = _ENTRIES_AT_ONCE, 0, self._bpf.buffer(bytes(_CURSOR_SIZE))
        while True:
            buffers = [self._bpf.buffer(bytes(room * size)) for size in sizes]
            end, keys, values = map(self._bpf.address, (cursor, *buffers))
            attr = self._bpf.buffer(encode_batch(self._open_descriptor(), begin, end, keys, values, room))
            code = -self._bpf.call(BPF_MAP_LOOKUP_BATCH, attr)
            if code == errno.EINVAL and not begin:
                yield from self._items_one_by_one()
                return
            if code == errno.ENOSPC:  # one bucket has more
                room *= 2
                continue
            if code not in (0, errno.ENOENT):
                raise bpf_error(code, f"read {self.path}")
            yield from zip(*(_pieces(one.raw, size, decode_batch(attr.raw)) for one, size in zip(buffers, sizes)))
            if code:
                return
            begin = end

    def _items_one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:  # None: deleted in between
                yield key, value

    def keys(self) -> Iterator[bytes]:
        """Each key once, streamed; others may insert and delete meanwhile.

        Each was in the map at some time during the walk, and may be gone when it is looked up. A key that stays in the
        map throughout and is not rewritten (which moves it) is among them, unless the walk is cut off: when a key is
        deleted just as the walk stands on it, the kernel starts again from the first key, so the walk ends after
        4 * max_entries + 1000 steps in any case.
        """
        seen: set[bytes] = set()
        key: bytes | None = None
        for _ in range(_WALKS * self.info.max_entries + _MORE_STEPS):
            key = self._key_after(key)
            if key is None:
                return
            if key not in seen:
                seen.add(key)
                yield key

    def _key_after(self, key: bytes | None) -> bytes | None:
        """The first key after None, and after a key that is not there; None after the last one."""
        after = self._bpf.buffer(bytes(self.info.key_size))
        return after.raw if self._element(BPF_MAP_GET_NEXT_KEY, key, after) else None

    def _element(self, command: int, key: bytes | None, answer: Any) -> bool:
        """Whether the kernel wrote an answer: it has none if it says ENOENT."""
        key_buffer = None if key is None else self._bpf.buffer(key)  # a variable keeps it alive during the call
        pointer = 0 if key_buffer is None else self._bpf.address(key_buffer)
        attr = self._bpf.buffer(encode_element(self._open_descriptor(), pointer, self._bpf.address(answer)))
        code = -self._bpf.call(command, attr)
        if code not in (0, errno.ENOENT):
            raise bpf_error(code, f"read {self.path}")
        return code == 0

    def _raise_if_not_a_map(self) -> None:
        """Raise ValueError for a program or a link: BPF_OBJ_GET opens them too, and their info would pass for a map's.

        BPF_MAP_LOOKUP_ELEM refuses them with EINVAL; for a map it fails to read a key at address 0 (EFAULT).
        """
        attr = self._bpf.buffer(encode_element(self._open_descriptor(), 0, 0))
        if self._bpf.call(BPF_MAP_LOOKUP_ELEM, attr) == -errno.EINVAL:
            raise ValueError(f"{self.path} is not a BPF map")

    def _read_info(self) -> MapInfo:
        info = self._bpf.buffer(bytes(MAP_INFO_SIZE))
        attr = self._bpf.buffer(encode_info(self._open_descriptor(), MAP_INFO_SIZE, self._bpf.address(info)))
        code = -self._bpf.call(BPF_OBJ_GET_INFO_BY_FD, attr)
        if code:
            raise bpf_error(code, f"ask what {self.path} is")
        return decode_map_info(info.raw)

    def _open_descriptor(self) -> int:
        if self._descriptor < 0:
            raise ValueError(f"{self.path} is closed")
        return self._descriptor

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> BpfMap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Bpf:
    """The system call, and buffers to pass to it."""

    __slots__ = ("_ctypes", "_number", "_syscall")

    def __init__(self) -> None:
        machine = os.uname().machine
        numbers = _NUMBERS_64 if sys.maxsize > 1 << 32 else _NUMBERS_32
        if machine not in numbers:
            raise NotSupported(
                errno.ENOSYS,
                f"bpf(2): the number of this system call is unknown for {machine}, only for "
                f"{', '.join(sorted(numbers))}",
            )
        try:
            import ctypes

            self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        except (ImportError, OSError, AttributeError) as error:
            raise_if_exhausted(error, "import ctypes")
            raise NotSupported(
                errno.ENOSYS, f"bpf(2): this Python has no working ctypes, and no other way to read BPF maps: {INSTALL}"
            ) from None
        self._syscall.restype = ctypes.c_long
        self._syscall.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)
        self._ctypes, self._number = ctypes, numbers[machine]

    def buffer(self, data: bytes) -> Any:
        """Memory that holds these bytes; `.raw` is its content after a call."""
        return self._ctypes.create_string_buffer(data, len(data))

    def address(self, buffer: Any) -> int:
        """The address of a buffer, which the caller keeps alive during the call."""
        return self._ctypes.addressof(buffer)

    def call(self, command: int, attr: Any) -> int:
        """What bpf(2) returns, or the errno as a negative number."""
        result: int = self._syscall(self._number, command, self._ctypes.byref(attr), len(attr))
        return result if result >= 0 else -self._ctypes.get_errno()


def _pieces(data: bytes, size: int, count: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, count * size, size))


def bpf_error(code: int, doing: str) -> KernelError:
    """The error for an errno of bpf(2), `doing` something: EPERM is about the call itself, EACCES about the path.

    Before Linux 5.19 the call needs a capability unless kernel.unprivileged_bpf_disabled is 0. Since then only making
    maps and programs does, and EPERM comes from a security module or a seccomp filter: those of container runtimes
    forbid bpf(2) to processes without the capability.
    """
    if code == errno.EPERM:
        return NotPermitted(
            code,
            f"{doing}: not permitted: bpf(2) needs {_capability()} in the initial user namespace (or a seccomp filter "
            "or security module forbids it); run as root, or grant the capability",
        )
    if code == errno.EACCES:
        return NotPermitted(
            code,
            f"{doing}: not permitted: it needs read permission to the pinned map and search permission to the "
            "directories above it; run as their owner, or grant CAP_DAC_READ_SEARCH",
        )
    if code == errno.ENOSYS:
        return NotSupported(code, f"{doing}: not supported: this kernel was built without CONFIG_BPF_SYSCALL")
    return KernelError(code, f"{doing}: {os.strerror(code)}")


def _capability() -> str:
    """The capability that this kernel has for bpf(2)."""
    try:
        with open(_CAP_LAST_CAP, encoding="ascii") as file:
            return "CAP_BPF" if int(file.read()) >= _CAP_BPF else "CAP_SYS_ADMIN"
    except (OSError, ValueError):
        return "CAP_BPF"


def _open_error(code: int, path: str) -> Exception:
    if code == errno.EACCES and os.access(path, os.R_OK):  # bpf_inode_type() answers so for any other file
        return ValueError(f"{path} is not a pinned BPF map, or a security module forbids opening it")
    return bpf_error(code, f"open {path}")
