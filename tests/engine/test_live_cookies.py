"""live_cookies: the sockets that exist in any of some namespaces, in any state."""

from __future__ import annotations

import os
import socket
from unittest import mock

import pytest

from socklb import NetworkNamespace, NotPermitted, SocketFilter, find_sockets, live_cookies
from socklb.engine.find import SocketTable

from .. import this_kernel
from ..networks import Network, networks
from ..sockets import Sockets, add_v6_address, cookie_of, left_behind, without_privilege

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
ALL = [SocketFilter(protocol, states="all") for protocol in ("tcp", "udp")]


def of_every_kind(sockets: Sockets) -> set[int]:
    """The cookies of sockets of each protocol and family, connected or not."""
    add_v6_address("fd00::1")
    made = [*sockets.tcp(ADDRESS, PORT), *sockets.tcp("fd00::1", PORT), *sockets.tcp(f"::ffff:{ADDRESS}", PORT)]
    made += [sockets.udp(ADDRESS, PORT), sockets.udp("fd00::1", PORT), sockets.udp(f"::ffff:{ADDRESS}", PORT)]
    made += [sockets.udp_bound(ADDRESS, PORT), sockets.listen(ADDRESS, PORT + 1), sockets.syn_sent(ADDRESS, PORT + 2)]
    made += sockets.fin_wait2(ADDRESS, PORT + 3)
    if this_kernel.lists_bound_only():
        made.append(sockets.make(socket.AF_INET, socket.SOCK_STREAM))
        made[-1].bind((ADDRESS, PORT + 4))
    return {cookie_of(one) for one in made}


def found_in(networks: list[Network]) -> set[int]:
    """The same, asked for in another way."""
    return {row.cookie for made in networks for each in ALL for row in find_sockets(each, namespace=made.namespace)}


class TestSockets:
    def test_every_kind_of_socket_in_every_namespace(self) -> None:
        this_kernel.lists_bound_only()  # it forks, which a thread should not
        with networks(3) as nets:
            made = [made.make(of_every_kind) for made in nets]
            cookies = live_cookies([made.namespace for made in nets])
            assert set().union(*made) <= cookies
            assert cookies == found_in(nets)
            assert live_cookies([nets[1].namespace]) == found_in(nets[1:2]) >= made[1]

    def test_a_closed_one_is_gone(self, sockets: Sockets) -> None:
        here = [NetworkNamespace.current()]
        client = sockets.udp(ADDRESS, PORT)
        kept = sockets.udp(ADDRESS, PORT)
        assert live_cookies(here) == {cookie_of(client), cookie_of(kept)}
        client.close()
        assert live_cookies(here) == {cookie_of(kept)}

    def test_one_in_time_wait_exists(self, sockets: Sockets) -> None:
        """The balancer's record of it is not stale yet."""
        client, server = sockets.tcp(ADDRESS, PORT)
        cookie = cookie_of(client)
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.close()
        assert client.recv(1) == b""
        client.close()
        assert cookie in live_cookies([NetworkNamespace.current()])

    def test_in_no_namespace_there_is_none(self, sockets: Sockets) -> None:
        sockets.udp(ADDRESS, PORT)
        assert live_cookies([]) == set()

    def test_a_namespace_named_twice_is_no_error(self, sockets: Sockets) -> None:
        client = sockets.udp(ADDRESS, PORT)
        assert live_cookies([NetworkNamespace.current()] * 2) == {cookie_of(client)}


class TestNamespaces:
    """One that vanished has none. An error in another is an error."""

    def test_the_others_are_searched(self, sockets: Sockets) -> None:
        sockets.udp(ADDRESS, PORT)
        with left_behind() as pid:
            gone = NetworkNamespace.from_pid(pid)
        client = sockets.udp(ADDRESS, PORT)
        assert live_cookies([gone, NetworkNamespace.current()]) == {cookie_of(client)}

    def test_one_that_may_not_be_entered(self, network: None) -> None:
        def look() -> str:
            with pytest.raises(NotPermitted) as caught:
                live_cookies([NetworkNamespace.current(), other])
            return str(caught.value)

        with networks(1) as (made,):
            other = made.namespace
            assert "enter namespace net0: it needs CAP_SYS_ADMIN" in without_privilege(look)

    @pytest.mark.parametrize("wrong", [["x"], "x", [None], [4]], ids=repr)
    def test_what_is_no_namespace(self, wrong: object) -> None:
        with pytest.raises(TypeError, match="is a NetworkNamespace, not "):
            live_cookies(wrong)  # type: ignore[arg-type]

    @pytest.mark.parametrize("last", [True, False])
    def test_their_order_does_not_matter(self, sockets: Sockets, last: bool) -> None:
        """A thread that has gone to a namespace of a child user namespace may not go back to the current one."""
        client = sockets.udp(ADDRESS, PORT)

        def look() -> set[int]:
            here = NetworkNamespace.current()
            with networks(12) as made, mock.patch("os.sched_getaffinity", return_value=[0, 1]):
                others = [net.namespace for net in made]
                return live_cookies([*others, here] if last else [here, *others])

        assert without_privilege(look) == {cookie_of(client)}

    def test_nothing_is_left_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        before = os.listdir("/proc/self/fd")
        with networks(3) as nets:
            namespaces = [made.namespace for made in nets]
            during = os.listdir("/proc/self/fd")
            live_cookies(namespaces)
            monkeypatch.setattr(SocketTable, "search_all", refuse)
            with pytest.raises(ZeroDivisionError):
                live_cookies(namespaces)
            assert os.listdir("/proc/self/fd") == during
        assert os.listdir("/proc/self/fd") == before
