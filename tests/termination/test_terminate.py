"""terminate_connections: all backends together, in every namespace, and nothing else dies."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any
from unittest import mock

import pytest

from socklb import (
    Backend,
    KernelError,
    NetworkNamespace,
    NotPermitted,
    NotSupported,
    TerminationReport,
    terminate_connections,
)
from socklb.kernel.diag import DiagSocket

from .. import world
from ..fake_kernel import FakeKernel, row, table
from ..networks import Network, networks
from ..sockets import Sockets, add_v6_address, cookie_of, pending_error, talk, without_privilege

pytestmark = pytest.mark.kernel

PORT = 9000
GONE, ALIVE = "127.0.0.2", "127.0.0.3"
GONE6, ALIVE6 = "fd00::2", "fd00::3"
TCP, UDP = Backend(GONE, PORT, "tcp"), Backend(GONE, PORT, "udp")
TCP6, UDP6 = Backend(GONE6, PORT, "tcp"), Backend(GONE6, PORT, "udp")
ABORTED = "ECONNABORTED"


@pytest.fixture
def nets(network: None) -> Iterator[list[Network]]:
    with networks(3) as made:
        yield made


def places(nets: list[Network]) -> list[NetworkNamespace]:
    return [net.namespace for net in nets]


def clients(made: Sockets, hosts: tuple[str, ...]) -> list[socket.socket]:
    """A TCP and a UDP client of each."""
    for host in hosts:
        if host.startswith("fd"):
            add_v6_address(host)
    return [client for host in hosts for client in (made.tcp(host, PORT)[0], made.udp(host, PORT))]


def errors(those: list[socket.socket]) -> set[str]:
    return {pending_error(each) for each in those}


class TestWhoIsCut:
    """TCP and UDP, v4, v6 and v4-mapped, wherever they live; nothing else."""

    def test_every_client_of_the_backends_and_no_other(self, nets: list[Network]) -> None:
        doomed = [c for net in nets for c in net.make(lambda s: clients(s, (GONE, f"::ffff:{GONE}", GONE6)))]
        others = [c for net in nets for c in net.make(lambda s: clients(s, (ALIVE, f"::ffff:{ALIVE}", ALIVE6)))]
        report = terminate_connections([TCP, UDP, TCP6, UDP6], namespaces=places(nets))
        assert errors(doomed) == {ABORTED}
        assert errors(others) == {""}
        assert report.sums() == {"matched": 18, "destroyed": 18, "gone": 0, "skipped": 0, "failed": 0}

    def test_another_port_or_protocol_is_another_backend(self, nets: list[Network]) -> None:
        (pair, datagram) = nets[0].make(lambda s: (s.tcp(GONE, PORT), s.udp(GONE, PORT)))
        report = terminate_connections(
            [Backend(GONE, PORT + 1, "tcp"), Backend(GONE, PORT, "udp")], namespaces=places(nets)
        )
        talk(*pair)
        assert (report.matched, pending_error(datagram)) == (1, ABORTED)

    def test_what_serves_the_backend_lives(self, nets: list[Network]) -> None:
        """The server's side of another connection, its listener and its unconnected socket have another peer."""
        net = nets[0]
        listener, bound = net.make(lambda s: (s.listen(GONE, PORT), s.udp_bound(GONE, PORT)))
        terminate_connections([TCP, UDP], namespaces=places(nets))
        assert errors([listener, bound]) == {""}

    def test_without_namespaces_all_that_can_be_discovered(self, network: None) -> None:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as inhabitant, Sockets() as left, Sockets() as here:
            far = left.udp(GONE, PORT)
            world.new_network()
            near = here.udp(GONE, PORT)
            report = terminate_connections([UDP])
            assert errors([far, near]) == {ABORTED}
            names = {namespace.name for namespace in report.namespaces}
            assert {"host", f"pid {inhabitant.pid} (cat)"} <= names

    def test_nothing_is_looked_at_for_no_backend(self) -> None:
        report = terminate_connections([], namespaces=[NetworkNamespace("x", "/nonexistent", 1, 1)])
        assert (report.matched, report.namespaces, report.skipped_namespaces) == (0, {}, [])


