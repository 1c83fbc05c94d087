"""The tests' own NAT, before others stand on it."""

from __future__ import annotations

import pytest

from .nat import VIP4, VIP6, Node, ask

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

    def test_several_backends_take_turns(self, node: Node, protocol: str, address: str) -> None:
        node.balance(node.a, node.b)
        assert [ask(node.client.connect(protocol, address)) for _ in range(3)] == ["A", "B", "A"]


@pytest.mark.parametrize("address", [VIP4, VIP6])
def test_without_backends_a_service_refuses_its_clients(node: Node, address: str) -> None:
    """TCP would see it a second later: the answer comes while connect(2) holds the socket."""
    node.balance()
    assert ask(node.client.connect("udp", address)) == "ECONNREFUSED"
