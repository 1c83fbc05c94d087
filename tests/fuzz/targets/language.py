"""Any text as a filter: a condition, or a FilterSyntaxError at one of its words.

A condition is written as a text that reads back to the same. The program that it is compiled to is one that the kernel
accepts, and lets through what the condition matches, no more and no less.
"""

from __future__ import annotations

from zlib import crc32

from socklb import SocketFilter
from socklb.filters import FilterSyntaxError
from socklb.wire.request import PROTOCOL_NAMES

from ..sockets import check_plan

LONGEST = 300
WORDS = (
    *("dst", "src", "dport", "sport", "dev", "fwmark", "cgroup", "autobound", "and", "or", "not", "eq", "neq", "ge"),
    *(" ", "(", ")", "!", "&&", "||", "==", "!=", "<=", ">", "/", ":", "*", "[", "]"),
    *("10.0.0.1", "10/8", "2001:db8::/32", "[::1]:53", "::ffff:10.0.0.1", ":80", "65535", "http", "0x1/0x1", "eth0"),
)


def check(data: bytes) -> None:
    """The text is UTF-8; what is none of it stands for the lone surrogates that an argument may have."""
    text = data.decode("utf-8", "surrogateescape")
    for protocol in PROTOCOL_NAMES.values():
        _check_text(text, protocol)


def _check_text(text: str, protocol: str) -> None:
    try:
        filter = SocketFilter.parse(text, protocol)
    except FilterSyntaxError as error:
        _check_error(text, error)
        return
    again = SocketFilter.parse(str(filter), protocol)
    assert again == filter, "written as something else"
    assert hash(again) == hash(filter)
    assert again.is_bounded == filter.is_bounded
    resolved = filter.resolved(_Names())
    assert resolved.is_resolved
    assert resolved.is_bounded == filter.is_bounded
    check_plan(resolved.where)


def _check_error(text: str, error: FilterSyntaxError) -> None:
    assert error.text == text
    assert 1 <= error.column <= len(text) + 1
    assert text[error.column - 1 :].startswith(error.word)
    assert error.word or error.column == len(text) + 1
    message, shown, pointer = str(error).split("\n")
    assert message.startswith(f"filter: {error.why}: ")
    assert (len(shown), len(pointer)) == (len(text) + 2, error.column + 2)


class _Names:
    """A namespace in which every name stands for a number."""

    def interface_index(self, name: str) -> int:
        return crc32(name.encode("utf-8", "surrogateescape")) & 0x7FFFFFFF

    def cgroup_id(self, path: str) -> int:
        return crc32(path.encode("utf-8", "surrogateescape"))
