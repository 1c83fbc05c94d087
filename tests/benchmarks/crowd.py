"""A crowd of TCP sockets in this network namespace, split over processes, and a backend with connections of its own."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from types import TracebackType

from ..children import Child, allow_descriptors, questions

BACKEND = ("127.9.9.9", 9999)
_PORT = 7000


class Crowd:
    """`size` TCP sockets (both ends count), a tenth of them v6 and a tenth v4-mapped; none of them is the backend's.

    `renew_victims` makes the backend's connections: so many clients, of which every second is v4-mapped.
    """

    def __init__(self, size: int) -> None:
        share = min(18_000, allow_descriptors())
        self._stack = ExitStack()
        children: list[Child] = []
        left = size
        while left > 0:
            here = min(share, left)
            number = len(children)
            body = lambda pipe, n=number, k=here: _hold_crowd(n, k // 2, pipe)  # noqa: E731
            children.append(self._stack.enter_context(Child(body)))
            left -= here
        for child in children:
            child.receive()
        self.ports = [_PORT + number for number in range(len(children))]  # that it is connected to
        self._backend = self._stack.enter_context(Child(_hold_victims))
        self._backend.receive()

    def renew_victims(self) -> None:
        """Close what is left of the backend's connections, and make 100 new ones."""
        self._backend.ask("renew")

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


VICTIMS = 100


def _hold_crowd(number: int, connections: int, pipe: Connection) -> None:
    kept: list[socket.socket] = []
    v4 = listen(("127.1.0.0", _PORT + number))
    v6 = listen(("::1", _PORT + number))
    for n in range(connections):
        kind = n % 10
        address = f"127.1.{number}.{n % 250}"
        if kind == 0:
            kept += connect(v6, ("::1", _PORT + number))
        elif kind == 1:
            kept += connect(v4, ("::ffff:127.1.0.0", _PORT + number))
        else:
            kept += connect(v4, ("127.1.0.0", _PORT + number), source=address)
    pipe.send("ready")
    pipe.recv()


def _hold_victims(pipe: Connection) -> None:
    listener = listen(BACKEND)
    kept: list[socket.socket] = []
    pipe.send("ready")
    for _ in questions(pipe):
        for each in kept:
            each.close()
        kept = []
        for n in range(VICTIMS):
            kept += connect(listener, (("::ffff:" if n % 2 else "") + BACKEND[0], BACKEND[1]))
        pipe.send("renewed")


def listen(address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    listener.bind(address)
    listener.listen(128)
    return listener


def connect(listener: socket.socket, address: tuple[str, int], source: str | None = None) -> Sequence[socket.socket]:
    client = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    # Closed with a reset: no time-wait mini-sockets are left to change the crowd between rounds.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    if source is not None:
        client.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port is chosen at connect
        client.bind((source, 0))
    client.connect(address)
    return client, listener.accept()[0]
