"""Any line of the watch protocol: a change of backends, or a ValueError that says what is wrong with it.

A change can be made to a table, and written as a line that reads back to the same. What it names as a backend is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Union

from socklb.filters.backend import Backend
from socklb.sources.protocol import Delete, Replace, Upsert, parse_line
from socklb.termination.table import BackendState, BackendTable, Instance

Change = Union[Upsert, Delete, Replace]

WORDS = (
    *("op", "upsert", "delete", "replace", "backend", "backends", "service", "state", "unhealthy"),
    *("active", "terminating", "quarantined", "maintenance", "true", "false", "null", "NaN", "1e999"),
    *("10.0.0.1:80/TCP", "[fd00::1]:53/UDP", "[::ffff:10.0.0.1]:80/TCP", "{", "}", "[", "]", ":", ",", " "),
)
LONGEST = 600


def check(data: bytes) -> None:
    try:
        change = parse_line(data)
    except ValueError as error:
        _check_error(error)
        return
    table = BackendTable()
    for backend in _backends(change):
        assert Backend.parse(str(backend)) == backend
        table.upsert(backend)
    change.apply(table)
    assert parse_line(json.dumps(written(change)).encode()) == change, "written as something else"


def _check_error(error: ValueError) -> None:
    assert type(error) is ValueError, "an error of the parser's parts, and not its own"
    assert str(error)


def _backends(change: Change) -> Iterable[Backend]:
    if isinstance(change, Delete):
        return [change.backend]
    return [instance.backend for instance in _instances(change)]


def _instances(change: Upsert | Replace) -> Iterable[Instance]:
    return [change.instance] if isinstance(change, Upsert) else change.instances


def written(change: Change) -> dict[str, Any]:
    """The JSON object that tells a change."""
    if isinstance(change, Delete):
        written = {"op": "delete", "backend": str(change.backend)}
        return written if change.service is None else {**written, "service": change.service}
    if isinstance(change, Upsert):
        return {"op": "upsert", **_written_instance(change.instance)}
    assert isinstance(change, Replace)
    return {"op": "replace", "backends": [_written_instance(instance) for instance in change.instances]}


def _written_instance(instance: Instance) -> dict[str, Any]:
    backend, service, state, unhealthy = instance
    assert isinstance(state, BackendState)
    assert isinstance(unhealthy, bool)
    return {"backend": str(backend), "service": service, "state": state.value, "unhealthy": unhealthy}
