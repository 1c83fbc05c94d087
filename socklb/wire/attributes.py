# SPDX-License-Identifier: MIT
"""The response attributes of inet_diag (the INET_DIAG_* enum of linux/inet_diag.h), both ways.

One law holds for every attribute: what decodes to a value encodes to the very bytes it came from. A payload for which
that would not hold (a number of another size, a text without its NUL, a nest that is cut) stays raw bytes, so nothing
is lost. Structures that grow from kernel to kernel are decoded as far as they go (`records`).
"""

from __future__ import annotations

from collections import namedtuple
from struct import Struct
from struct import error as struct_error

from ..errors import MalformedMessage
from .netlink import NLA_TYPE_MASK, encode_attributes, iter_attributes
from .records import BbrInfo, DctcpInfo, MemInfo, Record, SkMemInfo, SockOpt, TcpInfo, VegasInfo
from .socket_id import AF_INET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Protocol, Union

    class Codec(Protocol):
        """`decode` returns None for bytes that its own `encode` would not give."""

        def decode(self, payload: bytes) -> Any: ...

        def encode(self, value: Any) -> bytes: ...

    AttributeKey = Union[str, int]


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
    """An attribute without a payload: its presence is the value."""

    def decode(self, payload: bytes) -> bool | None:
        return None if payload else True

    def encode(self, value: bool) -> bytes:
        return b""


class _Raw:
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


class _Nest:
    """Attributes within an attribute: (name, value) pairs in the order they came, (number, bytes) of unknown ones."""

    def __init__(self, members: Mapping[int, tuple[str, Codec]]) -> None:
        self._members = members
        self.numbers = {name: number for number, (name, _) in members.items()}

    def decode(self, payload: bytes) -> tuple[tuple[AttributeKey, Any], ...] | None:
        try:
            pairs = tuple(self.decode_member(*pair) for pair in iter_attributes(payload, 0, len(payload)))
        except MalformedMessage:
            return None
        return pairs if self.encode(pairs) == payload else None

    def encode(self, value: tuple[tuple[AttributeKey, Any], ...]) -> bytes:
        return encode_attributes(self.encode_member(*pair) for pair in value)

    def decode_member(self, number: int, payload: bytes) -> tuple[AttributeKey, Any]:
        member = self._members.get(number)
        if member is None:
            return number, payload
        name, codec = member
        value = codec.decode(payload)
        return name, payload if value is None else value

    def encode_member(self, key: AttributeKey, value: Any) -> tuple[int, bytes]:
        if isinstance(key, int):
            return key, _RAW.encode(value)
        number = self.numbers[key]
        _, codec = self._members[number]
        return number, value if isinstance(value, bytes) else codec.encode(value)


class Md5Signature(namedtuple("Md5Signature", "family prefix_len address key")):
    """struct tcp_diag_md5sig (linux/tcp.h): whose segments (packed address, prefix) are signed with which key."""

    __slots__ = ()
    family: int
    prefix_len: int
    address: bytes
    key: bytes


_MD5SIG = Struct(
    "="
    "B"  # tcpm_family
    "B"  # tcpm_prefixlen
    "H"  # tcpm_keylen
    "16s"  # tcpm_addr: 16 bytes, or 4 and zeros after them
    "80s"  # tcpm_key, TCP_MD5SIG_MAXKEYLEN
)


class _Md5Signatures:
    """One struct tcp_diag_md5sig after another."""

    def decode(self, payload: bytes) -> tuple[Md5Signature, ...] | None:
        if len(payload) % _MD5SIG.size:
            return None
        value = tuple(
            Md5Signature(family, prefix_len, address[: 4 if family == AF_INET else 16], key[:key_len])
            for family, prefix_len, key_len, address, key in _MD5SIG.iter_unpack(payload)
        )
        return value if self.encode(value) == payload else None

    def encode(self, value: Iterable[Md5Signature]) -> bytes:
        return b"".join(_MD5SIG.pack(one.family, one.prefix_len, len(one.key), one.address, one.key) for one in value)


