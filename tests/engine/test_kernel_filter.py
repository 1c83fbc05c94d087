"""What the kernel is asked for a filter, how often, and what is done where it cannot say."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from socklb import (
    Backend,
    InetSocket,
    NotSupported,
    SocketFilter,
    autobound,
    cgroup,
    destroy_sockets,
    device,
    dport,
    dst,
    find_sockets,
    mark,
    sport,
    terminate_connections,
)
from socklb.filters import Condition
from socklb.filters.conditions import Or
from socklb.kernel import diag
from socklb.wire.bytecode import decode_program
from socklb.wire.netlink import NLMSG_NOOP, iter_messages
from socklb.wire.request import SOCK_DESTROY, SOCK_DIAG_BY_FAMILY, TCPDIAG_GETSOCK

from .. import this_kernel
from ..fake_kernel import Answer, Datagram, FakeKernel, Request, ack_message, table
from ..filters.trees import socket_between
from ..networks import networks
from ..sockets import Sockets, add_v6_address, cookie_of, socket_of


class Counting:
    """The real netlink socket, with a count of what goes through it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = 0
        self.sent: list[tuple[int, int]] = []  # (type of the first message, how many messages)
        self._open = diag.open_netlink
        monkeypatch.setattr(diag, "open_netlink", self.open)

    def open(self) -> socket.socket:
        self.opened += 1
        counting = self

        class CountingSocket(socket.socket):
            def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
                messages = list(iter_messages(data, len(data)))
                if messages[0][0] != NLMSG_NOOP:
                    counting.sent.append((messages[0][0], len(messages)))
                return super().send(data, flags)

        return CountingSocket(fileno=self._open().detach())


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


