"""destroy_sockets on the real kernel: who dies, who lives, and what they and their peers get to know."""

from __future__ import annotations

import errno
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from socklb import (
    NetworkNamespace,
    NotPermitted,
    SocketFilter,
    cgroup,
    destroy_sockets,
    device,
    dport,
    dst,
    find_sockets,
    mark,
    sport,
    src,
)
from socklb.filters import Condition

from .. import world
from ..reverse_nat.balancer.cgroup import inside, new_cgroup
from ..sockets import (
    Sockets,
    add_v6_address,
    cookie_of,
    error_of,
    eventually,
    left_behind,
    pending_error,
    socket_of,
    talk,
    without_privilege,
)

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
TCP, UDP = SocketFilter("tcp", dst(ADDRESS, PORT)), SocketFilter("udp", dst(ADDRESS, PORT))


class Pair(NamedTuple):
    """A connected client, where to, and the socket that answers it."""

    protocol: str
    address: str
    port: int
    client: socket.socket
    server: socket.socket


class TestWhoDies:
    """What a filter matches dies, what it does not match lives."""

    @pytest.fixture
    def pairs(self, sockets: Sockets) -> list[Pair]:
        add_v6_address("fd00::1")
        return [
            Pair(protocol, address, port, *make(address, port))
            for protocol, make in (("tcp", sockets.tcp), ("udp", sockets.udp_pair))
            for address in ("127.0.0.2", "127.0.0.3", "::1", "fd00::1", "::ffff:127.0.0.2", "::ffff:127.0.0.3")
            for port in (9000, 9001)
        ]

    @pytest.mark.parametrize("protocols", [("tcp",), ("udp", "tcp")], ids="+".join)
    @pytest.mark.parametrize(
        ("where", "matches"),
        [
            pytest.param(dst("127.0.0.2"), lambda p: p.address.endswith("127.0.0.2"), id="v4 and mapped"),
            pytest.param(dst("fd00::/8", 9000), lambda p: p.address == "fd00::1" and p.port == 9000, id="v6 prefix"),
            pytest.param(dport(9000, 9001), lambda p: True, id="all"),
            pytest.param(
                dst("::1", 9001) | dst("127.0.0.3", 9000),
                lambda p: (p.address[-9:], p.port) in (("::1", 9001), ("127.0.0.3", 9000)),
                id="or",
            ),
            pytest.param(
                dport(9000) & ~dst("127.0.0.0/8"), lambda p: p.port == 9000 and "." not in p.address, id="not"
            ),
            pytest.param(dst("127.0.0.9"), lambda p: False, id="none"),
        ],
    )
    def test_exactly_those_that_match(
        self, pairs: list[Pair], protocols: tuple[str, ...], where: Condition, matches: Callable[[Pair], bool]
    ) -> None:
        doomed = [pair for pair in pairs if pair.protocol in protocols and matches(pair)]
        where = where & dport(9000, 9001)  # and not the way back from there
        filters = [SocketFilter(protocol, where) for protocol in protocols]
        report = destroy_sockets(filters)
        assert (report.matched, report.destroyed) == (len(doomed), len(doomed))
        assert {socket_of(outcome).cookie for outcome in report.outcomes} == {cookie_of(pair.client) for pair in doomed}
        for pair in pairs:
            if pair in doomed:
                assert pending_error(pair.client) == "ECONNABORTED"
            else:
                talk(pair.client, pair.server)
        assert destroy_sockets(filters).matched == 0

    def test_by_the_local_end_the_one_connection_that_has_it(self, pairs: list[Pair]) -> None:
        one, *others = [pair for pair in pairs if pair.protocol == "tcp"]
        # Another client may have got the same port by chance, towards another address.
        own_end = sport(one.client.getsockname()[1]) & dst(one.address, one.port)
        assert destroy_sockets(SocketFilter("tcp", own_end)).destroyed == 1
        assert pending_error(one.client) == "ECONNABORTED"
        for pair in others:
            talk(pair.client, pair.server)


class TestNamed:
    """By a device, a mark, a cgroup: those that have it die, the others live."""

    @pytest.fixture
    def marked(self, sockets: Sockets) -> tuple[list[socket.socket], list[socket.socket]]:
        """(clients, others): of each protocol one with a mark, bound to a device."""
        pairs = [make(ADDRESS, PORT)[0] for make in (sockets.tcp, sockets.udp_pair) * 2]
        for client in pairs[:2]:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x01020304)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        return pairs[:2], pairs[2:]

    @pytest.mark.parametrize("where", [device("lo"), mark(0x01020304), mark(0x4, 0xFF)], ids=["device", "mark", "mask"])
    def test_by_what_a_socket_was_given(
        self, marked: tuple[list[socket.socket], list[socket.socket]], where: Condition
    ) -> None:
        filters = [SocketFilter(protocol, dst(ADDRESS, PORT) & where) for protocol in ("tcp", "udp")]
        assert destroy_sockets(filters).destroyed == 2
        assert [[pending_error(each) for each in some] for some in marked] == [["ECONNABORTED"] * 2, [""] * 2]

    def test_by_the_cgroup_that_made_it(self, sockets: Sockets) -> None:
        try:
            with new_cgroup() as directory:
                with inside(directory):
                    doomed = [sockets.tcp(ADDRESS, PORT)[0], sockets.udp(ADDRESS, PORT)]
                others = [sockets.tcp(ADDRESS, PORT)[0], sockets.udp(ADDRESS, PORT)]
                filters = [SocketFilter(each, dst(ADDRESS, PORT) & cgroup(directory)) for each in ("tcp", "udp")]
                assert destroy_sockets(filters).destroyed == 2
        except OSError as error:
            world.cannot(f"no cgroup of its own: {error}")
        assert [pending_error(each) for each in doomed + others] == ["ECONNABORTED"] * 2 + [""] * 2


