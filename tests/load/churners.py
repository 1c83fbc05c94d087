"""Processes that open and close connections at full speed, and tell which of them died of what they did not do."""

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

_KEPT = 64  # connections that are open at a time
_COUNT = 8  # bytes of the number that is shared


class Death(NamedTuple):
    """A connection with an error that its owner did not cause: the client's cookie, each end's errno or what failed."""

    cookie: int
    client: str
    server: str


class Told(NamedTuple):
    """What a churner tells in the end: the cookies of all its clients, and those that died."""

    cookies: set[int]
    deaths: list[Death]


class Churner:
    """A process that connects to an address and port, where it listens itself, and closes with resets.

    `made` is how many connections it has made, at any time.
    """

    def __init__(self, child: Child, shared: mmap.mmap) -> None:
        self._child, self._shared = child, shared

    @property
    def made(self) -> int:
        return int.from_bytes(self._shared[:_COUNT], "little")

    def stop(self) -> Told:
        """Let it look at what it still has, close that, and tell."""
        told: Told = self._child.ask("stop")
        return told


@contextmanager
def churner(address: str, port: int, source: str, source_ports: Sequence[int] = ()) -> Iterator[Churner]:
    """Clients have this source address, and these ports again and again: the tuple of one that has just been closed.

    Without ports, the ones that the system gives, as everybody's.
    """
    with (
        mmap.mmap(-1, _COUNT) as shared,
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
        kept: deque[_Pair] = deque()
        told = Told(set(), [])
        while not pipe.poll():
            # With ports of its own it closes one that has the port before it takes that again.
            if len(kept) == (len(ports) or _KEPT):
                _close(kept.popleft(), told)
            number = len(told.cookies)
            kept.append(_open(listener, address, port, source, ports[number % len(ports)] if ports else 0))
            told.cookies.add(kept[-1].cookie)
            shared[:_COUNT] = (number + 1).to_bytes(_COUNT, "little")
        for pair in kept:
            _close(pair, told)
    pipe.recv()
    pipe.send(told)


def _open(listener: socket, address: str, port: int, source: str, source_port: int) -> _Pair:
    client = socket(family_of(address), SOCK_STREAM)
    reset_on_close(client)
    client.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    client.setsockopt(0, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: a port is taken when the peer is known
    cookie = cookie_of(client)
    server = None
    failed = ""
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


def _close(pair: _Pair, told: Told) -> None:
    client = pair.failed or pending_error(pair.client)
    server = pending_error(pair.server) if pair.server is not None else ""
    if client or server:
        told.deaths.append(Death(pair.cookie, client, server))
    pair.client.close()
    if pair.server is not None:
        pair.server.close()
