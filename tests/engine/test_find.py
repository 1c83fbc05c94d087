"""find_sockets on the real kernel: it finds what a filter matches, streams it, and leaves nothing open."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest

from socklb import (
    InetSocket,
    NetworkNamespace,
    NotPermitted,
    SocketFilter,
    TcpState,
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
from ..sockets import Sockets, add_v6_address, cookie_of, left_behind, without_privilege

pytestmark = pytest.mark.kernel

TARGETS = ("127.0.0.2", "127.0.0.3", "::1", "fd00::1", "::ffff:127.0.0.2")
PORTS = (9000, 9001)


def cookies(filter: SocketFilter, namespace: Optional[NetworkNamespace] = None) -> list[int]:
    return sorted(socket.cookie for socket in find_sockets(filter, namespace=namespace))


class Client(NamedTuple):
    """A connected socket, and where to."""

    protocol: str
    address: str
    port: int
    cookie: int


@pytest.fixture
def clients(sockets: Sockets) -> list[Client]:
    """TCP and UDP, to v4, v6 and mapped addresses, to two ports each."""
    add_v6_address("fd00::1")
    made = []
    for address in TARGETS:
        for port in PORTS:
            made.append(Client("tcp", address, port, cookie_of(sockets.tcp(address, port)[0])))
            made.append(Client("udp", address, port, cookie_of(sockets.udp(address, port))))
    return made


class TestWhatIsFound:
    """A v4 condition matches v4-mapped v6 sockets; `::/0` matches v6 alone."""

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    @pytest.mark.parametrize(
        ("where", "matches"),
        [
            (dst("127.0.0.2"), lambda c: c.address in ("127.0.0.2", "::ffff:127.0.0.2")),
            (dst("::ffff:127.0.0.2"), lambda c: c.address in ("127.0.0.2", "::ffff:127.0.0.2")),
            (dst("127.0.0.2", 9001), lambda c: c.address.endswith("127.0.0.2") and c.port == 9001),
            (dst("fd00::/8", 9000), lambda c: c.address == "fd00::1" and c.port == 9000),
            (dst("::/0"), lambda c: ":" in c.address),
            (dst("0.0.0.0/0"), lambda c: "." in c.address),
            (dport(9000, 9001) & ~dst("127.0.0.2"), lambda c: not c.address.endswith("127.0.0.2")),
            (dst("::1", 9000) | dst("127.0.0.3", 9001), lambda c: c[1:3] in (("::1", 9000), ("127.0.0.3", 9001))),
        ],
        ids=lambda value: str(value) if isinstance(value, Condition) else "",
    )
    def test_exactly_those_that_match(
        self, clients: list[Client], protocol: str, where: Condition, matches: Callable[[Client], bool]
    ) -> None:
        expected = sorted(c.cookie for c in clients if c.protocol == protocol and matches(c))
        assert expected
        assert cookies(SocketFilter(protocol, where & dport(9000, 9001))) == expected

    @pytest.mark.parametrize(
        ("family", "matches"),
        [
            pytest.param(socket.AF_INET, lambda c: ":" not in c.address, id="v4"),
            pytest.param(socket.AF_INET6, lambda c: ":" in c.address, id="v6"),
            pytest.param(None, lambda c: True, id="both"),
        ],
    )
    def test_a_mapped_socket_is_of_the_family_v6(
        self, clients: list[Client], family: Optional[int], matches: Callable[[Client], bool]
    ) -> None:
        expected = sorted(c.cookie for c in clients if c.protocol == "tcp" and matches(c))
        assert cookies(SocketFilter("tcp", dport(*PORTS), family=family)) == expected

    def test_the_predicate_sees_what_is_left_and_has_the_last_word(self, clients: list[Client]) -> None:
        seen: list[InetSocket] = []

        def only_9001(row: InetSocket) -> bool:
            seen.append(row)
            return row.dport == 9001

        found = list(find_sockets(SocketFilter("udp", dst("127.0.0.3"), predicate=only_9001)))
        assert sorted(row.dport for row in seen) == [9000, 9001]
        assert [row.dport for row in found] == [9001]

    def test_local_conditions_find_the_other_end(self, sockets: Sockets) -> None:
        client, server = sockets.tcp("127.0.0.2", 9000)
        port = client.getsockname()[1]
        states = [TcpState.ESTABLISHED]
        assert cookies(SocketFilter("tcp", src("127.0.0.2", 9000), states=states)) == [cookie_of(server)]
        assert cookies(SocketFilter("tcp", sport(port), states=states)) == [cookie_of(client)]


class TestARow:
    """family, protocol, state, src, sport, dst, dport, interface, cookie, uid, inode: as the kernel gave them."""

    @pytest.mark.parametrize("address", TARGETS)
    def test_it_says_what_the_socket_itself_says(self, sockets: Sockets, address: str) -> None:
        add_v6_address("fd00::1")
        client, _ = sockets.tcp(address, 9000)
        (row,) = find_sockets(SocketFilter("tcp", dst(address, 9000)))
        local, local_port = client.getsockname()[:2]
        assert (row.family, row.protocol, row.state) == (client.family, socket.IPPROTO_TCP, TcpState.ESTABLISHED)
        assert (row.src, row.sport) == (ip_address(local), local_port)
        assert (row.dst, row.dport) == (ip_address(address), 9000)
        assert (row.cookie, row.inode) == (cookie_of(client), os.fstat(client.fileno()).st_ino)
        assert (row.interface, row.uid) == (0, os.getuid())

    def test_its_queues(self, sockets: Sockets) -> None:
        _, server = sockets.tcp("127.0.0.2", 9000)
        server.send(b"seven b")
        (row,) = find_sockets(SocketFilter("tcp", dst("127.0.0.2")))
        assert row.rqueue == 7


class TestExtensions:
    """`extensions` names response attributes to ask for; an unknown name is a ValueError at once."""

    def test_those_come_and_say_what_the_socket_itself_says(self, sockets: Sockets) -> None:
        names = {"info", "cong", "meminfo", "skmeminfo"}
        client, server = sockets.tcp("127.0.0.2", 9000)
        server.send(bytes(100))
        (without,) = find_sockets(SocketFilter("tcp", dst("127.0.0.2")))
        (row,) = find_sockets(SocketFilter("tcp", dst("127.0.0.2")), extensions=names)
        assert row.attributes.keys() & names == names > without.attributes.keys() & names
        congestion = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        assert row.attributes["cong"] == congestion.rstrip(b"\0").decode()
        assert row.attributes["info"].state == TcpState.ESTABLISHED
        assert row.attributes["info"].bytes_received == 100
        assert row.attributes["skmeminfo"].rcvbuf == client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    @pytest.mark.parametrize("name", ["", "nosuch", "mark", "INFO"])
    def test_an_unknown_one_is_an_error_before_anything_is_asked(self, sockets: Sockets, name: str) -> None:
        with pytest.raises(ValueError, match="cannot be asked for"):
            find_sockets(SocketFilter("tcp"), extensions=["info", name])

    def test_a_predicate_that_reads_what_was_not_asked_for_is_told_how_to(self, sockets: Sockets) -> None:
        sockets.tcp("127.0.0.2", 9000)
        filter = SocketFilter("tcp", dst("127.0.0.2"), predicate=lambda row: row.attributes["info"].rto)
        with pytest.raises(KeyError, match=r"'info': ask for it with extensions=\('info',\)"):
            destroy_sockets(filter)
        assert destroy_sockets(filter, extensions=["info"]).destroyed == 1


class TestDeviceCgroupAndMark:
    """Names that depend on a namespace are resolved inside the namespace that is searched, before compiling."""

    def test_a_device_by_name_and_by_index(self, sockets: Sockets) -> None:
        bound, _ = sockets.udp("127.0.0.2", 9000), sockets.udp("127.0.0.2", 9000)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        index = socket.if_nametoindex("lo")
        for interface in ("lo", index):
            (row,) = find_sockets(SocketFilter("udp", device(interface)))
            assert (row.cookie, row.interface) == (cookie_of(bound), index)

    def test_an_unknown_device_is_an_error_before_anything_is_asked(self, network: None) -> None:
        with pytest.raises(ValueError, match="no interface 'nosuch'"):
            find_sockets(SocketFilter("udp", ~(dport(1) & device("nosuch"))))

    def test_the_name_is_looked_up_where_the_search_is(self, elsewhere: Elsewhere) -> None:
        rename_loopback("renamed")
        with pytest.raises(ValueError, match="no interface 'lo'"):
            find_sockets(SocketFilter("udp", device("lo")))
        assert cookies(SocketFilter("udp", ~device("lo")), elsewhere.namespace) == [elsewhere.cookie]
        with pytest.raises(ValueError, match="no interface 'renamed'"):
            find_sockets(SocketFilter("udp", device("renamed")), namespace=elsewhere.namespace)

    def test_a_cgroup_by_id_and_by_path(self, sockets: Sockets) -> None:
        client = sockets.udp("127.0.0.2", 9000)
        (row,) = find_sockets(SocketFilter("udp"))
        own = row.attributes.get("cgroup_id", 0)
        assert cookies(SocketFilter("udp", cgroup(own))) == [cookie_of(client)]
        assert cookies(SocketFilter("udp", cgroup(own + 1))) == []
        for path in own_cgroup(own):
            assert cookies(SocketFilter("udp", cgroup(path))) == [cookie_of(client)]

    def test_what_is_not_a_cgroup_is_an_error_before_anything_is_asked(self, network: None) -> None:
        with pytest.raises(ValueError, match="is not a cgroup v2"):
            find_sockets(SocketFilter("udp", cgroup("/proc")))

    def test_marks_with_privilege(self, sockets: Sockets) -> None:
        marked, _ = sockets.udp("127.0.0.2", 9000), sockets.udp("127.0.0.2", 9000)
        marked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x1234)
        for condition in (mark(0x1234), mark(0x30, 0xF0)):
            assert cookies(SocketFilter("udp", condition)) == [cookie_of(marked)]

    def test_without_privilege_a_mark_is_not_permitted(self, sockets: Sockets) -> None:
        """A mark condition without CAP_NET_ADMIN is EPERM, and nothing else knows the mark: NotPermitted."""
        sockets.udp("127.0.0.2", 9000)

        def search() -> str:
            with pytest.raises(NotPermitted) as caught:
                list(find_sockets(SocketFilter("udp", mark(1))))
            return str(caught.value)

        assert "CAP_NET_ADMIN" in without_privilege(search)


def own_cgroup(number: int) -> list[str]:
    """This process's cgroup by path, if its file system is mounted and its id is that."""
    own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = [line.split()[4] for line in lines if " - cgroup2 " in line]
    paths = [f"{mount}/{path.strip('/')}" for mount in mounts[:1] for path in own]
    return [path for path in paths if os.path.isdir(path) and os.stat(path).st_ino == number]


