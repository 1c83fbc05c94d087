"""terminate_connections: all backends together, in every namespace, and nothing else dies."""

from __future__ import annotations

import os
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any
from unittest import mock

import pytest

from socklb import Backend, Counts, NetworkNamespace, NotPermitted, terminate_connections
from socklb.filters import compiler, peers
from socklb.kernel.diag import DiagSocket
from socklb.kernel.discovery import DiscoveredNamespaces, UnsearchedNamespace
from socklb.termination.terminate import terminate

from .. import world
from ..networks import Network, networks
from ..rtnetlink import add_alternative_name
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


def namespaces(nets: list[Network]) -> list[NetworkNamespace]:
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
        report = terminate_connections([TCP, UDP, TCP6, UDP6], namespaces=namespaces(nets))
        assert (errors(doomed), errors(others)) == ({ABORTED}, {""})
        assert (report.matched, report.counts) == (18, Counts(destroyed=18))

    @pytest.mark.parametrize("programs", [5, 2], ids=["in programs", "in Python"])
    def test_those_of_more_backends_than_a_program_holds(
        self, nets: list[Network], monkeypatch: pytest.MonkeyPatch, programs: int
    ) -> None:
        monkeypatch.setattr(peers, "_PROGRAM", 80)
        monkeypatch.setattr(compiler, "_MOST_PROGRAMS", programs)
        hosts = [f"127.0.0.{number}" for number in range(2, 7)]
        doomed = nets[0].make(lambda s: [s.tcp(host, PORT)[0] for host in hosts])
        report = terminate_connections([Backend(host, PORT, "tcp") for host in hosts], namespaces=nets[0].namespace)
        assert (errors(doomed), report.counts) == ({ABORTED}, Counts(destroyed=5))

    def test_another_port_or_protocol_is_another_backend_and_what_serves_it_lives(self, nets: list[Network]) -> None:
        """The server's side of a connection, its listener and its unconnected socket have another peer."""
        pair, datagram, bound = nets[0].make(
            lambda s: (s.tcp(GONE, PORT), s.udp(GONE, PORT), s.udp_bound(GONE, PORT + 1))
        )
        gone = [Backend(GONE, PORT + 1, "tcp"), Backend(GONE, PORT, "udp"), Backend(GONE, PORT + 1, "udp")]
        report = terminate_connections(gone, namespaces=nets[0].namespace)
        talk(*pair)
        assert (report.matched, pending_error(datagram), pending_error(bound)) == (1, ABORTED, "")

    def test_all_that_can_be_discovered_by_default(self, network: None) -> None:
        """But for loopback addresses, which are others elsewhere."""
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as inhabitant, Sockets() as left, Sockets() as here:
            far, local = left.udp("10.9.0.2", PORT), left.udp(GONE, PORT)
            world.new_network()
            near = [here.udp("10.9.0.2", PORT), here.udp(GONE, PORT)]
            report = terminate_connections([UDP, Backend("10.9.0.2", PORT, "udp")])
            assert (errors([far, *near]), pending_error(local), report.left_alone) == ({ABORTED}, "", (UDP,))
            names = {namespace.name for namespace in report.namespaces}
            assert {"current", f"pid {inhabitant.pid} (cat)"} <= names

    def test_who_may_not_be_looked_at_is_not_missed_where_others_may(self, nets: list[Network]) -> None:
        """Also where nothing is looked for, as on loopback elsewhere."""
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as unseen:
            world.new_network()
            found = DiscoveredNamespaces([NetworkNamespace.current(), NetworkNamespace.from_pid(unseen.pid)])
            found.refused = (UnsearchedNamespace(f"/proc/{unseen.pid}/ns/net", "Permission denied", 1),)
            for backend in (UDP, Backend("10.9.0.2", PORT, "udp")):
                assert terminate_connections([backend], namespaces=found).unsearched == []

    def test_nothing_is_searched_for_no_backend(self) -> None:
        report = terminate_connections([], namespaces=[NetworkNamespace("x", "/nonexistent", 1, 1)])
        assert (report.matched, report.namespaces, report.unsearched) == (0, {}, [])

    def test_a_backend_is_a_backend(self) -> None:
        with pytest.raises(TypeError, match=r"not '10\.0\.0\.5:80/TCP'"):
            terminate_connections("10.0.0.5:80/TCP")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"Backend\.parse"):
            terminate_connections(["10.0.0.1:80/TCP"])  # type: ignore[list-item]


