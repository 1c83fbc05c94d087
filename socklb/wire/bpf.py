"""What bpf(2) is asked about maps, and struct bpf_map_info (linux/bpf.h).

Of union bpf_attr only the members of the four commands below; the kernel takes what is left out for zeros. Pointers are
numbers here. `encode_*` make what the kernel reads, and `MapInfo` goes both ways.
"""

from __future__ import annotations

from collections import namedtuple
from struct import Struct

from ..errors import MalformedMessage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .netlink import Buffer

BPF_MAP_LOOKUP_ELEM = 1  # enum bpf_cmd
BPF_MAP_GET_NEXT_KEY = 4
BPF_OBJ_GET = 7
BPF_OBJ_GET_INFO_BY_FD = 15

BPF_MAP_TYPE_HASH = 1  # enum bpf_map_type
BPF_MAP_TYPE_LRU_HASH = 9

BPF_F_RDONLY = 1 << 3  # of BPF_OBJ_GET: the descriptor reads the map and cannot change it

_ELEM = Struct(  # BPF_MAP_*_ELEM and BPF_MAP_GET_NEXT_KEY
    "="
    "I"  # map_fd
    "4x"  # the next field is aligned to 8
    "Q"  # key: a pointer; of GET_NEXT_KEY 0 for the first key
    "Q"  # value, or next_key: a pointer to where it is written
    "Q"  # flags
)
_OBJ = Struct(  # BPF_OBJ_*
    "="
    "Q"  # pathname: a pointer to it, with its NUL
    "I"  # bpf_fd: of BPF_OBJ_PIN
    "I"  # file_flags
)
_INFO = Struct(  # BPF_OBJ_GET_INFO_BY_FD
    "="
    "I"  # bpf_fd
    "I"  # info_len: how much there is room for; the kernel writes here how much it wrote
    "Q"  # info: a pointer to where it is written
)
_MAP_INFO = Struct(
    "="
    "I"  # type, one of BPF_MAP_TYPE_*
    "I"  # id: no two maps that live have the same
    "I"  # key_size
    "I"  # value_size
    "I"  # max_entries
    "I"  # map_flags
)  # then, since Linux 4.15, name: 16 bytes and NULs behind it; then what nobody needs here
_NAME_SIZE = 16  # BPF_OBJ_NAME_LEN

MAP_INFO_ROOM = 256
"""More than the structure has on any kernel (88 bytes on Linux 6.18); one that knows less writes less."""


class MapInfo(namedtuple("MapInfo", "type id key_size value_size max_entries map_flags name")):
    """struct bpf_map_info as far as its name, which is "" for a map that has none."""

    __slots__ = ()

    def encode(self) -> bytes:
        name: bytes = self.name.encode("ascii", "surrogateescape")
        return _MAP_INFO.pack(*self[:-1]) + name.ljust(_NAME_SIZE, b"\0")


def decode_map_info(buffer: Buffer) -> MapInfo:
    """The start of a structure that grows from kernel to kernel; a name that is not there yet is "".

    Raises MalformedMessage for less than Linux 4.13, the first to answer at all, tells.
    """
    if len(buffer) < _MAP_INFO.size:
        raise MalformedMessage("cut bpf_map_info", offset=0, expected=f"{_MAP_INFO.size} bytes", got=f"{len(buffer)}")
    name = bytes(buffer[_MAP_INFO.size : _MAP_INFO.size + _NAME_SIZE]).partition(b"\0")[0]
    return MapInfo._make((*_MAP_INFO.unpack_from(buffer), name.decode("ascii", "surrogateescape")))


def encode_element(map_fd: int, key: int, value: int) -> bytes:
    """For BPF_MAP_LOOKUP_ELEM; for BPF_MAP_GET_NEXT_KEY, where `value` is the place of the next key."""
    return _ELEM.pack(map_fd, key, value, 0)


def encode_object(pathname: int, file_flags: int) -> bytes:
    """For BPF_OBJ_GET."""
    return _OBJ.pack(pathname, 0, file_flags)


def encode_info(bpf_fd: int, info_len: int, info: int) -> bytes:
    """For BPF_OBJ_GET_INFO_BY_FD."""
    return _INFO.pack(bpf_fd, info_len, info)


def decode_info_len(attr: Buffer) -> int:
    """How many bytes BPF_OBJ_GET_INFO_BY_FD wrote, from the attributes it was called with."""
    if len(attr) < _INFO.size:
        raise MalformedMessage("cut bpf_attr", offset=0, expected=f"{_INFO.size} bytes", got=f"{len(attr)}")
    info_len: int = _INFO.unpack_from(attr)[1]
    return info_len