class TestStreaming:
    """`find_sockets` streams. Each call owns its netlink socket, closed on exhaustion, close() or error."""

    @pytest.fixture
    def many(self, sockets: Sockets) -> int:
        for port in range(9000, 9400):
            sockets.udp("127.0.0.2", port)
        return 400

    def test_the_first_is_there_before_the_last_is_looked_at(self, many: int) -> None:
        seen: list[InetSocket] = []

        def look(row: InetSocket) -> bool:
            seen.append(row)
            return True

        found = find_sockets(SocketFilter("udp", predicate=look))
        next(found)
        assert len(seen) == 1
        assert len(list(found)) == many - 1

    @pytest.mark.parametrize(
        ("end", "error"), [(list, None), (lambda found: found.close(), None), (list, ZeroDivisionError)]
    )
    def test_exhaustion_close_and_an_error_close_the_netlink_socket(
        self, many: int, end: Callable[[Any], object], error: type[Exception] | None
    ) -> None:
        seen: list[InetSocket] = []

        def predicate(row: InetSocket) -> bool:
            seen.append(row)
            return error is None or len(seen) < 10 or 1 // 0 > 0

        before = len(os.listdir("/proc/self/fd"))
        found = find_sockets(SocketFilter("udp", predicate=predicate))
        next(found)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        with nullcontext() if error is None else pytest.raises(error):
            end(found)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_two_at_once_do_not_disturb_each_other(self, many: int) -> None:
        one, other = find_sockets(SocketFilter("udp")), find_sockets(SocketFilter("udp"))
        pairs = list(zip(one, other))
        assert len(pairs) == many
        assert all(a == b for a, b in pairs)


