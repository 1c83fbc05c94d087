"""The tests' own NAT, before others stand on it."""

from __future__ import annotations

import socket

import pytest

from socklb import Backend
from socklb.cli.demo.dnat import set_services

from .nat import VIP4, VIP6, Node, answering, ask
from .sockets import Sockets, error_of

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("address", [VIP4, VIP6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
class TestNode:
    def test_a_client_stays_with_a_backend_that_is_dead_until_that_lives_again(
        self, node: Node, protocol: str, address: str
    ) -> None:
        node.balance(node.a)
        client = node.client.connect(protocol, address)
        assert ask(client) == "A"
        node.a.die()
        node.balance(node.b)
        assert ask(client, patience=0.2) == "timeout"
        assert ask(node.client.connect(protocol, address)) == "B"
        node.a.revive()
        assert ask(client) == "A"

    def test_several_backends_take_turns_and_without_any_clients_are_refused(
        self, node: Node, protocol: str, address: str
    ) -> None:
        node.balance(node.a, node.b)
        assert [ask(node.client.connect(protocol, address)) for _ in range(3)] == ["A", "B", "A"]
        node.balance()
        clients: list[socket.socket] = []
        error = error_of(lambda: clients.append(node.client.connect(protocol, address)))
        assert (error or ask(clients[0])) == "ECONNREFUSED"


def test_no_node_and_no_pod_is_needed_for_a_service_on_loopback(sockets: Sockets) -> None:
    service, first, second = (Backend(f"127.0.0.{number}", 80, "udp") for number in (9, 2, 3))
    with answering({sockets.udp_bound("127.0.0.2", 80): "A", sockets.udp_bound("127.0.0.3", 80): "B"}):
        for backend, name in ((first, "A"), (second, "B")):
            set_services({service: backend})
            assert ask(sockets.udp("127.0.0.9", 80)) == name
