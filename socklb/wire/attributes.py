# SPDX-License-Identifier: MIT
"""The response attributes of inet_diag (the INET_DIAG_* enum of linux/inet_diag.h), both ways.

One law holds for every attribute: what decodes to a value encodes to the very bytes it came from. What would not (a
number of another size, a text without its NUL, a nest with foreign flags) is kept as the raw bytes, so that nothing is
lost. Structures that grow from kernel to kernel are decoded as far as they go (`records`).
"""

from __future__ import annotations

from collections import namedtuple
from enum import IntEnum
from functools import lru_cache
from struct import Struct
from struct import error as struct_error

from ..errors import MalformedMessage
from .netlink import NLA_F_NESTED, NLA_TYPE_MASK, encode_attributes, iter_attributes
from .records import BbrInfo, DctcpInfo, MemInfo, Record, SkMemInfo, SockOpt, TcpInfo, VegasInfo
from .socket_id import AF_INET, AF_INET6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol, Union

    class Codec(Protocol):
        """`decode` returns None for bytes that its own `encode` would not give."""

        def decode(self, payload: bytes) -> Any: ...

        def encode(self, value: Any) -> bytes: ...

    AttributeKey = Union[str, int]


class Attribute(IntEnum):
    """INET_DIAG_*; the lower-case name is the key in `InetSocket.attributes`."""

    MEMINFO = 1
    INFO = 2
    VEGASINFO = 3
    CONG = 4
    TOS = 5
    TCLASS = 6
    SKMEMINFO = 7
    SHUTDOWN = 8
    DCTCPINFO = 9  # asked for as VEGASINFO
    PROTOCOL = 10
    SKV6ONLY = 11
    LOCALS = 12
    PEERS = 13
    PAD = 14
    MARK = 15  # with CAP_NET_ADMIN alone
    BBRINFO = 16  # asked for as VEGASINFO
    CLASS_ID = 17  # asked for as TCLASS
    MD5SIG = 18
    ULP_INFO = 19
    SK_BPF_STORAGES = 20
    CGROUP_ID = 21
    SOCKOPT = 22


# ------------------------------------------------------------------------------------------------ codecs


class _Number:
    def __init__(self, format: str) -> None:
        self._struct = Struct("=" + format)
        self._size, self._unpack = self._struct.size, self._struct.unpack

    def decode(self, payload: bytes) -> int | None:
        return self._unpack(payload)[0] if len(payload) == self._size else None

    def encode(self, value: int) -> bytes:
        return self._struct.pack(value)


class _Text:
    """A C string with its NUL."""

    def decode(self, payload: bytes) -> str | None:
        text, nul, rest = payload.partition(b"\0")
        return text.decode("ascii") if nul and not rest and text.isascii() else None

    def encode(self, value: str) -> bytes:
        return value.encode("ascii") + b"\0"


class _Flag:
    """An attribute that says all by being there."""

    def decode(self, payload: bytes) -> bool | None:
        return None if payload else True

    def encode(self, value: bool) -> bytes:
        return b""


class _Bytes:
    def decode(self, payload: bytes) -> bytes:
        return payload

    def encode(self, value: bytes) -> bytes:
        return bytes(memoryview(value))  # TypeError for what is no bytes: bytes(3) would be three of them


class _Struct:
    """A structure that may be shorter or longer than known."""

    def __init__(self, record: type[Record]) -> None:
        self._record = record

    def decode(self, payload: bytes) -> Record:
        return self._record(payload)

    def encode(self, value: Record) -> bytes:
        return value.raw


class _Array:
    """Structures of one size, one after another."""

    def __init__(self, size: int, decode: Any, encode: Any) -> None:
        self._size, self._decode, self._encode = size, decode, encode

    def decode(self, payload: bytes) -> tuple[Any, ...] | None:
        if len(payload) % self._size:
            return None
        items = tuple(self._decode(payload[i : i + self._size]) for i in range(0, len(payload), self._size))
        return None if None in items else items

    def encode(self, value: tuple[Any, ...]) -> bytes:
        return b"".join(map(self._encode, value))


