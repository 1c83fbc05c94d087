"""The rules by which backends come and go in a table, and the connections to those that go down are destroyed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import rule

from socklb import (
    Backend,
    BackendTable,
    NetworkNamespace,
    Outcome,
    Report,
    TerminationLoop,
    terminate_connections,
)
from socklb.filters import Condition, device, dst
from socklb.filters.conditions import Or
from socklb.termination.table import Instance

from .counters import counters
from .endpoints import LINK_LOCAL, LINKS
from .filters import PORTS, TARGETS
from .flows import backend_of, expected_cut
from .machine import NAMESPACES
from .model import ModelFilter, ModelFlow, ModelSocket, Options, Verdict, matches, unmapped
from .owners import OwnerMachine
from .population import SERVICE_PORT, SocketOptions

_UP_STATES = ("active", "terminating")


_SERVICES = {
    "127.0.9.1": (("127.0.0.2", 9000), ("127.0.0.3", 9001)),
    "::ffff:127.0.9.1": (("127.0.0.2", 9000), ("127.0.0.3", 9001)),
    "10.9.9.1": (("10.9.0.2", 9000), ("10.9.0.3", 9001), ("10.9.9.1", SERVICE_PORT)),
    "fd00::1": (("::1", 9000), ("fd00::1", 9001), ("fd00::1", SERVICE_PORT)),
}
"""With the backends that each may have, or none: it is there itself."""
_WITH_NAT = (1, 2)  # namespaces


class ModelInstance(NamedTuple):
    """One service's instance of a backend, in plain words."""

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
    def is_up(self) -> bool:
        return self.state in _UP_STATES and not self.unhealthy


_instances = st.builds(
    ModelInstance,
    st.sampled_from(TARGETS),
    st.sampled_from(PORTS),
    st.sampled_from(("tcp", "udp")),
    st.sampled_from(("", "web")),
    st.sampled_from((*_UP_STATES, "active", "quarantined", "maintenance")),
    st.sampled_from((False, False, False, True)),
)
_numbers = st.lists(st.integers(0, NAMESPACES - 1), min_size=1, max_size=NAMESPACES, unique=True) | st.just([0, 1, 2])
_protocols, _links = st.sampled_from(("tcp", "udp")), st.sampled_from(LINKS)
_targets, _ports = st.sampled_from(TARGETS), st.sampled_from(PORTS)
_services, _backends = st.sampled_from(tuple(_SERVICES)), st.lists(st.integers(0, 2), min_size=2, max_size=2)
_places = st.sampled_from(([1], [2], _WITH_NAT))
_dry_run = st.sampled_from((False, False, False, True))


class ModelTable:
    """A backend is up while any service's instance of it is; it goes down on the step from up to not up."""

    def __init__(self) -> None:
        self.services: dict[Backend, dict[str, bool]] = {}
        self.down: list[Backend] = []

    def is_up(self, backend: Backend) -> bool:
        return True in self.services.get(backend, {}).values()

    def put(self, backend: Backend, services: dict[str, bool]) -> None:
        was_up = self.is_up(backend)
        self.services[backend] = services
        if self.is_up(backend) and backend in self.down:
            self.down.remove(backend)
        if was_up and not self.is_up(backend):
            self.down.append(backend)