@pytest.mark.kernel
class TestTheRealKernel:
    def test_autobound(self, sockets: Sockets) -> None:
        """The kernel takes the port of an accepted connection for chosen: its range tells."""
        chosen, accepted = sockets.tcp("127.0.0.1", 9000)
        own = sockets.make(socket.AF_INET, socket.SOCK_STREAM)
        own.bind(("127.0.0.1", 5555))
        own.connect(("127.0.0.1", 9000))

        def cookies(condition: Condition) -> set[int]:
            return {row.cookie for row in find_sockets(SocketFilter("tcp", condition))}

        assert cookies(dport(9000) & autobound()) == {cookie_of(chosen)}
        assert cookies(dport(9000) & ~autobound()) == {cookie_of(own)}
        assert cookies(sport(9000) & autobound()) == set()
        assert cookie_of(accepted) in cookies(~autobound())
        with pytest.raises(ValueError, match="autobound"):
            SocketFilter("tcp", autobound()).matches(next(find_sockets(SocketFilter("tcp"))))

    def test_the_range_of_autobound_is_that_of_the_namespace(self, sockets: Sockets) -> None:
        def client(sockets: Sockets) -> int:
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("9100 9101")
            return cookie_of(sockets.tcp("127.0.0.1", 9000)[0])

        here = cookie_of(sockets.tcp("127.0.0.1", 9000)[0])
        with networks(1) as (other,):
            there = other.make(client)
            for namespace, cookie in ((None, here), (other.namespace, there)):
                found = find_sockets(SocketFilter("tcp", dport(9000) & autobound()), namespace=namespace)
                assert [row.cookie for row in found] == [cookie]

    def test_a_link_local_backend_is_found_on_its_link(self, sockets: Sockets) -> None:
        add_v6_address("fe80::1")
        listener = sockets.make(socket.AF_INET6, socket.SOCK_STREAM)
        listener.bind(("fe80::1", 9000, 0, 1))
        listener.listen()
        client = sockets.make(socket.AF_INET6, socket.SOCK_STREAM)
        client.connect(("fe80::1", 9000, 0, 1))
        for link, found in (("lo", True), ("1", True), ("2", False)):
            backend = Backend.parse(f"[fe80::1%{link}]:9000/TCP")
            rows = list(find_sockets(SocketFilter.to_backends([backend])))
            assert [row.cookie for row in rows] == [cookie_of(client)] * found
        with pytest.raises(ValueError, match="no interface 'eth9'"):
            find_sockets(SocketFilter.to_backend("fe80::1%eth9", 9000, "tcp"))
        assert terminate_connections([Backend.parse("[fe80::1%lo]:9000/TCP")], namespaces="current").destroyed == 1

    def test_a_mini_socket_is_in_no_cgroup_and_not_outside_of_one(self, sockets: Sockets) -> None:
        sockets.time_wait("127.0.0.1", 9000)
        client, _ = sockets.tcp("127.0.0.1", 9000)
        (row,) = find_sockets(SocketFilter("tcp", dport(9000)))
        this_kernel.needs(lambda: "cgroup_id" in row.attributes, "reports no cgroups", since=(5, 10))
        other = row.attributes["cgroup_id"] + 1
        for condition in (~cgroup(other), ~(cgroup(other) | cgroup(0)), cgroup(other - 1)):
            found = find_sockets(SocketFilter("tcp", dport(9000) & condition, states="all"))
            assert [each.cookie for each in found] == [cookie_of(client)]
        assert not list(find_sockets(SocketFilter("tcp", cgroup(0), states="all")))

    def test_more_backends_than_one_program_holds(self, sockets: Sockets, counting: Counting) -> None:
        near, _ = sockets.tcp("127.0.0.1", 9000)
        far, _ = sockets.tcp("127.0.15.160", 9000)
        spared, _ = sockets.tcp("127.0.15.160", 9001)
        backends = [(f"127.0.{n >> 8}.{n & 255}", 9000, "tcp") for n in range(1, 4001)]
        report = destroy_sockets(SocketFilter.to_backends(backends))
        assert {socket_of(outcome).cookie for outcome in report.outcomes} == {cookie_of(near), cookie_of(far)}
        assert report.destroyed == 2
        spared.send(b"alive")
        assert 2 <= [kind for kind, _ in counting.sent].count(TCPDIAG_GETSOCK) <= 4

    def test_a_socket_that_two_programs_let_through_comes_once(self, sockets: Sockets) -> None:
        sockets.tcp("127.0.0.1", 9000)
        backends = Or(sport(0, 65535), *(dst(f"127.0.{n >> 8}.{n & 255}", 9000) for n in range(1, 4001)))
        found = [s.cookie for s in find_sockets(SocketFilter("tcp", backends))]
        assert len(found) == len(set(found)) == 3