class TestTheReport:
    """Tells a namespace from a namespace and a backend from a backend."""

    def test_sums_of_each(self, nets: list[Network]) -> None:
        nets[0].make(lambda s: [s.tcp(GONE, PORT) for _ in range(3)])
        nets[1].make(lambda s: (s.udp(GONE, PORT), s.tcp(f"::ffff:{GONE}", PORT)))
        report = terminate_connections([TCP, UDP, TCP6], namespaces=[*namespaces(nets), nets[0].namespace])
        assert {n.name: counts.destroyed for n, counts in report.namespaces.items()} == {
            "net0": 3,
            "net1": 2,
            "net2": 0,
        }
        assert {backend: counts.destroyed for backend, counts in report.backends.items()} == {TCP: 4, UDP: 1, TCP6: 0}
        assert (report.destroyed, report.errors, report.unrecorded) == (5, {}, [])

    def test_records_name_backend_and_namespace(self, nets: list[Network]) -> None:
        records: list[dict[str, Any]] = []
        made = [net.make(lambda s: (s.udp(GONE, PORT), s.udp(f"::ffff:{GONE}", PORT))) for net in nets]
        terminate_connections([UDP], namespaces=namespaces(nets), audit=records.append)
        assert {(record["namespace"], record["cookie"]) for record in records} == {
            (net.namespace.name, cookie_of(client)) for net, both in zip(nets, made) for client in both
        }
        assert {record["backend"] for record in records} == {str(UDP)}
        assert len({record["operation"] for record in records}) == 1


def test_one_walk_for_each_namespace_and_protocol_that_a_backend_has(nets: list[Network]) -> None:
    """However many backends there are; one that may have skipped a socket is repeated."""
    for net in nets:
        net.make(lambda s: (s.tcp(GONE, PORT), s.udp(GONE, PORT)))
    many = [Backend(f"127.0.1.{n}", PORT, protocol) for n in range(1, 33) for protocol in ("tcp", "udp")]
    for backends, protocols in (([*many, TCP], ("tcp", "udp")), ([TCP], ("tcp",))):
        with mock.patch.object(DiagSocket, "dump", autospec=True, side_effect=DiagSocket.dump) as dump:
            terminate_connections(backends, namespaces=namespaces(nets), dry_run=True)
        walks = Counter(call.args[3] for call in dump.call_args_list)
        assert {*walks} == {
            f"list {protocol} sockets in {net.namespace.name}" for net in nets for protocol in protocols
        }
        assert {*walks.values()} <= {1, 2}


class TestLinks:
    """A link-local address is another backend on each link."""

    @pytest.fixture
    def clients(self, sockets: Sockets) -> dict[tuple[str, str], socket.socket]:
        """By link and protocol: clients of fe80::5 on two links that both have it."""
        ip("link", "add", "left", "type", "veth", "peer", "name", "right")
        for link in ("left", "right"):
            ip("link", "set", link, "up")
            ip("addr", "add", "fe80::5/64", "dev", link, "nodad")
        sockets.listen("::", PORT)
        made = {}
        for link in ("left", "right"):
            for protocol, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)):
                made[link, protocol] = client = sockets.make(socket.AF_INET6, kind)
                client.connect(("fe80::5", PORT, 0, socket.if_nametoindex(link)))
        return made

    @pytest.mark.parametrize("form", ["left", "index"])
    def test_those_of_the_link_die_alone(self, clients: dict[tuple[str, str], socket.socket], form: str) -> None:
        link = "left" if form == "left" else str(socket.if_nametoindex("left"))
        gone = Backend.parse(f"[fe80::5%{link}]:{PORT}/TCP")
        report = terminate_connections([gone], namespaces="current")
        assert {which for which, client in clients.items() if pending_error(client)} == {("left", "tcp")}
        assert report.backends == {gone: report.counts}

    @pytest.mark.parametrize("links", [("left", "right"), ("the-link-on-the-left", "the-link-on-the-right")])
    def test_each_link_has_its_own_sums(
        self, clients: dict[tuple[str, str], socket.socket], links: tuple[str, str]
    ) -> None:
        """By whatever name."""
        for link in {*links} - {"left", "right"}:
            add_alternative_name(socket.if_nametoindex(link.rpartition("-")[2]), link)
        both = [Backend.parse(f"[fe80::5%{link}]:{PORT}/UDP") for link in links]
        records: list[dict[str, Any]] = []
        report = terminate_connections(both, namespaces="current", audit=records.append)
        assert {str(backend): counts.destroyed for backend, counts in report.backends.items()} == dict.fromkeys(
            map(str, both), 1
        )
        assert {(record["device"], record["backend"]) for record in records} == {
            ("left", str(both[0])),
            ("right", str(both[1])),
        }

    def test_where_there_is_no_such_link_the_others_are_searched_for(
        self, clients: dict[tuple[str, str], socket.socket]
    ) -> None:
        gone = [Backend.parse(f"[fe80::5%{link}]:{PORT}/TCP") for link in ("left", "nosuch")]
        assert terminate_connections(gone, namespaces="current").destroyed == 1
        with pytest.raises(ValueError, match="no interface 'nosuch'"):
            terminate_connections(gone[1:], namespaces="current")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class TestSpared:
    """A dry run changes nothing; spared is what came to its peer by itself, or whose backend is alive again."""

    def test_dry_run(self, nets: list[Network]) -> None:
        pairs = [net.make(lambda s: s.tcp(GONE, PORT)) for net in nets]
        report = terminate_connections([TCP], namespaces=namespaces(nets), dry_run=True)
        for pair in pairs:
            talk(*pair)
        assert (report.matched, report.would_destroy) == (3, 3)

    def test_what_the_balancer_has_no_record_of(self, nets: list[Network]) -> None:
        balanced, direct = nets[0].make(lambda s: (s.udp(f"::ffff:{GONE}", PORT), s.udp(GONE, PORT)))

        class Maps:
            def contains(self, cookie: int, address: object, port: int) -> bool:
                return (cookie, port) == (cookie_of(balanced), PORT) and address == ip_address(f"::ffff:{GONE}")

        report = terminate_connections([UDP], namespaces=namespaces(nets), rev_nat=Maps())  # type: ignore[arg-type]
        assert (pending_error(balanced), pending_error(direct)) == (ABORTED, "")
        assert report.backends == {UDP: Counts(destroyed=1, skipped=1)}
        assert [o.reason for o in report.outcomes if o.verdict == "skipped"] == ["no reverse-NAT entry"]

    def test_what_is_alive_again(self, nets: list[Network]) -> None:
        """Asked of each socket, before each batch."""
        back, down = nets[0].make(lambda s: (s.udp(f"::ffff:{ALIVE}", PORT), s.udp(GONE, PORT)))
        other = Backend(ALIVE, PORT, "udp")
        report = terminate([UDP, other], nets[0].namespace, is_alive=lambda backend: backend == other)
        assert (pending_error(back), pending_error(down)) == ("", ABORTED)
        assert report.backends == {UDP: Counts(destroyed=1), other: Counts(skipped=1)}
        assert {o.reason for o in report.outcomes} == {"", "its backend is alive again"}


