"""probe() on the real kernel: what it says, and that it touches no socket but its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from socklb import InetSocket, SocketFilter, Support, find_sockets, probe

from .. import world
from ..sockets import Sockets, add_v6_address, pending_error, talk, without_privilege

pytestmark = pytest.mark.kernel

KINDS = [(protocol, family) for protocol in ("tcp", "udp") for family in (socket.AF_INET, socket.AF_INET6)]
ALL_SUPPORTED = {kind: Support("supported", "") for kind in KINDS}


def every_row() -> dict[int, InetSocket]:
    """By cookie, every socket of the namespace in whatever state."""
    return {
        row.cookie: row for protocol in ("tcp", "udp") for row in find_sockets(SocketFilter(protocol, states="all"))
    }


@pytest.fixture
def loopback_down() -> Iterator[None]:
    """A fresh network namespace whose loopback is down."""
    world.unshare(world.CLONE_NEWNET)
    yield
    world.new_network()


class TestWhatItSays:
    """probe() -> {("tcp", AF_INET): Support(status, missing), ...}"""

    def test_here_all_is_supported(self, network: None) -> None:
        assert probe() == ALL_SUPPORTED

    def test_without_privilege_nothing_is_permitted(self, network: None) -> None:
        answer = without_privilege(lambda: {kind: tuple(support) for kind, support in probe().items()})
        missing = "CAP_NET_ADMIN in the user namespace that owns the network namespace"
        assert answer == dict.fromkeys(KINDS, ("not_permitted", missing))

    def test_a_loopback_that_is_down_changes_nothing(self, loopback_down: None) -> None:
        assert probe() == ALL_SUPPORTED

    @pytest.mark.parametrize("up", [True, False], ids=["loopback up", "loopback down"])
    def test_nor_does_v6_without_an_address(self, loopback_down: None, up: bool) -> None:
        """disable_ipv6 takes the addresses away, not the family: v6 sockets with mapped addresses are still there."""
        if up:
            world.loopback_up()
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
        with socket.socket(socket.AF_INET6) as any_socket, pytest.raises(OSError, match="assign requested address"):
            any_socket.bind(("::1", 0))
        assert probe() == ALL_SUPPORTED


class TestWhatItTouches:
    """Makes a socket of its own for each and destroys that one; no other socket is touched."""

    @pytest.mark.parametrize("privileged", [True, False], ids=["privileged", "unprivileged"])
    def test_every_other_socket_lives(self, sockets: Sockets, privileged: bool) -> None:
        pairs = [
            make(address, port)
            for make in (sockets.tcp, sockets.udp_pair)
            for address in ("127.0.0.1", "::1", "::ffff:127.0.0.2")
            for port in (9000, 9001)
        ]
        bound = [sockets.udp_bound(address, 0, reuse_port=True) for address in ("127.0.0.1", "::1", "0.0.0.0", "::")]
        bound += [sockets.listen(address, 0, reuse_port=True) for address in ("127.0.0.1", "::1", "0.0.0.0", "::")]
        sockets.syn_sent("127.0.0.3", 9000)
        sockets.time_wait("127.0.0.4", 9000)
        before = {cookie: (row.state, row.id_bytes) for cookie, row in every_row().items()}
        if privileged:
            probe()
        else:
            without_privilege(lambda: len(probe()))
        assert {cookie: (row.state, row.id_bytes) for cookie, row in every_row().items()} == before
        for client, server in pairs:
            talk(client, server)
        assert [pending_error(each) for each in bound] == [""] * len(bound)

    def test_nor_is_one_with_the_same_port(self, sockets: Sockets) -> None:
        """Where the kernel has one port alone to choose, others have it too, at another address."""
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40000")
        add_v6_address("fd00::1")
        others = [sockets.udp_bound(address, 40000) for address in ("127.0.0.2", "127.0.0.3", "fd00::1")]
        others += [sockets.listen(address, 40000) for address in ("127.0.0.2", "127.0.0.3", "fd00::1")]
        others[1].connect(("127.0.0.1", 40000))
        before = every_row().keys()
        assert probe() == ALL_SUPPORTED
        assert every_row().keys() == before
        assert [pending_error(other) for other in others] == [""] * 6

    def test_nothing_is_left_open(self, network: None) -> None:
        before = os.listdir("/proc/self/fd")
        probe()
        assert os.listdir("/proc/self/fd") == before
        assert every_row() == {}
