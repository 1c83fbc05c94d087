"""Backends that go down and come back while clients connect to them, in several network namespaces."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from random import Random
from typing import Any, NamedTuple

from ..sockets import Sockets, cookie_of, eventually

PORT = 9000
TCP_BACKENDS, UDP_BACKENDS = 8, 24
TCP_ADDRESSES = 32  # TCP backends take turns at them, for a listener has to be at each
CLIENTS = 2  # of a backend, in each namespace

UP, DOWN, LATE = "up", "down", "late"

Make = Callable[[Callable[[Sockets], Any]], Any]


class Client(NamedTuple):
    cookie: int
    sock: socket.socket
    server: socket.socket | None

    def close(self) -> None:
        self.sock.close()
        if self.server is not None:
            self.server.close()


class Slot:
    """A backend's address, its clients in each namespace, and its state.

    UP, until watch reads that it is DOWN; then its clients are destroyed. After that clients that come LATE connect,
    one in each namespace, for the second pass to destroy: when that is done, no pass is under way that could hit the
    clients of the next backend at that address.
    """

    def __init__(self, protocol: str, address: str) -> None:
        self.protocol, self.address, self.state = protocol, address, UP
        self.clients: list[list[Client]] = []

    @property
    def backend(self) -> str:
        return f"{self.address}:{PORT}/{self.protocol.upper()}"

    def upsert(self, **more: Any) -> dict[str, Any]:
        return {"op": "upsert", **self.entry(), **more}

    def entry(self) -> dict[str, Any]:
        return {"backend": self.backend, "service": "soak"}

    def connect(self, sockets: Sockets) -> Client:
        if self.protocol == "udp":
            alone = sockets.udp(self.address, PORT)
            return Client(cookie_of(alone), alone, None)
        client, server = sockets.tcp(self.address, PORT)
        return Client(cookie_of(client), client, server)


class Backends:
    """Says to `say` what changes. `step` makes things happen; AssertionError if a client of what is up is destroyed."""

    def __init__(self, makes: Sequence[Make], say: Callable[[dict[str, Any]], object]) -> None:
        self._makes, self._say = makes, say
        self._random = Random(1)
        self._idle = [f"127.2.0.{n + 1}" for n in range(TCP_ADDRESSES)]
        self._fresh = int(IPv4Address("127.3.0.0"))
        self._poll = select.poll()
        self._clients: dict[int, tuple[Slot, int, Client]] = {}  # by descriptor: slot, namespace, client
        self.destroyed: set[int] = set()
        self.times_down = self.connected = 0
        self.slots = [Slot(name, self._address(name)) for name in ["tcp"] * TCP_BACKENDS + ["udp"] * UDP_BACKENDS]
        for slot in self.slots:
            self._come_up(slot)

    def step(self, *, may_go_down: bool) -> None:
        """Collect who was destroyed, go on with what is down, let clients come and go, and let a backend go down."""
        self._collect_destroyed()
        for slot in self.slots:
            if slot.state != UP and not any(slot.clients):
                self._go_on(slot)
        up = [slot for slot in self.slots if slot.state == UP]
        for slot in self._random.sample(up, min(2, len(up))):
            self._replace_a_client(slot)
        if may_go_down and len(up) > len(self.slots) // 4:
            self._go_down(self._random.choice(up))

    def come_and_go(self, count: int) -> None:
        """So many more backends, UDP, of one client each, that come at once, go at once, and never return."""
        passing = [Slot("udp", self._address("udp")) for _ in range(count)]
        for slot in passing:
            self._say(slot.upsert())
            slot.clients = [[]]
            self._connect(slot, 0)
        for slot in passing:
            slot.state = DOWN
            self._say({"op": "delete", "backend": slot.backend})

        def all_are_destroyed() -> bool:
            self._collect_destroyed()
            return not any(any(slot.clients) for slot in passing)

        eventually(all_are_destroyed, "all clients of the backends that have gone are destroyed")

    @property
    def all_are_up(self) -> bool:
        return all(slot.state == UP for slot in self.slots)

    # --------------------------------------------------------------------------------------- of backends

    def _address(self, protocol: str) -> str:
        """TCP: one of those that wait; UDP, where nobody has to be at the other end: one that never was."""
        if protocol == "tcp":
            return self._idle.pop(self._random.randrange(len(self._idle)))
        self._fresh += 1
        return str(IPv4Address(self._fresh))

    def _come_up(self, slot: Slot) -> None:
        self._say(slot.upsert())
        slot.state = UP
        self._connect_in_each(slot, CLIENTS)

    def _go_down(self, slot: Slot) -> None:
        """In one of the ways there are."""
        slot.state = DOWN
        self.times_down += 1
        ways: list[dict[str, Any]] = [
            {"op": "delete", "backend": slot.backend},
            {"op": "delete", "backend": slot.backend, "service": "soak"},
            slot.upsert(state="quarantined"),
            slot.upsert(unhealthy=True),
            {"op": "replace", "backends": [each.entry() for each in self.slots if each.state == UP]},
        ]
        self._say(self._random.choice(ways))

    def _go_on(self, slot: Slot) -> None:
        if slot.state == DOWN:
            slot.state = LATE
            self._connect_in_each(slot, 1)
            return
        self._say({"op": "delete", "backend": slot.backend})  # one that was quarantined is in the table still
        if slot.protocol == "tcp":
            self._idle.append(slot.address)
        slot.address = self._address(slot.protocol)
        self._come_up(slot)

    # --------------------------------------------------------------------------------------- of clients

    def _connect_in_each(self, slot: Slot, count: int) -> None:
        slot.clients = [[] for _ in self._makes]
        for number in range(len(self._makes)):
            for _ in range(count):
                self._connect(slot, number)

    def _connect(self, slot: Slot, number: int) -> None:
        client = self._makes[number](slot.connect)
        slot.clients[number].append(client)
        self._clients[client.sock.fileno()] = slot, number, client
        self._poll.register(client.sock, 0)  # errors alone
        self.connected += 1

    def _replace_a_client(self, slot: Slot) -> None:
        """The oldest in some namespace closes, and another one connects."""
        number = self._random.randrange(len(self._makes))
        error = self._close(slot, number, slot.clients[number][0])
        assert not error, f"{slot.backend} is up, and a client got {errno.errorcode[error]}"
        self._connect(slot, number)

    def _collect_destroyed(self) -> None:
        for descriptor, _ in self._poll.poll(10):
            slot, number, client = self._clients[descriptor]
            assert slot.state != UP, f"{slot.backend} is up, and a client was destroyed"
            error = self._close(slot, number, client)
            assert error == errno.ECONNABORTED, f"{slot.backend} is down, and a client got {errno.errorcode.get(error)}"
            self.destroyed.add(client.cookie)

    def _close(self, slot: Slot, number: int, client: Client) -> int:
        """The error that was pending."""
        error = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._poll.unregister(client.sock)
        del self._clients[client.sock.fileno()]
        slot.clients[number].remove(client)
        client.close()
        return error
