"""DiagSocket on the real kernel."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import socklb
from socklb import (
    InetSocket,
    KernelError,
    MalformedMessage,
    NotSupported,
    SocketFilter,
    SocklbError,
    destroy_sockets,
    dport,
    find_sockets,
)
from socklb.kernel.diag import DiagSocket, open_netlink
from socklb.kernel.netlink_socket import BATCH, NETLINK_CAP_ACK, NETLINK_EXT_ACK, SOL_NETLINK
from socklb.wire.netlink import NLM_F_DUMP, NLM_F_MULTI, NLM_F_REQUEST, NLMSG_DONE, encode_message
from socklb.wire.request import IPPROTO_TCP, IPPROTO_UDP, SOCK_DIAG_BY_FAMILY, InetDiagReqV2, destroy_request
from socklb.wire.socket_id import AF_INET, AF_INET6, ANY, SocketId

from .. import world
from ..sockets import Sockets, cookie_of, in_child, pending_error, without_privilege

pytestmark = pytest.mark.kernel

IPPROTO_SCTP = 132
ALL_STATES = 0xFFFFFFFF


def request(family: int, protocol: int, id: SocketId = ANY) -> bytes:
    return InetDiagReqV2(family, protocol, 0, ALL_STATES, id).encode()


def rows(diag: DiagSocket, asked: bytes, type: int = SOCK_DIAG_BY_FAMILY) -> list[bytes]:
    return [row for many in diag.dump(type, asked, "list") for row in many]


@pytest.fixture
def diag(network: None) -> Iterator[DiagSocket]:
    with DiagSocket() as opened:
        yield opened


def test_it_does_not_block_and_has_both_options_and_is_not_inherited(diag: DiagSocket) -> None:
    real = diag._socket
    assert real.gettimeout() == 0
    assert [real.getsockopt(SOL_NETLINK, option) for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK)] == [1, 1]
    assert not os.get_inheritable(real.fileno())


class TestDumps:
    @pytest.mark.parametrize("protocol", [IPPROTO_TCP, IPPROTO_UDP], ids=["tcp", "udp"])
    @pytest.mark.parametrize("family", [AF_INET, AF_INET6], ids=["v4", "v6"])
    def test_each_dump_is_complete_and_one_socket_serves_several(
        self, diag: DiagSocket, sockets: Sockets, protocol: int, family: int
    ) -> None:
        address = "127.0.0.1" if family == AF_INET else "::1"
        kind = socket.SOCK_STREAM if protocol == IPPROTO_TCP else socket.SOCK_DGRAM
        made = [sockets.make(family, kind) for _ in range(500)]  # they fill several datagrams
        for one in made:
            one.bind((address, 0))
            if kind == socket.SOCK_STREAM:
                one.listen()
        expected = {cookie_of(one) for one in made}
        for _ in range(3):
            found = [InetSocket(row, protocol).cookie for row in rows(diag, request(family, protocol))]
            assert (set(found), len(found)) == (expected, len(expected))
            assert rows(diag, request(AF_INET if family == AF_INET6 else AF_INET6, protocol)) == []

    @pytest.mark.parametrize(
        ("family", "protocol"),
        [
            pytest.param(AF_INET, IPPROTO_SCTP, id="sctp"),
            pytest.param(AF_INET, 254, id="no-such-protocol"),
            pytest.param(0, IPPROTO_TCP, id="no-such-family"),
        ],
    )
    def test_without_a_handler_it_is_not_supported_and_not_an_empty_table(
        self, diag: DiagSocket, family: int, protocol: int
    ) -> None:
        with pytest.raises(NotSupported, match="CONFIG_INET_DIAG") as caught:
            rows(diag, request(family, protocol))
        assert caught.value.errno == errno.ENOENT
        assert rows(diag, request(AF_INET, IPPROTO_TCP)) == [], "the socket can still be used"

    @pytest.mark.parametrize(
        ("type", "asked"),
        [
            pytest.param(SOCK_DIAG_BY_FAMILY, b"\2", id="short-request"),
            pytest.param(4242, request(AF_INET, IPPROTO_TCP), id="unknown-type"),
        ],
    )
    def test_a_request_that_the_kernel_refuses_is_an_error_with_its_errno(
        self, diag: DiagSocket, type: int, asked: bytes
    ) -> None:
        with pytest.raises(KernelError) as caught:
            rows(diag, asked, type)
        assert caught.value.errno == errno.EINVAL

    def test_a_buffer_that_is_too_small_is_not_taken_for_a_short_table(
        self, diag: DiagSocket, sockets: Sockets
    ) -> None:
        for _ in range(10):
            sockets.udp("127.0.0.1", 5000)
        diag._buffer = memoryview(bytearray(1024))
        with pytest.raises(MalformedMessage, match="cut reply"):
            rows(diag, request(AF_INET, IPPROTO_UDP))

    def test_an_answer_to_another_request_is_refused(self, diag: DiagSocket) -> None:
        asked = request(AF_INET, IPPROTO_TCP)
        diag._socket.send(encode_message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 4711, asked))
        with pytest.raises(MalformedMessage, match="sequence of a reply"):
            rows(diag, asked)

    def test_nobody_but_the_kernel_can_send_to_it(self, diag: DiagSocket) -> None:
        with closing(open_netlink()) as forger, pytest.raises(ConnectionRefusedError):
            forger.sendto(encode_message(NLMSG_DONE, NLM_F_MULTI, 1, bytes(4)), diag._socket.getsockname())

    def test_a_find_that_is_continued_in_a_forked_process_is_an_error_there(self, sockets: Sockets) -> None:
        for _ in range(100):
            sockets.udp("127.0.0.1", 5000)
        found = find_sockets(SocketFilter("udp", dport(5000)))
        next(found)

        def go_on() -> str:
            with pytest.raises(SocklbError) as caught:
                list(found)
            return str(caught.value)

        assert f"another process, {os.getpid()}" in in_child(go_on)
        assert len(list(found)) == 99, "the parent's is complete"


class TestDestroys:
    def test_each_of_a_batch_has_its_own_errno(self, diag: DiagSocket, sockets: Sockets) -> None:
        made = [sockets.udp("127.0.0.1", 5000) for _ in range(BATCH)]
        by_cookie = {
            socket.cookie: socket.id_bytes
            for socket in (InetSocket(row, IPPROTO_UDP) for row in rows(diag, request(AF_INET, IPPROTO_UDP)))
        }
        for gone in made[::3]:
            del by_cookie[cookie_of(gone)]
            by_cookie[cookie_of(gone)] = InetDiagReqV2(AF_INET, IPPROTO_UDP, 0, 0).encode()[8:]
        asked = [destroy_request(IPPROTO_UDP, AF_INET, by_cookie[cookie_of(one)]) for one in made]
        codes = diag.destroy(asked, "destroy")
        assert codes == [0 if n % 3 else errno.ENOENT for n in range(BATCH)]
        assert [pending_error(one) for one in made] == ["ECONNABORTED" if n % 3 else "" for n in range(BATCH)]

    def test_without_privilege_a_socket_answers_eperm_and_a_missing_one_enoent(self, sockets: Sockets) -> None:
        client = sockets.udp("127.0.0.1", 5000)

        def destroy() -> list[int]:
            with DiagSocket() as diag:
                (row,) = rows(diag, request(AF_INET, IPPROTO_UDP))
                there = destroy_request(IPPROTO_UDP, AF_INET, InetSocket(row, IPPROTO_UDP).id_bytes)
                return diag.destroy([there, request(AF_INET, IPPROTO_UDP), there], "destroy")

        assert without_privilege(destroy) == [errno.EPERM, errno.ENOENT, errno.EPERM]
        assert pending_error(client) == ""

    def test_a_batch_whose_answers_were_lost_is_repeated_once_there_is_room(
        self, diag: DiagSocket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drain = diag._drain

        def make_room() -> None:
            drain()
            diag._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)

        diag._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel sets the smallest size it allows
        monkeypatch.setattr(diag, "_drain", make_room)
        assert diag.destroy([request(AF_INET, IPPROTO_UDP)] * BATCH, "destroy") == [errno.ENOENT] * BATCH
        assert diag.was_repeated


class TestDebugLog:
    """Each request and each reply is a line at DEBUG; where nobody imported `logging`, it is not imported either."""

    @pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
    def test_a_find_and_a_destroy(self, sockets: Sockets, caplog: pytest.LogCaptureFixture, address: str) -> None:
        client = sockets.udp(address, 5000)
        family, host = (AF_INET6, "[::1]") if ":" in address else (AF_INET, address)
        id = f"{host}:{client.getsockname()[1]} -> {host}:5000 interface 0 cookie {cookie_of(client):#x}"
        filter = SocketFilter("udp", dport(5000), family=family)
        with caplog.at_level(logging.DEBUG, "socklb"):
            assert len(list(find_sockets(filter, extensions=["meminfo"]))) == 1
            asked, row, done = caplog.messages
            assert destroy_sockets(filter).destroyed == 1
        assert asked.startswith(f"-> seq 1 SOCK_DIAG_BY_FAMILY: udp family {int(family)} ")
        assert asked.endswith(" bytes of attributes")
        assert row == f"<- seq 1 SOCK_DIAG_BY_FAMILY: {id} ESTABLISHED"
        assert done == "<- seq 1 NLMSG_DONE: errno 0"
        killed = f"-> seq 4 SOCK_DESTROY: udp family {int(family)} {id} "
        assert any(line.startswith(killed) for line in caplog.messages)
        assert "<- seq 4 NLMSG_ERROR: errno 0" in caplog.messages

    def test_logging_is_not_imported(self, sockets: Sockets) -> None:
        sockets.udp("127.0.0.1", 5000)
        name = socklb.__name__
        program = (
            f"import sys; sys.path.insert(0, {str(Path(socklb.__file__).parents[name.count('.') + 1])!r})\n"
            f"from {name} import SocketFilter, destroy_sockets, dport\n"
            "report = destroy_sockets(SocketFilter('udp', dport(5000)))\n"
            f"print(report.destroyed, [name for name in ('logging', '{name}.wire.describe') if name in sys.modules])\n"
        )
        done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("1 []\n", "")


def test_memory_does_not_grow_with_the_number_of_sockets(network: None) -> None:
    """The peak of a find, for several datagrams of rows and for five times as many."""
    few, many = 600, 3000
    filter = SocketFilter("udp", dport(5000), family=AF_INET)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < many + 100:
        world.cannot(f"only {hard} descriptors")

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            assert sum(1 for _ in find_sockets(filter)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, many + 100), hard))
    try:
        with Sockets() as made:
            for _ in range(few):
                made.udp("127.0.0.1", 5000)
            peak(few)  # fills caches
            of_few = peak(few)
            for _ in range(many - few):
                made.udp("127.0.0.1", 5000)
            assert peak(many) < 1.5 * of_few
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
