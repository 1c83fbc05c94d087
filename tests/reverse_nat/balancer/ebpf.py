"""bpf(2): maps and programs made, filled, pinned and attached, through ctypes.

A map or a program is a descriptor, closed by the caller that made it. Every error is an OSError that names the command.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress

# The kinds of maps (enum bpf_map_type), of programs (enum bpf_prog_type) and the flags that are used here.
BPF_MAP_TYPE_HASH = 1
BPF_MAP_TYPE_LRU_HASH = 9
BPF_PROG_TYPE_CGROUP_SOCK = 9
BPF_PROG_TYPE_CGROUP_SOCK_ADDR = 18
BPF_F_NO_PREALLOC = 1  # of a map: take memory when there are entries
BPF_F_ALLOW_MULTI = 2  # of an attachment: live with the programs of others, above and below

# The number of bpf(2), by the machine of the kernel and whether this process has 64 bits.
_SYSTEM_CALLS = {
    ("x86_64", True): 321, ("aarch64", True): 280, ("s390x", True): 351, ("x86_64", False): 357, ("i686", False): 357,
}  # fmt: skip

# enum bpf_cmd
_MAP_CREATE, _MAP_LOOKUP_ELEM, _MAP_UPDATE_ELEM, _MAP_DELETE_ELEM, _MAP_GET_NEXT_KEY = range(5)
_PROG_LOAD, _OBJ_PIN, _OBJ_GET, _PROG_ATTACH, _PROG_DETACH = range(5, 10)
_NAMES = (
    "BPF_MAP_CREATE", "BPF_MAP_LOOKUP_ELEM", "BPF_MAP_UPDATE_ELEM", "BPF_MAP_DELETE_ELEM", "BPF_MAP_GET_NEXT_KEY",
    "BPF_PROG_LOAD", "BPF_OBJ_PIN", "BPF_OBJ_GET", "BPF_PROG_ATTACH", "BPF_PROG_DETACH",
)  # fmt: skip

# The parts of union bpf_attr, <linux/bpf.h>, as far as they are used: the kernel takes what is left out for 0.
_ATTR_CREATE = struct.Struct(
    "="
    "I"  # map_type
    "I"  # key_size
    "I"  # value_size
    "I"  # max_entries
    "I"  # map_flags
)
_ATTR_ELEMENT = struct.Struct(
    "="
    "I4x"  # map_fd
    "Q"  # key
    "Q"  # value, or next_key
    "Q"  # flags
)
_ATTR_LOAD = struct.Struct(
    "="
    "I"  # prog_type
    "I"  # insn_cnt
    "Q"  # insns
    "Q"  # license
    "I"  # log_level
    "I"  # log_size
    "Q"  # log_buf
    "I"  # kern_version
    "I"  # prog_flags
    "16s"  # prog_name
    "I"  # prog_ifindex
    "I"  # expected_attach_type
)
_ATTR_OBJECT = struct.Struct(
    "="
    "Q"  # pathname
    "I"  # bpf_fd
    "I"  # file_flags
)
_ATTR_ATTACH = struct.Struct(
    "="
    "I"  # target_fd
    "I"  # attach_bpf_fd
    "I"  # attach_type
    "I"  # attach_flags
)
_LICENSE = b"MIT"
_LOG_SIZE = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


# ------------------------------------------------------------------------------------------------------------ maps


def create_map(type: int, key_size: int, value_size: int, max_entries: int, flags: int = 0) -> int:
    with suppress(ValueError, OSError):  # before Linux 5.11 maps count as locked memory, and too much of it is EPERM
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return _bpf(_MAP_CREATE, _ATTR_CREATE.pack(type, key_size, value_size, max_entries, flags))


def update(descriptor: int, key: bytes, value: bytes) -> None:
    """Put an entry in, in the place of one with the same key."""
    with_key, with_value = _buffer(key), _buffer(value)
    _bpf(_MAP_UPDATE_ELEM, _element(descriptor, with_key, with_value))


def delete(descriptor: int, key: bytes) -> None:
    """Raises FileNotFoundError if there is no such entry."""
    with_key = _buffer(key)
    _bpf(_MAP_DELETE_ELEM, _ATTR_ELEMENT.pack(descriptor, ctypes.addressof(with_key), 0, 0))


def lookup(descriptor: int, key: bytes, value_size: int) -> bytes:
    """Raises FileNotFoundError if there is no such entry."""
    with_key, value = _buffer(key), _buffer(bytes(value_size))
    _bpf(_MAP_LOOKUP_ELEM, _element(descriptor, with_key, value))
    return value.raw


def items(descriptor: int, key_size: int, value_size: int) -> dict[bytes, bytes]:
    """The entries of a map that nobody changes meanwhile, or at most removes entries from."""
    found = {}
    for key in _keys(descriptor, key_size):
        try:
            found[key] = lookup(descriptor, key, value_size)
        except FileNotFoundError:
            continue
    return found


def _keys(descriptor: int, key_size: int) -> Iterator[bytes]:
    following = _buffer(bytes(key_size))
    address = 0  # of the key before; nothing is before the first
    while True:
        try:
            attr = _ATTR_ELEMENT.pack(descriptor, address, ctypes.addressof(following), 0)
            _bpf(_MAP_GET_NEXT_KEY, attr)
        except FileNotFoundError:
            return
        yield following.raw
        address = ctypes.addressof(following)


def shape_of(descriptor: int) -> tuple[int, int, int, int]:
    """(type, key size, value size, entries at most) of a map, from /proc/self/fdinfo."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    type, key_size, value_size, entries = (
        int(fields[name], 0) for name in ("map_type", "key_size", "value_size", "max_entries")
    )
    return type, key_size, value_size, entries


