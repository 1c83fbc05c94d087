# SPDX-License-Identifier: MIT
"""What is asked of an API server: EndpointSlices, in pages, and the changes that follow. Over HTTP/1.1 and TLS."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from io import BufferedReader, RawIOBase
from time import monotonic

from ...features import standard_module
from ..protocol import LARGEST, shortened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPConnection, HTTPResponse
    from ssl import SSLSocket
    from typing import Any

    from .config import Access

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 100.0
"""A watch is taken for dead that brings no whole event for so long: a live one has a bookmark each minute."""

LIST_SECONDS = 600.0
"""For all pages of a list; their versions are compacted after five minutes by default."""

_PAGE = 100  # slices; 1,000 endpoints of 450 bytes in each, which is a lot, are 43 MiB: less than LARGEST
_LARGEST_EVENT = 4 << 20  # in bytes; etcd takes objects of 1.5 MiB
_LONGEST_REASON = 4096
_LONGEST_TOKEN = 8192
_PATH = "/apis/discovery.k8s.io/v1/{}endpointslices"
_SHUT_RDWR = 2  # of <sys/socket.h>


class Refused(Exception):
    """An answer that is no list and no watch: its status, why, and for how long the server wants to be left alone."""

    def __init__(self, status: int, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {reason}")
        self.status, self.retry_after = status, retry_after


class BadAnswer(Exception):
    """What came is not what an API server says, or not all of it."""


def checked(token: Any) -> str:
    """A version, or what stands for the next page: it is sent back. Raises TypeError for what cannot be one."""
    if not isinstance(token, str) or not token.isascii() or len(token) > _LONGEST_TOKEN:
        raise TypeError
    return token


class _Stream(RawIOBase):
    """The socket that http.client reads an answer from: it sets no limit to 1xx answers, trailers, or what follows a
    negative chunk size, and a timeout of a socket is for each read alone.

    Raises BadAnswer after so many bytes, which calls them `what`, and TimeoutError after `end`, by monotonic().
    """

    def __init__(self, sock: SSLSocket, what: str, size: int, end: float) -> None:
        self._sock, self._file = sock, sock.makefile("rb", buffering=0)
        self._what, self._size = what, size
        self.allow(end)

    def allow(self, end: float) -> None:
        """The whole size once more, until then."""
        self._left, self._end = self._size, end

    def makefile(self, mode: str) -> BufferedReader:
        """As that of a socket."""
        return BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        seconds = self._end - monotonic()
        if seconds <= 0:
            raise TimeoutError
        self._sock.settimeout(min(SILENCE_SECONDS, seconds))
        size = self._file.readinto(buffer)
        self._left -= size or 0
        if self._left < 0:
            raise BadAnswer(f"{self._what} has no end within {self._size >> 20} MiB")
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


class Client:
    """One that lists and watches the slices of a namespace ("": of all) that a label selector ("": any) selects.

    One connection at a time. Besides the two above it raises AccessProblem and OSError.
    """

    def __init__(self, access: Access, namespace: str = "", selector: str = "") -> None:
        self._quote = standard_module("urllib.parse", "--source kubernetes").parse.quote
        self._access = access
        self._path = access.prefix + _PATH.format(f"namespaces/{self._quote(namespace, safe='')}/" if namespace else "")
        self._selector = selector
        self._connection: HTTPConnection | None = None
        self._sock: SSLSocket | None = None  # which http.client lets go of while the last answer is read
        self._is_hung_up = False

    @contextmanager
    def connected(self) -> Iterator[None]:
        """While active, there is a connection."""
        try:
            self._connect()
            yield
        finally:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _connect(self) -> None:
        self._connection = self._access.connect(CONNECT_SECONDS)
        self._sock = self._connection.sock
        if self._is_hung_up:
            raise ConnectionAbortedError

    def hang_up(self) -> None:
        """For good, from another thread: whoever waits for an answer, or comes later, gets an error."""
        self._is_hung_up = True
        sock = self._sock
        if sock is not None:
            with suppress(OSError):  # it has gone already; after SSLSocket's own shutdown() reads go on in the clear
                super(type(sock), sock).shutdown(_SHUT_RDWR)

    def pages(self) -> Iterator[tuple[str, list[Any]]]:
        """The list in pages: its version, which is that of each page, and slices."""
        page, version, end = "", "", monotonic() + LIST_SECONDS
        while True:
            try:
                value = self._page({"limit": str(_PAGE), **({"continue": page} if page else {})}, end)
            except OSError:
                if monotonic() < end:
                    raise
                raise BadAnswer(f"a list has no end within {LIST_SECONDS:.0f} s") from None
            try:
                metadata, items = value["metadata"], value["items"]
                if value["kind"] != "EndpointSliceList" or not isinstance(items, list):
                    raise TypeError
                if version not in ("", metadata["resourceVersion"]):
                    raise BadAnswer("the pages of a list are of several versions")
                version, page = checked(metadata["resourceVersion"]), checked(metadata.get("continue", ""))
            except (KeyError, TypeError):
                raise BadAnswer("the answer is no list of EndpointSlices") from None
            yield version, items
            if not page:
                return

    def _page(self, query: dict[str, str], end: float) -> Any:
        with self._answer(query, "a page", LARGEST, end) as (response, _):
            return _parsed(response.read())

    def watch(self, version: str, seconds: float | None = None) -> Iterator[tuple[str, Any]]:
        """Changes since a version, each with its type, until the server ends it (after so many seconds, or within the
        hour). A line that was cut is none.
        """
        query = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version}
        if seconds is not None:
            query["timeoutSeconds"] = str(max(1, int(seconds)))
        end = monotonic() + SILENCE_SECONDS
        with self._answer(query, "an event", _LARGEST_EVENT, end) as (response, stream):
            while True:
                stream.allow(monotonic() + SILENCE_SECONDS)
                line = response.readline()
                if not line.endswith(b"\n"):
                    return
                event = _parsed(line)
                try:
                    yield event["type"], event["object"]
                except (KeyError, TypeError):
                    raise BadAnswer("what came is no event") from None

    @contextmanager
    def _answer(
        self, query: dict[str, str], what: str, size: int, end: float
    ) -> Iterator[tuple[HTTPResponse, _Stream]]:
        http: Any = standard_module("http.client", "--source kubernetes").client
        if self._selector:
            query["labelSelector"] = self._selector
        text = "&".join(f"{name}={self._quote(value, safe='')}" for name, value in query.items())
        assert self._connection is not None
        if self._connection.sock is None:  # closed by the server after its last answer
            self._connect()
        connection: Any = self._connection
        headers = {**self._access.headers(), "Accept": "application/json"}
        try:
            connection.request("GET", f"{self._path}?{text}", headers=headers)
            stream = _Stream(connection.sock, what, size, end)
            connection.response_class = lambda _, *more, **named: http.HTTPResponse(stream, *more, **named)
            with connection.getresponse() as response:
                if response.status != 200:
                    raise _refusal(response)
                yield response, stream
        except (http.HTTPException, ValueError, OverflowError, MemoryError) as error:  # some sizes of chunks give these
            raise BadAnswer(f"no whole answer of HTTP/1.1: {shortened(f'{type(error).__name__} {error}')}") from None


def _parsed(data: bytes) -> Any:
    try:
        return standard_module("json", "--source kubernetes").loads(data)
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadAnswer(f"not JSON: {shortened(str(error))}") from None


def refusal_of(status: Any) -> Refused:
    """A Status object, as an answer or an event has it."""
    fields = status if isinstance(status, dict) else {}
    code, message = fields.get("code"), fields.get("message")
    code = code if isinstance(code, int) else 0
    return Refused(code, shortened(message) if isinstance(message, str) and message else "without a reason")


def _refusal(response: HTTPResponse) -> Refused:
    try:
        refused = refusal_of(_parsed(response.read(_LONGEST_REASON)))
    except BadAnswer:
        refused = Refused(response.status, response.reason)
    text = response.getheader("Retry-After", "")
    seconds = float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0
    return Refused(response.status, str(refused).partition(" ")[2] or response.reason, seconds)