class TestTheReport:
    """Tells a namespace from a namespace and a backend from a backend."""

    def test_sums_of_each(self, nets: list[Network]) -> None:
        nets[0].make(lambda s: [s.tcp(GONE, PORT) for _ in range(3)])
        nets[1].make(lambda s: (s.udp(GONE, PORT), s.tcp(f"::ffff:{GONE}", PORT)))
        report = terminate_connections([TCP, UDP, TCP6], namespaces=[*places(nets), nets[0].namespace])
        assert isinstance(report, TerminationReport)
        assert {n.name: r.destroyed for n, r in report.namespaces.items()} == {"net0": 3, "net1": 2, "net2": 0}  # type: ignore[union-attr]
        assert {str(b): c.destroyed for b, c in report.backends.items()} == {str(TCP): 4, str(UDP): 1, str(TCP6): 0}
        assert {backend: counts.matched for backend, counts in report.backends.items()} == {TCP: 4, UDP: 1, TCP6: 0}
        assert (report.errors, report.unrecorded) == ({}, [])

    def test_records_name_backend_and_namespace_and_are_of_one_operation(self, nets: list[Network]) -> None:
        records: list[dict[str, Any]] = []
        made = [net.make(lambda s: (s.udp(GONE, PORT), s.udp(f"::ffff:{GONE}", PORT))) for net in nets]
        terminate_connections([UDP], namespaces=places(nets), audit=records.append)
        first = records[0]["operation"]
        assert {record["operation"] for record in records} == {first}
        assert {(record["namespace"], record["cookie"]) for record in records} == {
            (net.namespace.name, cookie_of(client)) for net, both in zip(nets, made) for client in both
        }
        assert {record["backend"] for record in records} == {str(UDP)}
        nets[0].make(lambda s: s.udp(GONE, PORT))
        terminate_connections([UDP], namespaces=places(nets), audit=records.append)
        assert records[-1]["operation"] != first

    def test_progress_counts_the_namespaces(self, nets: list[Network]) -> None:
        seen: list[tuple[int, int, NetworkNamespace]] = []
        terminate_connections([TCP], namespaces=places(nets), progress=lambda *told: seen.append(told))
        assert [told[:2] for told in seen] == [(1, 3), (2, 3), (3, 3)]
        assert {told[2] for told in seen} == {*places(nets)}


class TestOnePass:
    """One pass a namespace and protocol, however many backends there are."""

    def test_walks_are_counted(self, nets: list[Network]) -> None:
        for net in nets:
            net.make(lambda s: (s.tcp(GONE, PORT), s.udp(GONE, PORT)))
        hosts = [Backend(f"127.0.1.{n}", PORT, protocol) for n in range(1, 33) for protocol in ("tcp", "udp")]
        with mock.patch.object(DiagSocket, "dump", autospec=True, side_effect=DiagSocket.dump) as dump:
            terminate_connections([*hosts, TCP], namespaces=places(nets))
        assert sorted(call.args[3] for call in dump.call_args_list) == sorted(
            f"list {protocol} sockets in {net.namespace.name}" for net in nets for protocol in ("tcp", "udp")
        )

    def test_a_protocol_without_a_backend_is_not_looked_at(self, nets: list[Network]) -> None:
        nets[0].make(lambda s: (s.tcp(GONE, PORT), s.udp(GONE, PORT)))
        with mock.patch.object(DiagSocket, "dump", autospec=True, side_effect=DiagSocket.dump) as dump:
            terminate_connections([TCP], namespaces=places(nets))
        assert [call.args[3] for call in dump.call_args_list] == ["list tcp sockets in net0"]