# ------------------------------------------------------------------------------------------- programs, pins, cgroups


def load_program(type: int, attach_type: int, program: bytes, name: str) -> int:
    """Raises OSError with what the verifier has to say."""
    instructions, license = _buffer(program), _buffer(_LICENSE + b"\0")

    def attr(log_level: int, log_size: int, log: int) -> bytes:
        return _ATTR_LOAD.pack(
            type, len(program) // 8, ctypes.addressof(instructions), ctypes.addressof(license),
            log_level, log_size, log, 0, 0, name.encode(), 0, attach_type,
        )  # fmt: skip

    try:
        return _bpf(_PROG_LOAD, attr(0, 0, 0))
    except OSError:
        log = _buffer(bytes(_LOG_SIZE))
        try:
            return _bpf(_PROG_LOAD, attr(1, _LOG_SIZE, ctypes.addressof(log)))
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}, of {name}\n{log.value.decode()}".rstrip()) from None


def pin(descriptor: int, path: str) -> None:
    """Give a map or a program a name in a bpffs, which keeps it alive."""
    name = _buffer(os.fsencode(path) + b"\0")
    _bpf(_OBJ_PIN, _ATTR_OBJECT.pack(ctypes.addressof(name), descriptor, 0))


def open_pinned(path: str) -> int:
    name = _buffer(os.fsencode(path) + b"\0")
    return _bpf(_OBJ_GET, _ATTR_OBJECT.pack(ctypes.addressof(name), 0, 0))


def attach(cgroup: int, program: int, attach_type: int) -> None:
    """Run a program for the sockets of a cgroup, whose directory a descriptor stands for."""
    _bpf(_PROG_ATTACH, _ATTR_ATTACH.pack(cgroup, program, attach_type, BPF_F_ALLOW_MULTI))


def detach(cgroup: int, program: int, attach_type: int) -> None:
    _bpf(_PROG_DETACH, _ATTR_ATTACH.pack(cgroup, program, attach_type, 0))


# ---------------------------------------------------------------------------------------------------------- bpf(2)


def _buffer(content: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(content, len(content))


def _element(descriptor: int, key: ctypes.Array[ctypes.c_char], value: ctypes.Array[ctypes.c_char]) -> bytes:
    return _ATTR_ELEMENT.pack(descriptor, ctypes.addressof(key), ctypes.addressof(value), 0)


def system_call() -> int:
    """Its number, 0 where that is not known here."""
    return _SYSTEM_CALLS.get((os.uname().machine, sys.maxsize > 1 << 32), 0)


def _bpf(command: int, attr: bytes) -> int:
    """What the kernel answers; descriptors come with close-on-exec."""
    result: int = _libc.syscall(system_call(), command, _buffer(attr), len(attr))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{_NAMES[command]}: {os.strerror(code)}")
    return result
