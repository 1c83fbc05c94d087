"""A private network, entered by children of the test: there is no way back."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from socklb import NetworkNamespace, NotSupported, destroy_sockets, dst
from socklb.filters import SocketFilter
from socklb.kernel.sandbox import add_loopback_address, enter_private_network

from .. import world
from ..sockets import in_child

pytestmark = pytest.mark.kernel


def destroys_a_connection() -> int:
    """How many connections to a listener on loopback can be destroyed; what `enter_private_network` is there for."""
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.9", 9000))
        listener.listen()
        client.connect(("127.0.0.9", 9000))
        return destroy_sockets(SocketFilter("tcp", dst("127.0.0.9", 9000))).destroyed


def as_user(uid: int) -> Callable[[], None]:
    """Prepare a child: in a user namespace of its own, where it is this user, and root's rights are its own."""

    def prepare() -> None:
        world.become(uid)
        world.new_network()

    return prepare


def without_user_namespaces(uid: int) -> Callable[[], None]:
    def prepare() -> None:
        as_user(uid)()
        Path("/proc/sys/user/max_user_namespaces").write_text("0")

    return prepare


class TestPrivateNetwork:
    """New user and network namespaces, loopback up. Needs no root."""

    @pytest.mark.parametrize("prepare", [as_user(0), as_user(1000)], ids=["root", "user"])
    def test_loopback_is_up_and_connections_on_it_can_be_destroyed(self, prepare: Callable[[], None]) -> None:
        def enter() -> tuple[bool, list[tuple[int, str]], int]:
            before = NetworkNamespace.current()
            enter_private_network()
            return NetworkNamespace.current() != before, socket.if_nameindex(), destroys_a_connection()

        is_new, interfaces, destroyed = in_child(enter, prepare)
        assert is_new
        assert "lo" in dict(interfaces).values()
        assert destroyed == 1

    @pytest.mark.parametrize("uid", [0, 1000])
    def test_the_caller_s_ids_are_mapped_to_root_s(self, uid: int) -> None:
        def enter() -> tuple[list[str], tuple[int, int]]:
            enter_private_network()
            maps = [Path(f"/proc/self/{name}").read_text() for name in ("uid_map", "gid_map", "setgroups")]
            return [" ".join(text.split()) for text in maps], (os.getuid(), os.getgid())

        assert in_child(enter, as_user(uid)) == ([f"0 {uid} 1", f"0 {uid} 1", "deny"], (0, 0))

    def test_the_caller_stays_where_it_was(self) -> None:
        before = NetworkNamespace.current(), os.getuid()
        in_child(enter_private_network)
        assert (NetworkNamespace.current(), os.getuid()) == before

    def test_without_proc_ids_stay_unmapped_and_that_takes_nothing_away(self) -> None:
        def hide_proc() -> None:
            world.unshare(world.CLONE_NEWNS)
            world.private_mounts()
            world.mount("tmpfs", "/proc")

        def enter() -> int:
            enter_private_network()
            assert os.getuid() == 65534
            return destroys_a_connection()

        assert in_child(enter, hide_proc) == 1


class TestWithoutUserNamespaces:
    """A privileged process makes do with a network namespace; for others it is an OSError."""

    def test_root_makes_do_with_a_network_namespace(self) -> None:
        def enter() -> tuple[bool, bool, int]:
            user, network = os.readlink("/proc/self/ns/user"), NetworkNamespace.current()
            enter_private_network()
            same_user = os.readlink("/proc/self/ns/user") == user
            return same_user, NetworkNamespace.current() != network, destroys_a_connection()

        assert in_child(enter, without_user_namespaces(0)) == (True, True, 1)

    def test_anybody_else_gets_an_error(self) -> None:
        def enter() -> int | None:
            with pytest.raises(OSError, match="No space left") as caught:
                enter_private_network()
            return caught.value.errno

        assert in_child(enter, without_user_namespaces(1000)) == errno.ENOSPC

    def test_root_without_any_right_gets_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(flags: int) -> None:
            raise PermissionError(errno.EPERM, "unshare")

        monkeypatch.setattr("socklb.kernel.sandbox.unshare", refuse)
        with pytest.raises(PermissionError):
            enter_private_network()

    def test_a_python_that_cannot_ask_is_not_supported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "unshare", raising=False)
        monkeypatch.setitem(sys.modules, "ctypes", None)
        with pytest.raises(NotSupported, match=r"os\.unshare"):
            enter_private_network()


class TestLoopbackAddress:
    def test_it_can_be_bound_and_connected_to_at_once(self, network: None) -> None:
        for last in range(1, 6):
            address = f"fd00::{last}"
            add_loopback_address(address)
            with socket.socket(socket.AF_INET6) as listener, socket.socket(socket.AF_INET6) as client:
                listener.bind((address, 0))
                listener.listen()
                client.connect(listener.getsockname())
                assert client.getpeername()[0] == address

    @pytest.mark.parametrize("address", ["10.0.0.1", "nonsense"])
    def test_what_is_no_v6_address_is_a_value_error(self, network: None, address: str) -> None:
        with pytest.raises(ValueError, match=address):
            add_loopback_address(address)
