"""Real NAT: rules that send clients of a service to its backends, and backends that tell who they are.

set_services({VIP: backend})                     # in the current network namespace; again: other rules instead
with answering({listener: "A"}):                 # a process answers there with its name
    ask(client)                                  # "A", or the name of the error that the client got
"""

from __future__ import annotations

import errno
import itertools
import selectors
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection

from socklb.cli.demo.dnat import (
    DNAT_PRIORITY,
    NFPROTO,
    OUTPUT,
    REGISTER,
    Nftables,
    Table,
    expression,
    set_services,
)

from .children import Child

__all__ = ["answering", "ask", "set_services", "track"]

_CT_STATE = 0
_numbers = itertools.count(1)


def track() -> None:
    """Switch conntrack on, in the network namespace of the calling thread, and do nothing else to its packets."""
    messages = []
    for family in NFPROTO.values():
        table = Table(family, "track")
        state = expression("ct", (1, REGISTER), (2, _CT_STATE))  # NFTA_CT_DREG, _KEY
        chain = table.chain("output", OUTPUT, DNAT_PRIORITY, type="filter")
        messages += [*table.made_anew(), chain, table.rule("output", state)]
    with Nftables() as nftables:
        nftables.commit(messages, "switch conntrack on")


@contextmanager
def answering(servers: Mapping[socket.socket, str]) -> Iterator[Child]:
    """Meanwhile a process has these sockets, TCP listeners and bound UDP sockets, and answers with their names."""
    with Child(lambda pipe: _serve(servers, pipe)) as child:
        for server in servers:
            server.close()
        yield child


def _serve(servers: Mapping[socket.socket, str], pipe: Connection) -> None:
    """Until the other end of the pipe is closed."""
    selector = selectors.DefaultSelector()
    selector.register(pipe, selectors.EVENT_READ)
    for server, name in servers.items():
        server.setblocking(True)
        selector.register(server, selectors.EVENT_READ, name)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                return
            assert isinstance(key.fileobj, socket.socket)
            _answer(key.fileobj, key.data, selector)


def _answer(server: socket.socket, name: str, selector: selectors.BaseSelector) -> None:
    if server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        selector.register(server.accept()[0], selectors.EVENT_READ, name)
        return
    try:
        question, sender = server.recvfrom(64)
        answer = f"{name} {question.decode()}".encode()
        if server.type == socket.SOCK_DGRAM:
            server.sendto(answer, sender)
        elif question:
            server.send(answer)
        else:
            raise EOFError
    except (OSError, EOFError):
        if server.type == socket.SOCK_STREAM:
            selector.unregister(server)
            server.close()


def ask(client: socket.socket, to: tuple[str, int] | None = None, *, patience: float = 5) -> str:
    """Who answers a client: a name, "EOF", "timeout" or the name of an errno; `to`: where one without a peer asks."""
    question = f"{next(_numbers)}\n"
    client.settimeout(patience)
    answers = b""
    try:
        if to is None:
            client.send(question.encode())
        else:
            client.sendto(question.encode(), to)
        while not answers.endswith(f" {question}".encode()):  # one to a question before may come late
            received = client.recv(1024)
            if not received:
                return "EOF"
            answers += received
    except socket.timeout:
        return "timeout"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return answers.decode().splitlines()[-1].split()[0]