class TestSpared:
    """A dry run changes nothing; with `rev_nat` only what the balancer sent there itself."""

    def test_dry_run(self, nets: list[Network]) -> None:
        pairs = [net.make(lambda s: s.tcp(GONE, PORT)) for net in nets]
        report = terminate_connections([TCP], namespaces=places(nets), dry_run=True)
        for pair in pairs:
            talk(*pair)
        assert report.sums() == {"matched": 3, "destroyed": 0, "gone": 0, "skipped": 3, "failed": 0}
        assert {outcome.reason for _, outcome in report.outcomes} == {"dry run"}

    def test_what_the_balancer_has_no_record_of(self, nets: list[Network]) -> None:
        balanced, direct = nets[0].make(lambda s: (s.udp(f"::ffff:{GONE}", PORT), s.udp(GONE, PORT)))

        class Maps:
            def contains(self, cookie: int, address: object, port: int) -> bool:
                return (cookie, port) == (cookie_of(balanced), PORT) and address == ip_address(f"::ffff:{GONE}")

        report = terminate_connections([UDP], namespaces=places(nets), rev_nat=Maps())  # type: ignore[arg-type]
        assert (pending_error(balanced), pending_error(direct)) == (ABORTED, "")
        assert report.backends[UDP].sums() == {"matched": 2, "destroyed": 1, "gone": 0, "skipped": 1, "failed": 0}
        assert [o.reason for _, o in report.outcomes if o.verdict == "skipped"] == ["no reverse-NAT entry"]


