# SPDX-License-Identifier: MIT
"""The filter language of ss(8), parsed into conditions.

    text    = { ("state" | "exclude") state { "," state } } [filter]
    filter  = term { ["and" | "&" | "&&"] term }  or  term { ("or" | "|" | "||") term }
    term    = ("not" | "!") term | "(" filter ")" | test
    test    = ("dst" | "src") [eq | ne] host | ("dport" | "sport") [operator] port
            | "dev" [eq | ne] interface | "fwmark" [eq | ne] value["/"mask] | "cgroup" [eq | ne] path["/"] | "autobound"
            | "uid" [eq | ne] user | "pid" [eq | ne] process | ("stalled" | "idle") duration
    host    = ["inet:" | "inet6:"] ( any | address ["/" prefix] | "[" v6 ["/" prefix] "]" ) [":" number]
    port    = [["inet:" | "inet6:"] ":"] number
    number  = a port's, the name of a service, or "*"
    any     = "*" | "any" | "all" | "default" | nothing before a port

A v6 address without brackets is refused where what follows its last colon could be a port of the address before it: ss
takes `::1:8080` for port 8080 of ::1, which is an address as well. `::1` and `fe80::1` are addresses, for `:` and
`fe80:` are none; `:::8080` and `::ffff:10.0.0.1:22` end with a port, for they are no addresses.

ss evaluates `and` and `or` strictly from left to right; most people expect `and` to bind tighter. Where the two
readings differ (an `and` after an `or`, without parentheses), this parser asks for parentheses.
"""

from __future__ import annotations

from collections import namedtuple

from ..states import named_states
from ..values import duration
from . import constructors
from .conditions import EVERYTHING, MAX_DEPTH, PORT_MAX, And, Condition, Not, Or, Port, joined

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
_ANY = ("", "*", "any", "all", "default")
_ANY_OF = {"inet": "0.0.0.0/0", "inet6": "::/0"}
_TESTS = (
    *("dst", "src", "dport", "sport", "dev", "fwmark", "cgroup", "autobound"),  # of ss
    *("uid", "pid", "stalled", "idle"),
)
_DURATIONS = ("stalled", "idle")
_DIGITS = 20  # of the largest number that anything has, a u64
_SYMBOLS = ("&&", "||", "==", "!=", "<=", ">=", "(", ")", "!", "&", "|", "=", "<", ">")


class FilterSyntaxError(ValueError):
    """A filter text that cannot be parsed.

    `text` is the whole filter, `word` the word at fault ("" if the text ends too early), `column` where it begins,
    counted from 1, `why` what is wrong with it.
    """

    def __init__(self, text: str, word: str, column: int, why: str) -> None:
        self.text, self.word, self.column, self.why = text, word, column, why
        super().__init__(text, word, column, why)

    def __str__(self) -> str:
        position = f"{self.word!r} at column {self.column}" if self.word else f"the end, column {self.column}"
        shown = "".join(c if c.isprintable() else " " for c in self.text)
        return f"filter: {self.why}: {position}\n  {shown}\n  {' ' * (self.column - 1)}^"


class _Word(namedtuple("_Word", "text column")):
    __slots__ = ()


def parse(text: str, protocol: str) -> tuple[Condition, list[str], list[str]]:
    """The condition that a text describes, everything if it has none, and the words of the states that it begins with:
    those that it names, and those that it excludes.

    Service names are looked up for `protocol` ("tcp" or "udp") first. Raises FilterSyntaxError, a ValueError.
    """
    if not isinstance(text, str):
        raise TypeError(f"a filter is parsed from a str, not {text!r}")
    parser = _Parser(text, protocol)
    named, excluded = parser.states()
    return (EVERYTHING if parser.word is None else _condition(parser)), named, excluded


def _condition(parser: _Parser) -> Condition:
    try:
        condition = parser.filter(0)
    except FilterSyntaxError:
        raise
    except ValueError as error:  # nested too deep
        parser.fail(str(error))
    if parser.word is not None:
        parser.fail('unmatched ")"')
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


