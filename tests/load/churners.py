"""Processes that open and close connections at full speed, and notice which of them somebody else closed."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from socket import SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, socket
from typing import NamedTuple

from ..children import Child
from ..sockets import Sockets, cookie_of, family_of, pending_error, reset_on_close

_OPEN = 64  # connections at a time
_COUNTER = 8  # bytes of the number that is shared


class Death(NamedTuple):
    """A connection with an error that its owner did not cause: the client's cookie, each end's errno or what failed."""

    cookie: int
    client: str
    server: str


class Churned(NamedTuple):
    """The cookies of all clients that there were, and the connections that somebody else closed."""

    cookies: set[int]
    deaths: list[Death]


class Churner:
    """A process that connects to an address and port, where it listens itself, and closes with resets."""

    def __init__(self, child: Child, shared: mmap.mmap) -> None:
        self._child, self._shared = child, shared

    @property
    def made(self) -> int:
        """How many connections so far."""
        return int.from_bytes(self._shared[:_COUNTER], "little")

    def stop(self) -> Churned:
        churned: Churned = self._child.ask("stop")
        return churned


@contextmanager
def churner(address: str, port: int, source: str, source_ports: Sequence[int] = ()) -> Iterator[Churner]:
    """Clients have this source address, and these ports again and again: the tuple of one that has just been closed.

    Without ports, the ones that the system gives.
    """
    with (
        mmap.mmap(-1, _COUNTER) as shared,
        Child(lambda pipe: _churn(address, port, source, source_ports, shared, pipe)) as child,
    ):
        yield Churner(child, shared)


class _Pair(NamedTuple):
    cookie: int
    client: socket
    server: socket | None
    failed: str


def _churn(address: str, port: int, source: str, ports: Sequence[int], shared: mmap.mmap, pipe: Connection) -> None:
    with Sockets() as sockets:
        listener = sockets.listen(address, port)
        pairs: deque[_Pair] = deque()
        churned = Churned(set(), [])
        while not pipe.poll():
            # With ports of its own it closes one that has the port before it takes that again.
            if len(pairs) == (len(ports) or _OPEN):
                _close(pairs.popleft(), churned)
            number = len(churned.cookies)
            pairs.append(_open(listener, address, port, source, ports[number % len(ports)] if ports else 0))
            churned.cookies.add(pairs[-1].cookie)
            shared[:_COUNTER] = (number + 1).to_bytes(_COUNTER, "little")
        for pair in pairs:
            _close(pair, churned)
    pipe.recv()
    pipe.send(churned)


def _open(listener: socket, address: str, port: int, source: str, source_port: int) -> _Pair:
    client = socket(family_of(address), SOCK_STREAM)
    reset_on_close(client)
    client.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    client.setsockopt(0, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: a port is taken when the peer is known
    cookie = cookie_of(client)
    server, failed = None, ""
    try:
        client.bind((source, source_port))
        client.connect((address, port))
        local = client.getsockname()[1]
        peer = 0
        while peer != local:  # whoever was destroyed while it was connecting may have left somebody in the queue
            if server is not None:
                server.close()
            server, (_, peer, *_) = listener.accept()
    except OSError as error:
        failed = repr(error)
    return _Pair(cookie, client, server, failed)


def _close(pair: _Pair, churned: Churned) -> None:
    client = pair.failed or pending_error(pair.client)
    server = pending_error(pair.server) if pair.server is not None else ""
    if client or server:
        churned.deaths.append(Death(pair.cookie, client, server))
    pair.client.close()
    if pair.server is not None:
        pair.server.close()
