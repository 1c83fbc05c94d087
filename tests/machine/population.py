"""The real sockets of the machine's world, and how they come; the model is kept up to date."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from ..sockets import error_of, eventually, family_of, fill, state_of
from .endpoints import (
    Place,
    connect_now,
    inhabitant_of,
    name_of,
    peer_of,
)
from .model import (
    BOUND_INACTIVE,
    CLOSE,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT1,
    FIN_WAIT2,
    LAST_ACK,
    LISTEN,
    SYN_RECV,
    SYN_SENT,
    Inhabitant,
    Model,
    unmapped,
)

_DROP_ALL = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)  # classic BPF: return 0
_SO_ATTACH_FILTER = 26

TWIN_CLIENTS_PORT = 7001
"""The one that UDP clients share."""


class Manner(NamedTuple):
    """How a socket is made: with an address or port of its own choice, with a mark, on lo alone, with SO_REUSEPORT."""

    own_address: bool = False
    own_port: bool = False
    mark: int = 0
    to_loopback: bool = False
    twin: bool = False


class Population:
    """Every socket of all places, and the model of them."""

    def __init__(self, places: Sequence[Place], cgroup: int) -> None:
        self.places, self.model = places, Model()
        self._cgroup = cgroup
        self.sockets: dict[Inhabitant, socket.socket] = {}
        self._fed: set[Inhabitant] = set()  # with data that nobody reads: these do not talk
        self._next_port = 20000

    # ------------------------------------------------------------------------------------------- coming

    def _settle(self, place: Place, sock: socket.socket, state: int, *, autobound: bool) -> Inhabitant:
        one = inhabitant_of(place, sock, state, autobound=autobound, cgroup=self._cgroup)
        self._forget_minis_of(one)
        self.sockets[one] = sock
        self.model.inhabitants.append(one)
        return one

    def _forget_minis_of(self, one: Inhabitant) -> None:
        """A new connection may take the place of what is left of an old one (tcp_twsk_unique())."""
        for other in self._ownerless():
            if (other.place, other.ends) == (one.place, one.ends):
                self.model.inhabitants.remove(other)

    def _ownerless(self) -> list[Inhabitant]:
        return [one for one in self.model.inhabitants if not one.is_owned]

    def _ownerless_of(self, one: Inhabitant, state: int, *, is_request: bool = False) -> Inhabitant:
        """What the kernel alone keeps in the place of one (or opposite to it), with its traits."""
        made = Inhabitant(
            *(one.place, "tcp", state, (one.local, one.local_port), (one.peer, one.peer_port)),
            device=one.device,
            mark=one.mark,
        )
        made.is_request, made.is_mini = is_request, not is_request
        self.model.inhabitants.append(made)
        return made

    def _port(self) -> int:
        self._next_port += 1
        return self._next_port

    def _make(self, place: Place, address: str, kind: int, manner: Manner) -> socket.socket:
        sock = place.make(family_of(address), kind)
        if manner.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", manner.mark))
        if manner.to_loopback:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        if manner.twin:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return sock

    def _bound(self, place: Place, address: str, port: int, kind: int, manner: Manner) -> socket.socket | None:
        """None if the address is taken."""
        sock = self._make(place, address, kind, manner)
        if error_of(lambda: sock.bind((address, port))):
            sock.close()
            return None
        return sock

    def listen(self, place: Place, address: str, port: int, manner: Manner) -> Inhabitant | None:
        sock = self._bound(place, address, port, socket.SOCK_STREAM, manner)
        if sock is None:
            return None
        if error_of(lambda: sock.listen(16)):
            sock.close()  # a v6 twin of a v4 one, which has bound but may not listen
            return None
        return self._settle(place, sock, LISTEN, autobound=False)

    def bind_tcp(self, place: Place, address: str, port: int, manner: Manner) -> None:
        sock = self._bound(place, address, port, socket.SOCK_STREAM, manner)
        if sock is not None:
            self._settle(place, sock, BOUND_INACTIVE, autobound=False)

    def bind_udp(self, place: Place, address: str, port: int, manner: Manner) -> None:
        sock = self._bound(place, address, port, socket.SOCK_DGRAM, manner)
        if sock is not None:
            self._settle(place, sock, CLOSE, autobound=False)

    def send_unbound_udp(self, place: Place, address: str, manner: Manner) -> None:
        """The system chooses its port when it first sends; nobody listens there."""
        sock = self._make(place, address, socket.SOCK_DGRAM, manner)
        sock.sendto(b"x", (address, 9))
        self._settle(place, sock, CLOSE, autobound=True)

    def connect_udp(self, place: Place, address: str, port: int, manner: Manner) -> None:
        sock = self._client(place, address, socket.SOCK_DGRAM, manner)
        sock.connect((address, port))
        self._settle(place, sock, ESTABLISHED, autobound=not manner.own_port)

    def _client(self, place: Place, address: str, kind: int, manner: Manner) -> socket.socket:
        """Bound as the manner is; twins of UDP share one port, those of TCP would be one connection."""
        shared = manner.twin and kind == socket.SOCK_DGRAM
        sock = self._make(place, address, kind, manner._replace(twin=shared))
        source = {"127": "127.0.0.9", "::1": "::1", "fd0": "fd00::1", "::f": "::ffff:127.0.0.9"}[address[:3]]
        port = 0 if not manner.own_port else TWIN_CLIENTS_PORT if shared else self._port()
        if manner.own_address or manner.own_port:
            sock.bind((source, port))
        return sock

    def connect(self, place: Place, address: str, port: int, manner: Manner) -> None:
        """A connection, to whoever listens there; somebody will, if nobody does."""
        here = [one for one in self._living(place, LISTEN) if one.local_port == port]
        client = self._client(place, address, socket.SOCK_STREAM, manner)
        server = self._meet(client, address, port, here)
        if server is None:
            listener = self.listen(place, address.replace("::ffff:", ""), port, Manner(twin=True))
            server = self._meet(client, address, port, [listener] if listener else [])
        if server is None:  # the address is taken by one that does not listen
            client.close()
            return
        self._pair(place, client, server, autobound=not manner.own_port)

    def _living(self, place: Place, state: int) -> list[Inhabitant]:
        return [one for one in self.sockets if one.place == place.number and one.state == state]

    def _meet(
        self, client: socket.socket, address: str, port: int, listeners: Iterable[Inhabitant]
    ) -> socket.socket | None:
        """The accepted end of a connection, None if nobody listens there."""
        if error_of(lambda: client.connect((address, port))):
            return None
        name = (unmapped(name_of(client)[0]), name_of(client)[1])
        met: list[socket.socket] = []

        def look() -> bool:
            for one in listeners:
                sock = self.sockets[one]
                sock.setblocking(False)
                try:
                    met.append(sock.accept()[0])
                except BlockingIOError:
                    continue
                return True
            return False

        eventually(look, "the connection is accepted")
        server = met[0]
        server.settimeout(5)
        assert (unmapped(peer_of(server)[0]), peer_of(server)[1]) == name
        return server

    def _pair(
        self, place: Place, client: socket.socket, server: socket.socket, *, autobound: bool
    ) -> tuple[Inhabitant, Inhabitant]:
        one = self._settle(place, client, ESTABLISHED, autobound=autobound)
        other = self._settle(place, server, ESTABLISHED, autobound=True)
        one.other_end, other.other_end = other, one
        return one, other

    # ------------------------------------------------------------------- coming, in an uncommon TCP state

    def _private_listener(self, place: Place, address: str, manner: Manner) -> socket.socket:
        listener = self._bound(place, address.replace("::ffff:", ""), self._port(), socket.SOCK_STREAM, manner)
        assert listener is not None
        return listener

    def knock_in_vain(self, place: Place, address: str, manner: Manner) -> None:
        """SYN_SENT: who listens drops whatever it gets."""
        listener = self._private_listener(place, address, Manner())
        program = struct.pack("HP", 1, ctypes.addressof(_DROP_ALL))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        listener.listen(1)
        self._settle(place, listener, LISTEN, autobound=False)
        client = self._client(place, address, socket.SOCK_STREAM, manner)
        connect_now(client, address, name_of(listener)[1])
        self._settle_knocker(place, client, name_of(listener), address, autobound=not manner.own_port)

    def _settle_knocker(
        self, place: Place, client: socket.socket, to: tuple[object, int], address: str, *, autobound: bool
    ) -> None:
        one = self._settle(place, client, SYN_SENT, autobound=autobound)
        one.peer, one.peer_port = ip_address(address), to[1]  # getpeername() does not tell yet

    def wait_for_data(self, place: Place, address: str, manner: Manner) -> None:
        """SYN_RECV: the connection waits for its first data, and is a request socket as long."""
        listener = self._private_listener(place, address, manner)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
        listener.listen(16)
        waiting = self._settle(place, listener, LISTEN, autobound=False)
        client = self._client(place, address, socket.SOCK_STREAM, manner)
        client.connect((address, waiting.local_port))
        one = self._settle(place, client, ESTABLISHED, autobound=not manner.own_port)
        request = self._ownerless_of(waiting, SYN_RECV, is_request=True)
        request.local, request.peer, request.peer_port = unmapped(one.peer), unmapped(one.local), one.local_port
        one.other_end = request
        self._fed.add(one)

    def get_stuck(self, place: Place, address: str, state: int, manner: Manner) -> None:
        """FIN_WAIT1, LAST_ACK or CLOSING: the FIN waits behind data that the other end does not take."""
        listener = self._private_listener(place, address, Manner())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        listener.listen(16)
        client = self._client(place, address, socket.SOCK_STREAM, manner)
        client.connect((address, name_of(listener)[1]))
        server = listener.accept()[0]
        server.settimeout(5)
        listener.close()
        fill(client)
        if state == LAST_ACK:
            server.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        client.shutdown(socket.SHUT_WR)
        if state == CLOSING:
            server.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        one, other = self._pair(place, client, server, autobound=not manner.own_port)
        one.state = state
        other.state = ESTABLISHED if state == FIN_WAIT1 else FIN_WAIT2
        eventually(lambda: state_of(server) == other.state, "the acknowledgement of the FIN")
        self._fed |= {one, other}