class _Nest:
    """Attributes within an attribute: (name or number, value) pairs in the order they came."""

    def __init__(self, members: Mapping[int, tuple[str, Codec]], *, flagged: bool = False) -> None:
        self._members = members
        self._numbers = {name: number for number, (name, _) in members.items()}
        self._inner_flag = NLA_F_NESTED if flagged else 0

    def decode(self, payload: bytes) -> tuple[tuple[AttributeKey, Any], ...] | None:
        try:
            pairs = tuple(self._decode_member(*pair) for pair in iter_attributes(payload, 0, len(payload)))
        except MalformedMessage:
            return None
        return pairs if self.encode(pairs) == payload else None

    def _decode_member(self, type: int, payload: bytes) -> tuple[AttributeKey, Any]:
        number = type & ~self._inner_flag
        if number not in self._members:
            return type, payload
        name, codec = self._members[number]
        return name, decode_or_keep(codec, payload)

    def encode(self, value: tuple[tuple[AttributeKey, Any], ...]) -> bytes:
        return encode_attributes(self._encode_member(*pair) for pair in value)

    def _encode_member(self, key: AttributeKey, value: Any) -> tuple[int, bytes]:
        if isinstance(key, int):
            return key, value
        number = self._numbers[key]
        codec = self._members[number][1]
        flag = self._inner_flag if isinstance(codec, _Nest) else 0
        return number | flag, encode_or_keep(codec, value)


def decode_or_keep(codec: Codec, payload: bytes) -> Any:
    value = codec.decode(payload)
    return payload if value is None else value


def encode_or_keep(codec: Codec, value: Any) -> bytes:
    return value if isinstance(value, bytes) else codec.encode(value)


# ------------------------------------------------------------------------------- structures in an array


class SocketAddress(namedtuple("SocketAddress", "family port address flow_label scope_id")):
    """struct sockaddr_storage with an inet address in it: a packed address of 4 or 16 bytes, and its port."""

    __slots__ = ()


_SOCKADDR_STORAGE = 128
_FAMILY = Struct("=H")
_SOCKADDR_IN = Struct(">H4s")
_SOCKADDR_IN6 = Struct(">HI16s")
_SCOPE_ID = Struct("=I")


def _decode_address(payload: bytes) -> SocketAddress | None:
    (family,) = _FAMILY.unpack_from(payload)
    if family == AF_INET:
        port, address = _SOCKADDR_IN.unpack_from(payload, _FAMILY.size)
        value = SocketAddress(family, port, address, 0, 0)
    elif family == AF_INET6:
        port, flow_label, address = _SOCKADDR_IN6.unpack_from(payload, _FAMILY.size)
        (scope_id,) = _SCOPE_ID.unpack_from(payload, _FAMILY.size + _SOCKADDR_IN6.size)
        value = SocketAddress(family, port, address, flow_label, scope_id)
    else:
        return None
    return value if _encode_address(value) == payload else None


def _encode_address(value: SocketAddress) -> bytes:
    if value.family == AF_INET:
        used = _FAMILY.pack(value.family) + _SOCKADDR_IN.pack(value.port, value.address)
    else:
        used = _FAMILY.pack(value.family) + _SOCKADDR_IN6.pack(value.port, value.flow_label, value.address)
        used += _SCOPE_ID.pack(value.scope_id)
    return used.ljust(_SOCKADDR_STORAGE, b"\0")


class Md5Signature(namedtuple("Md5Signature", "family prefix_len address key")):
    """struct tcp_diag_md5sig (linux/tcp.h): whose segments (packed address, prefix) are signed with which key."""

    __slots__ = ()


_MD5SIG = Struct(
    "="
    "B"  # tcpm_family
    "B"  # tcpm_prefixlen
    "H"  # tcpm_keylen
    "16s"  # tcpm_addr: 16 bytes, or 4 and zeros behind them
    "80s"  # tcpm_key, TCP_MD5SIG_MAXKEYLEN
)


def _decode_md5(payload: bytes) -> Md5Signature | None:
    family, prefix_len, key_length, address, key = _MD5SIG.unpack(payload)
    value = Md5Signature(family, prefix_len, address[: 4 if family == AF_INET else 16], key[:key_length])
    return value if _encode_md5(value) == payload else None


def _encode_md5(value: Md5Signature) -> bytes:
    return _MD5SIG.pack(value.family, value.prefix_len, len(value.key), value.address, value.key)


# ------------------------------------------------------------------------------------------- which is what

_U8, _U16, _U32, _U64, _TEXT = _Number("B"), _Number("H"), _Number("I"), _Number("Q"), _Text()

_ULP_TLS = _Nest(  # linux/tls.h: TLS_INFO_*
    {
        1: ("version", _U16),
        2: ("cipher", _U16),
        3: ("txconf", _U16),
        4: ("rxconf", _U16),
        5: ("zc_ro_tx", _Flag()),
        6: ("rx_no_pad", _Flag()),
    }
)
_ULP_MPTCP = _Nest(  # linux/mptcp.h: MPTCP_SUBFLOW_ATTR_*
    {
        1: ("token_rem", _U32),
        2: ("token_loc", _U32),
        3: ("relwrite_seq", _U32),
        4: ("map_seq", _U64),
        5: ("map_sfseq", _U32),
        6: ("ssn_offset", _U32),
        7: ("map_datalen", _U16),
        8: ("flags", _U32),
        9: ("id_rem", _U8),
        10: ("id_loc", _U8),
    }
)
_ULP = _Nest({1: ("name", _TEXT), 2: ("tls", _ULP_TLS), 3: ("mptcp", _ULP_MPTCP)})  # INET_ULP_INFO_*
_BPF_STORAGE = _Nest({2: ("map_id", _U32), 3: ("map_value", _Bytes())})  # linux/sock_diag.h: SK_DIAG_BPF_STORAGE_*
_BPF_STORAGES = _Nest({1: ("storage", _BPF_STORAGE)}, flagged=True)

