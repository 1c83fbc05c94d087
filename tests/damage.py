"""What befalls replies on their way: bytes that change, lengths that lie, datagrams that are lost, doubled or foreign.

`Damaged(usual, choices)` is a kernel whose answers suffer what was chosen. A kind of damage draws where and what it
does beforehand, as numbers of any size, and does it to whatever datagrams come.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence

from socklb.wire.netlink import (
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    NLMSGERR_ATTR_MSG,
    Ack,
    Done,
    encode_ack,
    encode_done,
    encode_message,
)
from socklb.wire.request import SOCK_DESTROY, SOCK_DIAG_BY_FAMILY, TCPDIAG_GETSOCK

from .choices import Choices
from .fake_kernel import Answer, Datagram, Request

Damage = Callable[["list[Datagram]", Sequence[Request]], None]
Kind = Callable[[Choices], Damage]

_TYPES = (
    NLMSG_NOOP,
    NLMSG_ERROR,
    NLMSG_DONE,
    NLMSG_OVERRUN,
    TCPDIAG_GETSOCK,
    SOCK_DIAG_BY_FAMILY,
    SOCK_DESTROY,
    0,
    0xFFFF,
)
_FLAGS = (0, NLM_F_MULTI, NLM_F_DUMP_INTR, 0x100, 0x200, 0x300, 0xFFFF)
_CODES = (
    0,
    errno.ENOENT,
    errno.EPERM,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.EINTR,
    errno.ENOBUFS,
    errno.EBUSY,
    4095,
)
_NUMBERS = (
    *(0, 1, 2, 3, 4, 5, 8, 10, 12, 15, 16, 17, 19, 20, 35, 36, 37, 71, 72, 73, 87, 88, 89, 92, 0x7F, 0xFF),
    *(0xFFFC, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFF001, 0xFFFFFFFC, 0xFFFFFFFF),
    *(-code & 0xFFFFFFFF for code in _CODES),
)
_TOO_LONG = 70_000  # longer than any buffer for replies


class Damaged:
    """The answers of `usual`, and what befalls those to the first sends, one after another; the last of it befalls all
    later ones. `hits` counts the answers that are others now.
    """

    def __init__(self, usual: Answer, choices: Choices, most: int = 3) -> None:
        self._usual = usual
        self._plan = [[damage(choices) for _ in range(choices.below(most + 1))] for _ in range(1 + choices.below(4))]
        self._sends = 0
        self.hits = 0

    def __call__(self, requests: Sequence[Request]) -> Iterable[Datagram]:
        whole = list(self._usual(requests))
        datagrams = whole.copy()
        for befalls in self._plan[min(self._sends, len(self._plan) - 1)]:
            befalls(datagrams, requests)
        self._sends += 1
        self.hits += datagrams != whole
        return datagrams


def damage(choices: Choices) -> Damage:
    """One of any kind."""
    return choices.of(KINDS)(choices)


def _number(choices: Choices) -> int:
    """One at which somebody might stumble, or any."""
    return choices.of(_NUMBERS) if choices.below(4) else choices.number(4)


# ---------------------------------------------------------------------------------- to the bytes of a datagram

Change = Callable[[bytes, int], Datagram]


def _to_bytes(draw: Callable[[Choices], Change]) -> Kind:
    def kind(choices: Choices) -> Damage:
        which, at, change = choices.number(), choices.number(2), draw(choices)

        def damage(datagrams: list[Datagram], requests: Sequence[Request]) -> None:
            places = [index for index, one in enumerate(datagrams) if isinstance(one, bytes) and one]
            if places:
                place = places[which % len(places)]
                one = datagrams[place]
                assert isinstance(one, bytes)
                datagrams[place] = change(one, at % len(one))

        return damage

    return kind


def _byte(choices: Choices) -> Change:
    value = choices.number()
    return lambda one, at: one[:at] + bytes([value]) + one[at + 1 :]


def _bit(choices: Choices) -> Change:
    bit = 1 << choices.below(8)
    return lambda one, at: one[:at] + bytes([one[at] ^ bit]) + one[at + 1 :]


def _short(choices: Choices) -> Change:
    """Two bytes where an attribute may say its length or type."""
    return _overwrite(struct.pack("=H", _number(choices) & 0xFFFF), 2)


def _word(choices: Choices) -> Change:
    return _overwrite(struct.pack("=I", _number(choices)), 4)


def _overwrite(value: bytes, alignment: int) -> Change:
    def change(one: bytes, at: int) -> bytes:
        at -= at % alignment
        return (one[:at] + value + one[at + len(value) :])[: len(one)]

    return change


def _grown(choices: Choices) -> Change:
    more = choices.bytes(64)
    return lambda one, at: one[:at] + more + one[at:]


def _shrunk(choices: Choices) -> Change:
    length = choices.below(100)
    return lambda one, at: one[:at] + one[at + length :]


def _simply(change: Change) -> Kind:
    return _to_bytes(lambda choices: change)


# ------------------------------------------------------------------------------ to one message of a datagram

_HEADER = (("=I", 0), ("=H", 4), ("=H", 6), ("=I", 8), ("=I", 12), ("=i", 16))  # nlmsghdr, and the errno behind it


def _messages(datagram: bytes) -> Iterator[bytes]:
    """As far as they go; what is left is one, too."""
    while datagram:
        length = int.from_bytes(datagram[:4], "little" if struct.pack("=H", 1) == b"\1\0" else "big")
        size = (length + 3) & ~3 if 16 <= length <= len(datagram) else len(datagram)
        yield datagram[:size]
        datagram = datagram[size:]


def _to_messages(draw: Callable[[Choices], Callable[[list[bytes], int], object]]) -> Kind:
    def drawn(choices: Choices) -> Change:
        change = draw(choices)

        def damage(one: bytes, at: int) -> bytes:
            messages = list(_messages(one))
            change(messages, at % len(messages))
            return b"".join(messages)

        return damage

    return _to_bytes(drawn)


def _field(choices: Choices) -> Callable[[list[bytes], int], object]:
    """A length, a type, flags, a sequence, a port or an errno that lies."""
    format, offset = choices.of(_HEADER)
    if offset == 4:
        value = choices.of(_TYPES)
    elif offset == 6:
        value = choices.of(_FLAGS)
    elif offset == 16:
        value = -choices.of(_CODES)
    else:
        value = _number(choices) & (0xFFFF if format == "=H" else 0xFFFFFFFF)

    def change(messages: list[bytes], at: int) -> None:
        one = bytearray(messages[at])
        if len(one) >= offset + struct.calcsize(format):
            struct.pack_into(format, one, offset, value)
        messages[at] = bytes(one)

    return change


def _lying_by_a_little(choices: Choices) -> Callable[[list[bytes], int], object]:
    difference = choices.below(17) - 8

    def change(messages: list[bytes], at: int) -> None:
        if len(messages[at]) >= 4:
            (length,) = struct.unpack_from("=I", messages[at])
            messages[at] = struct.pack("=I", (length + difference) & 0xFFFFFFFF) + messages[at][4:]

    return change


# ------------------------------------------------------------------------------ to the order of the datagrams


def _to_order(change: Callable[[list[Datagram], int, int], object]) -> Kind:
    def kind(choices: Choices) -> Damage:
        which, where = choices.number(), choices.number(2)

        def damage(datagrams: list[Datagram], requests: Sequence[Request]) -> None:
            if datagrams:
                change(datagrams, which % len(datagrams), where)

        return damage

    return kind


def _split(datagrams: list[Datagram], which: int, where: int) -> None:
    one = datagrams[which]
    if isinstance(one, bytes) and one:
        at = where % len(one)
        datagrams[which : which + 1] = [one[:at], one[at:]]


def _split_between_messages(datagrams: list[Datagram], which: int, where: int) -> None:
    one = datagrams[which]
    if isinstance(one, bytes):
        datagrams[which : which + 1] = list(_messages(one))


def _joined(datagrams: list[Datagram], which: int, where: int) -> None:
    datagrams[:] = [b"".join(one for one in datagrams if isinstance(one, bytes))]


def _spliced(datagrams: list[Datagram], which: int, where: int) -> None:
    """The front of one and the back of another."""
    one, other = datagrams[which], datagrams[where % len(datagrams)]
    if isinstance(one, bytes) and isinstance(other, bytes) and one and other:
        datagrams[which] = one[: where % len(one)] + other[where % len(other) :]


# --------------------------------------------------------------------------------------------- what is put in


def _put_in(draw: Callable[[Choices], Callable[[Sequence[Request]], Datagram]]) -> Kind:
    def kind(choices: Choices) -> Damage:
        where, made = choices.number(), draw(choices)

        def damage(datagrams: list[Datagram], requests: Sequence[Request]) -> None:
            datagrams.insert(where % (len(datagrams) + 1), made(requests))

        return damage

    return kind


def _foreign(choices: Choices) -> Callable[[Sequence[Request]], Datagram]:
    """Bytes, or a message of any type and sequence."""
    if choices.below(2):
        data = choices.bytes(200)
    else:
        data = encode_message(choices.of(_TYPES), choices.of(_FLAGS), choices.below(10), choices.bytes(200))
    return lambda requests: data


def _answer(choices: Choices) -> Callable[[Sequence[Request]], Datagram]:
    """What the kernel could say to one of the requests: an end or an acknowledgement, with errno, text, echo."""
    which, code = choices.number(), choices.of(_CODES)
    texts: tuple[tuple[int, bytes], ...] = ((NLMSGERR_ATTR_MSG, choices.bytes(40)),) if choices.below(2) else ()
    is_done, echoes = choices.below(2), choices.below(2)

    def made(requests: Sequence[Request]) -> Datagram:
        request = requests[which % len(requests)]
        if is_done:
            flags, payload = encode_done(Done(code, texts))
            return encode_message(NLMSG_DONE, flags, request.sequence, payload)
        echo = request.payload if echoes and code else b""
        flags, payload = encode_ack(Ack(code, request.type, request.flags, request.sequence, 0, echo, texts))
        return encode_message(NLMSG_ERROR, flags, request.sequence, payload)

    return made


def _failure(choices: Choices) -> Callable[[Sequence[Request]], Datagram]:
    """A receive that fails."""
    code = choices.of((errno.ENOBUFS, errno.EINTR, errno.EIO, 0))
    error = OSError(code, "recvmsg") if code else socket.timeout("timed out")
    return lambda requests: error


KINDS: Sequence[Kind] = (
    _to_bytes(_byte),
    _to_bytes(_bit),
    _to_bytes(_short),
    _to_bytes(_word),
    _to_bytes(_grown),
    _to_bytes(_shrunk),
    _simply(lambda one, at: one[:at]),
    _simply(lambda one, at: one[at:]),
    _simply(lambda one, at: one[:at] + one),
    _simply(lambda one, at: (one, at)),  # from another port
    _simply(lambda one, at: one.ljust(_TOO_LONG, b"\0")),
    _to_messages(_field),
    _to_messages(_field),
    _to_messages(_lying_by_a_little),
    _to_messages(lambda choices: lambda messages, at: messages.pop(at)),
    _to_messages(lambda choices: lambda messages, at: messages.insert(at, messages[at])),
    _to_messages(lambda choices: lambda messages, at: messages.append(messages.pop(at))),
    _to_order(lambda datagrams, which, where: datagrams.pop(which)),
    _to_order(lambda datagrams, which, where: datagrams.insert(where % len(datagrams), datagrams[which])),
    _to_order(lambda datagrams, which, where: datagrams.append(datagrams.pop(which))),
    _to_order(_split),
    _to_order(_split_between_messages),
    _to_order(_joined),
    _to_order(_spliced),
    _put_in(_foreign),
    _put_in(_answer),
    _put_in(_answer),
    _put_in(_failure),
)
