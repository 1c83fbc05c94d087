"""What each way of balancing leaves in conntrack, and whether the client's socket can be told from it.

It can where the original tuple of an entry is the socket's own, in the network namespace that translates; the source of
the reply tuple is the backend then.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from socket import inet_aton
from typing import NamedTuple

import pytest

from socklb import Backend, Flow
from socklb.conntrack.layout import FlowTuple
from socklb.conntrack.table import ConntrackTable
from socklb.wire.address import unmapped_packed

from .. import nat_rules
from ..kube_proxy import BALANCERS, Balancer
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
from ..sockets import Sockets

pytestmark = pytest.mark.kernel

SRC_NAT, DST_NAT = 0x10, 0x20


class Setup(NamedTuple):
    """Who connects to what, and how the entry on the node differs from what the client has."""

    client: str
    address: str
    port: int = PORT
    masqueraded: bool = False
    masquerade_all: bool = False


SETUPS = {
    "a pod to a service": Setup("client", VIP4),
    "a pod to a service, v6": Setup("client", VIP6),
    "a pod to a service that masquerades everybody": Setup("client", VIP4, masqueraded=True, masquerade_all=True),
    "a pod to a service, by a mapped address": Setup("client", f"::ffff:{VIP4}"),
    "the node itself to a service": Setup("host", VIP4, masqueraded=True),
    "the node itself to a service, v6": Setup("host", VIP6, masqueraded=True),
    "a backend to its own service": Setup("a", VIP4, masqueraded=True),
    "a backend to its own service, v6": Setup("a", VIP6, masqueraded=True),
    "a pod to a node port": Setup("client", NODE, NODE_PORT, masqueraded=True),
    "the node itself to a node port": Setup("host", NODE, NODE_PORT, masqueraded=True),
    "the node itself to a node port on loopback": Setup("host", "127.0.0.1", NODE_PORT, masqueraded=True),
    "another machine to a node port": Setup("outside", NODE, NODE_PORT, masqueraded=True),
    "another machine to a published port": Setup("outside", NODE, PUBLISHED_PORT),
    "a pod to a published port": Setup("client", GATEWAY, PUBLISHED_PORT),
}


def own_tuple(client: socket.socket) -> FlowTuple:
    """As packets have it: of a v6 socket that is connected to a mapped address, v4."""
    ends = []
    for address, port in (name[:2] for name in (client.getsockname(), client.getpeername())):
        ends += [unmapped_packed(socket.inet_pton(client.family, address)), port]
    return FlowTuple({socket.SOCK_STREAM: 6, socket.SOCK_DGRAM: 17}[client.type], *ends)


def reverse(one: FlowTuple) -> FlowTuple:
    return FlowTuple(one.protocol, one.dst, one.dport, one.src, one.sport)


def entries_of(pod: Pod, original: FlowTuple) -> list[Flow]:
    def entries() -> list[Flow]:
        with ConntrackTable() as table:
            return table.entries_of([original])

    return pod.run(entries)


def expect_entry(node: Node, setup: Setup, protocol: str) -> None:
    """Of a client that A answers, or B: its entry names the one that did."""
    client = getattr(node, setup.client).connect(protocol, setup.address, setup.port)
    backend = {"A": node.a, "B": node.b}[ask(client)]
    own = own_tuple(client)
    (flow,) = entries_of(node.host, own)
    assert flow.backend == Backend(backend.v4 if len(own.src) == 4 else backend.v6, BACKEND_PORT, protocol)
    assert flow.is_dnated
    assert flow.status & (SRC_NAT | DST_NAT) == (SRC_NAT | DST_NAT if setup.masqueraded else DST_NAT)
    assert ((flow.reply.dst, flow.reply.dport) != (own.src, own.sport)) == setup.masqueraded


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_the_entry_s_original_tuple_is_the_client_s_and_its_reply_comes_from_the_backend(
    node: Node, setup: Setup, protocol: str
) -> None:
    node.balance(node.a, masquerade_all=setup.masquerade_all)
    expect_entry(node, setup, protocol)


@pytest.mark.parametrize("balancer", BALANCERS.values(), ids=BALANCERS)
def test_kube_proxy_s_own_rules_leave_the_same(node: Node, balancer: Balancer) -> None:
    why_not = balancer.why_not()
    if why_not:
        pytest.skip(why_not)
    node.set_rules = balancer.set_rules
    for setup in SETUPS.values():
        backends = (node.a,) if setup.client == "a" else (node.a, node.b)
        node.balance(*backends, masquerade_all=setup.masquerade_all)
        for protocol in ("tcp", "udp"):
            expect_entry(node, setup, protocol)
    node.balance()
    assert ask(node.client.connect("udp", VIP4)) == "ECONNREFUSED"


def test_a_socket_that_is_not_connected_has_the_entry_s_port_alone(node: Node) -> None:
    node.balance(node.a)
    client = node.client.unconnected("udp", socket.AF_INET)
    assert ask(client, (VIP4, PORT)) == "A"
    address, port = client.getsockname()
    original = FlowTuple(socket.IPPROTO_UDP, inet_aton(node.client.v4), port, inet_aton(VIP4), PORT)
    assert address == "0.0.0.0"
    (flow,) = entries_of(node.host, original)
    assert flow.backend == Backend(node.a.v4, BACKEND_PORT, "udp")


def test_masquerading_alone_leaves_the_destination_as_it_is(node: Node) -> None:
    nat_rules.masquerade(inet_aton(node.client.v4), "to-outside")
    client = node.client.connect("tcp", node.outside.v4, BACKEND_PORT)
    assert ask(client) == "outside"
    (flow,) = entries_of(node.host, own_tuple(client))
    assert not flow.is_dnated
    assert flow.status & (SRC_NAT | DST_NAT) == SRC_NAT
    assert flow.reply.dst == inet_aton(NODE)


def test_behind_another_translation_the_node_knows_the_client_by_the_reply_tuple_of_the_first(node: Node) -> None:
    """The entry there is found from the one here by asking for the reverse of its original tuple."""
    inner = node.nested()
    node.balance(node.a)
    client = inner.connect("udp", VIP4)
    assert ask(client) == "A"
    own = own_tuple(client)
    assert entries_of(node.host, own) == []
    (first,) = entries_of(node.client, own)
    assert not first.is_dnated
    (second,) = entries_of(node.host, reverse(first.reply))
    assert second.backend == Backend(node.a.v4, BACKEND_PORT, "udp")
    assert second.original.src == inet_aton(node.client.v4)


def test_a_sidecar_s_entry_is_in_the_pod_and_names_the_sidecar(node: Node) -> None:
    """Whose socket's peer is a backend that it has nothing to do with."""
    backend = Backend(node.b.v4, BACKEND_PORT, "tcp")
    node.client.run(lambda: nat_rules.redirect(backend, BACKEND_PORT))
    client = node.client.connect("tcp", node.b.v4, BACKEND_PORT)
    assert ask(client) == "client"
    (flow,) = entries_of(node.client, own_tuple(client))
    assert flow.backend == Backend("127.0.0.1", BACKEND_PORT, "tcp")
    assert flow.is_dnated


