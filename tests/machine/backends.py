"""The rules by which backends come and go in a table, and the connections to those that fell are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import rule

from socklb import (
    Backend,
    BackendTable,
    DestroyReport,
    NetworkNamespace,
    TerminationLoop,
    TerminationReport,
    terminate_connections,
)
from socklb.filters import dport, dst
from socklb.filters.conditions import Or
from socklb.termination.table import Instance

from .endpoints import Place
from .machine import PLACES, SocketMachine
from .model import Inhabitant, Options, Verdict, Wish, unmapped
from .tallies import tally
from .wishes import PORTS, TARGETS

_ALIVE_STATES = ("active", "terminating")


class Told(NamedTuple):
    """What somebody says of one service's instance of a backend, in plain words."""

    address: str
    port: int
    protocol: str
    service: str
    state: str
    unhealthy: bool

    @property
    def backend(self) -> Backend:
        return Backend(self.address, self.port, self.protocol)

    @property
    def is_alive(self) -> bool:
        return self.state in _ALIVE_STATES and not self.unhealthy


_told = st.builds(
    Told,
    st.sampled_from(TARGETS),
    st.sampled_from(PORTS),
    st.sampled_from(("tcp", "udp")),
    st.sampled_from(("", "web")),
    st.sampled_from((*_ALIVE_STATES, "active", "quarantined", "maintenance")),
    st.sampled_from((False, False, False, True)),
)
_some_places = st.lists(st.integers(0, PLACES - 1), min_size=1, max_size=PLACES, unique=True) | st.just([0, 1, 2])
_dry_run = st.sampled_from((False, False, False, True))


class PlainTable:
    """A backend is alive while any service's instance of it is; it falls on the step from alive to not alive."""

    def __init__(self) -> None:
        self.services: dict[Backend, dict[str, bool]] = {}
        self.fallen: list[Backend] = []

    def is_alive(self, backend: Backend) -> bool:
        return True in self.services.get(backend, {}).values()

    def let_be(self, backend: Backend, services: dict[str, bool]) -> None:
        was_alive = self.is_alive(backend)
        self.services[backend] = services
        if self.is_alive(backend) and backend in self.fallen:
            self.fallen.remove(backend)
        if was_alive and not self.is_alive(backend):
            self.fallen.append(backend)


class BackendMachine(SocketMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.plain = BackendTable(), PlainTable()

    @rule(told=_told)
    def upsert(self, told: Told) -> None:
        self.table.upsert(told.backend, told.service, told.state, told.unhealthy)
        known = self.plain.services.get(told.backend, {})
        self.plain.let_be(told.backend, {**known, told.service: told.is_alive})
        self._check_table()

    @rule(told=_told, all_services=st.booleans())
    def delete(self, told: Told, all_services: bool) -> None:
        self.table.delete(told.backend, None if all_services else told.service)
        known = self.plain.services.get(told.backend, {})
        rest = {} if all_services else {name: alive for name, alive in known.items() if name != told.service}
        self.plain.let_be(told.backend, rest)
        self._check_table()

    @rule(all_told=st.lists(_told, max_size=4))
    def replace(self, all_told: list[Told]) -> None:
        self.table.replace(Instance(told.backend, told.service, told.state, told.unhealthy) for told in all_told)
        wanted: dict[Backend, dict[str, bool]] = {told.backend: {} for told in all_told}
        for told in all_told:
            wanted[told.backend][told.service] = told.is_alive
        for backend in {*self.plain.services, *wanted}:
            self.plain.let_be(backend, wanted.get(backend, {}))
        self._check_table()

    @rule(where=_some_places, which=st.integers(0, 59))
    def lose_a_backend(self, where: list[int], which: int) -> None:
        """One that somebody is connected to was alive, and is no more; the loop is told of that and of all before."""
        self._lose(which)
        reports: list[TerminationReport] = []
        loop = TerminationLoop(
            self.table,
            namespaces=self._namespaces(where),
            second_look=None,
            on_pass=lambda done: reports.append(done.report) if done.report else None,
        )
        loop.stop()  # after the batch at hand, which does not wait for more
        loop.run()
        fallen, self.plain.fallen = self.plain.fallen, []
        assert len(reports) == bool(fallen)
        for report in reports:
            self._check_termination(report, fallen, where, Options())

    @rule(where=_some_places, which=st.integers(0, 59), dry_run=_dry_run)
    def terminate(self, where: list[int], which: int, dry_run: bool) -> None:
        """A dry run changes nothing, so that the same are still to be cut."""
        self._lose(which)
        fallen = self.table.take_fallen()
        assert sorted(map(str, fallen)) == sorted(map(str, self.plain.fallen))
        self.plain.fallen = []
        for options in (Options(dry_run=True), Options()) if dry_run else (Options(),):
            report = terminate_connections(fallen, namespaces=self._namespaces(where), dry_run=options.dry_run)
            self._check_termination(report, fallen, where, options)

    # ------------------------------------------------------------------------------------------------ parts

    def _lose(self, which: int) -> None:
        one = self._pick(which, [one for one in self.world.model.inhabitants if one.peer_port])
        if one is not None:
            backend = _backend_of(one)
            for alive in (True, False):
                state = "active" if alive else "quarantined"
                self.table.replace([Instance(backend, "", state)])
                for known in {*self.plain.services, backend}:
                    self.plain.let_be(known, {"": alive} if known == backend else {})

    def _check_table(self) -> None:
        for backend in self.plain.services:
            assert self.table.is_alive(backend) == self.plain.is_alive(backend)
        assert self.table.has_fallen() == bool(self.plain.fallen)

    def _namespaces(self, where: list[int]) -> list[NetworkNamespace]:
        return [self.places[number].namespace or NetworkNamespace.current() for number in where]

    def _check_termination(
        self, report: TerminationReport, backends: Sequence[Backend], where: list[int], options: Options
    ) -> None:
        """Who was connected to one of the backends died, in these places; the sums are those of the verdicts."""
        assert not report.skipped_namespaces
        assert not report.unrecorded
        if not backends:
            assert not report.namespaces
        said: dict[Inhabitant, Verdict] = {}
        for number, namespace in zip(where if backends else (), self._namespaces(where)):
            found = report.namespaces[namespace]
            assert isinstance(found, DestroyReport), found
            said.update(self._check_place(self.places[number], found, backends, options))
        self._check_sums(report, said.values())
        assert len(report.outcomes) == len(said)
        assert set(report.backends) == set(backends)
        for backend, counts in report.backends.items():
            self._check_sums(counts, [verdict for one, verdict in said.items() if _backend_of(one) == backend])
        self._bury(said)
        tally["terminations"] += 1
        tally["cut"] += report.destroyed

    def _check_place(
        self, place: Place, report: DestroyReport, backends: Sequence[Backend], options: Options
    ) -> dict[Inhabitant, Verdict]:
        said = self._said(place, report)
        for protocol in ("tcp", "udp"):
            to = [dst(backend.address) & dport(backend.port) for backend in backends if backend.protocol == protocol]
            wish = Wish(protocol, Or(*to))
            of_protocol = {one: verdict for one, verdict in said.items() if one.protocol == protocol}
            self.world.model.check_report(wish, options, self.world.model.meant(wish, place.number), of_protocol)
        return said


def _backend_of(one: Inhabitant) -> Backend:
    return Backend(unmapped(one.peer), one.peer_port, one.protocol)
