"""Clients of services, of every kind, and the servers of the backends that they get to."""

from __future__ import annotations

import socket
from typing import NamedTuple

from ...sockets import Sockets, cookie_of, family_of, talk
from .balancer import Balancer, Record

V4, V6 = "10.96.0.10", "fd00:96::10"  # services: nothing but the balancer leads there
PORT, BACKEND_PORT = 80, 9000
BACKENDS = {V4: ("127.0.0.2", "127.0.0.3"), V6: ("fd00::2", "fd00::3")}


class Case(NamedTuple):
    """A client of a service: what its socket is, and what it calls the service."""

    protocol: str
    service: str
    mapped: bool = False

    @property
    def kind(self) -> int:
        return socket.SOCK_STREAM if self.protocol == "tcp" else socket.SOCK_DGRAM

    def called(self, address: str) -> str:
        return f"::ffff:{address}" if self.mapped else address

    def __str__(self) -> str:
        return f"{self.protocol}-{'mapped' if self.mapped else 'v4' if self.service == V4 else 'v6'}"

    @property
    def backends(self) -> tuple[str, str]:
        return BACKENDS[self.service]


CASES = [
    Case(protocol, service, mapped)
    for protocol in ("tcp", "udp")
    for service, mapped in ((V4, False), (V6, False), (V4, True))
]


class Clients:
    """Makes clients, and the servers of the backends that they get to."""

    def __init__(self, balancer: Balancer, sockets: Sockets) -> None:
        self.balancer, self.sockets = balancer, sockets
        self.servers: dict[tuple[int, str], socket.socket] = {}

    def backend(self, kind: int, address: str) -> socket.socket:
        if (kind, address) not in self.servers:
            make = self.sockets.listen if kind == socket.SOCK_STREAM else self.sockets.udp_bound
            self.servers[kind, address] = make(address, BACKEND_PORT)
        return self.servers[kind, address]

    def set_service(self, case: Case, backend: str) -> None:
        self.backend(case.kind, backend)
        self.balancer.set_service(case.service, PORT, case.protocol, backend, BACKEND_PORT)

    def make(self, case: Case) -> socket.socket:
        """A socket of the balancer's cgroup."""
        with self.balancer.clients():
            return self.sockets.make(family_of(case.called(case.service)), case.kind)

    def connect(self, case: Case, address: str = "", port: int = PORT) -> socket.socket:
        """To the service, or elsewhere."""
        client = self.make(case)
        client.connect((case.called(address or case.service), port))
        return client

    def assert_reaches(self, client: socket.socket, case: Case, backend: str) -> None:
        """Data gets through to the backend and back."""
        server = self.backend(case.kind, backend)
        talk(client, self.sockets.keep(server.accept()[0]) if case.kind == socket.SOCK_STREAM else server)

    def record(self, client: socket.socket, case: Case, backend: str, index: int = 1) -> Record:
        """What there has to be of a client of the service."""
        return Record(cookie_of(client), backend, BACKEND_PORT, case.service, PORT, index)