def test_tenants_with_one_address_have_one_original_tuple_in_two_zones(node: Node) -> None:
    source = (TENANT, 40000)
    first, second = node.tenants()
    node.balance(node.a)
    clients = [first.connect("tcp", VIP4, source=source)]
    node.balance(node.b)
    clients.append(second.connect("tcp", VIP4, source=source))
    assert [ask(client) for client in clients] == ["A", "B"]
    own = own_tuple(clients[0])
    assert own == own_tuple(clients[1])
    found = {flow.zone: (flow.backend.address, flow.reply.dst) for flow in entries_of(node.host, own)}
    assert found == {
        11: (ip_address(node.a.v4), inet_aton("10.66.1.11")),
        12: (ip_address(node.b.v4), inet_aton("10.66.1.12")),
    }


@pytest.mark.parametrize("protocol", [socket.IPPROTO_TCP, socket.IPPROTO_UDP])
def test_what_ipvs_balances_has_no_bit_that_says_so(node: Node, protocol: int) -> None:
    original = FlowTuple(protocol, inet_aton(node.client.v4), 40000, inet_aton(VIP4), PORT)
    reply = FlowTuple(protocol, inet_aton(node.a.v4), BACKEND_PORT, inet_aton(node.client.v4), 40000)
    add_ipvs_entry(original, reply)
    (flow,) = entries_of(node.host, original)
    assert (flow.reply, flow.status & DST_NAT) == (reply, 0)
    assert flow.is_by_ipvs


def test_without_a_rule_that_needs_it_nothing_is_tracked(sockets: Sockets) -> None:
    client, _ = sockets.udp_pair("127.0.0.2", 9000)

    def count_with_a_packet() -> int:
        client.send(b"x")
        with ConntrackTable() as table:
            return table.count()

    assert count_with_a_packet() == 0
    nat_rules.track()
    assert count_with_a_packet() == 1