_CODECS_BY_ATTRIBUTE: dict[Attribute, Codec] = {
    Attribute.MEMINFO: _Struct(MemInfo),
    Attribute.INFO: _Struct(TcpInfo),
    Attribute.VEGASINFO: _Struct(VegasInfo),
    Attribute.CONG: _TEXT,
    Attribute.TOS: _U8,
    Attribute.TCLASS: _U8,
    Attribute.SKMEMINFO: _Struct(SkMemInfo),
    Attribute.SHUTDOWN: _U8,
    Attribute.DCTCPINFO: _Struct(DctcpInfo),
    Attribute.PROTOCOL: _U8,
    Attribute.SKV6ONLY: _U8,
    Attribute.LOCALS: _Array(_SOCKADDR_STORAGE, _decode_address, _encode_address),
    Attribute.PEERS: _Array(_SOCKADDR_STORAGE, _decode_address, _encode_address),
    Attribute.MARK: _U32,
    Attribute.BBRINFO: _Struct(BbrInfo),
    Attribute.CLASS_ID: _U32,
    Attribute.MD5SIG: _Array(_MD5SIG.size, _decode_md5, _encode_md5),
    Attribute.ULP_INFO: _ULP,
    Attribute.SK_BPF_STORAGES: _BPF_STORAGES,
    Attribute.CGROUP_ID: _U64,
    Attribute.SOCKOPT: _Struct(SockOpt),
}
_CODECS = {int(attribute): codec for attribute, codec in _CODECS_BY_ATTRIBUTE.items()}
_NAMES = {int(attribute): attribute.name.lower() for attribute in Attribute}
_NUMBERS = {name: number for number, name in _NAMES.items()}


def decode_attribute(type: int, payload: bytes) -> tuple[AttributeKey, Any]:
    """(name, value) of one attribute; an unknown one as (number, raw bytes)."""
    number = type & NLA_TYPE_MASK
    codec = _CODECS.get(number)
    return _NAMES.get(number, number), payload if codec is None else decode_or_keep(codec, payload)


@lru_cache(maxsize=256)  # unless extensions are asked for, most sockets of a host carry the very same bytes
def decode_attributes(data: bytes) -> tuple[tuple[AttributeKey, Any], ...]:
    """(name, value) of each attribute of a run. Raises MalformedMessage if one is cut."""
    return tuple(decode_attribute(type_, payload) for type_, payload in iter_attributes(data, 0, len(data)))


def encode_value(key: AttributeKey, value: Any) -> tuple[int, bytes]:
    """(type, payload) of what `decode_attribute` gave. Raises ValueError for an unknown name or an unfit value."""
    number = key if isinstance(key, int) else _NUMBERS.get(key)
    if number is None:
        raise ValueError(f"unknown attribute {key!r}; known are {', '.join(_NUMBERS)}")
    codec = _CODECS.get(number, _Bytes())
    try:
        payload = encode_or_keep(codec, value)
    except (struct_error, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"attribute {key} cannot be {value!r}: {error}") from None
    flag = NLA_F_NESTED if number == Attribute.SK_BPF_STORAGES else 0
    return number | flag, payload


_ASKED_AS = {  # an extension is asked for by bit N - 1 of eight bits; some share the bit of another
    Attribute.DCTCPINFO: Attribute.VEGASINFO,
    Attribute.BBRINFO: Attribute.VEGASINFO,
    Attribute.CLASS_ID: Attribute.TCLASS,
}


def extension_bits(names: Any) -> int:
    """idiag_ext of a request for these attributes, named as in `InetSocket.attributes`.

    Raises ValueError for a name that is unknown or comes without being asked for.
    """
    bits = 0
    for name in (names,) if isinstance(names, str) else names:
        number = _NUMBERS.get(name)
        number = _ASKED_AS.get(number, number)  # type: ignore[call-overload]
        if number is None or number > 8:
            askable = (known for known, of in _NUMBERS.items() if _ASKED_AS.get(Attribute(of), of) <= 8)
            raise ValueError(f"extension {name!r} cannot be asked for; those that can are {', '.join(askable)}")
        bits |= 1 << number - 1
    return bits
