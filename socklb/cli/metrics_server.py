# SPDX-License-Identifier: MIT
"""A small HTTP server in a thread of its own: one answer a connection, and no client that others have to wait for.

It waits for all of them at once. Where one more comes than there is room for, the oldest has to leave: an answer takes
some milliseconds, and whoever has asked has it by then, unless he does not take it.
"""

from __future__ import annotations

import errno
import re
import socket
from collections import namedtuple
from contextlib import contextmanager
from io import BytesIO
from select import POLLIN, POLLOUT, poll
from threading import Event
from time import monotonic

from ..features import standard_module
from .outlet import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from http.server import BaseHTTPRequestHandler
    from typing import Any

    Routes = Mapping[str, Callable[[], tuple[int, str, str]]]
else:
    BaseHTTPRequestHandler = standard_module("http.server", "--metrics").server.BaseHTTPRequestHandler

CLIENTS = 100
"""So many at once."""

SECONDS = 5.0
"""For so long a client is listened to, and waited for, in all."""

HEAD_SIZE = 1 << 16
"""So much a request may have, up to the empty line."""

_BACKLOG = 4096  # those who come while this thread waits for its turn; the kernel has a limit too
_PAUSE = 0.1  # before the next attempt to accept, where descriptors have run out
_END = re.compile(rb"\n\r?\n")

_ADVICE = {
    errno.EADDRINUSE: "something listens there already; stop it, or choose another port",
    errno.EACCES: "not permitted: ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one",
    errno.EADDRNOTAVAIL: "this host has no such address; 0.0.0.0 and [::] stand for all that it has",
    errno.EAFNOSUPPORT: "this kernel has no IPv6; choose a v4 address",
}


@contextmanager
def serving(address: str, port: int, routes: Routes) -> Iterator[None]:
    """While active, whoever connects is answered: `routes` has a function for each path, which returns the status, the
    content type and the text. It listens as soon as this is entered, or ValueError says why it cannot. At the end no
    thread and no connection is left.
    """
    with _listening(address, port) as listener:
        server = _Server(listener, routes)
        thread = start_thread(server.serve, "socklb metrics")
        try:
            yield
        finally:
            server.end()
            thread.join()


def _listening(address: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        family, kind, protocol, _, where = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        why = _ADVICE.get(error.errno or 0, error.strerror)
        host = f"[{address}]" if ":" in address else address
        raise ValueError(f"--metrics: cannot listen on {host}:{port}: {why}") from None
    return listener


class _Client(namedtuple("_Client", "connection deadline steps")):
    """`steps`: those of its conversation, each up to where it has to wait, and for what."""

    __slots__ = ()
    connection: socket.socket
    deadline: float
    steps: Iterator[int]


class _Server:
    """`serve` is for a thread, and returns after `end`."""

    def __init__(self, listener: socket.socket, routes: Routes) -> None:
        self._listener, self._routes = listener, routes
        self._clients: dict[int, _Client] = {}  # by descriptor, the oldest first
        self._poll = poll()
        self._poll.register(listener, POLLIN)
        self._ended = Event()

    def end(self) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes up who waits for it

    def serve(self) -> None:
        while not self._ended.is_set():
            left = self._left()
            ready = dict(self._poll.poll(None if left is None else left * 1000))
            is_called = ready.pop(self._listener.fileno(), 0)
            for number in ready:
                self._go_on(number)
            if self._left() == 0.0:
                self._turn_out_oldest()
            if is_called:  # one at a time: whoever has asked meanwhile is answered before he has to make room
                self._accept()
        while self._clients:
            self._turn_out_oldest()

    def _left(self) -> float | None:
        """For how long the oldest client may stay; None where there is none."""
        for client in self._clients.values():
            return max(0.0, client.deadline - monotonic())
        return None

    def _accept(self) -> None:
        if len(self._clients) >= CLIENTS:
            self._turn_out_oldest()
        try:
            connection, _ = self._listener.accept()
        except OSError:  # the client has gone, or descriptors have run out, or it is the end
            if self._clients:
                self._turn_out_oldest()
            else:
                self._ended.wait(_PAUSE)
            return
        connection.setblocking(False)
        number = connection.fileno()
        self._clients[number] = _Client(connection, monotonic() + SECONDS, _conversation(connection, self._routes))
        self._go_on(number)

    def _go_on(self, number: int) -> None:
        try:
            self._poll.register(number, next(self._clients[number].steps))
        except (StopIteration, OSError):  # it is over, or the client has gone
            self._turn_out(number)

    def _turn_out(self, number: int) -> None:
        self._poll.unregister(number)
        self._clients.pop(number).connection.close()

    def _turn_out_oldest(self) -> None:
        self._turn_out(next(iter(self._clients)))


def _conversation(connection: socket.socket, routes: Routes) -> Iterator[int]:
    """Reads one request, and answers it. Yields the event that it waits for."""
    head, searched = bytearray(), 0
    while len(head) <= HEAD_SIZE and not _END.search(head, searched):
        yield POLLIN
        received = connection.recv(HEAD_SIZE)
        if not received:
            break
        searched = max(0, len(head) - 2)
        head += received
    answer = memoryview(_Answer(head, None, routes).data)  # type: ignore[arg-type]
    while answer:
        answer = answer[connection.send(answer) :]
        if answer:
            yield POLLOUT


class _Answer(BaseHTTPRequestHandler):
    """`data` is the answer to a request; `server` has the routes."""

    request: bytearray
    wfile: BytesIO
    server: Any
    error_message_format = "%(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def setup(self) -> None:
        self.rfile, self.wfile = BytesIO(self.request), BytesIO()

    def handle(self) -> None:
        self.raw_requestline = self.rfile.readline()
        try:
            if self.parse_request():  # else it has sent what is wrong
                self._send(*self._answer())
        except Exception as error:  # of the package: whoever asks is told, and the others are still answered
            self._send(500, self.error_content_type, f"{type(error).__name__}: {error}\n")

    def _answer(self) -> tuple[int, str, str]:
        if len(self.request) > HEAD_SIZE:
            return 431, self.error_content_type, f"a request has at most {HEAD_SIZE} bytes\n"
        if self.command not in ("GET", "HEAD"):
            return 405, self.error_content_type, "GET and HEAD alone\n"
        route = self.server.get(self.path.partition("?")[0])
        if route is None:
            return 404, self.error_content_type, f"there is {', '.join(self.server)}\n"
        answer: tuple[int, str, str] = route()
        return answer

    def _send(self, status: int, content_type: str, text: str) -> None:
        body = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if status == 405:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def finish(self) -> None:
        self.data = self.wfile.getvalue()

    def version_string(self) -> str:
        return "socklb"

    def log_message(self, *_: object) -> None:
        """Nothing: standard error is for what needs attention."""
