# SPDX-License-Identifier: MIT
"""The demo's world: three backends and their clients; one backend's connections are destroyed."""

from __future__ import annotations

import errno
import socket

from ...engine.run import destroy_sockets
from ...errors import NotSupported
from ...filters import SocketFilter
from ...kernel.sandbox import add_loopback_address, enter_private_network
from ..output import error_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...engine.report import Report

VICTIM = "green"
_PORT = 9000
_BACKENDS = {"red": ("127.0.0.1", "fd00::1"), "green": ("127.0.0.2", "fd00::2"), "blue": ("127.0.0.3", "fd00::3")}
_TIMEOUT_SECONDS = 5
_STREAM, _DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
_KINDS: dict[int, str] = {_STREAM: "tcp", _DATAGRAM: "udp"}


def play() -> tuple[str, list[dict[str, Any]], Report]:
    """Build the world and destroy the connections to one backend: (the filter, a row for each client, the report)."""
    try:
        enter_private_network()
    except OSError as error:
        raise NotSupported(error.errno or 0, _why_no_world(error)) from None
    world = _World()
    try:
        before = [client.talk() for client in world.clients]
        report = destroy_sockets([SocketFilter.parse(world.filter, protocol) for protocol in ("tcp", "udp")])
        after = [client.talk() for client in world.clients]
    finally:
        world.close()
    rows = [
        {
            "client": f"{client.protocol} {client.form}",
            "backend": client.backend,
            "before": was,
            "after": now,
            "as_expected": was == "ok" and (now != "ok") == (client.backend == VICTIM),
        }
        for client, was, now in zip(world.clients, before, after)
    ]
    return world.filter, rows, report


def _why_no_world(error: OSError) -> str:
    if isinstance(error, NotSupported):
        return f"{error_text(error)}; run the demo with a newer Python. Destroying works without it"
    return (
        f"no private network namespace can be made here ({error.strerror}): run the demo as root, or allow "
        "user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns; in a container, its seccomp profile)"
    )


class _Client:
    """One connected socket, and the server's socket that answers it."""

    def __init__(self, backend: str, kind: int, form: str, near: socket.socket, far: socket.socket) -> None:
        self.backend, self.protocol, self.form = backend, _KINDS[kind], form
        self.near, self._far, self._kind = near, far, kind

    def talk(self) -> str:
        """Ask the backend something: "ok", or the errors that the application sees one after another."""
        errors: list[str] = []
        for _ in range(2):  # the first error says what happened, the second what stays
            try:
                self._exchange()
            except OSError as error:
                errors.append(errno.errorcode.get(error.errno or 0, str(error)))
            else:
                break
        return ", then ".join(errors) or "ok"

    def _exchange(self) -> None:
        pending = self.near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if pending:
            raise OSError(pending, "pending")
        self.near.send(b"ping")
        if self._kind == _STREAM:
            self._far.recv(4)
            self._far.send(b"pong")
        else:
            _, sender = self._far.recvfrom(4)
            self._far.sendto(b"pong", sender)
        self.near.recv(4)


class _World:
    """The backends' and clients' sockets. Without IPv6 the clients by v6 and mapped addresses are left out."""

    def __init__(self) -> None:
        self.clients: list[_Client] = []
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
                server = self._serve(socket.AF_INET, kind, v4)
                self._connect(backend, kind, "v4", server, socket.AF_INET, v4)
                if has_v6:
                    self._connect(backend, kind, "v4-mapped", server, socket.AF_INET6, f"::ffff:{v4}")
                    server = self._serve(socket.AF_INET6, kind, v6)
                    self._connect(backend, kind, "v6", server, socket.AF_INET6, v6)

    def _serve(self, family: int, kind: int, address: str) -> socket.socket:
        server = self._keep(socket.socket(family, kind))
        server.bind((address, _PORT))
        if kind == _STREAM:
            server.listen()
        return server

    def _connect(self, backend: str, kind: int, form: str, server: socket.socket, family: int, address: str) -> None:
        near = self._keep(socket.socket(family, kind))
        near.connect((address, _PORT))
        far = self._keep(server.accept()[0]) if kind == _STREAM else server
        self.clients.append(_Client(backend, kind, form, near, far))

    def _keep(self, made: socket.socket) -> socket.socket:
        made.settimeout(_TIMEOUT_SECONDS)
        self._others.append(made)
        return made

    def close(self) -> None:
        for each in self._others:
            each.close()