class TestTcp:
    """The first call of the owner after it reports ECONNABORTED once, after what had arrived is read."""

    @pytest.mark.parametrize(
        "first",
        [
            pytest.param(lambda client: client.recv(1), id="recv"),
            pytest.param(lambda client: client.send(b"x"), id="send"),
            pytest.param(lambda client: client.sendall(b"x"), id="sendall"),
        ],
    )
    def test_whichever_call_comes_first_reports_it(
        self, sockets: Sockets, first: Callable[[socket.socket], object]
    ) -> None:
        client, _ = sockets.tcp(ADDRESS, PORT)
        assert destroy_sockets(TCP).destroyed == 1
        assert error_of(lambda: first(client)) == "ECONNABORTED"
        for _ in range(2):
            assert client.recv(1) == b""
            assert error_of(lambda: client.send(b"x")) == "EPIPE"

    def test_what_had_arrived_is_read_first(self, sockets: Sockets) -> None:
        client, server = sockets.tcp(ADDRESS, PORT)
        server.send(b"arrived")
        destroy_sockets(TCP)
        assert client.recv(100) == b"arrived"
        assert error_of(lambda: client.recv(100)) == "ECONNABORTED"
        assert client.recv(100) == b""


# ---------------------------------------------------------------------------------------- blocked calls


class Blocked(NamedTuple):
    """A call that blocks, the filter that destroys its socket, and what the call then ends with."""

    call: Callable[[], object]
    filter: SocketFilter
    ends_with: str = "ECONNABORTED"


def _recv(sockets: Sockets) -> Blocked:
    client, _ = sockets.tcp(ADDRESS, PORT)
    client.settimeout(None)
    return Blocked(lambda: client.recv(1), TCP)


def _send(sockets: Sockets) -> Blocked:
    client, _ = sockets.tcp(ADDRESS, PORT)
    client.settimeout(None)
    return Blocked(lambda: client.sendall(bytes(1 << 27)), TCP)  # more than all buffers take


def _select(sockets: Sockets) -> Blocked:
    client, _ = sockets.tcp(ADDRESS, PORT)
    return Blocked(lambda: (select.select([client], [], []), client.recv(1)), TCP)


def _connect(sockets: Sockets) -> Blocked:
    sockets.syn_sent(ADDRESS, PORT)
    client = sockets.make(socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(None)
    cookie = cookie_of(client)
    knocking = SocketFilter("tcp", TCP.where, states=["syn-sent"], predicate=lambda row: row.cookie == cookie)
    return Blocked(lambda: client.connect((ADDRESS, PORT)), knocking)


def _accept(sockets: Sockets) -> Blocked:
    listener = sockets.listen(ADDRESS, PORT)
    listener.settimeout(None)
    return Blocked(listener.accept, SocketFilter("tcp", src(ADDRESS, PORT), states=["listening"]), "EINVAL")


def _udp_recv(sockets: Sockets) -> Blocked:
    client = sockets.udp(ADDRESS, PORT)
    client.settimeout(None)
    return Blocked(lambda: client.recv(1), UDP)


class TestBlockedCalls:
    """Blocked calls wake up."""

    @pytest.mark.parametrize("make", [_recv, _send, _select, _connect, _accept, _udp_recv])
    def test_a_blocked_call_wakes_up(self, sockets: Sockets, make: Callable[[Sockets], Blocked]) -> None:
        blocked = make(sockets)
        ended: list[str] = []
        thread = threading.Thread(target=lambda: ended.append(error_of(blocked.call)), daemon=True)
        thread.start()
        stat = Path(f"/proc/self/task/{thread.native_id}/stat")
        eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "the thread sleeps")
        eventually(lambda: destroy_sockets(blocked.filter).destroyed == 1, "the socket is there")
        thread.join(10)
        assert ended == [blocked.ends_with]


