"""An API server of EndpointSlices: HTTP/1.1 over TLS on loopback, answering as a real one of 1.36 was seen to.

api.start()
api.put(endpoint_slice("web-abc", endpoint("10.1.0.5")))                     ADDED or MODIFIED, to whoever watches
api.answer_next(status(429, "TooManyRequests", "slow", retry_after=1))       to the next request, whatever it is
"""

from __future__ import annotations

import gzip
import json
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.client import parse_headers
from pathlib import Path
from typing import BinaryIO, NamedTuple, Optional
from urllib.parse import parse_qsl, urlsplit

from ...sockets import family_of, no_thread_lingers
from .answers import (
    EXPIRED_PAGE,
    FLOOD,
    FLOOD_SIZE,
    RESET,
    SILENCE,
    TRICKLE,
    UNAUTHORIZED,
    WHOLE,
    Answer,
    chunk,
    head,
    status,
)
from .endpoint_slices import API, KIND, Change, Object, Request, bookmark, encode, event, key_of, wants

PKI = Path(__file__).parent / "pki"
TOKEN = "a-token-of-the-tests"

_LARGE = 128 * 1024  # a list of this size is compressed, if that is accepted
_BY_OTHERS = 8  # changes of other resources while a server restarts: the counter is that of all
_LOOK_SECONDS = 0.02  # between looks whether a client that only listens is still there
_PARTIAL_CHAIN = 0x80000  # X509_V_FLAG_PARTIAL_CHAIN, which the ssl of Python 3.9 has no name for


class _Told(NamedTuple):
    """A chunk for the watches that run, and how they end then ("": they go on). Of a change later ones are told too."""

    chunk: Callable[[Request], bytes]
    change: Optional[Change] = None
    missing: int = 0
    ending: str = ""