class TestFailures:
    """A namespace that fails does not stop the others; a kernel that cannot, and an audit that fails, do."""

    def test_one_that_cannot_be_entered(self, nets: list[Network]) -> None:
        clients = [net.make(lambda s: s.udp(GONE, PORT)) for net in nets]
        status = os.stat("/proc/self/ns/mnt")
        mounts = NetworkNamespace("of mounts", "/proc/self/ns/mnt", status.st_dev, status.st_ino)
        report = terminate_connections([UDP], namespaces=[mounts, *places(nets)])
        assert errors(clients) == {ABORTED}
        assert {n.name: str(error) for n, error in report.errors.items()} == {
            "of mounts": "/proc/self/ns/mnt is no network namespace"
        }
        assert (report.destroyed, report.skipped_namespaces) == (3, [])

    def test_one_that_vanished_is_skipped_with_the_reason(self, nets: list[Network]) -> None:
        client = nets[0].make(lambda s: s.udp(GONE, PORT))
        ended = NetworkNamespace("ended", "/proc/0/ns/net", *_unused_identity())
        report = terminate_connections([UDP], namespaces=[ended, *places(nets)])
        assert pending_error(client) == ABORTED
        assert report.skipped_namespaces == [("/proc/0/ns/net", "vanished")]
        assert (report.errors, len(report.namespaces)) == ({}, 3)

    def test_not_supported_ends_the_run(self, nets: list[Network]) -> None:
        kernel = FakeKernel(table([row(1, dst=GONE, dport=PORT)], lambda *_: errno.EOPNOTSUPP))
        with (
            kernel.installed(),
            pytest.raises(NotSupported) as caught,
            mock.patch("os.sched_getaffinity", return_value=[0]),
        ):
            terminate_connections([TCP], namespaces=places(nets))
        assert len(kernel.destroys) == 1
        assert caught.value.report.failed == 1
        assert [str(error) for error in caught.value.report.errors.values()][1:] == ["not begun"] * 2

    def test_not_permitted_if_every_namespace_answers_so(self, nets: list[Network]) -> None:
        for net in nets[:2]:
            net.make(lambda s: s.udp(GONE, PORT))

        def refused() -> tuple[int, int, int]:
            with pytest.raises(NotPermitted, match="CAP_SYS_ADMIN") as caught:
                terminate_connections([UDP], namespaces=places(nets))
            report = caught.value.report
            return report.matched, len(report.errors), len(report.namespaces)

        assert without_privilege(refused) == (0, 3, 3)

    def test_not_permitted_in_some_is_those_namespaces_failure(self, sockets: Sockets, nets: list[Network]) -> None:
        """A dry run needs no privilege where one is."""
        client, server = sockets.tcp(GONE, PORT)
        here = NetworkNamespace.current()

        def look() -> tuple[int, list[str]]:
            report = terminate_connections([TCP], namespaces=[here, nets[0].namespace], dry_run=True)
            return report.skipped, [n.name for n, e in report.errors.items() if isinstance(e, NotPermitted)]

        assert without_privilege(look) == (1, ["net0"])
        talk(client, server)

    def test_one_s_own_comes_first_wherever_it_was_put(self, sockets: Sockets) -> None:
        """A thread that has gone to a namespace of a child user namespace may not go back."""
        client, server = sockets.tcp(GONE, PORT)

        def look() -> tuple[dict[str, str], int]:
            here = NetworkNamespace.current()
            with networks(12) as made, mock.patch("os.sched_getaffinity", return_value=[0, 1]):
                report = terminate_connections([TCP], namespaces=[*places(made), here], dry_run=True)
            return {namespace.name: str(error) for namespace, error in report.errors.items()}, report.skipped

        assert without_privilege(look) == ({}, 1)
        talk(client, server)

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ValueError("x"), KeyboardInterrupt()], ids=repr)
    def test_an_audit_that_fails_stops_all_namespaces(self, nets: list[Network], error: BaseException) -> None:
        """At most one batch (64) is unrecorded, and the report names it."""
        doomed = [client for net in nets for client in net.make(lambda s: [s.udp(GONE, PORT) for _ in range(150)])]
        recorded: set[int] = set()

        def audit(record: dict[str, Any]) -> None:
            if len(recorded) == 100:
                raise error
            recorded.add(record["cookie"])

        with pytest.raises(type(error)) as caught:
            terminate_connections([UDP], namespaces=places(nets), audit=audit)
        dead = {cookie_of(client) for client in doomed if pending_error(client) == ABORTED}
        report = caught.value.report  # type: ignore[attr-defined]
        unrecorded = {outcome.socket.cookie for outcome in report.unrecorded}
        assert dead - recorded <= unrecorded
        assert 0 < len(unrecorded) <= 64
        assert report.destroyed == len(dead)

    def test_what_is_spared_is_not_entered_either_once_the_audit_has_failed(self, nets: list[Network]) -> None:
        for net in nets:
            net.make(lambda s: s.udp(GONE, PORT))

        def full(record: dict[str, Any]) -> None:
            raise OSError(errno.ENOSPC, "full")

        with pytest.raises(OSError, match="full") as caught, mock.patch("os.sched_getaffinity", return_value=[0, 1]):
            terminate_connections([UDP], namespaces=places(nets), dry_run=True, audit=full)
        report = caught.value.report  # type: ignore[attr-defined]
        assert len(report.unrecorded) == 1
        assert set(report.errors) == set(places(nets)), "none counts as searched to the end"

    def test_threads_and_descriptors_are_as_before(self, nets: list[Network]) -> None:
        nets[0].make(lambda s: s.udp(GONE, PORT))
        terminate_connections([UDP], namespaces=places(nets))  # whatever is cached
        threads = threading.active_count()
        for _ in range(3):
            terminate_connections([UDP, TCP], namespaces=places(nets))
        assert threading.active_count() == threads

    def test_wrong_arguments(self) -> None:
        with pytest.raises(TypeError, match=r"Backend\.parse"):
            terminate_connections(["10.0.0.1:80/TCP"])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="namespaces are NetworkNamespaces"):
            terminate_connections([TCP], namespaces=["host"])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="audit is a function"):
            terminate_connections([TCP], audit="file")  # type: ignore[arg-type]

    def test_discovery_needs_proc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(NetworkNamespace, "current", lambda: NetworkNamespace("host", "", 0, 0))
        with pytest.raises(KernelError, match="/proc is not mounted"):
            terminate_connections([TCP])


def _unused_identity() -> tuple[int, int]:
    here = NetworkNamespace.current()
    return here.device, 1
