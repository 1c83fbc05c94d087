"""A crowd of TCP sockets in this network namespace, split over processes, and a backend with connections of its own."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Sequence
from types import TracebackType

_SPARE_DESCRIPTORS = 100

BACKEND = ("127.9.9.9", 9999)


class _Child:
    """A process that holds sockets and does as it is told, one word a line; it ends with the pipe."""

    def __init__(self, body: Callable[[int, int], None]) -> None:
        commands, self._to_child = os.pipe()
        self._from_child, answers = os.pipe()
        os.set_inheritable(self._to_child, False)
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self._to_child)
                os.close(self._from_child)
                body(commands, answers)
            finally:
                os._exit(0)
        os.close(commands)
        os.close(answers)

    def wait(self) -> None:
        if os.read(self._from_child, 1) != b".":
            raise RuntimeError(f"process {self.pid} of the crowd died; are descriptors or memory short?")

    def tell(self, command: bytes) -> None:
        os.write(self._to_child, command)
        self.wait()

    def end(self) -> None:
        os.close(self._to_child)
        os.close(self._from_child)
        os.waitpid(self.pid, 0)


class Crowd:
    """`size` TCP sockets (both ends count), a tenth of them v6 and a tenth v4-mapped; none is the backend's.

    `renew_victims` makes the backend's connections: so many clients, of which every second is v4-mapped.
    """

    def __init__(self, size: int) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        share = min(18_000, limit - _SPARE_DESCRIPTORS)
        self._children: list[_Child] = []
        left = size
        while left > 0:
            here = min(share, left)
            number = len(self._children)
            self._children.append(_Child(lambda c, a, n=number, k=here: _hold_crowd(n, k // 2, c, a)))  # type: ignore[misc]
            left -= here
        for child in self._children:
            child.wait()
        self._backend = _Child(_hold_victims)
        self._backend.wait()

    def renew_victims(self) -> None:
        """Close what is left of the backend's connections, and make 100 anew."""
        self._backend.tell(b"r")

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The younger ones hold ends of the pipes of the older ones.
        for child in reversed([*self._children, self._backend]):
            child.end()


VICTIMS = 100


def _hold_crowd(number: int, connections: int, commands: int, answers: int) -> None:
    kept: list[socket.socket] = []
    v4 = _listen(("127.1.0.0", 7000 + number))
    v6 = _listen(("::1", 7000 + number))
    for n in range(connections):
        kind = n % 10
        address = f"127.1.{number}.{n % 250}"
        if kind == 0:
            kept += _connect(v6, ("::1", 7000 + number))
        elif kind == 1:
            kept += _connect(v4, ("::ffff:127.1.0.0", 7000 + number))
        else:
            kept += _connect(v4, ("127.1.0.0", 7000 + number), source=address)
    os.write(answers, b".")
    os.read(commands, 1)


def _hold_victims(commands: int, answers: int) -> None:
    listener = _listen(BACKEND)
    kept: list[socket.socket] = []
    os.write(answers, b".")
    while os.read(commands, 1):
        for each in kept:
            each.close()
        kept = []
        for n in range(VICTIMS):
            kept += _connect(listener, (("::ffff:" if n % 2 else "") + BACKEND[0], BACKEND[1]))
        os.write(answers, b".")


def _listen(address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    listener.bind(address)
    listener.listen(128)
    return listener


def _connect(listener: socket.socket, address: tuple[str, int], source: str | None = None) -> Sequence[socket.socket]:
    client = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    # Closed with a reset: no time-wait mini-sockets are left to change the crowd between rounds.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    if source is not None:
        client.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: the port is chosen at connect
        client.bind((source, 0))
    client.connect(address)
    return client, listener.accept()[0]
