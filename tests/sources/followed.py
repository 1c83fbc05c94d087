"""A source that is followed in a thread, as `watch` does it, into a table whose calls are kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from socklb import Backend, BackendTable
from socklb.sources.protocol import Delete, Replace, Upsert
from socklb.termination.table import BackendState, Instance, PackedTable, taking_down

from ..sockets import eventually

PATIENCE = 30  # seconds until a test that hangs fails instead


class KeptTable(PackedTable):
    """A table that keeps the changes that were made, in `changes`."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[Upsert | Delete | Replace] = []

    def upsert(
        self,
        backend: Backend,
        service: str = "",
        state: BackendState | str = BackendState.ACTIVE,
        unhealthy: bool = False,
    ) -> None:
        super().upsert(backend, service, state, unhealthy)
        self.changes.append(Upsert(Instance(backend, service, state, unhealthy)))

    def delete(self, backend: Backend, service: str | None = None) -> None:
        super().delete(backend, service)
        self.changes.append(Delete(backend, service))

    def replace(self, entries: Iterable[tuple[Any, ...]]) -> None:
        kept = tuple(Instance(*entry) for entry in entries)
        super().replace(kept)
        self.changes.append(Replace(kept))


def taken_down(table: BackendTable) -> dict[Backend, list[str]]:
    """What has gone down, and the services that had it alive."""
    with taking_down(table) as down:
        return down


class Followed:
    """What a source makes of its table, and what it warns of."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.table = KeptTable()
        self.warnings: list[str] = []
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._follow, daemon=True)  # one that does not stop fails its test alone

    def _follow(self) -> None:
        try:
            self.source.follow(self.table, self.warnings.append)
        except BaseException as error:
            self.errors.append(error)

    def wait(self) -> None:
        """Until it has ended by itself."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def until(self, condition: Callable[[Followed], bool], what: str) -> None:
        eventually(lambda: bool(self.errors) or condition(self), what)
        assert self.errors == []

    def alive(self, *backends: Backend) -> list[bool]:
        return [self.table.is_alive(backend) for backend in backends]


@contextmanager
def followed(source: Any, *, recalled: Iterable[Backend] = ()) -> Iterator[Followed]:
    """While active, a thread follows it; in the end it is stopped."""
    made = Followed(source)
    made.table.recall(recalled)
    made.thread.start()
    try:
        yield made
    finally:
        source.stop()
        made.wait()
    assert made.errors == []
