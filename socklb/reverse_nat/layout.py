# SPDX-License-Identifier: MIT
"""Byte layouts: what bpf(2) takes and answers about maps; then the keys and values of Cilium's reverse-NAT maps."""

from __future__ import annotations

from collections import namedtuple
from struct import Struct
from struct import error as struct_error

from ..errors import MalformedMessage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..wire.netlink import Buffer

# ---------------------------------------------------------------------------------------------- bpf(2), linux/bpf.h
#
# Of union bpf_attr only the members that five commands need: the kernel takes what is left out as zeros. Pointers are
# numbers here.

BPF_MAP_LOOKUP_ELEM = 1  # enum bpf_cmd
BPF_MAP_GET_NEXT_KEY = 4
BPF_OBJ_GET = 7
BPF_OBJ_GET_INFO_BY_FD = 15
BPF_MAP_LOOKUP_BATCH = 24  # Linux 5.6

BPF_MAP_TYPE_HASH = 1  # enum bpf_map_type
BPF_MAP_TYPE_LRU_HASH = 9

BPF_F_RDONLY = 1 << 3  # of BPF_OBJ_GET: the descriptor cannot change the map

_ELEM = Struct(  # BPF_MAP_*_ELEM and BPF_MAP_GET_NEXT_KEY
    "="
    "I"  # map_fd
    "4x"  # the next field is aligned to 8
    "Q"  # key: a pointer; of GET_NEXT_KEY, 0 asks for the first key
    "Q"  # value, or next_key: a pointer to where the kernel writes it
    "Q"  # flags
)
_OBJ = Struct(  # BPF_OBJ_*
    "="
    "Q"  # pathname: a pointer to a C string
    "I"  # bpf_fd: of BPF_OBJ_PIN
    "I"  # file_flags
)
_INFO = Struct(  # BPF_OBJ_GET_INFO_BY_FD
    "="
    "I"  # bpf_fd
    "I"  # info_len: how many bytes to write at most; the kernel replaces it with how many it wrote
    "Q"  # info: a pointer to where the kernel writes them
)
_BATCH = Struct(  # BPF_MAP_LOOKUP_BATCH
    "="
    "Q"  # in_batch: a pointer to where the last call ended, 0 at first
    "Q"  # out_batch: a pointer to where the kernel writes that
    "Q"  # keys: a pointer to where it writes the keys
    "Q"  # values: and their values
    "I"  # count: how many there is room for; the kernel replaces it with how many it wrote
    "I"  # map_fd
    "Q"  # elem_flags
    "Q"  # flags
)
_COUNT, _BATCH_COUNT = Struct("=I"), 32
_MAP_INFO = Struct(
    "="
    "I"  # type, one of BPF_MAP_TYPE_*
    "I"  # id: no two existing maps have the same
    "I"  # key_size
    "I"  # value_size
    "I"  # max_entries
    "I"  # map_flags
)  # then, since Linux 4.15, name: 16 bytes and NULs behind it; then what is not needed here
_NAME_SIZE = 16  # BPF_OBJ_NAME_LEN

MAP_INFO_SIZE = _MAP_INFO.size + _NAME_SIZE
"""Of the structure, which grows from kernel to kernel (88 bytes on Linux 6.18), as much as MapInfo has."""


class MapInfo(namedtuple("MapInfo", "type id key_size value_size max_entries map_flags name")):
    """struct bpf_map_info up to its name, which is "" for a map without one."""

    __slots__ = ()

    def encode(self) -> bytes:
        name: bytes = self.name.encode("ascii", "surrogateescape")
        return _MAP_INFO.pack(*self[:-1]) + name.ljust(_NAME_SIZE, b"\0")


def decode_map_info(buffer: Buffer) -> MapInfo:
    """From what the kernel wrote, or more of it. Before Linux 4.15 the name is missing, or NULs: then it is "".

    Raises MalformedMessage for less than Linux 4.13 writes, the first kernel that has the command.
    """
    if len(buffer) < _MAP_INFO.size:
        raise MalformedMessage("cut bpf_map_info", offset=0, expected=f"{_MAP_INFO.size} bytes", got=f"{len(buffer)}")
    name = bytes(buffer[_MAP_INFO.size : _MAP_INFO.size + _NAME_SIZE]).partition(b"\0")[0]
    return MapInfo._make((*_MAP_INFO.unpack_from(buffer), name.decode("ascii", "surrogateescape")))


def encode_element(map_fd: int, key: int, value: int) -> bytes:
    """For BPF_MAP_LOOKUP_ELEM, and BPF_MAP_GET_NEXT_KEY, where `value` points to room for the next key."""
    return _ELEM.pack(map_fd, key, value, 0)


def encode_batch(map_fd: int, begin: int, end: int, keys: int, values: int, count: int) -> bytes:
    """For BPF_MAP_LOOKUP_BATCH."""
    return _BATCH.pack(begin, end, keys, values, count, map_fd, 0, 0)


def decode_batch(buffer: Buffer) -> int:
    """How many entries the kernel wrote."""
    return int(_COUNT.unpack_from(buffer, _BATCH_COUNT)[0])


