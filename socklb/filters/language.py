# SPDX-License-Identifier: MIT
"""The filter language of ss(8), read into conditions.

    filter  = term { ["and" | "&" | "&&"] term }  or  term { ("or" | "|" | "||") term }
    term    = ("not" | "!") term | "(" filter ")" | test
    test    = ("dst" | "src") [eq | ne] host | ("dport" | "sport") [operator] port
            | "autobound" | "dev" [eq | ne] interface | "fwmark" [eq | ne] value["/"mask] | "cgroup" [eq | ne] path
    host    = "*" | address ["/" prefix] [":" port] | "[" v6 ["/" prefix] "]" [":" port] | v6 ["/" prefix] | "*:" port

ss reads a line of `and` and `or` strictly from left to right, most people read `and` first. Where the two readings
differ (an `and` behind an `or` without parentheses) this language has no opinion: it asks for parentheses.
"""

from __future__ import annotations

from collections import namedtuple

from . import vocabulary
from .conditions import EVERYTHING, PORT_MAX, And, Condition, Not, Or, Port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_AND, _OR, _NOT = ("and", "&", "&&"), ("or", "|", "||"), ("not", "!")
_OPERATORS = {
    "=": "=", "==": "=", "eq": "=",
    "!=": "!=", "ne": "!=", "neq": "!=",
    "<": "<", "lt": "<", "<=": "<=", "le": "<=", "leq": "<=",
    ">": ">", "gt": ">", ">=": ">=", "ge": ">=", "geq": ">=",
}  # fmt: skip
_TESTS = ("dst", "src", "dport", "sport", "dev", "fwmark", "cgroup", "autobound")
_SYMBOLS = ("&&", "||", "==", "!=", "<=", ">=", "(", ")", "!", "&", "|", "=", "<", ">")
_MAX_DEPTH = 100  # of parentheses and nots: deeper ones are a mistake, and the reader is recursive


class FilterSyntaxError(ValueError):
    """A filter text that cannot be read: the `word` at fault ("" at the end) and its `column`, counted from 1."""

    def __init__(self, text: str, word: str, column: int, why: str) -> None:
        self.text, self.word, self.column, self.why = text, word, column, why
        super().__init__(text, word, column, why)

    def __str__(self) -> str:
        place = f"{self.word!r} at column {self.column}" if self.word else f"the end, column {self.column}"
        shown = "".join(c if c.isprintable() else " " for c in self.text)
        return f"filter: {self.why}: {place}\n  {shown}\n  {' ' * (self.column - 1)}^"


class _Word(namedtuple("_Word", "text column")):
    __slots__ = ()


def parse(text: str, protocol: str) -> Condition:
    """Read a filter. `protocol` ("tcp" or "udp") is where service names are looked up first.

    An empty text is the condition that matches everything. Raises FilterSyntaxError, a ValueError.
    """
    reader = _Reader(text, protocol)
    if reader.word is None:
        return EVERYTHING
    condition = reader.filter(0)
    if reader.word is not None:
        reader.fail("nothing is open that this could close")
    return condition


def _words(text: str) -> list[_Word]:
    words = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        symbol = next((s for s in _SYMBOLS if text.startswith(s, at)), None)
        end = at + len(symbol or "")
        if symbol is None:
            while end < len(text) and not text[end].isspace() and text[end] not in "()!&|=<>":
                end += 1
        words.append(_Word(text[at:end], at + 1))
        at = end
    return words


