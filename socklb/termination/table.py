# SPDX-License-Identifier: MIT
"""Which backends are alive: a table of what every service says of each."""

from __future__ import annotations

from collections import namedtuple
from contextlib import contextmanager
from enum import Enum
from threading import Lock

from ..filters.backend import Backend, check_backend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any


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
        self._lock = Lock()
        self._services: dict[Backend, dict[str, bool]] = {}  # whether each service's instance is alive
        self._down: dict[Backend, None] = {}  # in the order in which they went down
        self._on_down: Callable[[], object] | None = None

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
            self._put(backend, {**self._services.get(backend, {}), service: alive})
        self._notify()

    def delete(self, backend: Backend, service: str | None = None) -> None:
        """Take out one service's instance, or (None) all of them; one that is not there is no error."""
        _check(backend, "" if service is None else service)
        with self._lock:
            services = {} if service is None else dict(self._services.get(backend, {}))
            services.pop(service or "", None)
            self._put(backend, services)
        self._notify()

    def replace(self, entries: Iterable[tuple[Any, ...]]) -> None:
        """Let these be the instances, and no others. If one of them is wrong, nothing changes.

        An entry is a tuple of what `upsert` takes, in that order; the last three may be missing. Of two for the same
        backend and service one that is alive counts.
        """
        wanted: dict[Backend, dict[str, bool]] = {}
        for entry in entries:
            instance = _instance(entry)
            services, alive = wanted.setdefault(instance.backend, {}), _is_alive(instance)
            services[instance.service] = services.get(instance.service, False) or alive
        with self._lock:
            for backend in {**self._services, **wanted}:
                self._put(backend, wanted.get(backend, {}))
        self._notify()

    def _put(self, backend: Backend, services: dict[str, bool]) -> None:
        """Let these be the services' instances of one backend, and note whether it went down or came back."""
        was_alive = self.is_alive(backend)
        if services:
            self._services[backend] = services
        else:
            self._services.pop(backend, None)
        if self.is_alive(backend):
            self._down.pop(backend, None)
        elif was_alive:
            self._down[backend] = None

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

    def is_alive(self, backend: Backend) -> bool:
        """Whether some service has the backend alive."""
        check_backend(backend)
        return any(self._services.get(backend, {}).values())

    def backends(self) -> dict[Backend, bool]:
        """Every backend that a service has, and whether it is alive."""
        with self._lock:
            return {backend: any(services.values()) for backend, services in self._services.items()}

    def has_down(self) -> bool:
        """Whether backends have gone down since `drain_down` was last called."""
        return bool(self._down)

    def drain_down(self) -> list[Backend]:
        """The backends that have gone down since the last call, and have not come back."""
        with self._lock:
            down, self._down = self._down, {}
        return list(down)


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
