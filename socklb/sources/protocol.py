# SPDX-License-Identifier: MIT
"""The watch protocol: one change of backends as one JSON object.

{"op": "upsert", "backend": "10.0.0.1:80/TCP", "service": "default/web", "state": "active", "unhealthy": false}
{"op": "delete", "backend": "10.0.0.1:80/TCP", "service": "default/web"}
{"op": "replace", "backends": [{"backend": "10.0.0.1:80/TCP", "service": "default/web"}]}

Without "service" an upsert is for the service "", a delete for all services; "state" and "unhealthy" may be left out.
An unknown key is an error: a misspelt "unhealthy" must not count as healthy.
"""

from __future__ import annotations

import json
from collections import namedtuple

from ..filters.backend import Backend
from ..termination.table import BackendState, BackendTable, Instance

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Union

    Change = Union["Upsert", "Delete", "Replace"]

_LONGEST_MESSAGE = 500


class Upsert(namedtuple("Upsert", "instance")):
    """Put one service's instance of a backend in, or change it."""

    __slots__ = ()
    instance: Instance

    def apply(self, table: BackendTable) -> None:
        table.upsert(*self.instance)


class Delete(namedtuple("Delete", "backend service")):
    """Take one service's instance of a backend out, or (None) all of them."""

    __slots__ = ()
    backend: Backend
    service: str | None

    def apply(self, table: BackendTable) -> None:
        table.delete(self.backend, self.service)


class Replace(namedtuple("Replace", "instances")):
    """Let these be the instances, and no others."""

    __slots__ = ()
    instances: tuple[Instance, ...]

    def apply(self, table: BackendTable) -> None:
        table.replace(self.instances)


def parse_line(line: bytes) -> Change:
    """The change in a line or a file. Raises ValueError that says what is wrong with it."""
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_members)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.pos + 1}") from None
    op = _Object(value, "a change").take("op", str)
    if op == "upsert":
        return Upsert(_instance(value, ("op",)))
    if op == "delete":
        fields = _Object(value, "a delete", ("op", "backend", "service"))
        return Delete(Backend.parse(fields.take("backend", str)), fields.take("service", str, None))
    if op == "replace":
        instances = _Object(value, "a replace", ("op", "backends")).take("backends", list)
        return Replace(tuple(_numbered(number, instance) for number, instance in enumerate(instances, 1)))
    raise ValueError(f"op is upsert, delete or replace, not {op!r}")


def _numbered(number: int, value: object) -> Instance:
    try:
        return _instance(value)
    except ValueError as error:
        raise ValueError(f"backend number {number}: {error}") from None


def _instance(value: object, more: tuple[str, ...] = ()) -> Instance:
    fields = _Object(value, "a backend", ("backend", "service", "state", "unhealthy", *more))
    return Instance(
        Backend.parse(fields.take("backend", str)),
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
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:40] + "..."
