"""Processes that hold connections, both ends of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from socket import socket

from ..children import Child, allow_descriptors, questions
from ..sockets import Sockets, cookie_of, pending_error, reset_on_close

_AT_MOST = 7_500  # connections in a process


class Holder:
    """A process with `count` connections to each of the addresses in turn, none before `reconnect`."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def reconnect(self) -> list[int]:
        """Close all that is left, and connect anew. The cookies of the clients."""
        cookies: list[int] = self._child.ask("reconnect")
        return cookies

    def errors(self) -> Counter[tuple[str, str]]:
        """How many connections had which errors pending at the client and at the server; each is reported once."""
        errors: Counter[tuple[str, str]] = self._child.ask("errors")
        return errors


@contextmanager
def holders(count: int, addresses: Sequence[str], port: int) -> Iterator[list[Holder]]:
    """So many connections to these addresses, spread over as few processes as descriptors allow.

    Each process listens on a port of its own, `port` and those that follow.
    """
    with ExitStack() as stack:
        most = min(_AT_MOST, allow_descriptors() // 2)
        shares = [min(most, count - start) for start in range(0, count, most)]
        yield [
            Holder(stack.enter_context(Child(partial(_hold, share, addresses, port + number))))
            for number, share in enumerate(shares)
        ]


def _hold(count: int, addresses: Sequence[str], port: int, pipe: Connection) -> None:
    with Sockets() as sockets:
        connections: list[tuple[socket, socket]] = []
        for question in questions(pipe):
            if question == "reconnect":
                for client, server in connections:
                    client.close()
                    server.close()
                connections = [sockets.tcp(addresses[n % len(addresses)], port) for n in range(count)]
                for client, _ in connections:
                    reset_on_close(client)
                pipe.send([cookie_of(client) for client, _ in connections])
            else:
                pipe.send(Counter((pending_error(client), pending_error(server)) for client, server in connections))
