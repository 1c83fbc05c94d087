# SPDX-License-Identifier: MIT
"""A small HTTP server in threads of its own: one answer a connection, and no client that others have to wait for.

A thread accepts, and a few more have a connection each, for 5 s at most. Where one more client comes, the oldest has to
leave, once it has had a moment: an answer takes some milliseconds, and who takes longer is waited for.
"""

from __future__ import annotations

import errno
import re
import socket
from collections import namedtuple
from contextlib import contextmanager, suppress
from functools import partial
from io import BytesIO
from threading import Event, Lock
from time import monotonic

from ..errors import SocklbError
from ..features import standard_module
from .outlet import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from http.server import BaseHTTPRequestHandler
    from threading import Thread
    from typing import Any

    Routes = Mapping[str, Callable[[], tuple[int, str, str]]]
else:
    BaseHTTPRequestHandler = standard_module("http.server", "--metrics").server.BaseHTTPRequestHandler

CLIENTS = 7
"""So many at once, each with a thread; with the one that accepts there are 8."""

SECONDS = 5.0
"""For so long a client is listened to, and waited for, in all."""

HEAD_SIZE = 1 << 16
"""So much a request may have, up to the empty line."""

_MOMENT = 0.5  # before a client has to make room for another one
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
        thread = start_thread(server.accept_all, "socklb metrics")
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
            listener.listen()
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        why = _ADVICE.get(error.errno or 0, error.strerror)
        host = f"[{address}]" if ":" in address else address
        raise ValueError(f"--metrics: cannot listen on {host}:{port}: {why}") from None
    return listener


class _Client(namedtuple("_Client", "connection thread since")):
    __slots__ = ()
    connection: socket.socket
    thread: Thread
    since: float


class _Server:
    """`accept_all` is for a thread, and returns after `end`."""

    def __init__(self, listener: socket.socket, routes: Routes) -> None:
        self._listener, self._routes = listener, routes
        self._clients: list[_Client] = []  # of the thread that accepts alone, the oldest first
        self._closing = Lock()  # or a descriptor could be shut down that is another file's by then
        self._ended = Event()

    def end(self) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes up who accepts

    def accept_all(self) -> None:
        while not self._ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # the client has gone, or descriptors have run out, or it is the end
                self._ended.wait(_PAUSE)
                continue
            self._make_room()
            try:
                thread = start_thread(partial(self._serve, connection), "socklb metrics client")
            except SocklbError:
                connection.close()
            else:
                self._clients.append(_Client(connection, thread, monotonic()))
        for client in self._clients:
            self._turn_out(client)

    def _make_room(self) -> None:
        self._clients = [client for client in self._clients if client.thread.is_alive()]
        if len(self._clients) >= CLIENTS:
            oldest = self._clients[0]
            oldest.thread.join(max(0.0, oldest.since + _MOMENT - monotonic()))
            self._turn_out(oldest)

    def _turn_out(self, client: _Client) -> None:
        with self._closing, suppress(OSError):  # it may have been closed by now
            client.connection.shutdown(socket.SHUT_RDWR)
        client.thread.join()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with suppress(OSError):  # the client has gone, or its time is up
                _Conversation(connection, None, self._routes)  # type: ignore[arg-type]
        finally:
            with self._closing:
                connection.close()


class _Conversation(BaseHTTPRequestHandler):
    """Reads one request, and answers it; `server` has the routes."""

    request: socket.socket
    server: Any
    error_message_format = "%(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def setup(self) -> None:
        self._deadline = monotonic() + SECONDS
        head, searched = bytearray(), 0
        while len(head) <= HEAD_SIZE and not _END.search(head, searched):
            left = self._deadline - monotonic()
            if left <= 0:
                raise TimeoutError
            self.request.settimeout(left)
            received = self.request.recv(HEAD_SIZE)
            if not received:
                break
            searched = max(0, len(head) - 2)
            head += received
        self._is_too_long = len(head) > HEAD_SIZE
        self.rfile, self.wfile = BytesIO(head), BytesIO()

    def handle(self) -> None:
        self.raw_requestline = self.rfile.readline()
        try:
            if self.parse_request():  # else it has sent what is wrong
                self._send(*self._answer())
        except Exception as error:  # of the package: whoever asks is told, and the others are still answered
            self._send(500, self.error_content_type, f"{type(error).__name__}: {error}\n")

    def _answer(self) -> tuple[int, str, str]:
        if self._is_too_long:
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
        self.request.settimeout(max(0.0, self._deadline - monotonic()))
        self.request.sendall(self.wfile.getvalue())  # type: ignore[attr-defined]

    def version_string(self) -> str:
        return "socklb"

    def log_message(self, *_: object) -> None:
        """Nothing: standard error is for what needs attention."""
