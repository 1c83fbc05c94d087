# SPDX-License-Identifier: MIT
"""Backends: what a balancer sends connections to, and which of them are alive."""

from __future__ import annotations

from collections import namedtuple
from contextlib import contextmanager
from enum import Enum
from threading import Lock

from ..filters.backend import check_backend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import NamedTuple

    from ..filters.backend import Backend


class BackendState(Enum):
    """What a balancer calls a backend (Cilium's words). Active and terminating are alive."""

    ACTIVE = "active"  # takes new connections
    TERMINATING = "terminating"  # takes no new ones, serves those that it has
    QUARANTINED = "quarantined"  # failed its health checks
    MAINTENANCE = "maintenance"  # taken out by hand

    @classmethod
    def parse(cls, text: str) -> BackendState:
        """Raises ValueError that names the known ones."""
        try:
            return cls(text)
        except ValueError:
            known = ", ".join(state.value for state in cls)
            raise ValueError(f"the state of a backend is one of {known}, not {text!r}") from None


_ALIVE = (BackendState.ACTIVE, BackendState.TERMINATING)

if TYPE_CHECKING:

    class Instance(NamedTuple):
        """A backend as one service has it. `state` is a BackendState or its value."""

        backend: Backend
        service: str = ""
        state: BackendState | str = BackendState.ACTIVE
        unhealthy: bool = False

else:
    Instance = namedtuple("Instance", "backend service state unhealthy", defaults=("", BackendState.ACTIVE, False))


class BackendTable:
    """What is known of backends, by service; may be used from any thread.

    A backend is alive while any service's instance of it is active or terminating, and healthy. One that was alive and
    is no longer, deletion included, has fallen, until it is alive again or `take_fallen` is called. What was never
    alive cannot fall.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._services: dict[Backend, dict[str, bool]] = {}  # whether each service's instance is alive
        self._fallen: dict[Backend, None] = {}  # in the order in which they fell
        self._on_fall: Callable[[], object] | None = None

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
        self._tell()

    def delete(self, backend: Backend, service: str | None = None) -> None:
        """Take one service's instance out, or (None) all of them; what is not there is no error."""
        _check(backend, "" if service is None else service)
        with self._lock:
            services = {} if service is None else dict(self._services.get(backend, {}))
            services.pop(service or "", None)
            self._put(backend, services)
        self._tell()

    def replace(self, entries: Iterable[Instance]) -> None:
        """Let these be the instances, and no others. Nothing is changed if one of them is wrong.

        An entry has what `upsert` takes, in that order: (backend, service, state, unhealthy), the last three may miss.
        """
        wanted: dict[Backend, dict[str, bool]] = {}
        for entry in entries:
            instance = Instance(*entry)
            wanted.setdefault(instance.backend, {})[instance.service] = _is_alive(instance)
        with self._lock:
            for backend in {**self._services, **wanted}:
                self._put(backend, wanted.get(backend, {}))
        self._tell()

    def _put(self, backend: Backend, services: dict[str, bool]) -> None:
        """Let these be the services' instances of one backend, and note whether it fell or rose."""
        was_alive = self.is_alive(backend)
        if services:
            self._services[backend] = services
        else:
            self._services.pop(backend, None)
        if self.is_alive(backend):
            self._fallen.pop(backend, None)
        elif was_alive:
            self._fallen[backend] = None

    @contextmanager
    def told_of_falls(self, on_fall: Callable[[], object]) -> Iterator[None]:
        """Meanwhile `on_fall` is called after each change that leaves fallen backends, by the thread that made it."""
        if self._on_fall is not None:
            raise ValueError("the table has a loop that follows it already")
        self._on_fall = on_fall
        try:
            yield
        finally:
            self._on_fall = None

    def _tell(self) -> None:
        on_fall = self._on_fall
        if on_fall is not None and self._fallen:
            on_fall()

    def is_alive(self, backend: Backend) -> bool:
        return any(self._services.get(backend, {}).values())

    def has_fallen(self) -> bool:
        """Whether some have fallen since they were last taken."""
        return bool(self._fallen)

    def take_fallen(self) -> list[Backend]:
        """Those that have fallen since this was last called, and are not alive again."""
        with self._lock:
            fallen, self._fallen = self._fallen, {}
        return list(fallen)


def _check(backend: Backend, service: str) -> None:
    check_backend(backend)
    if not isinstance(service, str):
        raise TypeError(f"the service of a backend is a str, not {service!r}")


def _is_alive(instance: Instance) -> bool:
    _check(instance.backend, instance.service)
    if not isinstance(instance.unhealthy, bool):
        raise TypeError(f"unhealthy is a bool, not {instance.unhealthy!r}")
    state = instance.state if isinstance(instance.state, BackendState) else BackendState.parse(instance.state)
    return state in _ALIVE and not instance.unhealthy
