# SPDX-License-Identifier: MIT
"""Which endpoints are alive, by the slices of an API server, and when the others go down.

An endpoint that serves is alive. One that is in no slice any more goes down at once. One that does not serve goes down
after `not_serving` seconds, but only while another endpoint of its service, port name and family serves: else it is
held, for a broken probe must not cut a whole service that has nowhere to go. One that serves and terminates goes down
after `terminating` seconds. Each time counts from when this process first saw it so. What a slice says of an endpoint
counts as long as no other slice has something better to say.

Where the ports of a service change, its slices are recycled: an update gives one other ports, and others of the
endpoints, which may be in no slice until the next update. What such a slice had stays as it was there until another
slice takes it in, for RECYCLED_SECONDS at most.
"""

from __future__ import annotations

from itertools import chain

from ...termination.table import Nameless
from .endpoint_slice import packed_backend, unpacked_backend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any

    from ...termination.table import Change, PackedTable
    from ..status import SourceStatus
    from .endpoint_slice import EndpointSlice, Key

RECYCLED_SECONDS = 5.0
"""The controller (k8s.io/endpointslice, Reconciler.finalize; that of mirrored slices) turns what it would create into
updates of what it would delete, and then creates, updates and deletes, in this order: what a deleted slice had, and is
to stay, is in another one by then. Each of these is a request, 30 at once and then 20 a second (the defaults of its
kube-api-burst and kube-api-qps): 130 slices, 13,000 endpoints. What fails is tried again after 1 second, then 2.
"""

_NEVER = float("inf")


class _Known:
    """A slice as it was last seen. It holds its instances in the table, where its name is that of its service."""

    __slots__ = ("slice",)

    def __init__(self, one: EndpointSlice) -> None:
        self.slice = one

    def __str__(self) -> str:
        return self.slice.service


_WAITING = Nameless()  # holds what does not serve, until it goes down


