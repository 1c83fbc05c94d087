"""Where kernels differ: what the one that runs here does, tried on sockets of a network of their own."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import cache

import pytest

from socklb import InetSocket, KernelError, SocketFilter, dst, find_sockets
from socklb.kernel.diag import DiagSocket
from socklb.reverse_nat.bpf import BpfMap
from socklb.wire.request import destroy_request
from socklb.wire.socket_id import AF_INET

from . import world
from .sockets import Sockets, in_child, without_privilege

ADDRESS, PORT = "127.0.0.2", 9000
IPPROTO_MPTCP = 262


def _tried(function: Callable[[Sockets], bool]) -> bool:
    def play() -> bool:
        with Sockets() as sockets:
            return function(sockets)

    return in_child(play, world.new_network)


def _rows() -> list[InetSocket]:
    return list(find_sockets(SocketFilter("tcp", dst(ADDRESS, PORT), states="all")))


def _destroy(row: InetSocket) -> int:
    """The errno that the kernel answers."""
    with DiagSocket() as diag:
        (code,) = diag.destroy([destroy_request(socket.IPPROTO_TCP, AF_INET, row.id_bytes)], "destroy one")
    return code


@cache
def lists_bound_only() -> bool:
    """A TCP socket that is bound and nothing else: since Linux 6.8."""

    def play(sockets: Sockets) -> bool:
        sockets.make(socket.AF_INET, socket.SOCK_STREAM).bind((ADDRESS, PORT))
        return bool(list(find_sockets(SocketFilter("tcp", states="all"))))

    return _tried(play)


@cache
def destroys_mini_sockets() -> bool:
    """In TIME_WAIT: 4.9 and 5.10 answer EOPNOTSUPP, 6.1 does not."""

    def play(sockets: Sockets) -> bool:
        sockets.time_wait(ADDRESS, PORT)
        (row,) = _rows()
        return _destroy(row) == 0

    return _tried(play)


@cache
def destroys_orphans() -> bool:
    """A connection in FIN_WAIT1 that nobody holds: 5.10 answers 0 and keeps it."""

    def play(sockets: Sockets) -> bool:
        client, _ = sockets.fin_wait1(ADDRESS, PORT)
        client.close()
        (row,) = _rows()
        return _destroy(row) == 0 and not _rows()

    return _tried(play)


@cache
def numbers_namespaces() -> bool:
    """SO_NETNS_COOKIE, since Linux 5.14."""
    with socket.socket() as any_socket:
        try:
            return bool(any_socket.getsockopt(socket.SOL_SOCKET, 71, 8))
        except OSError:
            return False


@cache
def has_mptcp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    except OSError:
        return False
    return True


@cache
def refusal_of_a_pin() -> int:
    """The errno for who may not read a pinned BPF map: before Linux 5.19 bpf(2) itself may be kept from them."""

    def play() -> int:
        try:
            BpfMap.open("/nowhere").close()
        except KernelError as error:
            return error.errno or 0
        return 0

    return errno.EPERM if without_privilege(play) == errno.EPERM else errno.EACCES


def needs(what: Callable[[], bool], why_not: str, *, since: tuple[int, int]) -> None:
    """Skip the test that is running where the kernel does not do that; from that release on it should."""
    if what():
        return
    major, minor = map(int, os.uname().release.split(".")[:2])
    if (major, minor) >= since:
        world.cannot(f"this kernel {why_not}")
    pytest.skip(f"this kernel {why_not}")