@pytest.mark.kernel
class TestOneWalk:
    """A walk is the unit of cost. Counted: the dumps that are asked for, the sends, the netlink sockets."""

    def test_one_backend_is_one_walk_and_one_send_a_batch(self, sockets: Sockets, counting: Counting) -> None:
        for _ in range(70):
            sockets.tcp("127.0.0.1", 9000)
            sockets.tcp("::ffff:127.0.0.1", 9000)
        assert destroy_sockets(SocketFilter.to_backend("127.0.0.1", 9000, "tcp")).destroyed == 140
        batches = [(kind, size) for size in (64, 64, 12) for kind in (SOCK_DIAG_BY_FAMILY, SOCK_DESTROY)]
        assert counting.sent == [(TCPDIAG_GETSOCK, 1), *batches]
        assert counting.opened == 1

    def test_a_thousand_backends_are_one_walk(self, sockets: Sockets, counting: Counting) -> None:
        sockets.tcp("127.0.0.1", 9000)
        backends = [(f"127.0.{n >> 8}.{n & 255}", 9000, "tcp") for n in range(1000)]
        assert len(list(find_sockets(SocketFilter.to_backends(backends)))) == 1
        assert counting.sent == [(TCPDIAG_GETSOCK, 1)]

    def test_what_is_not_sent_is_not_received(self, sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
        """The rows that do not match never leave the kernel."""
        for _ in range(50):
            sockets.tcp("127.0.0.1", 9001)
        sockets.tcp("127.0.0.1", 9000)
        made: list[InetSocket] = []

        class Noted(InetSocket):
            def __init__(self, row: bytes, protocol: int) -> None:
                super().__init__(row, protocol)
                made.append(self)

        monkeypatch.setattr("socklb.engine.find.InetSocket", Noted)
        assert len(list(find_sockets(SocketFilter.to_backend("127.0.0.1", 9000, "tcp")))) == len(made) == 1

    def test_one_family_alone_is_asked_for_by_itself(self, sockets: Sockets, counting: Counting) -> None:
        sockets.tcp("::ffff:127.0.0.1", 9000)
        (found,) = find_sockets(SocketFilter("tcp", dport(9000), family=socket.AF_INET6))
        assert found.family == socket.AF_INET6
        assert counting.sent == [(SOCK_DIAG_BY_FAMILY, 1)]


class TestAnOldKernel:
    """What a kernel answers EINVAL to is asked for in older ways, and what it cannot evaluate is matched in Python."""

    @staticmethod
    def refusing(missing_ops: set[int], inner: Answer, *, old_request: bool) -> Answer:
        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            (request,) = requests
            ops = {instruction.code for _, instruction in decode_program(request.program)}
            if ops & missing_ops or (request.type == TCPDIAG_GETSOCK and not old_request):
                return [ack_message(request, errno.EINVAL)]
            return inner(requests)

        return answer

    @pytest.mark.parametrize("old_request", [True, False], ids=["one walk", "a walk a family"])
    @pytest.mark.parametrize("missing_ops", [set(), {11, 12}, {11, 12, 13}], ids=["none", "4.20", "4.9"])
    def test_finds_the_same(self, missing_ops: set[int], old_request: bool) -> None:
        """CGROUP_COND (13) came with Linux 5.9, S_EQ and D_EQ (11, 12) with 5.0."""
        rows = [
            socket_between(f"10.0.0.1:{n}", f"10.0.0.{2 + n % 2}:80", interface=n % 3, cgroup_id=n % 4, mark=n % 5)
            for n in range(60)
        ]
        kernel = FakeKernel(self.refusing(missing_ops, table([r.row for r in rows]), old_request=old_request))
        filter_ = SocketFilter("tcp", dport(80) & (device(1) | cgroup(2)) & ~mark(3))
        with kernel.installed():
            assert {s.sport for s in find_sockets(filter_)} == {s.sport for s in rows if filter_.matches(s)}

    @pytest.mark.parametrize("missing_ops", [set(), {11, 12, 13}], ids=["without cgroups", "4.9"])
    def test_a_condition_on_a_cgroup_is_not_supported_where_none_is_reported(self, missing_ops: set[int]) -> None:
        """A socket that a process holds has one. What is decided without it is found."""
        row = socket_between("10.0.0.1:1", "10.0.0.2:80", inode=7).row
        kernel = FakeKernel(self.refusing(missing_ops, table([row]), old_request=True))
        with kernel.installed():
            for condition in (~cgroup(7), dport(80) & ~cgroup(7)):
                with pytest.raises(NotSupported, match=r"does not report the cgroups of sockets; Linux 5\.7"):
                    list(find_sockets(SocketFilter("tcp", condition)))
            assert len(list(find_sockets(SocketFilter("tcp", dport(80) | cgroup(7))))) == 1

    def test_what_was_refused_for_another_reason_is_an_error(self) -> None:
        refusing = FakeKernel(lambda requests: [ack_message(requests[0], errno.EINVAL)])
        with refusing.installed() as kernel, pytest.raises(OSError, match="Invalid argument"):
            list(find_sockets(SocketFilter("tcp", dport(80))))
        assert len(kernel.sent) < 10
