# SPDX-License-Identifier: MIT
"""Which backends are alive: a table of what every service says of each."""

from __future__ import annotations

import struct
from collections import namedtuple
from contextlib import contextmanager
from enum import Enum
from itertools import chain
from threading import RLock

from ..filters.backend import Backend, check_backend
from ..filters.socket_filter import protocol_number
from ..wire.address import from_packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Optional

    Holder = object  # of an instance: the name of a service, or what has that name for its str()
    Change = tuple[bytes, Holder, Optional[bool]]


class BackendState(Enum):
    """What a balancer calls a backend (Cilium's words). Active and terminating are alive."""

    ACTIVE = "active"  # takes new connections
    TERMINATING = "terminating"  # takes no new ones, serves those that it has
    QUARANTINED = "quarantined"  # failed its health checks
    MAINTENANCE = "maintenance"  # taken out by hand

    @classmethod
    def parse(cls, text: str) -> BackendState:
        """The state of that value. Raises ValueError, naming the known ones."""
        if not isinstance(text, str):
            raise TypeError(f"the state of a backend is a BackendState or a str, not {text!r}")
        try:
            return cls(text)
        except ValueError:
            known = ", ".join(state.value for state in cls)
            raise ValueError(f"the state of a backend is one of {known}, not {text!r}") from None


class Nameless:
    """Holds an instance for no service."""

    __slots__ = ()

    def __str__(self) -> str:
        return ""


_MEMORY = Nameless()  # holds what an earlier process had alive
_HEAD = struct.Struct("!BH")  # protocol, port
_V6_SIZE = 16

_ALIVE = (BackendState.ACTIVE, BackendState.TERMINATING)


class Instance(namedtuple("Instance", "backend service state unhealthy", defaults=("", BackendState.ACTIVE, False))):
    """A backend as one service has it. `state`: a BackendState or its value; `unhealthy`: fails health checks."""

    __slots__ = ()
    backend: Backend
    service: str
    state: BackendState | str
    unhealthy: bool


class BackendTable:
    """What is known of backends, by service. For any number of threads.

    A backend is alive while any service's instance of it is active or terminating, and healthy. It goes down when it
    was alive and no longer is, deletion included, and stays down until it comes back or `drain_down` is called. What
    was never alive cannot go down.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        # By packed backend, for there may be a million: who has an instance of it that is alive, who another one.
        self._alive: dict[bytes, tuple[Holder, ...]] = {}
        self._dead: dict[bytes, tuple[Holder, ...]] = {}
        self._down: dict[bytes, tuple[Holder, ...]] = {}  # in the order in which they went down; who had it alive
        self._taken: dict[bytes, tuple[Holder, ...]] = {}  # what went down, in the hands of who takes it
        self._recalled: list[bytes] = []
        self._on_down: Callable[[], object] | None = None
        self.version = 0
        """How often it has changed."""
        self.is_whole = False
        """Whether all backends that there are have been put in, by `replace` or a source that lists them."""

    def upsert(
        self,
        backend: Backend,
        service: str = "",
        state: BackendState | str = BackendState.ACTIVE,
        unhealthy: bool = False,
    ) -> None:
        """Put one service's instance in, or change it. Raises ValueError for an unknown state."""
        alive = _is_alive(Instance(backend, service, state, unhealthy))
        with self._lock:
            self._change([(packed(backend), service, alive)])
        self._notify()

    def delete(self, backend: Backend, service: str | None = None) -> None:
        """Take out one service's instance, or (None) all of them; one that is not there is no error."""
        _check(backend, "" if service is None else service)
        key = packed(backend)
        with self._lock:
            holders = self._holders(key) if service is None else (service,)
            self._change((key, holder, None) for holder in holders)
        self._notify()

    def replace(self, entries: Iterable[tuple[Any, ...]]) -> None:
        """Let these be the instances, and no others. If one of them is wrong, nothing changes.

        An entry is a tuple of what `upsert` takes, in that order; the last three may be missing. Of two for the same
        backend and service one that is alive counts.
        """
        wanted: dict[bytes, dict[Holder, bool]] = {}
        for entry in entries:
            instance = _instance(entry)
            services, alive = wanted.setdefault(packed(instance.backend), {}), _is_alive(instance)
            services[instance.service] = services.get(instance.service, False) or alive
        with self._lock:
            gone = [
                (key, holder, None)
                for key in {**self._alive, **self._dead}
                for holder in self._holders(key)
                if holder not in wanted.get(key, ())
            ]
            there = ((key, service, alive) for key, services in wanted.items() for service, alive in services.items())
            self._change(chain(there, gone))
            self._forget()
        self._notify()

    def _holders(self, key: bytes) -> tuple[Holder, ...]:
        return self._alive.get(key, ()) + self._dead.get(key, ())

    def _forget(self) -> None:
        self.is_whole = True
        self._change((key, _MEMORY, None) for key in self._recalled)
        self._recalled.clear()

    def _change(self, changes: Iterable[Change]) -> None:
        """Note also who went down, and who came back."""
        lost: dict[bytes, tuple[Holder, ...]] = {}
        for key, holder, is_alive in changes:
            before = self._alive.get(key, ())
            if holder is not _MEMORY and _MEMORY in before:  # now somebody knows more
                _remove(self._alive, key, _MEMORY)
                lost.setdefault(key, before)
            if is_alive:
                _add(self._alive, key, holder)
                self._down.pop(key, None)
            elif holder in before:
                lost.setdefault(key, before)
                _remove(self._alive, key, holder)
            if is_alive is False:
                _add(self._dead, key, holder)
            elif key in self._dead:
                _remove(self._dead, key, holder)
        for key, holders in lost.items():
            if key not in self._alive:
                self._down[key] = holders if any(map(str, holders)) else self._dead.get(key, ())
        self.version += 1

    @contextmanager
    def subscribe(self, on_down: Callable[[], object]) -> Iterator[None]:
        """While active, call `on_down` after each change that leaves backends down, in the thread that made it."""
        if not callable(on_down):
            raise TypeError(f"on_down is a function, not {on_down!r}")
        if self._on_down is not None:
            raise ValueError("the table has a subscriber already")
        self._on_down = on_down
        try:
            yield
        finally:
            self._on_down = None

    def _notify(self) -> None:
        on_down = self._on_down
        if on_down is not None and self._down:
            on_down()

    @property
    def alive(self) -> int:
        """How many backends are alive."""
        return len(self._alive)

    def is_alive(self, backend: Backend) -> bool:
        """Whether some service has the backend alive."""
        check_backend(backend)
        with self._lock:  # a change may be half done
            return packed(backend) in self._alive

    def backends(self) -> dict[Backend, bool]:
        """Every backend that a service has, and whether it is alive."""
        with self._lock:
            keys = {**dict.fromkeys(self._alive, True), **dict.fromkeys(self._dead.keys() - self._alive.keys(), False)}
        return {unpacked(key): is_alive for key, is_alive in keys.items()}

    def has_down(self) -> bool:
        """Whether backends have gone down since `drain_down` was last called."""
        return bool(self._down)

    def drain_down(self) -> list[Backend]:
        """The backends that have gone down since the last call, and have not come back."""
        with taking_down(self) as down:
            return list(down)