def encode_object(pathname: int, file_flags: int) -> bytes:
    """For BPF_OBJ_GET."""
    return _OBJ.pack(pathname, 0, file_flags)


def encode_info(bpf_fd: int, info_len: int, info: int) -> bytes:
    """For BPF_OBJ_GET_INFO_BY_FD."""
    return _INFO.pack(bpf_fd, info_len, info)


# ----------------------------------------------------------------- Cilium's reverse-NAT maps, bpf/lib/sock.h there
#
# struct ipv4_revnat_tuple and ipv4_revnat_entry, ipv6_revnat_tuple and ipv6_revnat_entry (formerly in
# bpf/lib/common.h). None is packed. The cookie aligns the v6 key to 8, which makes it 32 bytes in C; the last four have
# no name and are zero, because the datapath clears the whole key. In old versions of the agent SockRevNat6Key
# (pkg/maps/lbmap) had the same fields in 28 bytes. A v6 value has 20 bytes everywhere: union v6addr is packed, or made
# of 32-bit words.

_COOKIE = Struct(
    "=Q"  # cookie: the socket's, SO_COOKIE
)  # then
_BACKENDS = {
    4: Struct(
        ">"
        "4s"  # address: the backend's
        "H"  # port
        "2x"  # pad
    ),
    16: Struct(
        ">"
        "16s"  # address
        "H"  # port
        "2x"  # pad
    ),  # then, except in old versions, 4 more bytes of padding
}
_SERVICES = {
    4: Struct(
        ">"
        "4s"  # address: the service's
        "H"  # port
    ),
    16: Struct(
        ">"
        "16s"  # address
        "H"  # port
    ),
}  # then
_INDEX = Struct(
    "=H"  # rev_nat_index: which service
)


class MapLayout(namedtuple("MapLayout", "name address_size key_sizes value_size")):
    """A map's name, and the sizes of its addresses, keys (any of these) and values in bytes."""

    __slots__ = ()


LAYOUTS = (
    MapLayout("cilium_lb4_reverse_sk", 4, (16,), 8),
    MapLayout("cilium_lb6_reverse_sk", 16, (28, 32), 20),
)
"""The map of v4 backends, also for v6 sockets (::ffff:a.b.c.d), and the map of v6 backends."""

_ADDRESS_SIZE_BY_KEY = {size: layout.address_size for layout in LAYOUTS for size in layout.key_sizes}
_ADDRESS_SIZE_BY_VALUE = {layout.value_size: layout.address_size for layout in LAYOUTS}


class ReverseSkKey(namedtuple("ReverseSkKey", "cookie address port")):
    """struct ipv4_revnat_tuple or ipv6_revnat_tuple: a socket and its backend; `address` is 4 or 16 bytes."""

    __slots__ = ()

    def encode(self) -> bytes:
        """16 or 28 bytes; for a map with longer keys, pad it with zeros. Raises ValueError for what does not fit."""
        try:
            return _COOKIE.pack(self.cookie) + _struct_for(_BACKENDS, self.address).pack(self.address, self.port)
        except struct_error as error:
            raise ValueError(f"cookie {self.cookie!r} and port {self.port!r} fit no key: {error}") from None


class ReverseSkValue(namedtuple("ReverseSkValue", "address port rev_nat_index")):
    """struct ipv4_revnat_entry or ipv6_revnat_entry: the service; `address` is 4 or 16 bytes."""

    __slots__ = ()

    def encode(self) -> bytes:
        """Raises ValueError for what does not fit."""
        try:
            return _struct_for(_SERVICES, self.address).pack(self.address, self.port) + _INDEX.pack(self.rev_nat_index)
        except struct_error as error:
            raise ValueError(f"port {self.port!r} and index {self.rev_nat_index!r} fit no value: {error}") from None


def decode_key(buffer: Buffer) -> ReverseSkKey:
    """A whole key, of either family by its length. Padding is ignored."""
    address_size = _ADDRESS_SIZE_BY_KEY.get(len(buffer))
    if address_size is None:
        raise _wrong_size("key of a reverse-NAT map", _ADDRESS_SIZE_BY_KEY, buffer)
    (cookie,) = _COOKIE.unpack_from(buffer)
    return ReverseSkKey(cookie, *_BACKENDS[address_size].unpack_from(buffer, _COOKIE.size))


def decode_value(buffer: Buffer) -> ReverseSkValue:
    """A whole value, of either family by its length."""
    address_size = _ADDRESS_SIZE_BY_VALUE.get(len(buffer))
    if address_size is None:
        raise _wrong_size("value of a reverse-NAT map", _ADDRESS_SIZE_BY_VALUE, buffer)
    service = _SERVICES[address_size]
    return ReverseSkValue(*service.unpack_from(buffer), *_INDEX.unpack_from(buffer, service.size))


def _struct_for(structs: dict[int, Struct], address: bytes) -> Struct:
    if len(address) not in structs:
        raise ValueError(f"a packed address has 4 or 16 bytes, not {len(address)}")
    return structs[len(address)]


def _wrong_size(what: str, sizes: dict[int, int], buffer: Buffer) -> MalformedMessage:
    return MalformedMessage(what, offset=0, expected=f"{' or '.join(map(str, sizes))} bytes", got=f"{len(buffer)}")
