"""The server of `watch --metrics`: what it answers, and that no client holds it up."""

from __future__ import annotations

import importlib
import os
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPResponse
from multiprocessing.connection import Connection
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import NotSupported
from socklb.cli import metrics_server
from socklb.cli.metrics_server import HEAD_SIZE, serving

from .. import world
from ..children import Child
from ..sockets import eventually

WHERE = ("127.0.0.1", 9469)


def open_sockets() -> set[int]:
    paths = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return {int(path[14:]) for path in paths if os.path.exists(path) and os.readlink(path).startswith("socket:")}


def broken() -> tuple[int, str, str]:
    raise RuntimeError("a fault")


TEXT = ("text/plain; charset=utf-8", "caf\u00e9\n")
LENGTH = 1 << 25
ROUTES = {
    "/text": lambda: (200, *TEXT),
    "/not": lambda: (503, *TEXT),
    "/broken": broken,
    "/long": lambda: (200, TEXT[0], "x" * LENGTH),  # more than the kernel keeps for a client
}


@pytest.fixture
def server(network: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that is patient, says nothing, and leaves nothing behind, to programs that are started meanwhile neither."""
    monkeypatch.setattr(metrics_server, "SECONDS", 1000.0)
    sockets, threads = open_sockets(), threading.enumerate()
    with serving(*WHERE, ROUTES):
        assert [os.get_inheritable(number) for number in open_sockets() - sockets] == [False]
        yield
    assert (open_sockets(), threading.enumerate(), capfd.readouterr().err) == (sockets, threads, "")


def ask(path: str, method: str = "GET") -> tuple[HTTPResponse, str]:
    connection = HTTPConnection(*WHERE, timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response, response.read().decode()
    finally:
        connection.close()


def request(method: str = "GET", path: str = "/text", newline: str = "\r\n") -> bytes:
    return f"{method} {path} HTTP/1.1{newline}{newline}".encode()


def connect() -> socket.socket:
    return socket.create_connection(WHERE, timeout=30)


def answer_to(data: bytes) -> bytes:
    """All that comes back, where nothing more is sent."""
    with connect() as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.kernel
@pytest.mark.usefixtures("server")
class TestServer:
    def test_a_text_of_a_path(self) -> None:
        response, text = ask("/text?x=y")
        assert (response.status, response.headers["Content-Type"], text) == (200, *TEXT)
        head = answer_to(request("HEAD"))
        assert b"\r\nContent-Length: 6\r\n" in head
        assert head.endswith(b"\r\n\r\n")

    @pytest.mark.parametrize(
        ("path", "method", "status", "text"),
        [
            ("/not", "GET", 503, TEXT[1]),
            ("/", "GET", 404, "there is /text, /not, /broken, /long\n"),
            ("/text", "POST", 405, "GET and HEAD alone\n"),
            ("/broken", "GET", 500, "RuntimeError: a fault\n"),
        ],
    )
    def test_other_answers(self, path: str, method: str, status: int, text: str) -> None:
        response, answer = ask(path, method)
        assert (response.status, answer, response.headers["Allow"] is None) == (status, text, status != 405)

    def test_garbage_is_answered_or_dropped(self) -> None:
        words = st.sampled_from([b"GET ", b"/text", b" HTTP/1.1", b" HTTP/9999.1", b"\r\n", b"\n\n", b"A: b", b"\0"])

        @given(st.lists(words | st.binary(max_size=20)).map(b"".join))
        def send(data: bytes) -> None:
            assert not answer_to(data).startswith(b"HTTP/1.0 500")

        send()

    @pytest.mark.parametrize("newline", ["\r\n", "\n"])
    def test_a_request_may_come_in_pieces(self, newline: str) -> None:
        with connect() as client:
            client.send(request(newline=newline)[:-1])
            assert len(ask("/long")[1]) == LENGTH
            client.send(b"\n")
            assert client.recv(65536).startswith(b"HTTP/1.0 200 ")

    def test_a_head_without_end(self) -> None:
        with connect() as client:
            client.sendall(b"GET /text HTTP/1.1\r\nA: b\r\nC: ".ljust(HEAD_SIZE + 1, b"d"))
            assert client.recv(65536).startswith(b"HTTP/1.0 431 ")

    @pytest.mark.parametrize("sent", [b"", b"GET", request(path="/long")], ids=["silent", "slow", "deaf"])
    def test_who_stays_keeps_nobody_away(self, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metrics_server, "CLIENTS", 5)
        sockets, threads = open_sockets(), threading.active_count()
        with ExitStack() as stack:
            clients = [stack.enter_context(connect()) for _ in range(20)]
            for client in clients:
                client.sendall(sent)
            assert ask("/text")[0].status == 200
            assert len(open_sockets() - sockets) <= len(clients) + 5
            assert threading.active_count() == threads

    def test_a_crowd_that_comes_while_it_is_busy_is_served_in_turn(self) -> None:
        busy, go_on = threading.Event(), threading.Event()

        def wait() -> tuple[int, str, str]:
            busy.set()
            assert go_on.wait(30)
            return 200, *TEXT

        with mock.patch.dict(ROUTES, {"/wait": wait}), ExitStack() as stack:
            first = stack.enter_context(connect())
            first.sendall(request(path="/wait"))
            assert busy.wait(30)
            for _ in range(300):  # more than the usual backlog: connecting would not end
                stack.enter_context(connect())
            go_on.set()
            assert ask("/text")[0].status == 200
            assert first.recv(65536).startswith(b"HTTP/1.0 200 ")

    def test_after_so_many_seconds_it_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also for one that sends a byte now and then."""
        monkeypatch.setattr(metrics_server, "SECONDS", 0.2)
        with connect() as client, pytest.raises(OSError, match=r"Broken pipe|reset"):
            eventually(lambda: client.send(b"x") == 0, "the connection is closed")

    def test_a_lack_of_descriptors_is_waited_for_or_the_oldest_makes_room(self) -> None:
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        waiting = mock.patch.object(threading.Event, "wait", autospec=True, side_effect=threading.Event.wait)
        with waiting as waited, socket.socket() as first, socket.socket() as second:
            second.settimeout(30)
            os.close(free := os.dup(0))
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))
                first.connect(WHERE)
                eventually(lambda: mock.call(mock.ANY, metrics_server._PAUSE) in waited.mock_calls, "it has none")
                resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, most))
                second.connect(WHERE)
                second.sendall(request())
                assert second.recv(65536).startswith(b"HTTP/1.0 200 ")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
            assert first.recv(1) == b""


