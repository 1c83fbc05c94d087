"""What clients see whose backend is gone, and that conntrack had balanced there: on real NAT, in a world of pods."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from socklb import (
    Backend,
    NetworkNamespace,
    NotPermitted,
    NotSupported,
    Report,
    SocketFilter,
    discover_namespaces,
    find_flows,
    find_sockets,
    terminate_connections,
)
from socklb.cli.demo.dnat import set_services
from socklb.conntrack.table import ConntrackTable
from socklb.termination import terminate as terminating
from socklb.termination.balanced import Balanced
from socklb.termination.reasons import (
    ALIVE_AGAIN,
    ANSWERED_HERE,
    BY_IPVS,
    ELSEWHERE,
    NO_SOCKET,
    NOT_LOOSE,
    OTHER_ZONE,
    SEVERAL,
    STILL_BALANCED,
)
from socklb.termination.terminate import conntrack_join, terminate

from .. import rtnetlink
from ..nat import (
    BACKEND_PORT,
    GATEWAY,
    NODE,
    NODE_PORT,
    PORT,
    PUBLISHED_PORT,
    TENANT,
    VIP4,
    VIP6,
    Node,
    Pod,
    add_ipvs_entry,
    ask,
)
from ..networks import Network, networks
from ..sockets import pending_error

pytestmark = pytest.mark.kernel

TCP_LOOSE = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_loose")
Client = Callable[[Node, str], socket.socket]


def backends_of(pod: Pod) -> list[Backend]:
    addresses = [address for address in (pod.v4, pod.v6) if address]
    return [Backend(address, BACKEND_PORT, protocol) for address in addresses for protocol in ("tcp", "udp")]


def places(node: Node) -> list[NetworkNamespace]:
    """All but `outside`, which stands for another machine."""
    return [one for one in discover_namespaces() if one != node.outside.namespace]


def cut(node: Node, pod: Pod, *, looks: tuple[float, ...] = (), **options: Any) -> Report:
    """Cut the clients of a pod that are on this machine; looking once unless there are `looks`."""
    join = conntrack_join("auto", **options)
    dry_run = options.get("dry_run", False)
    is_alive = options.get("is_alive", lambda backend: False)
    return terminate(backends_of(pod), places(node), join=join, looks=looks, dry_run=dry_run, is_alive=is_alive)


def verdicts(report: Report) -> list[tuple[str, str]]:
    return [(outcome.verdict, outcome.reason) for outcome in report.outcomes]


def flows_to(pod: Pod) -> list[Any]:
    return list(find_flows(backends_of(pod)))


def client_of_a(node: Node, protocol: str, make: Client) -> socket.socket:
    """One that A has answered, which is dead now; services have B alone."""
    node.a.revive()
    node.balance(node.a)
    client = make(node, protocol)
    assert ask(client) == "A"
    node.a.die()
    node.balance(node.b)
    return client


def from_pod(node: Node, protocol: str) -> socket.socket:
    return node.client.connect(protocol, VIP4)


CLIENTS: dict[str, Client] = {
    "a pod": from_pod,
    "a pod, v6": lambda node, protocol: node.client.connect(protocol, VIP6),
    "a pod, a mapped address": lambda node, protocol: node.client.connect(protocol, f"::ffff:{VIP4}"),
    "the node, masqueraded": lambda node, protocol: node.host.connect(protocol, VIP4),
    "the node, v6": lambda node, protocol: node.host.connect(protocol, VIP6),
    "a pod, by a node port": lambda node, protocol: node.client.connect(protocol, NODE, NODE_PORT),
    "the node, by a node port": lambda node, protocol: node.host.connect(protocol, NODE, NODE_PORT),
    "the node, by a node port on loopback": lambda node, protocol: node.host.connect(protocol, "127.0.0.1", NODE_PORT),
    "a pod, by a published port": lambda node, protocol: node.client.connect(protocol, GATEWAY, PUBLISHED_PORT),
    "a pod behind one that masquerades": lambda node, protocol: node.nested().connect(protocol, VIP4),
}


class TestClients:
    """Of TCP the socket is destroyed and the entry deleted, of UDP the entry alone; whoever is with B stays there."""

    @pytest.mark.parametrize("make", CLIENTS.values(), ids=CLIENTS)
    @pytest.mark.parametrize(
        ("protocol", "verdict", "sees"), [("tcp", "destroyed", "ECONNABORTED"), ("udp", "rerouted", "B")]
    )
    def test_each_is_cut_and_nobody_else(
        self, node: Node, make: Client, protocol: str, verdict: str, sees: str
    ) -> None:
        node.balance(node.b)
        other = from_pod(node, protocol)
        assert ask(other) == "B"
        client = client_of_a(node, protocol, make)
        (outcome,) = cut(node, node.a).outcomes
        assert (outcome.verdict, outcome.reason) == (verdict, "")
        assert outcome.flow is not None
        assert outcome.flow.backend in backends_of(node.a)
        assert (ask(client), ask(other)) == (sees, "B")
        assert flows_to(node.a) == []

    def test_an_endpoint_that_calls_its_own_service(self, node: Node) -> None:
        node.balance(node.a)
        client = node.a.connect("tcp", VIP4)
        assert ask(client) == "A"
        assert verdicts(cut(node, node.a)) == [("destroyed", "")]
        assert ask(client) == "ECONNABORTED"

    def test_of_udp_without_a_peer(self, node: Node) -> None:
        node.balance(node.a)
        client = node.client.unconnected("udp", socket.AF_INET)
        assert ask(client, (VIP4, PORT)) == "A"
        node.balance(node.b)
        assert verdicts(cut(node, node.a)) == [("rerouted", "")]
        assert ask(client, (VIP4, PORT)) == "B"

    def test_one_that_is_still_connecting_may_use_its_port_again_at_once(self, node: Node) -> None:
        """No reset is sent in SYN_SENT: the entry would lead the port to the dead backend for two minutes."""
        node.balance(node.a)
        node.a.die()
        client = node.client.unconnected("tcp", socket.AF_INET)
        client.setblocking(False)
        assert client.connect_ex((VIP4, PORT)) != 0
        node.balance(node.b)
        assert verdicts(cut(node, node.a)) == [("destroyed", "")]
        source = (node.client.v4, client.getsockname()[1])
        client.close()
        assert ask(node.client.connect("tcp", VIP4, source=source)) == "B"

    def test_a_backend_that_lives_has_no_dead_connection_left(self, node: Node) -> None:
        """The reset has to pass the entry before that is deleted."""
        node.balance(node.a)
        client = from_pod(node, "tcp")
        assert ask(client) == "A"
        assert verdicts(cut(node, node.a)) == [("destroyed", "")]
        at_a = SocketFilter("tcp", states="established")
        assert list(find_sockets(at_a, namespace=node.a.namespace)) == []

    def test_a_dry_run_says_so_and_changes_nothing(self, node: Node) -> None:
        clients = [client_of_a(node, protocol, from_pod) for protocol in ("tcp", "udp")]
        report = cut(node, node.a, dry_run=True)
        assert verdicts(report) == [("would_destroy", ""), ("would_destroy", "")]
        node.a.revive()
        assert [ask(client) for client in clients] == ["A", "A"]

    def test_in_a_dry_run_too_one_counts_once_whose_service_is_gone_itself(self, node: Node) -> None:
        node.balance(node.a)
        client = from_pod(node, "tcp")
        gone = [Backend(VIP4, PORT, "tcp"), *backends_of(node.a)]
        report = terminate_connections(gone, namespaces=places(node), dry_run=True)
        assert (verdicts(report), ask(client)) == ([("would_destroy", "")], "A")

    def test_one_whose_backend_is_alive_again_is_spared(self, node: Node) -> None:
        clients = [client_of_a(node, protocol, from_pod) for protocol in ("tcp", "udp")]
        report = cut(node, node.a, is_alive=lambda backend: True)
        assert verdicts(report) == [("skipped", ALIVE_AGAIN)] * 2
        node.a.revive()
        assert [ask(client) for client in clients] == ["A", "A"]


class TestBalancedByIPVS:
    """Its entries say so by their tuples, not by a bit. It has a table of its own, which would lead UDP there again: so
    the socket goes.
    """

    def client(self, node: Node, protocol: str, *, has_peer: bool = True) -> socket.socket:
        """One of a pod, whose entry is made as IPVS leaves it (ip_vs_update_conntrack())."""
        node.balance(node.a)
        client = from_pod(node, protocol) if has_peer else node.client.unconnected(protocol, socket.AF_INET)
        assert ask(client, None if has_peer else (VIP4, PORT)) == "A"
        if protocol == "tcp":  # no acknowledgement is to come later
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        (flow,) = flows_to(node.a)
        with ConntrackTable() as table:
            assert table.delete([flow]) == [0]
        add_ipvs_entry(flow.original, flow.reply)
        assert [(one.reply, one.is_by_ipvs) for one in flows_to(node.a)] == [(flow.reply, True)]
        return client

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_its_socket_is_destroyed_and_the_entry_deleted(self, node: Node, protocol: str) -> None:
        client = self.client(node, protocol)
        assert verdicts(cut(node, node.a)) == [("destroyed", "")]
        assert (pending_error(client), flows_to(node.a)) == ("ECONNABORTED", [])

    def test_of_udp_without_a_peer_nothing_would_help(self, node: Node) -> None:
        client = self.client(node, "udp", has_peer=False)
        before = flows_to(node.a)
        assert verdicts(cut(node, node.a)) == [("skipped", BY_IPVS)]
        assert [flow.id for flow in flows_to(node.a)] == [flow.id for flow in before]
        assert pending_error(client) == ""


class TestElsewhere:
    """A client on another machine has no socket here."""

    def outside(self, node: Node, protocol: str) -> socket.socket:
        return client_of_a(node, protocol, lambda node, protocol: node.outside.connect(protocol, NODE, NODE_PORT))

    def test_of_udp_goes_on_with_a_backend_that_lives(self, node: Node) -> None:
        client = self.outside(node, "udp")
        assert verdicts(cut(node, node.a)) == [("rerouted", "")]
        assert ask(client) == "B"

    def test_of_tcp_is_left_alone(self, node: Node) -> None:
        client = self.outside(node, "tcp")
        assert verdicts(cut(node, node.a)) == [("skipped", NO_SOCKET)]
        node.a.revive()
        assert ask(client) == "A"

    def test_of_tcp_is_reset_by_its_next_packet_if_that_is_asked_for(self, node: Node) -> None:
        client = self.outside(node, "tcp")
        report = cut(node, node.a, external=True)
        assert verdicts(report) == [("cleared", "")]
        assert ask(client) == "ECONNRESET"

    def test_of_tcp_is_left_alone_where_its_next_packet_would_pass_untranslated(self, node: Node) -> None:
        client = self.outside(node, "tcp")
        TCP_LOOSE.write_text("0")
        assert verdicts(cut(node, node.a, external=True)) == [("skipped", NOT_LOOSE)]
        node.a.revive()
        assert ask(client) == "A"

    @pytest.mark.parametrize("server", [(NODE, NODE_PORT), ("10.244.2.2", BACKEND_PORT)])
    def test_the_callers_own_session_is_spared(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, server: tuple[str, int]
    ) -> None:
        """As the client knows it, or as the pod does in which the session is."""
        client = self.outside(node, "tcp")
        source = client.getsockname()
        monkeypatch.setenv("SSH_CONNECTION", f"{source[0]} {source[1]} {server[0]} {server[1]}")
        assert verdicts(cut(node, node.a, external=True)) == [("skipped", "own session")]


class TestNotToBeToldApart:
    """Sockets and entries with the same addresses and ports, in several zones or namespaces."""

    def tenants(self, node: Node, *answers: str) -> tuple[socket.socket, ...]:
        """Clients of two tenants, with equal addresses and ports, whom these pods answer."""
        clients = []
        for tenant, name in zip(node.tenants(), answers):
            node.balance({"A": node.a, "B": node.b}[name])
            clients.append(tenant.connect("tcp", VIP4, source=(TENANT, 40_000)))
            assert ask(clients[-1]) == name
        return tuple(clients)

    @pytest.mark.parametrize("answers", [("A", "B"), ("B", "A")])
    def test_a_tenant_whose_backend_lives_keeps_it_and_so_does_the_other(
        self, node: Node, answers: tuple[str, str]
    ) -> None:
        clients = self.tenants(node, *answers)
        node.balance(node.b)
        assert verdicts(cut(node, node.a)) == [("skipped", OTHER_ZONE)] * 2
        assert tuple(map(ask, clients)) == answers

    def test_both_are_cut_where_both_are_dead(self, node: Node) -> None:
        clients = self.tenants(node, "A", "A")
        node.balance(node.b)
        assert verdicts(cut(node, node.a)) == [("destroyed", "")] * 2
        assert list(map(ask, clients)) == ["ECONNABORTED"] * 2
        assert flows_to(node.a) == []

    def test_more_sockets_than_entries_are_spared(self, node: Node) -> None:
        clients = self.tenants(node, "A", "A")
        with ConntrackTable() as table:
            assert table.delete(flows_to(node.a)[:1]) == [0]
        assert verdicts(cut(node, node.a)) == [("skipped", SEVERAL)] * 2
        with ConntrackTable() as table:
            assert len(flows_to(node.a)) == 1
        assert "ECONNABORTED" not in [ask(client, patience=0.2) for client in clients]

    def test_of_udp_each_entry_is_its_own(self, node: Node) -> None:
        """No socket is touched: there is nothing to mistake."""
        clients = []
        for tenant, pod in zip(node.tenants(), (node.a, node.b)):
            node.balance(pod)
            clients.append(tenant.connect("udp", VIP4, source=(TENANT, 40_000)))
            assert ask(clients[-1]) == pod.name
        kept = [flow for flow in find_flows(None) if flow.backend.address == Backend(node.b.v4, 1, "udp").address]
        assert verdicts(cut(node, node.a)) == [("rerouted", "")]
        assert [flow.id for flow in find_flows(None)] == [flow.id for flow in kept]
        assert list(map(ask, clients)) == ["B", "B"]

    def test_a_twin_on_loopback_of_another_namespace_lives(self, node: Node) -> None:
        client = client_of_a(node, "tcp", lambda node, _: node.host.connect("tcp", "127.0.0.1", NODE_PORT))
        source = client.getsockname()
        listener = node.b.unconnected("tcp", socket.AF_INET)
        listener.bind(("127.0.0.1", NODE_PORT))
        listener.listen()
        twin = node.b.connect("tcp", "127.0.0.1", NODE_PORT, source=source)
        assert verdicts(cut(node, node.a)) == [("destroyed", "")]
        assert ask(client) == "ECONNABORTED"
        with listener.accept()[0] as accepted:
            accepted.send(b"x")
        assert twin.recv(1) == b"x"

    def test_a_connection_that_is_another_one_by_now_lives(self, node: Node) -> None:
        """Its entry is asked for again when its socket is found, and before it is destroyed."""
        client = client_of_a(node, "tcp", from_pod)
        locate = Balanced.locate

        def locate_and_lose(found: Balanced) -> None:
            locate(found)
            with ConntrackTable() as table:
                assert table.delete(flows_to(node.a)) == [0]

        with mock.patch.object(Balanced, "locate", locate_and_lose):
            assert verdicts(cut(node, node.a)) == [("gone", "")]
        assert ask(client, patience=0.2) != "ECONNABORTED"

    def test_the_twin_of_a_client_elsewhere_lives_that_nobody_balances(self, node: Node) -> None:
        """In a network of its own, with the addresses and ports of both ends."""
        client = client_of_a(node, "tcp", lambda node, _: node.outside.connect("tcp", NODE, NODE_PORT))
        with networks(1) as (net,):
            for address in (node.outside.v4, NODE):
                net.run(partial(rtnetlink.add_address, "lo", f"{address}/32"))
            net.make(lambda sockets: sockets.listen(NODE, NODE_PORT))
            twin = net.make(lambda sockets: sockets.make(socket.AF_INET, socket.SOCK_STREAM))
            twin.bind(client.getsockname())
            twin.connect((NODE, NODE_PORT))
            report = terminate(
                backends_of(node.a), [*places(node), net.namespace], join=conntrack_join("auto", external=True)
            )
            assert verdicts(report) == [("skipped", ANSWERED_HERE)]
            assert twin.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

    def test_an_entry_that_is_another_one_by_now_stays(self, node: Node) -> None:
        """It often has the id of the one before it."""
        client = client_of_a(node, "udp", from_pod)
        locate = Balanced.locate

        def locate_and_move_on(found: Balanced) -> None:
            locate(found)
            with ConntrackTable() as table:
                assert table.delete(flows_to(node.a)) == [0]
            assert ask(client) == "B"

        with mock.patch.object(Balanced, "locate", locate_and_move_on):
            assert verdicts(cut(node, node.a)) == [("gone", "")]
        assert len(flows_to(node.b)) == 1


class TestFurtherLooks:
    """The balancer's rules may lag: it is looked again as long as a look has found something."""

    def test_what_is_balanced_there_again_and_again_has_failed_and_counts_once(self, node: Node) -> None:
        node.balance(node.a)
        client = from_pod(node, "udp")
        assert ask(client) == "A"
        looked = []

        def ask_again(seconds: float) -> None:
            looked.append(seconds)
            assert ask(client) == "A"

        with mock.patch.object(terminating, "sleep", ask_again):
            report = cut(node, node.a, looks=(2, 4, 8))
        assert looked == [2, 4, 8]
        assert verdicts(report) == [("failed", STILL_BALANCED)]
        assert report.counts.failed == report.matched == 1

    def test_they_end_with_the_first_that_finds_nothing(self, node: Node) -> None:
        clients = [client_of_a(node, protocol, from_pod) for protocol in ("tcp", "udp")]
        looked: list[float] = []
        with mock.patch.object(terminating, "sleep", looked.append):
            report = terminate_connections(backends_of(node.a), namespaces=places(node))
        assert looked == [2]
        assert sorted(verdicts(report)) == [("destroyed", ""), ("rerouted", "")]
        assert [ask(client) for client in clients] == ["ECONNABORTED", "B"]

    def test_nobody_to_cut_is_nothing_to_wait_for(self, node: Node) -> None:
        client = client_of_a(node, "tcp", lambda node, _: node.outside.connect("tcp", NODE, NODE_PORT))
        with mock.patch.object(terminating, "sleep", side_effect=AssertionError):
            report = terminate_connections(backends_of(node.a), namespaces=places(node))
        assert (report.skipped, report.conntrack) == (1, "done")
        assert client.fileno() > 0