class ApiServer:
    """Objects with versions, and threads that serve them. Its attributes may be changed while it runs."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host, self.port = host, 0
        self.kubeconfig = Path()  # the fixture writes one
        self.token: str | None = TOKEN
        self.takes_certificates = True
        self.chunked_lists = False
        self.always: Callable[[Request], Answer | None] = lambda request: None
        """Asked about each request that `answer_next` has nothing for; None: the usual answer."""
        self.requests: list[Request] = []
        self.watches = 0  # how many run now
        self.flooded = 0  # bytes that were sent, or begun, of answers that end in a FLOOD
        self.version = 100
        self.slices: dict[tuple[str, str], Object] = {}
        self._log: list[_Told] = []
        self._oldest, self._start = self.version, 0  # the version and the place in the log that watches can go back to
        self._pages: dict[str, tuple[int, list[Object]]] = {}
        self._next: deque[Answer | None] = deque()
        self._lock = threading.Condition()  # reentrant
        self._is_silent = self._is_stopping = False
        self._open: set[ssl.SSLSocket] = set()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(PKI / "server.pem", PKI / "server.key")
        self._context.load_verify_locations(PKI / "ca.pem")
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self._context.verify_flags |= _PARTIAL_CHAIN

    @property
    def url(self) -> str:
        return f"https://[{self.host}]:{self.port}" if ":" in self.host else f"https://{self.host}:{self.port}"

    def start(self) -> None:
        """On any port at first, then on the same one."""
        self._listener = socket.create_server((self.host, self.port), family=family_of(self.host))
        self.port = self._listener.getsockname()[1]
        self._is_stopping = False
        self._threads: list[threading.Thread] = []
        self._acceptor = self._started(self._accept)

    def stop(self) -> None:
        """As SIGKILL does it: connections end where they are, and no more are accepted. What it knows stays."""
        if self._is_stopping:
            return
        with self._lock:
            self._is_stopping = True
            self._lock.notify_all()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            for one in self._open:
                with suppress(OSError):
                    socket.socket.shutdown(one, socket.SHUT_RDWR)  # after SSLSocket's own writes would go on in clear
        for thread in self._threads:
            thread.join()
        no_thread_lingers()

    def restart(self) -> None:
        """A new process: its watch cache knows nothing of versions from before."""
        self.restore(self.version + _BY_OTHERS)

    def restore(self, version: int) -> None:
        """A new process over an etcd from a backup: the objects and the counter are as they were then."""
        self.stop()
        for _, change, *_ in reversed(self._log):
            if change is not None and change.version > version:
                self._set(key_of(change.new or change.old or {}), change.old)
        self.version = version
        self.compact()
        self.start()

    def compact(self) -> None:
        """No watch and no page can go on from an earlier version; watches that run go on."""
        with self._lock:
            self._oldest, self._start = self.version, len(self._log)
            self._pages.clear()

    def silence(self, is_silent: bool = True) -> None:
        """As SIGSTOP does it: connections are accepted, and nothing comes, in the middle of anything; False: go on."""
        with self._lock:
            self._is_silent = is_silent

    @staticmethod
    def _started(function: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        thread.start()
        return thread

    def put(self, slice_: Object) -> int:
        """Create or change one; the version that it has now."""
        return self._change(key_of(slice_), json.loads(json.dumps(slice_)))

    def delete(self, namespace: str, name: str) -> int:
        return self._change((namespace, name), None)

    def _change(self, key: tuple[str, str], new: Object | None) -> int:
        with self._lock:
            self.version += 1
            if new is not None:
                new["metadata"].update(uid=f"uid of {key[1]}", resourceVersion=str(self.version))
            change = Change(self.version, self.slices.get(key), new)
            self._set(key, new)
            self._tell(_Told(lambda request: event(change, request), change))
            return self.version

    def _set(self, key: tuple[str, str], new: Object | None) -> None:
        self.slices = {**self.slices, key: new} if new else {k: one for k, one in self.slices.items() if k != key}

    def bookmark(self) -> None:
        """For the watches that asked for bookmarks."""
        data = bookmark(self.version)
        self._tell(_Told(lambda request: data if "allowWatchBookmarks" in request.query else b""))

    def send(self, data: bytes) -> None:
        """A chunk of any bytes to the watches that run."""
        self._tell(_Told(lambda request: data))

    def end_watches(self, ending: str = WHOLE, data: bytes = b"", missing: int = 0) -> None:
        """WHOLE: as at their timeout. Else they are cut, after a chunk of this data that lacks so many bytes."""
        self._tell(_Told(lambda request: data, None, missing, ending))

    def _tell(self, told: _Told) -> None:
        with self._lock:
            self._log.append(told)
            self._lock.notify_all()

    def answer_next(self, *answers: Answer | None) -> None:
        """What the next requests get, one each; None: the usual answer."""
        self._next.extend(answers)

    def _accept(self) -> None:
        while not self._is_stopping:
            with suppress(OSError):  # of a client that has gone; of the listener, when it stops
                accepted, _ = self._listener.accept()
                connection = self._context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
                with self._lock:
                    self._open.add(connection)
                self._threads.append(self._started(self._serve, connection))

    def _serve(self, connection: ssl.SSLSocket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as reader:
            try:
                self._hold()
                connection.do_handshake()
                while self._serve_one(connection, reader):
                    pass
            finally:
                with self._lock:
                    self._open.discard(connection)

    def _hold(self) -> None:
        with self._lock:
            while self._is_silent and not self._is_stopping:
                self._lock.wait(_LOOK_SECONDS)
        if self._is_stopping:
            raise ConnectionAbortedError

    def _serve_one(self, connection: ssl.SSLSocket, reader: BinaryIO) -> bool:
        """Whether the connection takes one more request."""
        words = reader.readline().decode().split()
        if not words:
            return False
        url = urlsplit(words[1])
        headers = {name.lower(): value for name, value in parse_headers(reader).items()}
        request = Request(words[0], url.path, dict(parse_qsl(url.query, keep_blank_values=True)), headers)
        with self._lock:
            self.requests.append(request)
            answer = self._next.popleft() if self._next else None
        self._hold()
        answer = answer or self.always(request) or self._refusal(request, connection)
        if answer is None and request.is_watch:
            return self._watch(request, connection)
        return self._send(connection, answer or self._list(request))

    def _send(self, connection: ssl.SSLSocket, answer: Answer) -> bool:
        is_chunked = answer.ending != WHOLE or (self.chunked_lists and answer.status == 200)
        framing = {"Transfer-Encoding": "chunked"} if is_chunked else {"Content-Length": str(len(answer.body))}
        if answer.status:
            body = chunk(answer.body, answer.missing) if is_chunked else answer.body
            connection.sendall(head(answer.status, {**answer.headers, **framing}) + body)
        else:
            connection.sendall(answer.body)
        while answer.ending == TRICKLE:
            self._look(connection)  # until it raises
            connection.sendall(answer.again)
        while answer.ending == FLOOD and self.flooded < FLOOD_SIZE:
            self.flooded += len(answer.again)
            connection.sendall(answer.again)
        return self._end(connection, answer.ending, is_chunked)

    def _end(self, connection: ssl.SSLSocket, ending: str, is_chunked: bool = True) -> bool:
        if ending == WHOLE and is_chunked:
            connection.sendall(b"0\r\n\r\n")
        elif ending == RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while ending == SILENCE:
            self._look(connection)  # until it raises
        return ending == WHOLE

    def _look(self, connection: ssl.SSLSocket) -> None:
        """Wait a moment for something to tell. Raises ConnectionError if either side has ended."""
        with self._lock:
            self._lock.wait(_LOOK_SECONDS)
        self._hold()
        if select.select([connection], [], [], 0)[0]:  # who listens has nothing to say
            raise ConnectionAbortedError

    def _refusal(self, request: Request, connection: ssl.SSLSocket) -> Answer | None:
        is_known = self.takes_certificates and connection.getpeercert()
        if not is_known and request.headers.get("authorization") != f"Bearer {self.token}":
            return UNAUTHORIZED
        if request.method != "GET" or not request.path.startswith(API) or not request.path.endswith("/endpointslices"):
            return status(404, "NotFound", "the server could not find the requested resource")
        return None

    def _list(self, request: Request) -> Answer:
        page = request.query.get("continue", "")
        with self._lock:
            items = [one for _, one in sorted(self.slices.items()) if wants(request, one)]
            if page and page not in self._pages:
                return EXPIRED_PAGE
            version, items = self._pages.get(page, (self.version, items))
            metadata: Object = {"resourceVersion": str(version)}
            limit = int(request.query.get("limit", 0)) or len(items)
            if len(items) > limit:
                metadata.update({"continue": f"page/{len(self._pages)}=", "remainingItemCount": len(items) - limit})
                self._pages[metadata["continue"]] = version, items[limit:]
        body = encode({**KIND, "kind": "EndpointSliceList", "metadata": metadata, "items": items[:limit]})
        if len(body) >= _LARGE and "gzip" in request.headers.get("accept-encoding", ""):
            return Answer(200, gzip.compress(body, 1), {"Content-Encoding": "gzip"})
        return Answer(200, body)

    def _watch(self, request: Request, connection: ssl.SSLSocket) -> bool:
        since = request.query.get("resourceVersion", "")
        if not since.isdigit():
            return self._send(connection, status(500, "", f'resourceVersion: Invalid value: "{since}"'))
        end = time.monotonic() + float(request.query.get("timeoutSeconds", 3600))
        with self._lock:
            news = [one for one in self._log[self._start :] if one.change and one.change.version > int(since)]
            place, is_of_future = len(self._log), int(since) > self.version
            if int(since) < self._oldest:
                expired = status(410, "Expired", f"too old resource version: {since} ({self._oldest})").body
                news = [_Told(lambda request: encode({"type": "ERROR", "object": json.loads(expired)}), ending=WHOLE)]
            self.watches += 1
        try:
            connection.sendall(head(200, {"Transfer-Encoding": "chunked"}))
            while time.monotonic() < end:
                for one in news:
                    self._hold()
                    connection.sendall(b"" if is_of_future else chunk(one.chunk(request), one.missing))
                    if one.ending:
                        return self._end(connection, one.ending)
                with self._lock:
                    news = self._log[place:]
                    place += len(news)
                if not news:
                    self._look(connection)
            return self._end(connection, WHOLE)
        finally:
            with self._lock:
                self.watches -= 1
