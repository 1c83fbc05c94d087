"""The real sockets, and how they are made; the model is kept up to date."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from ..sockets import deafen, error_of, eventually, family_of, fill, state_of
from .endpoints import LINK_LOCAL, LINKS, Netns, model_of, name_of, peer_of
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
    Endpoint,
    Model,
    ModelFlow,
    ModelSocket,
    unmapped,
)

_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}

_SOURCES = {"127": "127.0.0.9", "10.": "10.9.0.1", "::1": "::1", "fd0": "fd00::1", "::f": "::ffff:127.0.0.9"}
"""Of who connects to an address that begins so."""

SERVICE_PORT = 80

DEVICES = ("", "", "", "lo", "lo", *LINKS)

TWIN_CLIENTS_PORT = 7001
"""The one that UDP clients share."""


class SocketOptions(NamedTuple):
    """How a socket is made: bound to an address or a port, with a mark, on one device alone, with SO_REUSEPORT."""

    own_address: bool = False
    own_port: bool = False
    mark: int = 0
    device: str = ""
    twin: bool = False

    @property
    def on_loopback(self) -> SocketOptions:
        """Without a link: what loopback has for addresses cannot be reached from there."""
        return self._replace(device="") if self.device in LINKS else self


class Population:
    """All sockets of all namespaces: `real` has those of applications by their models."""

    def __init__(self, namespaces: Sequence[Netns], cgroup: int) -> None:
        self.namespaces, self.model = namespaces, Model()
        self._cgroup = cgroup
        self.real: dict[ModelSocket, socket.socket] = {}
        self._clogged: set[ModelSocket] = set()  # full of unread data, so that nothing can be exchanged over them
        self._next_port = 20000

    def _add(self, netns: Netns, sock: socket.socket, state: int, *, autobound: bool) -> ModelSocket:
        one = model_of(netns, sock, state, autobound=autobound, cgroup=self._cgroup)
        # A new connection may take the place of what is left of an old one (tcp_twsk_unique()).
        self.model.sockets = [
            other
            for other in self.model.sockets
            if other.is_owned
            or (other.netns, other.ends) != (one.netns, one.ends)
            or other.device not in (0, one.device)
        ]
        self.real[one] = sock
        self.model.sockets.append(one)
        return one

    def _add_of_kernel(self, one: ModelSocket, state: int, *, is_request: bool = False) -> ModelSocket:
        """What the kernel alone holds in the place of a socket, or at its other end."""
        made = ModelSocket(one.netns, "tcp", state, *one.ends, device=one.device, mark=one.mark)
        made.interfaces, made.is_request, made.is_mini = one.interfaces, is_request, not is_request
        self.model.sockets.append(made)
        return made

    def _add_pair(
        self, netns: Netns, client: socket.socket, server: socket.socket, *, autobound: bool
    ) -> tuple[ModelSocket, ModelSocket]:
        one = self._add(netns, client, ESTABLISHED, autobound=autobound)
        other = self._add(netns, server, ESTABLISHED, autobound=True)
        one.other_end, other.other_end = other, one
        return one, other

    def _port(self) -> int:
        self._next_port += 1
        return self._next_port

    def _make(self, netns: Netns, address: str, protocol: str, options: SocketOptions) -> socket.socket:
        sock = netns.make(family_of(address), _KINDS[protocol])
        if options.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", options.mark))
        if options.device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, options.device.encode())
        if options.twin:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return sock

    def _bound(
        self, netns: Netns, address: str, port: int, protocol: str, options: SocketOptions
    ) -> socket.socket | None:
        """None if the address is taken."""
        sock = self._make(netns, address, protocol, options)
        if error_of(lambda: sock.bind((address, port))):
            sock.close()
            return None
        return sock

    def bind(self, netns: Netns, protocol: str, address: str, port: int, options: SocketOptions) -> None:
        sock = self._bound(netns, address, port, protocol, options)
        if sock is not None:
            self._add(netns, sock, BOUND_INACTIVE if protocol == "tcp" else CLOSE, autobound=False)

    def listen(self, netns: Netns, address: str, port: int, options: SocketOptions) -> ModelSocket | None:
        sock = self._bound(netns, address, port, "tcp", options)
        if sock is None:
            return None
        if error_of(lambda: sock.listen(16)):
            sock.close()  # a v6 twin of a v4 one, which has bound but may not listen
            return None
        return self._add(netns, sock, LISTEN, autobound=False)

    def send_unbound_udp(self, netns: Netns, address: str, options: SocketOptions) -> None:
        """The system chooses its port when it first sends; nobody listens there."""
        sock = self._make(netns, address, "udp", options.on_loopback)
        sock.sendto(b"x", (address, 9))
        self._add(netns, sock, CLOSE, autobound=True)

    def _client(self, netns: Netns, address: str, protocol: str, options: SocketOptions, own: int = 0) -> socket.socket:
        """Twins of UDP share one port; those of TCP would be one connection."""
        shared = options.twin and protocol == "udp"
        sock = self._make(netns, address, protocol, options.on_loopback._replace(twin=shared))
        source = _SOURCES[address[:3]]
        port = own if not options.own_port else TWIN_CLIENTS_PORT if shared else self._port()
        if options.own_address or options.own_port or own:
            sock.bind((source, port))
        return sock

    def connect(
        self,
        netns: Netns,
        protocol: str,
        address: str,
        port: int,
        options: SocketOptions,
        *,
        service: tuple[str, int] = ("", 0),
        own: int = 0,
    ) -> None:
        """TCP: to whoever listens there, or to a new listener. By a service, if that sends its flows there."""
        to = service if service[1] else (address, port)
        client = self._client(netns, to[0], protocol, options, own)
        autobound = not (options.own_port or own)
        if protocol == "udp":
            client.connect(to)
            self._add(netns, client, ESTABLISHED, autobound=autobound)
            return
        listeners = [one for one in self.real if (one.netns, one.state, one.local_port) == (netns.number, LISTEN, port)]
        server = self._accepted(client, to, listeners)
        if server is None:
            listener = self.listen(netns, address.replace("::ffff:", ""), port, SocketOptions(twin=True))
            client.close()  # who was refused cannot connect again
            client = self._client(netns, to[0], protocol, options, own)
            server = self._accepted(client, to, [listener] if listener else [])
        if server is None:  # the address is taken by one that does not listen
            client.close()
            return
        one, _ = self._add_pair(netns, client, server, autobound=autobound)
        self.note_flow(one)

    def balance(self, netns: Netns, protocol: str, service: str, backend: tuple[str, int], own: int) -> None:
        """A client of a service that sends new flows to this backend from now on."""
        netns.balance((protocol, unmapped(ip_address(service)), SERVICE_PORT), (ip_address(backend[0]), backend[1]))
        if protocol == "udp":
            self.bind(netns, protocol, *backend, SocketOptions())
        self.connect(netns, protocol, *backend, SocketOptions(), service=(service, SERVICE_PORT), own=own)

    def note_flow(self, one: ModelSocket) -> None:
        """A client has sent something: conntrack has it from now on, if its peer is a service."""
        flow = ModelFlow(one.netns, one.protocol, one.wire_ends, self.answers(one))
        is_tracked = (one.protocol, *flow.original[2:]) in self.namespaces[one.netns].services
        if is_tracked and flow not in self.model.flows:
            self.model.flows.append(flow)

    def answers(self, one: ModelSocket) -> Endpoint:
        """Who gets what a client sends: its peer, or who a service of that address has now, or had at first."""
        for flow in self.model.flows:
            if flow[:3] == (one.netns, one.protocol, one.wire_ends):
                return flow.backend
        peer = unmapped(one.peer), one.peer_port
        return self.namespaces[one.netns].services.get((one.protocol, *peer), peer)

    def connect_several(self, netns: Netns, protocol: str, address: str, port: int, *, count: int) -> list[ModelSocket]:
        """The clients, each with a port of its own, one after another."""
        before = set(self.real)
        for _ in range(count):
            self.connect(netns, protocol, address, port, SocketOptions(own_port=True))
        return [one for one in self.real if one not in before and one.peer_port == port]

    def connect_on_link(
        self, netns: Netns, protocol: str, link: str, address: str, port: int, options: SocketOptions, *, own: int = 0
    ) -> None:
        """To an address of the link itself, with this own port. Both ends are bound to the link."""
        options = options._replace(device=link, twin=False)
        link_local = (0, netns.interfaces[link]) if address == LINK_LOCAL else ()  # else on whichever link it is
        client = self._make(netns, address, protocol, options)
        if own or options.own_port:
            client.bind((address, own or self._port(), *link_local))
        autobound = not (own or options.own_port)
        if protocol == "udp":
            client.connect((address, port, *link_local))
            self._add(netns, client, ESTABLISHED, autobound=autobound)
            return
        with self._make(netns, address, protocol, SocketOptions(device=link)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if error_of(lambda: listener.bind((address, port, *link_local))):
                client.close()  # one that listens on all addresses has the port
                return
            listener.listen(1)
            client.connect((address, port, *link_local))
            server, _ = listener.accept()
        server.settimeout(5)
        self._add_pair(netns, client, server, autobound=autobound)

    def connect_on_links(self, netns: Netns, protocol: str, address: str, port: int) -> None:
        """Two connections with the same addresses and ports."""
        own = self._port()
        for link in LINKS:
            self.connect_on_link(netns, protocol, link, address, port, SocketOptions(), own=own)

    def _accepted(
        self, client: socket.socket, to: tuple[str, int], listeners: Iterable[ModelSocket]
    ) -> socket.socket | None:
        """The other end of a connection, None if nobody listens there."""
        if error_of(lambda: client.connect(to)):
            return None
        accepted: list[socket.socket] = []

        def accept() -> bool:
            for one in listeners:
                self.real[one].setblocking(False)
                try:
                    accepted.append(self.real[one].accept()[0])
                except BlockingIOError:
                    continue
                return True
            return False

        eventually(accept, "the connection is accepted")
        (server,) = accepted
        server.settimeout(5)
        (local, local_port), (peer, peer_port) = name_of(client), peer_of(server)
        assert (unmapped(peer), peer_port) == (unmapped(local), local_port)
        return server

    # ------------------------------------------------------------------------------- uncommon TCP states

    def _private_listener(self, netns: Netns, address: str, options: SocketOptions) -> socket.socket:
        listener = self._bound(netns, address.replace("::ffff:", ""), self._port(), "tcp", options.on_loopback)
        assert listener is not None
        return listener

    def connect_in_vain(self, netns: Netns, address: str, options: SocketOptions) -> None:
        """SYN_SENT: the listener drops whatever it gets."""
        listener = self._private_listener(netns, address, SocketOptions())
        deafen(listener)
        listener.listen(1)
        self._add(netns, listener, LISTEN, autobound=False)
        client = self._client(netns, address, "tcp", options)
        client.setblocking(False)
        assert client.connect_ex((address, name_of(listener)[1])) == errno.EINPROGRESS
        client.settimeout(5)
        one = self._add(netns, client, SYN_SENT, autobound=not options.own_port)
        one.peer, one.peer_port = ip_address(address), name_of(listener)[1]  # getpeername() does not know it yet

    def connect_to_deferring_listener(self, netns: Netns, address: str, options: SocketOptions) -> None:
        """SYN_RECV: the connection waits for its first data, and is a request socket as long."""
        sock = self._private_listener(netns, address, options)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
        sock.listen(16)
        listener = self._add(netns, sock, LISTEN, autobound=False)
        client = self._client(netns, address, "tcp", options)
        client.connect((address, listener.local_port))
        one = self._add(netns, client, ESTABLISHED, autobound=not options.own_port)
        request = self._add_of_kernel(listener, SYN_RECV, is_request=True)
        request.local, request.peer, request.peer_port = unmapped(one.peer), unmapped(one.local), one.local_port
        one.other_end = request
        self._clogged.add(one)

    def close_behind_data(self, netns: Netns, address: str, state: int, options: SocketOptions) -> None:
        """FIN_WAIT1, LAST_ACK or CLOSING: the FIN waits behind data that the other end does not take."""
        listener = self._private_listener(netns, address, SocketOptions())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        listener.listen(16)
        client = self._client(netns, address, "tcp", options)
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
        one, other = self._add_pair(netns, client, server, autobound=not options.own_port)
        one.state = state
        other.state = ESTABLISHED if state == FIN_WAIT1 else FIN_WAIT2
        eventually(lambda: state_of(server) == other.state, "the acknowledgement of the FIN")
        self._clogged |= {one, other}