class BackendMachine(OwnerMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.model_table = BackendTable(), ModelTable()

    @rule(instance=_instances)
    def upsert(self, instance: ModelInstance) -> None:
        self.table.upsert(instance.backend, instance.service, instance.state, instance.unhealthy)
        known = self.model_table.services.get(instance.backend, {})
        self.model_table.put(instance.backend, {**known, instance.service: instance.is_up})
        self._check_table()

    @rule(instance=_instances, all_services=st.booleans())
    def delete(self, instance: ModelInstance, all_services: bool) -> None:
        self.table.delete(instance.backend, None if all_services else instance.service)
        known = self.model_table.services.get(instance.backend, {})
        rest = {} if all_services else {name: is_up for name, is_up in known.items() if name != instance.service}
        self.model_table.put(instance.backend, rest)
        self._check_table()

    @rule(instances=st.lists(_instances, max_size=4))
    def replace(self, instances: list[ModelInstance]) -> None:
        self.table.replace(Instance(one.backend, one.service, one.state, one.unhealthy) for one in instances)
        wanted: dict[Backend, dict[str, bool]] = {one.backend: {} for one in instances}
        for one in instances:
            services = wanted[one.backend]
            services[one.service] = services.get(one.service, False) or one.is_up
        for backend in {*self.model_table.services, *wanted}:
            self.model_table.put(backend, wanted.get(backend, {}))
        self._check_table()

    def begin(self) -> None:
        """Not in each: whoever looks for clients of services walks the table of conntrack, which is the machine's."""
        number = counters["worlds"]
        self.has_services = number % 3 == 0
        if self.has_services:
            service = tuple(_SERVICES)[number // 3 % len(_SERVICES)]
            self.terminate_equal_clients(service, [*_WITH_NAT], closes=number % 2 == 0, everywhere=False)
            for protocol in ("tcp", "udp"):
                self._connect_to_service(service, protocol, dict.fromkeys(_WITH_NAT, 0))

    @rule(several=st.lists(st.tuples(_services, _protocols, _places, _backends), min_size=1, max_size=3))
    def connect_to_services(self, several: list[tuple[str, str, list[int], list[int]]]) -> None:
        for service, protocol, numbers, backends in several if self.has_services else ():
            self._connect_to_service(service, protocol, dict(zip(numbers, backends)))

    @rule(service=_services, numbers=st.permutations(_WITH_NAT), closes=_dry_run, everywhere=st.booleans())
    def terminate_equal_clients(self, service: str, numbers: list[int], closes: bool, everywhere: bool) -> None:
        """Pairs of them: the second one's backend is the same, or another one that lives, or there is none. And a UDP
        client. Of each pair the first may have gone.
        """
        if not self.has_services:
            return
        self._connect_to_service(service, "udp", {numbers[0]: 0})
        for other in range(3):
            clients = self._connect_to_service(service, "tcp", {numbers[0]: 0, numbers[1]: other})
            if closes and clients:
                self.world.close(clients[0])
        self.world.check()
        backends = [Backend(*_SERVICES[service][0], protocol) for protocol in ("tcp", "udp")]
        report = terminate_connections(backends, namespaces="all" if everywhere else self._namespaces(numbers))
        searched = list(range(NAMESPACES)) if everywhere else numbers
        self._check_termination(report, backends, searched, Options(), locals_here=everywhere)

    @rule(numbers=_numbers, which=st.integers(0, 59))
    def run_loop(self, numbers: list[int], which: int) -> None:
        """A backend with a client goes down, and the loop takes that one and all that went down before."""
        self._take_down(which)
        reports: list[Report] = []
        loop = TerminationLoop(
            self.table,
            namespaces=self._namespaces(numbers),
            second_pass=None,
            on_pass=lambda done: reports.append(done.report) if done.report else None,
        )
        loop.stop()  # after the batch at hand, which does not wait for more
        loop.run()
        down, self.model_table.down = self.model_table.down, []
        assert len(reports) == bool(down)
        for report in reports:
            self._check_termination(report, down, numbers, Options())

    @rule(numbers=_numbers, which=st.integers(0, 59), dry_run=_dry_run)
    def terminate(self, numbers: list[int], which: int, dry_run: bool) -> None:
        """A dry run changes nothing, so the same are still to be destroyed."""
        self._take_down(which)
        down = self.table.drain_down()
        assert sorted(map(str, down)) == sorted(map(str, self.model_table.down))
        self.model_table.down = []
        for options in (Options(dry_run=True), Options()) if dry_run else (Options(),):
            report = terminate_connections(down, namespaces=self._namespaces(numbers), dry_run=options.dry_run)
            self._check_termination(report, down, numbers, options)

    @rule(which=st.integers(0, 59))
    def terminate_everywhere(self, which: int) -> None:
        """Of all namespaces, loopback and link-local backends are those of the current one."""
        self._take_down(which)
        down = self.table.drain_down()
        self.model_table.down = []
        everywhere = list(range(NAMESPACES))
        self._check_termination(terminate_connections(down), down, everywhere, Options(), locals_here=True)

    @rule(protocol=_protocols, address=_targets, port=_ports)
    def terminate_in_several(self, protocol: str, address: str, port: int) -> None:
        """Each namespace has clients of one address. Where that is loopback, in others than the current one they
        die only when the namespaces are named.
        """
        backend = Backend(address, port, protocol)
        for netns in self.namespaces:
            self.world.connect(netns, protocol, address, port, SocketOptions())
        everywhere = list(range(NAMESPACES))
        report = terminate_connections([backend])
        self._check_termination(report, [backend], everywhere, Options(), locals_here=True)
        counters["alive on loopback elsewhere"] += len(self._clients_of(backend))
        report = terminate_connections([backend], namespaces=self._namespaces(everywhere))
        self._check_termination(report, [backend], everywhere, Options())
        if backend.is_local:
            counters["terminated on loopback elsewhere"] += report.destroyed

    @rule(protocol=_protocols, port=_ports, link=_links, by_index=st.booleans(), numbers=_numbers)
    def terminate_on_link(self, protocol: str, port: int, link: str, by_index: bool, numbers: list[int]) -> None:
        """Both links of each namespace have clients of one address. A name is one link in each, an index is not."""
        for number in numbers:
            self.world.connect_on_links(self.namespaces[number], protocol, LINK_LOCAL, port)
        zone = self.namespaces[-1].interfaces[link] if by_index else link
        backend = Backend(f"{LINK_LOCAL}%{zone}", port, protocol)
        report = terminate_connections([backend], namespaces=self._namespaces(numbers))
        self._check_termination(report, [backend], numbers, Options())
        counters["terminated on a link"] += report.destroyed
        to = ModelFilter(protocol, dst(LINK_LOCAL, port))
        counters["spared on the other link"] += sum(len(self.world.model.matching(to, number)) for number in numbers)

    # ------------------------------------------------------------------------------------------------ parts

    def _connect_to_service(self, service: str, protocol: str, which: dict[int, int]) -> list[ModelSocket]:
        """From the same address and port in several namespaces: the clients, of those that could."""
        own, backends = self.world._port(), _SERVICES[service]
        for number, one in which.items():
            self.world.balance(self.namespaces[number], protocol, service, backends[one % len(backends)], own)
        return [one for one in self.world.real if one.local_port == own and one.peer_port == SERVICE_PORT]

    def _take_down(self, which: int) -> None:
        model = self.world.model
        candidates = [_backend_of(one) for one in model.sockets if one.peer_port] + list(
            map(backend_of, model.open_flows())
        )
        if candidates:
            backend = candidates[which % len(candidates)]
            for is_up in (True, False):
                self.table.replace([Instance(backend, "", "active" if is_up else "quarantined")])
                for known in {*self.model_table.services, backend}:
                    self.model_table.put(known, {"": is_up} if known == backend else {})

    def _clients_of(self, backend: Backend) -> list[ModelSocket]:
        return [one for one in self.world.model.sockets if _is_client(one, backend)]

    def _check_table(self) -> None:
        for backend in self.model_table.services:
            assert self.table.is_alive(backend) == self.model_table.is_up(backend)
        assert self.table.has_down() == bool(self.model_table.down)

    def _namespaces(self, numbers: list[int]) -> list[NetworkNamespace]:
        return [self.namespaces[number].namespace or NetworkNamespace.current() for number in numbers]

    def _check_termination(
        self,
        report: Report,
        backends: Sequence[Backend],
        numbers: list[int],
        options: Options,
        *,
        locals_here: bool = False,
    ) -> None:
        """What was connected to the backends in these namespaces is destroyed; the sums are those of the verdicts.

        With `locals_here` the local backends are those of the current namespace alone.
        """
        local = [backend for backend in backends if locals_here and backend.is_local]
        assert sorted(map(str, report.left_alone)) == sorted(map(str, local))
        counters["left alone"] += len(local)
        assert not report.unsearched
        assert not report.errors
        assert not report.unrecorded
        verdicts: dict[ModelSocket, Verdict] = {}
        gone: dict[int, list[Backend]] = {}
        for number, namespace in zip(numbers, self._namespaces(numbers)):
            is_here = self.namespaces[number].namespace is None
            gone[number] = [one for one in backends if is_here or not (locals_here and one.is_local)]
            outcomes = [one for one in report.outcomes if one.namespace == namespace and one.flow is None]
            verdicts.update(self._check_netns(number, outcomes, gone[number], options))
        tally = [
            (one.netns, verdict, [to for to in backends if _is_client(one, to)]) for one, verdict in verdicts.items()
        ]
        self._expect_destroyed(verdicts)
        tally += self._check_balanced(report, gone, options, verdicts if options.dry_run else ())
        searched = [number for number in gone if gone[number] or any(number == there for there, _, _ in tally)]
        assert {*report.namespaces} == {*self._namespaces(searched)}
        for number, namespace in zip(searched, self._namespaces(searched)):
            self._check_sums(report.namespaces[namespace], [verdict for there, verdict, _ in tally if there == number])
        self._check_sums(report.counts, [verdict for _, verdict, _ in tally])
        assert set(report.backends) == set(backends)
        for backend, counts in report.backends.items():
            self._check_sums(counts, [verdict for _, verdict, to in tally if backend in to])
        counters["terminations"] += 1
        counters["destroyed by terminations"] += report.destroyed

    def _check_balanced(
        self, report: Report, gone: dict[int, list[Backend]], options: Options, told: Collection[ModelSocket]
    ) -> list[tuple[int, Verdict, list[Backend]]]:
        """What conntrack had led to, but for those of whom is `told`: where it was found, the verdict, its backend."""
        tally, seen = [], {}
        numbers = dict(zip(self._namespaces(list(gone)), gone))
        for outcome in report.outcomes:
            if outcome.flow is not None:
                number = numbers[outcome.namespace]
                flow, verdict = _model_of(outcome, number), Verdict(outcome.verdict, outcome.reason)
                seen[flow if outcome.socket is None else self._identify(self.namespaces[number], outcome.socket)] = (
                    verdict
                )
                tally.append((number, verdict, [outcome.flow.backend]))
                counters[f"balanced: {verdict.reason or verdict.verdict}"] += 1
        cut = expected_cut(self.world.model, gone, options)
        assert seen == {who: verdict for who, verdict in cut.verdicts.items() if who not in told}, (seen, cut)
        assert len(seen) == len(tally)
        for flow in cut.deleted:
            assert flow not in self.namespaces[flow.netns].flows(closing=True)
            self.world.model.flows.remove(flow)
        self._expect_destroyed({one: verdict for one, verdict in seen.items() if isinstance(one, ModelSocket)})
        return tally

    def _check_netns(
        self, number: int, outcomes: Sequence[Outcome], backends: Sequence[Backend], options: Options
    ) -> dict[ModelSocket, Verdict]:
        verdicts = self._verdicts(self.namespaces[number], outcomes)
        for protocol in ("tcp", "udp"):
            to = [_condition(backend) for backend in backends if backend.protocol == protocol]
            filter = ModelFilter(protocol, Or(*to))
            of_protocol = {one: verdict for one, verdict in verdicts.items() if one.protocol == protocol}
            matching = self.world.model.matching(filter, number)
            self.world.model.check_report(filter, options, matching, of_protocol)
        return verdicts


def _backend_of(one: ModelSocket) -> Backend:
    link = f"%{one.device_name}" if one.peer.is_link_local and one.peer.version == 6 else ""
    return Backend(f"{unmapped(one.peer)}{link}", one.peer_port, one.protocol)


def _model_of(outcome: Outcome, netns: int) -> ModelFlow:
    flow = outcome.flow
    assert flow is not None
    original = flow.src, flow.sport, flow.dst, flow.dport
    return ModelFlow(netns, flow.backend.protocol, original, (flow.backend.address, flow.backend.port))


def _is_client(one: ModelSocket, backend: Backend) -> bool:
    return one.protocol == backend.protocol and matches(_condition(backend), one) is True


def _condition(backend: Backend) -> Condition:
    address = str(backend.address).partition("%")[0]
    to = dst(address, backend.port)
    link = int(backend.link) if backend.link.isdigit() else backend.link
    return to & device(link) if link else to
