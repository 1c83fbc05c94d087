"""A socket made to be destroyed, so that a question can be asked without touching anybody else's."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address

import pytest

from socklb import InetSocket, SocketFilter, TcpState, destroy_sockets, find_sockets, sport
from socklb.kernel.probe_socket import ProbeSocket
from socklb.wire.request import IPPROTO_TCP, IPPROTO_UDP, PROTOCOL_NAMES
from socklb.wire.socket_id import AF_INET, AF_INET6

from .. import world

EACH = pytest.mark.parametrize(
    ("protocol", "family"),
    [
        pytest.param(protocol, family, id=f"{name}-v{version}")
        for protocol, name in PROTOCOL_NAMES.items()
        for family, version in ((AF_INET, 4), (AF_INET6, 6))
    ],
)


def listed(protocol: int) -> list[InetSocket]:
    return list(find_sockets(SocketFilter(protocol, states="all")))


@EACH
@pytest.mark.kernel
class TestProbeSocket:
    """A listening TCP or a bound UDP socket on loopback, at a port of the kernel's choice."""

    def test_its_port_and_inode_are_those_of_its_row(self, network: None, protocol: int, family: int) -> None:
        with ProbeSocket(family, protocol) as own:
            (row,) = listed(protocol)
            assert (row.family, row.sport, row.inode) == (family, own.port, own.inode)
            assert row.src == ip_address("127.0.0.1" if family == AF_INET else "::1")
            assert row.state == (TcpState.LISTEN if protocol == IPPROTO_TCP else TcpState.CLOSE)

    def test_it_can_be_destroyed(self, network: None, protocol: int, family: int) -> None:
        with ProbeSocket(family, protocol) as own:
            states = {TcpState.LISTEN} if protocol == IPPROTO_TCP else None
            filter = SocketFilter(protocol, sport(own.port), states=states)
            assert destroy_sockets(filter, unconnected=True).destroyed == 1

    def test_it_is_closed_in_the_end(self, network: None, protocol: int, family: int) -> None:
        before = os.listdir("/proc/self/fd")
        with ProbeSocket(family, protocol) as own:  # kept, so that it is not closed for being forgotten
            pass
        assert (os.listdir("/proc/self/fd"), listed(protocol)) == (before, [])
        del own

    def test_a_loopback_that_is_down_will_do(self, protocol: int, family: int) -> None:
        world.unshare(world.CLONE_NEWNET)
        with ProbeSocket(family, protocol) as own:
            (row,) = listed(protocol)
            assert row.inode == own.inode
            assert row.src == ip_address("127.0.0.1" if family == AF_INET else "::")  # v4 has its address all the same


@pytest.mark.parametrize("call", ["bind", "listen", "getsockname"])
def test_it_is_closed_if_it_cannot_be_made(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    class Refusing(socket.socket):
        pass

    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, call)

    setattr(Refusing, call, refuse)
    monkeypatch.setattr(socket, "socket", Refusing)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=call) as caught:
        ProbeSocket(AF_INET, IPPROTO_TCP)
    assert os.listdir("/proc/self/fd") == before
    del caught  # it kept the frame that the socket was made in


def test_a_family_that_is_not_there_is_an_os_error() -> None:
    with pytest.raises(OSError, match="not supported") as caught:
        ProbeSocket(0x7F, IPPROTO_UDP)
    assert caught.value.errno == errno.EAFNOSUPPORT