@pytest.mark.kernel
@pytest.mark.usefixtures("network")
class TestListening:
    def test_on_a_v6_address(self) -> None:
        with serving("::1", 9400, ROUTES), socket.create_connection(("::1", 9400), timeout=30) as client:
            client.sendall(request())
            assert client.recv(65536).startswith(b"HTTP/1.0 200 ")

    def test_at_the_end_nobody_stays(self) -> None:
        threads, sockets = threading.enumerate(), open_sockets()
        with serving(*WHERE, ROUTES):
            client = connect()
            eventually(lambda: len(open_sockets() - sockets) == 3, "it is listened to")
        with client:
            assert threading.enumerate() == threads
            assert client.recv(1) == b""

    @pytest.mark.parametrize(
        ("address", "why"),
        [("127.0.0.1", "something listens there already"), ("192.0.2.1", "this host has no such address")],
    )
    def test_where_it_cannot(self, address: str, why: str) -> None:
        sockets = open_sockets()
        with socket.create_server(WHERE), pytest.raises(ValueError, match=f"^--metrics: .* on {address}:9469: {why}; "):
            serving(address, 9469, ROUTES).__enter__()
        assert open_sockets() == sockets

    def test_where_it_may_not(self) -> None:
        def listen(pipe: Connection) -> None:
            world.drop_privilege()
            with pytest.raises(ValueError, match=r"^--metrics: cannot listen on \[::1\]:80: not permitted: ") as raised:
                serving("::1", 80, ROUTES).__enter__()
            pipe.send(str(raised.value))

        with Child(listen) as child:
            assert "CAP_NET_BIND_SERVICE" in child.receive()


def test_a_python_without_http_server_is_named() -> None:
    missing = mock.patch.dict(sys.modules, {"http.server": None})
    with (
        missing,
        pytest.raises(NotSupported, match=r"--metrics needs the module http\.server, which this Python lacks"),
    ):
        importlib.reload(metrics_server)
