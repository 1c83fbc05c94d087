# SPDX-License-Identifier: MIT
"""The watch protocol: one change of backends as one JSON object.

{"op": "upsert", "backend": "10.0.0.1:80/TCP", "service": "default/web", "state": "active", "unhealthy": false}
{"op": "delete", "backend": "10.0.0.1:80/TCP", "service": "default/web"}
{"op": "replace", "backends": [{"backend": "10.0.0.1:80/TCP", "service": "default/web"}]}

Without "service" an upsert is for the service "", a delete for all services; "state" and "unhealthy" may be left out.
An unknown key is an error: a misspelt "unhealthy" must not count as healthy. A link-local backend without its link is
left out, for it may be another one on each link: the rest of a replace counts.
"""

from __future__ import annotations

import re
from collections import namedtuple

from ..features import standard_module
from ..filters.backend import Backend
from ..termination.table import BackendState, BackendTable, Instance

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Union

    from .status import SourceStatus

    Change = Union["Upsert", "Delete", "Replace", "Nothing"]

NO_LINK = "no_link"
"""The kind of entry that is left out."""

LARGEST = 64 << 20
"""In bytes: what is larger is not read. A replace of half a million backends fits."""

_LONGEST_MESSAGE = 500
_DEEPEST = 8  # a replace is three deep; Python's parser would go on to the end of the stack
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[][{}]', re.DOTALL)
_QUOTE = ord('"')
_NO_LINK = re.compile(r"\[fe[89ab][0-9a-f]:[0-9a-f:.]*\]", re.IGNORECASE)  # fe80::/10


class Upsert(namedtuple("Upsert", "instance")):
    """Put one service's instance of a backend in, or change it."""

    __slots__ = ()
    left_out = ()
    instance: Instance

    def apply(self, table: BackendTable) -> None:
        table.upsert(*self.instance)


class Delete(namedtuple("Delete", "backend service")):
    """Take one service's instance of a backend out, or (None) all of them."""

    __slots__ = ()
    left_out = ()
    backend: Backend
    service: str | None

    def apply(self, table: BackendTable) -> None:
        table.delete(self.backend, self.service)


class Replace(namedtuple("Replace", "instances left_out", defaults=((),))):
    """Let these be the instances, and no others. `left_out`: the backends that it named besides."""

    __slots__ = ()
    instances: tuple[Instance, ...]
    left_out: tuple[str, ...]

    def apply(self, table: BackendTable) -> None:
        table.replace(self.instances)


class Nothing(namedtuple("Nothing", "left_out")):
    """A change of nothing but backends that are left out."""

    __slots__ = ()
    left_out: tuple[str, ...]

    def apply(self, table: BackendTable) -> None:
        pass


def parse_line(line: bytes) -> Change:
    """The change in a line or a file. Raises ValueError that says what is wrong with it."""
    value = _json(line)
    op = _Object(value, "a change").take("op", str)
    if op == "replace":
        entries = _Object(value, "a replace", ("op", "backends")).take("backends", list)
        instances = [_numbered(number, entry) for number, entry in enumerate(entries, 1)]
        left_out = tuple(one for one in instances if isinstance(one, str))
        return Replace(tuple(one for one in instances if not isinstance(one, str)), left_out)
    if op == "upsert":
        instance = _instance(value, ("op",))
        return Nothing((instance,)) if isinstance(instance, str) else Upsert(instance)
    if op == "delete":
        fields = _Object(value, "a delete", ("op", "backend", "service"))
        text, service = fields.take("backend", str), fields.take("service", str, None)
        return Nothing((text,)) if _NO_LINK.match(text) else Delete(Backend.parse(text), service)
    raise ValueError(f"op is upsert, delete or replace, not {op!r}")


def _json(line: bytes) -> object:
    json = standard_module("json", "a source of backends")
    try:
        _check_depth(line)
        return json.loads(line.decode("utf-8"), object_pairs_hook=_members)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at {_place(line[: error.start].decode())}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at {_place(error.doc[: error.pos])}") from None
    except MemoryError:
        raise ValueError("too large for the memory that there is") from None


def _check_depth(line: bytes) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(line):
        first = line[match.start()]
        if first != _QUOTE:
            depth += 1 if first in b"[{" else -1
            if depth > _DEEPEST:
                raise ValueError("nested too deeply")


def _place(before: str) -> str:
    """Where a text that follows this one begins."""
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    return f"line {line}, column {column}" if line > 1 else f"column {column}"


def _numbered(number: int, value: object) -> Instance | str:
    try:
        return _instance(value)
    except ValueError as error:
        raise ValueError(f"backend number {number}: {error}") from None


def _instance(value: object, more: tuple[str, ...] = ()) -> Instance | str:
    """The instance, or the text of a backend that is left out."""
    fields = _Object(value, "a backend", ("backend", "service", "state", "unhealthy", *more))
    text: str = fields.take("backend", str)
    if _NO_LINK.match(text):
        return text
    return Instance(
        Backend.parse(text),
        fields.take("service", str, ""),
        BackendState.parse(fields.take("state", str, BackendState.ACTIVE.value)),
        fields.take("unhealthy", bool, False),
    )


class _Object:
    """A JSON object whose members have types; `known` are the names that it may have, () for any."""

    def __init__(self, value: object, what: str, known: tuple[str, ...] = ()) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{what} is an object, not {_shown(value)}")
        unknown = [name for name in value if known and name not in known]
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; {what} has {', '.join(known)}")
        self._value = value

    def take(self, name: str, kind: type, *default: Any) -> Any:
        """A member; if it is missing the default, or an error if there is none."""
        if name not in self._value:
            if default:
                return default[0]
            raise ValueError(f"no {name!r}")
        value = self._value[name]
        if not isinstance(value, kind):
            raise ValueError(f"{name} is {_KINDS[kind]}, not {_shown(value)}")
        return value


def shortened(text: str) -> str:
    """A message quotes its input, which may be long."""
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."


class LeftOut:
    """Counts the backends that a source leaves out; `warn` is called for the first."""

    def __init__(self, warn: Callable[[str], object], status: SourceStatus) -> None:
        self._warn, self._status = warn, status

    def note(self, texts: Sequence[str]) -> None:
        if texts and not self._status.bad_entries[NO_LINK]:
            others = f" and {len(texts) - 1} more" if len(texts) > 1 else ""
            self._warn(
                f"link-local backends without a link are left out: {shortened(texts[0])}{others}; such an address may "
                "be another one on each link: write it like [fe80::1%eth0]:80/TCP"
            )
        self._status.bad_entries[NO_LINK] += len(texts)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key that comes twice is an error: it is unknown which one counts."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key comes twice")
    return members


_KINDS = {str: "a string", bool: "true or false", list: "an array"}


def _shown(value: object) -> str:
    """As JSON, or the kind of value if that could be long."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    text: str = standard_module("json", "a message").dumps(value)
    return text if len(text) <= 40 else text[:40] + "..."