class TestWithoutConntrack:
    """It is said, and an error only where it is required."""

    @pytest.mark.parametrize(
        ("error", "status"), [(NotPermitted(1, "refused"), "not permitted"), (NotSupported(95, "none"), "absent")]
    )
    def test_where_it_cannot_be_asked(self, error: Exception, status: str) -> None:
        backend = Backend("10.0.0.1", 80, "tcp")
        with mock.patch.object(ConntrackTable, "count", side_effect=error):
            assert terminate_connections([backend], namespaces="current").conntrack == status
            with pytest.raises(type(error)):
                terminate_connections([backend], namespaces="current", conntrack=True)

    def test_where_it_is_not_wanted(self, node: Node) -> None:
        client = client_of_a(node, "tcp", from_pod)
        report = terminate_connections(backends_of(node.a), namespaces=places(node), conntrack=False)
        assert (report.matched, report.conntrack) == (0, "off")
        assert client.fileno() > 0


class TestTwins:
    """Two namespaces, each with a balancer and clients of its own, that have equal addresses and ports."""

    def clients(self, nets: list[Network], network: str, *backends: int) -> list[socket.socket]:
        """One in each, from address 1 of a network to the service 9, with its own backend there."""
        return [
            self.client(net, network, Backend(f"{network}.{backend}", 80, "tcp"))
            for net, backend in zip(nets, backends)
        ]

    def client(self, net: Network, network: str, backend: Backend) -> socket.socket:
        source, service = f"{network}.1", f"{network}.9"
        if network != "127.0.0":
            for address in (source, service, backend.address):
                net.run(partial(rtnetlink.add_address, "lo", f"{address}/32"))
        net.run(lambda: set_services({Backend(service, 80, "tcp"): backend}))
        net.make(lambda sockets: sockets.listen(str(backend.address), 80))
        client = net.make(lambda sockets: sockets.make(socket.AF_INET, socket.SOCK_STREAM))
        client.bind((source, 40_000))
        client.connect((service, 80))
        return client

    def fates(self, clients: list[socket.socket]) -> list[int]:
        return [client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for client in clients]

    def test_both_are_spared_where_the_backend_of_one_lives(self) -> None:
        with networks(2) as nets:
            clients = self.clients(nets, "10.9.9", 2, 3)
            report = self.cut(nets, "10.9.9.2")
            assert verdicts(report) == [("skipped", ELSEWHERE)] * 2
            assert self.fates(clients) == [0, 0]

    def test_on_loopback_each_is_its_own(self) -> None:
        with networks(2) as nets:
            clients = self.clients(nets, "127.0.0", 2, 3)
            assert verdicts(self.cut(nets, "127.0.0.2")) == [("destroyed", "")]
            assert self.fates(clients) == [errno.ECONNABORTED, 0]

    def test_on_loopback_both_are_cut_where_both_are_dead(self) -> None:
        with networks(2) as nets:
            clients = self.clients(nets, "127.0.0", 2, 2)
            assert verdicts(self.cut(nets, "127.0.0.2")) == [("destroyed", "")] * 2
            assert self.fates(clients) == [errno.ECONNABORTED] * 2

    def cut(self, nets: list[Network], backend: str) -> Report:
        gone = [Backend(backend, 80, "tcp")]
        return terminate(gone, [net.namespace for net in nets], join=conntrack_join("auto"))
