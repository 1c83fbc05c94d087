"""Keys and values of Cilium's reverse-NAT socket maps: which service a socket was balanced from.

struct ipv4_revnat_tuple and ipv4_revnat_entry, ipv6_revnat_tuple and ipv6_revnat_entry (bpf/lib/sock.h there, formerly
bpf/lib/common.h). None of them is packed. The cookie aligns the v6 key to 8, so that C has it at 32 bytes, the last
four unnamed (they are zero: the datapath clears the whole of it). The agent's own SockRevNat6Key (pkg/maps/lbmap) had
28 in old versions, the same fields without those four. union v6addr is packed, or else of 32-bit words: a v6 value is
20 bytes everywhere.
"""

from __future__ import annotations

from collections import namedtuple
from struct import Struct
from struct import error as struct_error

from ..errors import MalformedMessage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .netlink import Buffer

_COOKIE = Struct(
    "=Q"  # cookie: the socket's, SO_COOKIE
)  # and behind it
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
    ),  # then, but for old versions, 4 more bytes of padding
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
}  # and behind it
_INDEX = Struct(
    "=H"  # rev_nat_index: which service
)


class MapShape(namedtuple("MapShape", "name address_size key_sizes value_size")):
    """What a map is called, and how long its addresses, keys and values are."""

    __slots__ = ()


SHAPES = (
    MapShape("cilium_lb4_reverse_sk", 4, (16,), 8),
    MapShape("cilium_lb6_reverse_sk", 16, (28, 32), 20),
)
"""The map of v4 backends, those of v6 sockets too (::ffff:a.b.c.d), and the map of v6 backends."""

_ADDRESS_SIZE_BY_KEY = {size: shape.address_size for shape in SHAPES for size in shape.key_sizes}
_ADDRESS_SIZE_BY_VALUE = {shape.value_size: shape.address_size for shape in SHAPES}


class ReverseSkKey(namedtuple("ReverseSkKey", "cookie address port")):
    """struct ipv4_revnat_tuple or ipv6_revnat_tuple: a socket and its backend, whose address is packed."""

    __slots__ = ()

    def encode(self) -> bytes:
        """16 or 28 bytes; a map with longer keys wants zeros behind them. Raises ValueError for what does not fit."""
        try:
            return _COOKIE.pack(self.cookie) + _struct_for(_BACKENDS, self.address).pack(self.address, self.port)
        except struct_error as error:
            raise ValueError(f"cookie {self.cookie!r} and port {self.port!r} fit no key: {error}") from None


class ReverseSkValue(namedtuple("ReverseSkValue", "address port rev_nat_index")):
    """struct ipv4_revnat_entry or ipv6_revnat_entry: the service, whose address is packed."""

    __slots__ = ()

    def encode(self) -> bytes:
        """Raises ValueError for what does not fit."""
        try:
            return _struct_for(_SERVICES, self.address).pack(self.address, self.port) + _INDEX.pack(self.rev_nat_index)
        except struct_error as error:
            raise ValueError(f"port {self.port!r} and index {self.rev_nat_index!r} fit no value: {error}") from None


def decode_key(buffer: Buffer) -> ReverseSkKey:
    """A whole key; its length tells the family, and padding is not looked at."""
    address_size = _ADDRESS_SIZE_BY_KEY.get(len(buffer))
    if address_size is None:
        raise _wrong_size("key of a reverse-NAT map", _ADDRESS_SIZE_BY_KEY, buffer)
    (cookie,) = _COOKIE.unpack_from(buffer)
    return ReverseSkKey(cookie, *_BACKENDS[address_size].unpack_from(buffer, _COOKIE.size))


def decode_value(buffer: Buffer) -> ReverseSkValue:
    """A whole value; its length tells the family."""
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
