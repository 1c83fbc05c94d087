"""MPTCP on the real kernel: its connections show as TCP subflows, and are destroyed as such.

Destroying a subflow answers 0 and nobody wakes up until net.mptcp.close_timeout (60 s), then ENOTCONN; one that
fell back to TCP gets ECONNABORTED at once.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from socklb import InetSocket, SocketFilter, TcpState, destroy_sockets, dst, find_sockets
from socklb.engine.destroy import SUBFLOW

from .. import this_kernel
from ..sockets import Sockets, error_of
from ..this_kernel import IPPROTO_MPTCP

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
TO_SERVER = SocketFilter("tcp", dst(ADDRESS, PORT))
Pair = tuple[socket.socket, socket.socket]


def connect(sockets: Sockets, server_protocol: int) -> Pair:
    """(client, server) of a connection that the client wants to be MPTCP; some data has gone through."""
    this_kernel.needs(this_kernel.has_mptcp, "has no MPTCP", since=(6, 1))  # Debian 11 left it out
    listener, client = (sockets.make(socket.AF_INET, socket.SOCK_STREAM, p) for p in (server_protocol, IPPROTO_MPTCP))
    listener.bind((ADDRESS, PORT))
    listener.listen()
    client.connect((ADDRESS, PORT))
    server = sockets.keep(listener.accept()[0])
    client.send(b"x")
    assert server.recv(1) == b"x"
    return client, server


@pytest.fixture
def mptcp(sockets: Sockets) -> Pair:
    return connect(sockets, IPPROTO_MPTCP)


@pytest.fixture
def fallen_back(sockets: Sockets) -> Pair:
    """The server knows TCP alone."""
    return connect(sockets, 0)


def subflow() -> InetSocket:
    (row,) = find_sockets(TO_SERVER)
    return row


class TestSubflows:
    def test_a_connection_shows_as_a_tcp_subflow(self, mptcp: Pair) -> None:
        row = subflow()
        assert (row.protocol, row.state) == (socket.IPPROTO_TCP, TcpState.ESTABLISHED)
        assert (str(row.src), row.sport) == mptcp[0].getsockname()

    def test_it_tells_that_it_is_one(self, mptcp: Pair) -> None:
        (row,) = find_sockets(TO_SERVER, extensions=["info"])
        assert dict(row.attributes["ulp_info"])["name"] == "mptcp"

    def test_destroying_it_answers_0_and_removes_it(self, mptcp: Pair) -> None:
        """And says what that means for the connection, in a dry run too."""
        for dry_run, verdict in ((True, "would_destroy"), (False, "destroyed")):
            (outcome,) = destroy_sockets(TO_SERVER, dry_run=dry_run).outcomes
            assert (outcome.verdict, outcome.reason) == (verdict, SUBFLOW)
        assert list(find_sockets(TO_SERVER)) == []


class TestWhatTheOwnerSees:
    def test_nobody_wakes_up_before_the_close_timeout(self, mptcp: Pair) -> None:
        destroy_sockets(TO_SERVER)
        for end in mptcp:
            end.setblocking(False)
            assert error_of(lambda end=end: end.recv(1)) == "EAGAIN"  # type: ignore[misc]

    def test_after_it_comes_enotconn(self, mptcp: Pair) -> None:
        timeout = Path("/proc/sys/net/mptcp/close_timeout")
        this_kernel.needs(timeout.exists, "always waits for 60 s", since=(6, 12))
        timeout.write_text("1")
        destroy_sockets(TO_SERVER)
        for end in mptcp:
            end.settimeout(60)
            assert error_of(lambda end=end: end.recv(1)) == "ENOTCONN"  # type: ignore[misc]

    def test_one_that_fell_back_gets_econnaborted_at_once(self, fallen_back: Pair) -> None:
        client, server = fallen_back
        assert destroy_sockets(TO_SERVER).destroyed == 1
        client.setblocking(False)
        assert error_of(lambda: client.recv(1)) == "ECONNABORTED"
        assert error_of(lambda: server.recv(1)) == "ECONNRESET"


def test_mptcp_as_a_protocol_says_what_to_do_instead() -> None:
    for protocol in ("mptcp", IPPROTO_MPTCP):
        with pytest.raises(ValueError, match="destroy their TCP subflows"):
            SocketFilter(protocol)