class _Parser:
    """Goes through the words from left to right; each method leaves `word` at the first one that it did not use."""

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

    def states(self) -> tuple[list[str], list[str]]:
        """What `state` and `exclude` at the beginning name."""
        named: list[str] = []
        excluded: list[str] = []
        while self.word is not None and self.word.text.lower() in ("state", "exclude"):
            words = named if self.word.text.lower() == "state" else excluded
            kind = self.word.text
            self._next()
            if self.word is None:
                self.fail(f"{kind} needs a state")
            words += self.word.text.split(",")
            try:
                named_states(words)
            except ValueError as error:
                self.fail(str(error))
            self._next()
        return named, excluded

    def filter(self, depth: int) -> Condition:
        alternatives: list[Condition] = []
        conjunction = [self._term(depth)]
        while self.word is not None and self.word.text != ")":
            first = self.word
            if self._accept(*_OR):
                alternatives.append(joined(And, conjunction))
                conjunction = [self._term(depth)]
                continue
            self._accept(*_AND)
            conjunction.append(self._term(depth))
            if alternatives:
                self.fail("'and' after 'or' is ambiguous, use parentheses", first)
        return joined(Or, [*alternatives, joined(And, conjunction)])

    def _term(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            self.fail(f"parentheses and nots are nested more than {MAX_DEPTH} deep")
        if self._accept(*_NOT):
            return ~self._term(depth + 1)
        opened = self._accept("(")
        if not opened:
            return self._test()
        inner = self.filter(depth + 1)
        if not self._accept(")"):
            self.fail('unmatched "("', opened)
        return inner

    def _test(self) -> Condition:
        word = self.word
        if word is None:
            self.fail("expected a condition")
        test = self._accept(*_TESTS)
        if test is None:
            self.fail(_why_not_a_test(word.text.lower()))
        kind = test.text.lower()
        if kind == "autobound":
            return constructors.autobound()
        operator = self._accept(*_OPERATORS)
        sign = _OPERATORS[operator.text.lower()] if operator else "="
        if operator and kind in _DURATIONS:
            self.fail(f"{kind} takes a duration and means at least so long, as in {kind} 30s", operator)
        if operator and sign not in ("=", "!=") and not kind.endswith("port"):
            self.fail(f"{kind} can only be compared with = and !=", operator)
        value = self.word
        if value is None or value.text in _SYMBOLS or value.text.lower() in _AND + _OR + _NOT:
            self.fail(f"{kind} needs a value")
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
        family, colon, text = value.text.partition(":")
        family = family.lower() if colon and family.lower() in _ANY_OF else ""
        host, port = self._split_endpoint(_Word(text, value.column) if family else value)
        ports = EVERYTHING if port is None else self._ports(side, "=", port, value)
        if host.lower() in _ANY:
            if not family:
                return ports
            host = _ANY_OF[family]
        elif family and (":" in host) != (":" in _ANY_OF[family]):
            self.fail(f"{host} is no address of {family}", value)
        return joined(And, [_hosts(side, host), ports])

    def _split_endpoint(self, value: _Word) -> tuple[str, str | None]:
        """(address or prefix, port)."""
        text = value.text
        if "%" in text:
            self.fail("zones are not supported, name the interface with 'dev'", value)
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            if not bracket:
                self.fail('unmatched "["', value)
            if not host or (rest and not rest.startswith((":", "/"))):
                self.fail("expected [ADDRESS] or [ADDRESS]:PORT", value)
            prefix, colon, port = rest.partition(":")
            return self._address(host + prefix, value), port if colon else None
        host, colon, port = text.rpartition(":") if ":" in text else (text, "", "")
        if ":" in host:
            return self._split_v6(host, port, value)
        if host.lower() not in _ANY:
            host = self._address(host, value)
        return host, port if colon else None

    def _split_v6(self, host: str, port: str, value: _Word) -> tuple[str, str | None]:
        """Without brackets: where one reading alone is possible it is taken."""
        if not _is_network(host):
            return self._address(value.text, value), None
        if not _is_network(value.text):
            return host, port
        if self._port(port) is not None:
            self.fail(f"write [{value.text}] for the address, [{host}]:{port} for a port of {host}", value)
        return value.text, None

    def _address(self, text: str, value: _Word) -> str:
        """The address or prefix, checked; 10/8 is completed to 10.0.0.0/8."""
        address, slash, prefix = text.partition("/")
        if slash and not (prefix.isascii() and prefix.isdigit()):
            self.fail("the prefix length must be a number", value)
        if slash and ":" not in address:
            address += ".0" * (3 - address.count("."))
        if not _is_network(address + slash + prefix):
            if any(c.isalpha() for c in address) and ":" not in address:
                self.fail("host names are not resolved, give the address", value)
            self.fail("not an IP address", value)
        return address + slash + prefix

    def _port_test(self, side: str, sign: str, value: _Word) -> Condition:
        family, _, text = value.text.rpartition("::")
        if family.lower() in _ANY_OF:
            return joined(And, [_hosts(side, _ANY_OF[family.lower()]), self._ports(side, sign, text, value)])
        return self._ports(side, sign, value.text[1:] if value.text.startswith(":") else value.text, value)

    def _ports(self, side: str, sign: str, text: str, value: _Word) -> Condition:
        if text == "*" and sign == "=":
            return EVERYTHING
        number = self._port_number(text, value)
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
        number = self._port(text)
        if number is None:
            self.fail("neither a port number nor a service name", value)
        if number > PORT_MAX:
            self.fail(f"a port must be in 0..{PORT_MAX}", value)
        return number

    def _port(self, text: str) -> int | None:
        """A number, or that of a service."""
        if text.isascii() and text.isdigit():
            return int(text)
        return _service_port(text, self._protocol) if text else None

    def _dev(self, value: _Word) -> Condition:
        return constructors.device(value.text)

    def _fwmark(self, value: _Word) -> Condition:
        number, slash, mask = value.text.partition("/")
        try:
            numbers = (int(number, 0), int(mask, 0) if slash else 0xFFFFFFFF)
        except ValueError:
            self.fail("expected VALUE or VALUE/MASK, both numbers", value)
        return constructors.mark(*numbers)

    def _cgroup(self, value: _Word) -> Condition:
        number = _number(value.text)
        return constructors.cgroup(value.text if number is None else number)

    def _uid(self, value: _Word) -> Condition:
        number = _number(value.text)
        return constructors.uid(value.text if number is None else number)

    def _pid(self, value: _Word) -> Condition:
        number = _number(value.text)
        if number is None:
            self.fail("expected the number of a process", value)
        return constructors.pid(number)

    def _stalled(self, value: _Word) -> Condition:
        return constructors.stalled(duration(value.text))

    def _idle(self, value: _Word) -> Condition:
        return constructors.idle(duration(value.text))


def _why_not_a_test(word: str) -> str:
    if word in ("state", "exclude"):
        return "states come first, before all conditions"
    if word in _AND + _OR + tuple(_OPERATORS) or word == ")":
        return "expected a condition before this"
    if word in ("port", "host"):
        return "write dport or sport, dst or src"
    if _is_network(word.rpartition(":")[0] or word):
        return f"write dst {word} for the peer, src {word} for the local address"
    return f"unknown word, expected one of {', '.join(_TESTS)}"


def _number(text: str) -> int | None:
    """None for what is none, or too long for any."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else None


def _hosts(side: str, text: str) -> Condition:
    return constructors.src(text) if side == "src" else constructors.dst(text)


def _is_network(text: str) -> bool:
    try:
        constructors.dst(text)
    except ValueError:
        return False
    return True


def _service_port(name: str, protocol: str) -> int | None:
    """From /etc/services: for this protocol, else for any; None if it is not there, or the file is missing."""
    from _socket import getservbyname  # only names need it

    for protocols in ((protocol,), ()):
        try:
            return getservbyname(name, *protocols)
        except OSError:
            continue
    return None