# ------------------------------------------------------------------------------ which attribute has which

_U8, _U16, _U32, _U64 = _Number("B"), _Number("H"), _Number("I"), _Number("Q")
_TEXT, _RAW = _Text(), _Raw()

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

# INET_DIAG_*, by the lower-case names that are the keys of `InetSocket.attributes`. LOCALS and PEERS (sent for SCTP
# alone) and SK_BPF_STORAGES (sent only if a request names the maps) are missing on purpose.
_RESPONSE = _Nest(
    {
        1: ("meminfo", _Struct(MemInfo)),
        2: ("info", _Struct(TcpInfo)),
        3: ("vegasinfo", _Struct(VegasInfo)),
        4: ("cong", _TEXT),
        5: ("tos", _U8),
        6: ("tclass", _U8),
        7: ("skmeminfo", _Struct(SkMemInfo)),
        8: ("shutdown", _U8),
        9: ("dctcpinfo", _Struct(DctcpInfo)),
        10: ("protocol", _U8),
        11: ("skv6only", _U8),
        14: ("pad", _RAW),
        15: ("mark", _U32),  # sent only to CAP_NET_ADMIN
        16: ("bbrinfo", _Struct(BbrInfo)),
        17: ("class_id", _U32),
        18: ("md5sig", _Md5Signatures()),
        19: ("ulp_info", _ULP),
        21: ("cgroup_id", _U64),
        22: ("sockopt", _Struct(SockOpt)),
    }
)
NUMBERS = _RESPONSE.numbers
"""INET_DIAG_* by name."""

# A bit of VEGASINFO gets whichever of the three the socket's congestion control has; CLASS_ID comes with TCLASS.
_REQUESTED_AS = {"dctcpinfo": "vegasinfo", "bbrinfo": "vegasinfo", "class_id": "tclass"}
EXTENSION_BITS = {
    name: 1 << number - 1
    for name, number in ((name, NUMBERS[_REQUESTED_AS.get(name, name)]) for name in NUMBERS)
    if number <= 8
}
"""The attributes that come on request, and the bit of idiag_ext that requests each: bit N - 1 for INET_DIAG_N."""


def decode_attribute(type: int, payload: bytes) -> tuple[AttributeKey, Any]:
    """(name, value) of one attribute; an unknown one as (number, raw bytes)."""
    return _RESPONSE.decode_member(type & NLA_TYPE_MASK, payload)


def decode_attributes(data: bytes) -> tuple[tuple[AttributeKey, Any], ...]:
    """(name, value) of each attribute in a row. Raises MalformedMessage if one is cut."""
    return tuple(decode_attribute(*pair) for pair in iter_attributes(data, 0, len(data)))


def encode_value(key: AttributeKey, value: Any) -> tuple[int, bytes]:
    """(type, payload) of what `decode_attribute` gave. Raises ValueError for an unknown name or an unfit value."""
    if isinstance(key, str) and key not in NUMBERS:
        raise ValueError(f"unknown attribute {key!r}; known are {', '.join(NUMBERS)}")
    try:
        return _RESPONSE.encode_member(key, value)
    except (struct_error, AttributeError, KeyError, TypeError, UnicodeError) as error:
        raise ValueError(f"attribute {key} cannot be {value!r}: {error}") from None


def extension_bits(names: Iterable[str]) -> int:
    """idiag_ext of a request for these attributes, named as in `InetSocket.attributes`; one name may stand alone.

    Raises ValueError for a name that is unknown, or of an attribute that cannot be requested.
    """
    bits = 0
    for name in (names,) if isinstance(names, str) else names:
        if name not in EXTENSION_BITS:
            raise ValueError(f"extension {name!r} cannot be asked for; those that can are {', '.join(EXTENSION_BITS)}")
        bits |= EXTENSION_BITS[name]
    return bits
