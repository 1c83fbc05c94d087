"""What the tests' own NAT is, before others stand on it."""

from __future__ import annotations

import socket

import pytest

from socklb import Backend

from . import nat
from .sockets import Sockets

pytestmark = pytest.mark.kernel

VIP, A, B = "127.9.0.1", "127.0.0.2", "127.0.0.3"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_service_leads_to_its_backend_and_those_that_are_there_stay_when_it_gets_another(
    sockets: Sockets, protocol: str
) -> None:
    make = sockets.listen if protocol == "tcp" else sockets.udp_bound
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM

    def client() -> socket.socket:
        made = sockets.make(socket.AF_INET, kind)
        made.connect((VIP, 80))
        return made

    service = Backend(VIP, 80, protocol)
    with nat.answering({make(A, 8080): "A", make(B, 8081): "B"}):
        nat.set_services({service: Backend(A, 8080, protocol)})
        first = client()
        assert nat.ask(first) == "A"
        nat.set_services({service: Backend(B, 8081, protocol)})
        second = client()
        assert [nat.ask(second), nat.ask(first)] == ["B", "A"]
