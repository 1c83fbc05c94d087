"""Backends that come and go, and clients that connect to them all the while, in several network namespaces."""

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
TCP_ADDRESSES = 32  # those that TCP backends take turns at: some listener has to be at each
CLIENTS = 2  # of a backend, in each namespace

ALIVE, FALLEN, LATE = "alive", "fallen", "late"

Make = Callable[[Callable[[Sockets], Any]], Any]


class Client(NamedTuple):
    cookie: int
    sock: socket.socket
    server: socket.socket | None

    def close(self) -> None:
        self.sock.close()
        if self.server is not None:
            self.server.close()


class Place:
    """A backend's place: an address, those who are connected to it, and how far it has fallen.

    ALIVE, until watch is told otherwise. FALLEN, until its clients are cut. Then clients that come LATE connect, one in
    each namespace, for the second look to cut: once that has happened nothing is under way that could hit whoever
    connects when the place is alive again.
    """

    def __init__(self, protocol: str, address: str) -> None:
        self.protocol, self.address, self.state = protocol, address, ALIVE
        self.clients: list[list[Client]] = []  # those in each namespace

    @property
    def text(self) -> str:
        return f"{self.address}:{PORT}/{self.protocol.upper()}"


class ComingsAndGoings:
    """Tells `say` what changes. `turn` makes things happen; AssertionError if a client is cut that is not to be."""

    def __init__(self, makes: Sequence[Make], say: Callable[[dict[str, Any]], object]) -> None:
        self._makes, self._say = makes, say
        self._random = Random(1)
        self._idle = [f"127.2.0.{n + 1}" for n in range(TCP_ADDRESSES)]
        self._fresh = int(IPv4Address("127.3.0.0"))
        self._poll = select.poll()
        self._whose: dict[int, tuple[Place, int, Client]] = {}  # by descriptor: where, in which namespace
        self.cut: set[int] = set()
        self.falls = self.connected = 0
        self.places = [
            Place(protocol, self._address(protocol)) for protocol in ["tcp"] * TCP_BACKENDS + ["udp"] * UDP_BACKENDS
        ]
        for place in self.places:
            self._rise(place)

    def turn(self, *, may_fall: bool) -> None:
        """Take in who was cut, go on with what has fallen, let others connect anew, and let something fall."""
        self._take_in_the_cut()
        for place in self.places:
            if place.state != ALIVE and not any(place.clients):
                self._go_on(place)
        alive = [place for place in self.places if place.state == ALIVE]
        for place in self._random.sample(alive, min(2, len(alive))):
            self._renew_one(place)
        if may_fall and len(alive) > len(self.places) // 4:
            self._fall(self._random.choice(alive))

    def come_and_go(self, count: int) -> None:
        """So many more backends, UDP, of one client each, that come at once, go at once, and never return."""
        passing = [Place("udp", self._address("udp")) for _ in range(count)]
        for place in passing:
            self._say(_upsert(place))
            place.clients = [[]]
            self._connect_one(place, 0)
        for place in passing:
            place.state = FALLEN
            self._say({"op": "delete", "backend": place.text})
        for place in passing:
            eventually(lambda place=place: self._is_cut(place), f"all clients of {place.text} are cut")  # type: ignore[misc]

    def _is_cut(self, place: Place) -> bool:
        if any(place.clients):
            self._take_in_the_cut()
        return not any(place.clients)

    @property
    def is_quiet(self) -> bool:
        return all(place.state == ALIVE for place in self.places)

    # --------------------------------------------------------------------------------------- of backends

    def _address(self, protocol: str) -> str:
        """TCP: one of those that wait; UDP, where nobody has to be at the other end: one that never was."""
        if protocol == "tcp":
            return self._idle.pop(self._random.randrange(len(self._idle)))
        self._fresh += 1
        return str(IPv4Address(self._fresh))

    def _rise(self, place: Place) -> None:
        self._say(_upsert(place))
        place.state = ALIVE
        self._connect(place, CLIENTS)

    def _fall(self, place: Place) -> None:
        """In one of the ways there are."""
        place.state = FALLEN
        self.falls += 1
        ways: list[dict[str, Any]] = [
            {"op": "delete", "backend": place.text},
            {"op": "delete", "backend": place.text, "service": "soak"},
            _upsert(place, state="quarantined"),
            _upsert(place, unhealthy=True),
            {"op": "replace", "backends": [_entry(each) for each in self.places if each.state == ALIVE]},
        ]
        self._say(self._random.choice(ways))

    def _go_on(self, place: Place) -> None:
        if place.state == FALLEN:
            place.state = LATE
            self._connect(place, 1)
            return
        self._say({"op": "delete", "backend": place.text})  # one that was quarantined is in the table still
        if place.protocol == "tcp":
            self._idle.append(place.address)
        place.address = self._address(place.protocol)
        self._rise(place)

    # --------------------------------------------------------------------------------------- of clients

    def _connect(self, place: Place, count: int) -> None:
        place.clients = [[] for _ in self._makes]
        for where in range(len(self._makes)):
            for _ in range(count):
                self._connect_one(place, where)

    def _connect_one(self, place: Place, where: int) -> None:
        client = _client(self._makes[where], place)
        place.clients[where].append(client)
        self._whose[client.sock.fileno()] = place, where, client
        self._poll.register(client.sock, 0)  # errors alone
        self.connected += 1

    def _renew_one(self, place: Place) -> None:
        """The oldest in some namespace closes, and another one connects."""
        where = self._random.randrange(len(self._makes))
        client = place.clients[where][0]
        error = self._leave(place, where, client)
        assert not error, f"{place.text} is alive, and a client of it was cut: {errno.errorcode[error]}"
        self._connect_one(place, where)

    def _take_in_the_cut(self) -> None:
        for descriptor, _ in self._poll.poll(10):
            place, where, client = self._whose[descriptor]
            assert place.state != ALIVE, f"{place.text} is alive, and a client of it was cut"
            error = self._leave(place, where, client)
            assert error == errno.ECONNABORTED, (
                f"{place.text} has fallen, and a client got {errno.errorcode.get(error)}"
            )
            self.cut.add(client.cookie)

    def _leave(self, place: Place, where: int, client: Client) -> int:
        """A client closes, whatever it was that it had as an error."""
        error = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._poll.unregister(client.sock)
        del self._whose[client.sock.fileno()]
        place.clients[where].remove(client)
        client.close()
        return error


def _client(make: Make, place: Place) -> Client:
    if place.protocol == "udp":
        alone = make(lambda sockets: sockets.udp(place.address, PORT))
        return Client(cookie_of(alone), alone, None)
    client, server = make(lambda sockets: sockets.tcp(place.address, PORT))
    return Client(cookie_of(client), client, server)


def _upsert(place: Place, **more: Any) -> dict[str, Any]:
    return {"op": "upsert", **_entry(place), **more}


def _entry(place: Place) -> dict[str, Any]:
    return {"backend": place.text, "service": "soak"}
