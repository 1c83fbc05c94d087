# SPDX-License-Identifier: MIT
"""The demo's world: three backends and their clients; those of one backend are cut."""

from __future__ import annotations

import errno
import socket
from select import select

from ...filters.backend import Backend
from ...kernel.sandbox import add_loopback_address

VICTIM, HEIR = "green", "blue"
"""The backend that goes, and the one that its service has afterwards."""

_PORT = 9000
_BACKENDS = {"red": ("127.0.0.1", "fd00::1"), "green": ("127.0.0.2", "fd00::2"), "blue": ("127.0.0.3", "fd00::3")}
_TIMEOUT_SECONDS = 5
_STREAM, _DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
_KINDS: dict[int, str] = {_STREAM: "tcp", _DATAGRAM: "udp"}


class Client:
    """One connected socket, and the sockets of servers one of which answers it, by the names of their backends."""

    def __init__(
        self, backend: str, kind: int, form: str, near: socket.socket, answering: dict[socket.socket, str]
    ) -> None:
        self.backend, self.protocol, self.form = backend, _KINDS[kind], form
        self.near, self._answering, self._kind = near, answering, kind

    def talk(self) -> str:
        """Ask: the backend that answers, or the errors that the application sees one after another."""
        errors: list[str] = []
        for _ in range(2):  # the first error says what happened, the second what stays
            try:
                return self._exchange()
            except OSError as error:
                errors.append(errno.errorcode.get(error.errno or 0, str(error)))
        return ", then ".join(errors)

    def _exchange(self) -> str:
        pending = self.near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if pending:
            raise OSError(pending, "pending")
        self.near.send(b"ping")
        asked, _, _ = select([*self._answering], [], [], _TIMEOUT_SECONDS)
        for server in asked:
            if self._kind == _STREAM:
                server.recv(4)
                server.send(b"pong")
            else:
                _, sender = server.recvfrom(4)
                server.sendto(b"pong", sender)
            self.near.recv(4)
            return self._answering[server]
        raise socket.timeout("nobody answers")


class World:
    """The backends' and clients' sockets. Without IPv6 the clients by v6 and mapped addresses are left out."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.servers: dict[tuple[str, int], socket.socket] = {}  # of v4, by backend and kind
        self._others: list[socket.socket] = []
        hosts = [_BACKENDS[VICTIM][0]]
        try:
            for _, address in _BACKENDS.values():
                add_loopback_address(address)
        except OSError:
            has_v6 = False
        else:
            has_v6 = True
            hosts.append(f"[{_BACKENDS[VICTIM][1]}]")
        self.filter = " or ".join(f"dst {host}:{_PORT}" for host in hosts)
        for backend, (v4, v6) in _BACKENDS.items():
            for kind in (_STREAM, _DATAGRAM):
                server = self.servers[backend, kind] = self._serve(socket.AF_INET, kind, v4)
                self.connect(backend, kind, "v4", server, socket.AF_INET, v4)
                if has_v6:
                    self.connect(backend, kind, "v4-mapped", server, socket.AF_INET6, f"::ffff:{v4}")
                    server = self._serve(socket.AF_INET6, kind, v6)
                    self.connect(backend, kind, "v6", server, socket.AF_INET6, v6)

    def backend(self, name: str, protocol: str) -> Backend:
        """Where a backend serves by v4."""
        return Backend(_BACKENDS[name][0], _PORT, protocol)

    def _serve(self, family: int, kind: int, address: str) -> socket.socket:
        server = self._keep(socket.socket(family, kind))
        server.bind((address, _PORT))
        if kind == _STREAM:
            server.listen()
        return server

    def connect(
        self, backend: str, kind: int, form: str, server: socket.socket, family: int, address: str, port: int = _PORT
    ) -> None:
        """Make a client that this server accepts; one of UDP may be answered by others later."""
        near = self._keep(socket.socket(family, kind))
        near.connect((address, port))
        if kind == _STREAM:
            answering = {self._keep(server.accept()[0]): backend}
        else:
            answering = {far: name for (name, its_kind), far in self.servers.items() if its_kind == kind}
            answering[server] = backend
        self.clients.append(Client(backend, kind, form, near, answering))

    def _keep(self, made: socket.socket) -> socket.socket:
        made.settimeout(_TIMEOUT_SECONDS)
        self._others.append(made)
        return made

    def close(self) -> None:
        for each in self._others:
            each.close()
