"""Real faults on the real kernel: no descriptor left, no room for answers, and nobody who answers."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest

from socklb import (
    DestroyReport,
    KernelError,
    SocketFilter,
    SocklbError,
    destroy_sockets,
    device,
    dport,
    dst,
    find_sockets,
    probe,
)
from socklb.kernel import diag

from ..kernel.test_diag_faults import verdicts
from ..sockets import Sockets, cookie_of, in_child, pending_error, talk
from .calls import End

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
UDP = SocketFilter("udp", dst(ADDRESS, PORT))
TCP = SocketFilter("tcp", dst(ADDRESS, PORT))

CALLS: dict[str, Callable[[], object]] = {
    "find": lambda: list(find_sockets(TCP)),
    "destroy": lambda: destroy_sockets(TCP),
    "dry-run": lambda: destroy_sockets(TCP, dry_run=True),
    "probe": probe,
}


def end_of(call: Callable[[], object]) -> End:
    try:
        call()
    except SocklbError as error:
        return End.of(error)
    return End()


class TestNoDescriptorLeft:
    """RLIMIT_NOFILE reached: KernelError(EMFILE), and nobody dies."""

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_it_is_an_error(self, sockets: Sockets, call: Callable[[], object]) -> None:
        client, server = sockets.tcp(ADDRESS, PORT)
        call_once = lambda: end_of(call)  # noqa: E731
        assert in_child(call_once, lambda: leave_descriptors(0)) == End(KernelError, errno.EMFILE)
        talk(client, server)

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    @pytest.mark.parametrize("left", range(1, 5))
    def test_with_few_it_works_or_it_is_an_error(self, sockets: Sockets, call: Callable[[], object], left: int) -> None:
        """A call needs one or two at a time; what it may have is told by the limit alone."""
        client, server = sockets.tcp(ADDRESS, PORT)

        def called() -> tuple[End, bool]:
            before = os.listdir("/proc/self/fd") if left else []
            end = end_of(call)
            return end, os.listdir("/proc/self/fd") == before

        end, closed = in_child(called, lambda: leave_descriptors(left))
        assert closed
        assert end in (End(), End(KernelError, errno.EMFILE))
        assert left == 1 or end == End()
        if call is not CALLS["destroy"]:
            talk(client, server)
        else:
            assert (pending_error(client) == "ECONNABORTED") == (end == End())


def leave_descriptors(count: int) -> None:
    """In this process so many more files can be opened."""
    spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
    highest = max(map(int, os.listdir("/proc/self/fd")))
    holes = set(range(highest)) - set(map(int, os.listdir("/proc/self/fd")))
    for _ in holes:
        os.open(os.devnull, os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, highest + 1))
    while True:
        try:
            os.open(os.devnull, os.O_RDONLY)
        except OSError as error:
            assert error.errno == errno.EMFILE
            break
    for one in spare:
        os.close(one)