class TestFailures:
    """A namespace that fails does not stop the others."""

    def test_what_cannot_be_entered_and_what_has_vanished(self, nets: list[Network]) -> None:
        doomed = [net.make(lambda s: s.udp(GONE, PORT)) for net in nets]
        status = os.stat("/proc/self/ns/mnt")
        mounts = NetworkNamespace("of mounts", "/proc/self/ns/mnt", status.st_dev, status.st_ino)
        ended = NetworkNamespace("ended", "/proc/0/ns/net", status.st_dev, 1)
        report = terminate_connections([UDP], namespaces=[mounts, ended, *namespaces(nets)])
        assert errors(doomed) == {ABORTED}
        assert {n.name: str(error) for n, error in report.errors.items()} == {
            "of mounts": "/proc/self/ns/mnt is not a network namespace"
        }
        assert report.unsearched == []
        assert (report.destroyed, len(report.namespaces)) == (3, 4)

    def test_not_permitted_if_every_namespace_answers_so(self, nets: list[Network]) -> None:
        def refused() -> tuple[int, int, int]:
            with pytest.raises(NotPermitted, match="CAP_SYS_ADMIN") as caught:
                terminate_connections([UDP], namespaces=namespaces(nets))
            report = caught.value.report
            assert report is not None
            return report.matched, len(report.errors), len(report.namespaces)

        assert without_privilege(refused) == (0, 3, 3)

    def test_not_permitted_in_some_is_their_failure(self, sockets: Sockets) -> None:
        """A dry run needs no privilege in the current one, wherever it is in the list and whoever owns the others: a
        thread that has gone into one of a child user namespace may not go back.
        """
        client, server = sockets.tcp(GONE, PORT)
        here = NetworkNamespace.current()

        def look(foreign: list[NetworkNamespace]) -> tuple[int, dict[str, str]]:
            with networks(6) as own, mock.patch("os.sched_getaffinity", return_value=[0, 1]):
                chosen = [*foreign, *namespaces(own), here, *namespaces(own)]
                report = terminate_connections([TCP], namespaces=chosen, dry_run=True)
            return report.would_destroy, {n.name: type(error).__name__ for n, error in report.errors.items()}

        with networks(1) as nets:
            assert without_privilege(lambda: look(namespaces(nets))) == (1, {"net0": "NotPermitted"})
        assert without_privilege(lambda: look([])) == (1, {})
        talk(client, server)