class TestUdp:
    """Connected UDP: recv gives ECONNABORTED once, every later send EDESTADDRREQ.

    Unconnected UDP: ECONNABORTED once; an autobound one loses its port, a bound one stays in the table with port and
    cookie and answers 0 to every further destroy.
    """

    def test_a_connected_one(self, sockets: Sockets) -> None:
        client = sockets.udp(ADDRESS, PORT)
        assert destroy_sockets(UDP).destroyed == 1
        assert error_of(lambda: client.recv(1)) == "ECONNABORTED"
        assert [error_of(lambda: client.send(b"x")) for _ in range(3)] == ["EDESTADDRREQ"] * 3

    def test_a_connected_one_whose_next_call_is_a_send(self, sockets: Sockets) -> None:
        """It is not told of the abort before it asks, and it is bound to no device any more."""
        client = sockets.udp(ADDRESS, PORT)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        assert destroy_sockets(UDP).destroyed == 1
        assert error_of(lambda: client.send(b"x")) == "EDESTADDRREQ"
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b""
        assert pending_error(client) == "ECONNABORTED"

    def test_a_connected_one_can_connect_to_another_backend(self, sockets: Sockets) -> None:
        client, server = sockets.udp(ADDRESS, PORT), sockets.udp_bound("127.0.0.3", PORT)
        destroy_sockets(UDP)
        assert pending_error(client) == "ECONNABORTED"
        client.connect(("127.0.0.3", PORT))
        talk(client, server)

    def test_a_bound_one_stays_in_the_table(self, sockets: Sockets) -> None:
        bound = sockets.udp_bound(ADDRESS, PORT)
        filter = SocketFilter("udp", src(ADDRESS, PORT))
        for _ in range(3):
            assert destroy_sockets(filter, unconnected=True).destroyed == 1
            assert pending_error(bound) == "ECONNABORTED"
            assert pending_error(bound) == ""
            assert [row.cookie for row in find_sockets(filter)] == [cookie_of(bound)]
        talk(sockets.udp(ADDRESS, PORT), bound)

    def test_an_autobound_one_loses_its_port(self, sockets: Sockets) -> None:
        autobound = sockets.make(socket.AF_INET, socket.SOCK_DGRAM)
        autobound.sendto(b"x", (ADDRESS, PORT))
        port = autobound.getsockname()[1]
        assert destroy_sockets(SocketFilter("udp", sport(port)), unconnected=True).destroyed == 1
        assert autobound.getsockname()[1] == 0
        assert list(find_sockets(SocketFilter("udp"))) == []


class TestNamespace:
    """Sockets elsewhere have nothing to do with it, whatever their addresses."""

    @pytest.mark.parametrize("elsewhere", [True, False], ids=["the other", "the current one"])
    def test_sockets_die_in_the_one_that_is_named(self, sockets: Sockets, elsewhere: bool) -> None:
        there = [sockets.tcp(ADDRESS, PORT), sockets.udp_pair(ADDRESS, PORT)]
        with left_behind() as pid, Sockets() as more:
            here = [more.tcp(ADDRESS, PORT), more.udp_pair(ADDRESS, PORT)]
            namespace = NetworkNamespace.from_pid(pid) if elsewhere else NetworkNamespace.current()
            report = destroy_sockets([TCP, UDP], namespaces=namespace if elsewhere else "current")
            dead, alive = (there, here) if elsewhere else (here, there)
            assert [pending_error(client) for client, _ in dead] == ["ECONNABORTED"] * 2
            for client, server in alive:
                talk(client, server)
        assert [(o.namespace, o.namespace.name) for o in report.outcomes] == [(namespace, namespace.name)] * 2


class TestPrivilege:
    """EPERM ends the run with NotPermitted, which has the report; what destroys nothing needs no privilege."""

    def test_without_it_nothing_dies(self, sockets: Sockets) -> None:
        pairs = [sockets.tcp(ADDRESS, PORT), sockets.udp_pair(ADDRESS, PORT)]

        def run() -> list[Any]:
            seen = []
            for filter in (TCP, UDP):
                with pytest.raises(NotPermitted, match="CAP_NET_ADMIN") as caught:
                    destroy_sockets(filter)
                report = caught.value.report
                assert report is not None
                seen.append((caught.value.errno, [outcome[1:4] for outcome in report.outcomes]))
            return seen

        assert without_privilege(run) == [(errno.EPERM, [("failed", "Operation not permitted", errno.EPERM)])] * 2
        for client, server in pairs:
            talk(client, server)

    def test_a_dry_run_and_a_run_that_matches_nothing(self, sockets: Sockets) -> None:
        sockets.tcp(ADDRESS, PORT)
        sockets.udp(ADDRESS, PORT)

        def run() -> list[tuple[int, int]]:
            nothing = [SocketFilter(protocol, dport(PORT + 1)) for protocol in ("tcp", "udp")]
            reports = destroy_sockets([TCP, UDP], dry_run=True), destroy_sockets(nothing)
            return [(report.matched, report.would_destroy) for report in reports]

        assert without_privilege(run) == [(2, 2), (0, 0)]