class _Reader:
    """Reads words from left to right; every method leaves `word` at the first one that it did not use."""

    def __init__(self, text: str, protocol: str) -> None:
        self._text, self._protocol = text, protocol
        self._words = iter(_words(text))
        self.word: _Word | None = None
        self._next()

    def _next(self) -> None:
        self.word = next(self._words, None)

    def fail(self, why: str, word: _Word | None = None) -> NoReturn:
        word = word or self.word or _Word("", len(self._text) + 1)
        raise FilterSyntaxError(self._text, word.text, word.column, why)

    def _accept(self, *words: str) -> _Word | None:
        word = self.word
        if word is None or word.text.lower() not in words:
            return None
        self._next()
        return word

    # ---------------------------------------------------------------------------------------- structure

    def filter(self, depth: int) -> Condition:
        alternatives: list[Condition] = []
        together = [self._term(depth)]
        while self.word is not None and self.word.text != ")":
            joined = self.word
            if self._accept(*_OR):
                alternatives.append(_join(And, together))
                together = [self._term(depth)]
                continue
            self._accept(*_AND)
            together.append(self._term(depth))
            if alternatives:
                self.fail("'or' and then 'and' is read in different ways; say which with parentheses", joined)
        return _join(Or, [*alternatives, _join(And, together)])

    def _term(self, depth: int) -> Condition:
        if depth > _MAX_DEPTH:
            self.fail(f"more than {_MAX_DEPTH} parentheses and nots within each other")
        if self._accept(*_NOT):
            return ~self._term(depth + 1)
        opened = self._accept("(")
        if not opened:
            return self._test()
        inner = self.filter(depth + 1)
        if not self._accept(")"):
            self.fail("this parenthesis is never closed", opened)
        return inner

    def _test(self) -> Condition:
        word = self.word
        if word is None:
            self.fail("a test is missing")
        test = self._accept(*_TESTS)
        if test is None:
            self.fail(_why_no_test(word.text.lower()))
        kind = test.text.lower()
        if kind == "autobound":
            return vocabulary.autobound()
        operator = self._accept(*_OPERATORS)
        sign = _OPERATORS[operator.text.lower()] if operator else "="
        if operator and sign not in ("=", "!=") and not kind.endswith("port"):
            self.fail(f"{kind} can be compared with = and != alone", operator)
        value = self.word
        if value is None or value.text in _SYMBOLS or value.text.lower() in _AND + _OR + _NOT:
            self.fail(f"{kind} needs a value behind it")
        self._next()
        try:
            if kind.endswith("port"):
                return self._port_test("dst" if kind == "dport" else "src", sign, value)
            condition: Condition = getattr(self, "_" + kind)(value)
        except FilterSyntaxError:
            raise
        except ValueError as error:
            self.fail(str(error), value)
        return Not(condition) if sign == "!=" else condition

    # -------------------------------------------------------------------------------------------- values

    def _dst(self, value: _Word) -> Condition:
        return self._endpoint("dst", value)

    def _src(self, value: _Word) -> Condition:
        return self._endpoint("src", value)

    def _endpoint(self, side: str, value: _Word) -> Condition:
        host, port = self._split_endpoint(value)
        ports = EVERYTHING if port in (None, "*") else Port(side, *[self._port_number(port or "", value)] * 2)
        if host in ("", "*"):
            return ports
        hosts = vocabulary.src(host) if side == "src" else vocabulary.dst(host)
        return hosts if ports is EVERYTHING else And(hosts, ports)

    def _split_endpoint(self, value: _Word) -> tuple[str, str | None]:
        """(address or prefix, port); a port needs brackets around a v6 address, or it would be a part of it."""
        text = value.text
        if "%" in text:
            self.fail("zones are not supported; name the interface with 'dev'", value)
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket:
                self.fail("this bracket is never closed", value)
            if not host or (rest and not rest.startswith((":", "/"))):
                self.fail("a v6 address in brackets is followed by :port or nothing", value)
            prefix, colon, port = rest.partition(":")
            return self._address(host + prefix, value), port if colon else None
        if text.count(":") > 1:
            return self._address(text, value), None
        host, colon, port = text.partition(":")
        if host not in ("", "*"):
            host = self._address(host, value)
        return host, port if colon else None

    def _address(self, text: str, value: _Word) -> str:
        """Checked, and with the zeros that 10/8 leaves out."""
        address, slash, prefix = text.partition("/")
        if slash and not (prefix.isascii() and prefix.isdigit()):
            self.fail("a prefix length is a number", value)
        if slash and ":" not in address:
            address += ".0" * (3 - address.count("."))
        try:
            vocabulary.dst(address + slash + prefix)
        except ValueError:
            if any(c.isalpha() for c in address) and ":" not in address:
                self.fail("host names are not looked up; give the address", value)
            self.fail("not an address", value)
        return address + slash + prefix

    def _port_test(self, side: str, sign: str, value: _Word) -> Condition:
        number = self._port_number(value.text[1:] if value.text.startswith(":") else value.text, value)
        if sign in ("=", "!="):
            exactly = Port(side, number, number)
            return Not(exactly) if sign == "!=" else exactly
        low, high = {
            "<": (0, number - 1),
            "<=": (0, number),
            ">": (number + 1, PORT_MAX),
            ">=": (number, PORT_MAX),
        }[sign]
        if low > high:
            self.fail(f"no port is {sign} {number}", value)
        return Port(side, low, high)

    def _port_number(self, text: str, value: _Word) -> int:
        if text.isascii() and text.isdigit():
            if int(text) > PORT_MAX:
                self.fail(f"a port is 0 to {PORT_MAX}", value)
            return int(text)
        number = _service_port(text, self._protocol) if text else None
        if number is None:
            self.fail("neither a port number nor a service name", value)
        return number

    def _dev(self, value: _Word) -> Condition:
        text = value.text
        return vocabulary.device(int(text) if text.isascii() and text.isdigit() else text)

    def _fwmark(self, value: _Word) -> Condition:
        number, slash, mask = value.text.partition("/")
        try:
            numbers = (int(number, 0), int(mask, 0) if slash else 0xFFFFFFFF)
        except ValueError:
            self.fail("a mark is VALUE or VALUE/MASK, numbers both", value)
        return vocabulary.mark(*numbers)

    def _cgroup(self, value: _Word) -> Condition:
        text = value.text
        return vocabulary.cgroup(int(text) if text.isascii() and text.isdigit() else text)


def _join(kind: type[And] | type[Or], parts: list[Condition]) -> Condition:
    joined = kind(*parts)  # flattened: `dport 80 and dst *` has one part
    return joined.parts[0] if len(joined.parts) == 1 else joined


def _why_no_test(word: str) -> str:
    if word in ("state", "exclude"):
        return "states are not part of the filter; use --state"
    if word in _AND + _OR + tuple(_OPERATORS) or word == ")":
        return "a test is missing before this"
    return f"unknown word; a test starts with one of {', '.join(_TESTS)}"


def _service_port(name: str, protocol: str) -> int | None:
    """From /etc/services: of this protocol, else of any; None if there is none (or no such file)."""
    from socket import getservbyname  # only names need it

    for protocols in ((protocol,), ()):
        try:
            return getservbyname(name, *protocols)
        except OSError:
            continue
    return None