class PackedTable(BackendTable):
    """One that this package's sources and its memory change and ask by packed backends, for there may be a million."""

    def change(self, changes: Iterable[Change], *, is_whole: bool = False) -> None:
        """All of these at once: (packed backend, who holds the instance, whether it is alive; None: it is taken out).

        `is_whole`: with that, all that there is has been put in. What makes the changes as they are asked for sees the
        table as it is by then.
        """
        with self._lock:
            self._change(changes)
            if is_whole:
                self._forget()
        self._notify()

    def recall(self, backends: Iterable[Backend]) -> None:
        """Have these alive until the table is whole: who is not in it by then goes down."""
        with self._lock:
            self._recalled = [packed(backend) for backend in backends]
            self._change((key, _MEMORY, True) for key in self._recalled)

    @property
    def is_recalling(self) -> bool:
        return bool(self._recalled)

    def holders(self, key: bytes) -> tuple[tuple[Holder, ...], tuple[Holder, ...]]:
        """Who has an instance of a packed backend that is alive, and who has one that is not."""
        with self._lock:
            return self._alive.get(key, ()), self._dead.get(key, ())

    def keys(self) -> list[bytes]:
        """The packed backends that are alive, and those that have gone down and are not taken; some may be twice."""
        with self._lock:
            return [*self._alive, *self._down, *self._taken]


@contextmanager
def taking_down(table: BackendTable) -> Iterator[dict[Backend, list[str]]]:
    """Yields what `drain_down` returns, with the names of the services that had each; until the end `keys` has it."""
    with table._lock:
        down, table._down = table._down, {}
        table._taken = down
    try:
        yield {unpacked(key): [*dict.fromkeys(filter(None, map(str, holders)))] for key, holders in down.items()}
    finally:
        table._taken = {}


def packed(backend: Backend) -> bytes:
    """A backend in 7 bytes, or 19 and the name of its link."""
    address = backend.address.packed + backend.link.encode("utf-8", "surrogateescape")
    return pack(protocol_number(backend.protocol), backend.port, address)


def pack(protocol: int, port: int, address: bytes) -> bytes:
    """The same for a protocol number, and a packed address that is not link-local and not v4-mapped."""
    return _HEAD.pack(protocol, port) + address


def unpacked(key: bytes) -> Backend:
    protocol, port = _HEAD.unpack_from(key)
    address = key[_HEAD.size :]
    if len(address) <= _V6_SIZE:
        return Backend(from_packed(address), port, protocol)
    link = address[_V6_SIZE:].decode("utf-8", "surrogateescape")
    return Backend(f"{from_packed(address[:_V6_SIZE])}%{link}", port, protocol)


def _add(holders: dict[bytes, tuple[Holder, ...]], key: bytes, holder: Holder) -> None:
    before = holders.get(key, ())
    if holder not in before:
        holders[key] = (*before, holder)


def _remove(holders: dict[bytes, tuple[Holder, ...]], key: bytes, holder: Holder) -> None:
    rest = tuple(one for one in holders.pop(key, ()) if one != holder)
    if rest:
        holders[key] = rest


def _check(backend: Backend, service: str) -> None:
    check_backend(backend)
    if not isinstance(service, str):
        raise TypeError(f"the service of a backend is a str, not {service!r}")


def _instance(entry: object) -> Instance:
    if not isinstance(entry, tuple) or isinstance(entry, Backend) or not 1 <= len(entry) <= len(Instance._fields):
        raise TypeError(
            f"an entry is a tuple of a Backend, service, state, unhealthy, or the first of these; not {entry!r}"
        )
    return Instance(*entry)


def _is_alive(instance: Instance) -> bool:
    _check(instance.backend, instance.service)
    if not isinstance(instance.unhealthy, bool):
        raise TypeError(f"unhealthy is a bool, not {instance.unhealthy!r}")
    state = instance.state if isinstance(instance.state, BackendState) else BackendState.parse(instance.state)
    return state in _ALIVE and not instance.unhealthy