class Endpoints:
    """Puts what slices say into a table of backends. The time is given with each call: it has no clock."""

    def __init__(
        self,
        table: PackedTable,
        warn: Callable[[str], object],
        status: SourceStatus,
        *,
        not_serving: float | None = 30.0,
        terminating: float | None = None,
    ) -> None:
        """Seconds; None: never. `status` is told how many are held."""
        self._table, self._warn, self._status = table, warn, status
        self._not_serving = _NEVER if not_serving is None else not_serving
        self._terminating = _NEVER if terminating is None else terminating
        self._known: dict[Key, _Known] = {}
        self._recycled: dict[_Known, float] = {}  # slices as they were until then
        self._services: dict[str, list[_Known]] = {}  # the recycled ones among them
        # By packed backend, in the order in which they began: since when it does not serve, or terminates.
        self._waiting: dict[bytes, float] = {}
        self._ending: dict[bytes, float] = {}
        self._held: dict[bytes, str] = {}  # and the service that has nobody else who serves
        self._said: set[str] = set()

    def put(self, key: Key, one: EndpointSlice, now: float) -> None:
        """A slice was added or modified. Whoever does not serve in it, and did nowhere before, is not alive."""
        self._table.change(self._changes({key: one}, (), now, are_news=True))

    def remove(self, key: Key, now: float) -> None:
        """A slice was deleted."""
        gone = [self._known.pop(key)] if key in self._known else []
        self._table.change(self._changes({}, gone, now, are_news=True))

    def replace(self, slices: Mapping[Key, EndpointSlice], now: float) -> None:
        """These are all that there are. Whoever does not serve, and is not known, may have served before."""
        gone = [self._known.pop(key) for key in [*self._known] if key not in slices]
        gone += _due(self._recycled, _NEVER)
        self._table.change(self._changes(slices, gone, now), is_whole=True)

    def add(self, slices: Mapping[Key, EndpointSlice], now: float) -> None:
        """There are these; of the others that is not sure."""
        self._table.change(self._changes(slices, (), now))

    def last(self, key: Key) -> EndpointSlice | None:
        """A slice as it was last seen."""
        known = self._known.get(key)
        return None if known is None else known.slice

    def next_time(self) -> float | None:
        """When something is next to go down."""
        first = (next(iter(times.values()), _NEVER) + after for times, after in self._timers())
        time = min(first)
        return None if time == _NEVER else time

    def settle(self, now: float) -> None:
        """Let go down whose time has come, though nothing has changed."""
        self._table.change(self._changes({}, (), now))

    def _timers(self) -> Iterator[tuple[dict[Any, float], float]]:
        yield self._waiting, self._not_serving
        yield self._ending, self._terminating
        yield self._recycled, RECYCLED_SECONDS

    def _changes(
        self, slices: Mapping[Key, EndpointSlice], gone: Iterable[_Known], now: float, *, are_news: bool = False
    ) -> Iterator[Change]:
        before: dict[bytes, tuple[bool, bool]] = {}  # of each backend that changes: whether it serves, or is known
        services: set[str] = set()
        gone = [*gone, *_due(self._recycled, now - RECYCLED_SECONDS)]
        put = (self._put(key, one, services, now if are_news else None) for key, one in slices.items())
        for key, known, serves in chain(chain.from_iterable(put), *(self._remove(known, services) for known in gone)):
            # Most serve, and there are many: nothing follows from that if nothing was to happen to them.
            is_plain = serves and not (self._recycled or key in self._waiting or key in self._held)
            if not (is_plain and self._terminating == _NEVER) and key not in before:
                before[key] = self._state(key)
            yield key, known, serves
        for key, (served, was_known) in before.items():
            yield from self._judged(key, served or not (was_known or are_news), now)
        yield from self._settled(now, services)

    def _state(self, key: bytes) -> tuple[bool, bool]:
        """Whether a backend serves in some slice, and whether it is in any."""
        alive, dead = self._table.holders(key)
        serves = any(isinstance(one, _Known) for one in alive)
        return serves, serves or bool(dead)

    def _put(self, key: Key, one: EndpointSlice, services: set[str], now: float | None) -> Iterator[Change]:
        """`now`: when it was added or modified. None for one of a list: whoever is not in that waits for nothing."""
        known = self._known.get(key)
        if known is not None and known.slice == one:
            return
        before = {} if known is None else _instances(known.slice)
        if known is not None and now is not None and _is_recycled(known.slice, one):
            self._recycled[known] = now
            known = None
        is_new = known is None
        if known is None:
            known = self._known[key] = _Known(one)
        else:
            self._leave(known, services)
            known.slice = one
        self._services.setdefault(one.service, []).append(known)
        services.add(one.service)
        after = _instances(one)
        yield from ((key, known, state[0]) for key, state in after.items() if is_new or before.get(key) != state)
        yield from ((key, known, None) for key in before if key not in after)

    def _remove(self, known: _Known, services: set[str]) -> Iterator[Change]:
        self._leave(known, services)
        yield from ((key, known, None) for key in _instances(known.slice))

    def _leave(self, known: _Known, services: set[str]) -> None:
        service = known.slice.service
        self._services[service].remove(known)
        if not self._services[service]:
            del self._services[service]
        services.add(service)

    def _judged(self, key: bytes, may_have_served: bool, now: float) -> Iterator[Change]:
        """What follows from how a backend is now."""
        known = {one for one in chain(*self._table.holders(key)) if isinstance(one, _Known)}
        recycled = known & self._recycled.keys()
        if recycled != known:  # another slice has taken it in
            yield from ((key, one, None) for one in recycled)
        serves, is_known = self._state(key)
        if serves or not is_known:
            self._waiting.pop(key, None)
            self._held.pop(key, None)
            yield key, _WAITING, None
        elif may_have_served:
            self._waiting[key] = now
            yield key, _WAITING, True
        if not serves or self._terminating == _NEVER or not self._is_ending(key):
            self._ending.pop(key, None)
        else:
            self._ending.setdefault(key, now)

    def _is_ending(self, key: bytes) -> bool:
        """Whether a backend terminates wherever it serves."""
        _, address = unpacked_backend(key)
        alive, _ = self._table.holders(key)
        return all(address in known.slice.others for known in alive if isinstance(known, _Known))

    def _settled(self, now: float, services: set[str]) -> Iterator[Change]:
        """Who goes down now: whose time has come, and who was held and is not alone any more in one of the services."""
        for key in [key for key, service in self._held.items() if service in services]:
            del self._held[key]
            yield from self._down_or_held(key)
        for key in _due(self._waiting, now - self._not_serving):
            yield from self._down_or_held(key)
        for key in _due(self._ending, now - self._terminating):
            alive, _ = self._table.holders(key)
            yield from ((key, known, False) for known in alive if isinstance(known, _Known))
        self._said &= {*self._held.values()}
        self._status.held = len(self._held)

    def _down_or_held(self, key: bytes) -> Iterator[Change]:
        head, address = unpacked_backend(key)
        _, dead = self._table.holders(key)
        for known in dead:
            assert isinstance(known, _Known)
            names = [port.name for port in known.slice.ports if port[:2] == head]
            if not all(self._another_serves(known, address, name) for name in names):
                self._hold(key, known.slice.service)
                return
        yield key, _WAITING, None

    def _another_serves(self, known: _Known, address: bytes, port_name: str) -> bool:
        """And has not been taken down because it terminates."""
        return any(
            other in self._table.holders(packed_backend(port, one))[0]
            for other in self._services[known.slice.service]
            if other.slice.width == known.slice.width
            for port in other.slice.ports
            if port.name == port_name
            for one in other.slice.serving_addresses()
            if one != address
        )

    def _hold(self, key: bytes, service: str) -> None:
        self._held[key] = service
        if service not in self._said:
            self._said.add(service)
            self._warn(f"endpoints of {service} that do not serve are held, for no other one does: they stay alive")


def _instances(one: EndpointSlice) -> dict[bytes, tuple[bool, bool]]:
    """Each packed backend, whether it serves, and whether it is another one than those that simply serve."""
    return {
        packed_backend(port, address): (one.others.get(address, True), address in one.others)
        for port in one.ports
        for address in one.addresses()
    }


def _is_recycled(old: EndpointSlice, new: EndpointSlice) -> bool:
    """By its ports. One without endpoints is the empty one that a service keeps when its last endpoint is gone."""
    return old.port_map != new.port_map and bool(new.serving or new.others)


def _due(times: dict[Any, float], until: float) -> Iterator[Any]:
    """Take out those that began until then; the earliest come first."""
    while times:
        key = next(iter(times))
        if times[key] > until:
            return
        del times[key]
        yield key