class TestPrivilege:
    """Dumps and look-ups need no privilege."""

    def test_without_any_the_same_is_found(self, clients: list[Client]) -> None:
        def search() -> list[int]:
            return cookies(SocketFilter("tcp", dport(*PORTS)))

        assert without_privilege(search) == search()


# ------------------------------------------------------------------------------------------- namespaces


class Elsewhere(NamedTuple):
    """Another network namespace, with one UDP socket in it that is connected to 127.0.0.2:9000."""

    namespace: NetworkNamespace
    cookie: int


@pytest.fixture(params=["path", "pid"])
def elsewhere(request: pytest.FixtureRequest, sockets: Sockets) -> Iterator[Elsewhere]:
    """Named by a path or by a process in it; the test itself is in a fresh one."""
    cookie = cookie_of(sockets.udp("127.0.0.2", 9000))
    with left_behind() as pid:
        by_path = request.param == "path"
        namespace = NetworkNamespace.from_path(f"/proc/{pid}/ns/net") if by_path else NetworkNamespace.from_pid(pid)
        yield Elsewhere(namespace, cookie)
    world.new_network()


def rename_loopback(name: str) -> None:
    """In a namespace of its own, whose loopback is down: only then may it be renamed."""
    world.unshare(world.CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8923, struct.pack("16s16s8x", b"lo", name.encode()))


class TestNamespaces:
    """`namespace=None` is the current one."""

    def test_what_is_there_is_found_from_here(self, elsewhere: Elsewhere, sockets: Sockets) -> None:
        here = cookie_of(sockets.udp("127.0.0.2", 9000))
        filter = SocketFilter("udp", dst("127.0.0.2", 9000))
        assert cookies(filter, elsewhere.namespace) == [elsewhere.cookie]
        assert cookies(filter) == cookies(filter, NetworkNamespace.current()) == [here]

    def test_the_caller_stays_where_it_is(self, elsewhere: Elsewhere) -> None:
        before = NetworkNamespace.current()
        assert cookies(SocketFilter("udp"), elsewhere.namespace)
        assert NetworkNamespace.current() == before != elsewhere.namespace
