"""The balancer of the tests: where clients of a service get to, what is recorded of them, and that nothing is left."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from socklb import SocketFilter, destroy_sockets

from ..sockets import Sockets, cookie_of, error_of, family_of
from .balancer import Balancer, balancer, ebpf
from .balancer.assembler import R0, R2, assemble, leave, move
from .balancer.cgroup import own_cgroup
from .balancer.clients import BACKEND_PORT, CASES, PORT, V4, V6, Case, Clients
from .balancer.fixture import refuse, why_not
from .balancer.programs import SLOT_KEY_SIZE, Family, programs
from .bpf_maps import descriptors

NO_ROUTE = "ENETUNREACH"
EACH = pytest.mark.parametrize("case", CASES, ids=str)
UDP = pytest.mark.parametrize("case", [case for case in CASES if case.protocol == "udp"], ids=str)


@EACH
@pytest.mark.kernel
class TestConnected:
    """A socket that connects to a service gets to its backend, and is recorded."""

    def test_it_gets_to_the_backend_and_has_one_record(self, clients: Clients, case: Case) -> None:
        clients.set_service(case, case.backends[0])
        client = clients.connect(case)
        clients.assert_reaches(client, case, case.backends[0])
        assert client.getpeername()[:2] == (case.called(case.backends[0]), BACKEND_PORT)
        assert clients.balancer.records() == [clients.record(client, case, case.backends[0])]

    def test_closed_it_has_none(self, clients: Clients, case: Case) -> None:
        clients.set_service(case, case.backends[0])
        first, second = clients.connect(case), clients.connect(case)
        first.close()
        assert clients.balancer.records() == [clients.record(second, case, case.backends[0])]
        second.close()
        assert clients.balancer.records() == []
        for family in clients.balancer.families.values():
            assert ebpf.items(family.slots, SLOT_KEY_SIZE, family.key_size) == {}

    def test_straight_to_the_backend_there_is_none(self, clients: Clients, case: Case) -> None:
        clients.set_service(case, case.backends[0])
        client = clients.connect(case, case.backends[0], BACKEND_PORT)
        clients.assert_reaches(client, case, case.backends[0])
        assert clients.balancer.records() == []

    def test_only_this_port_and_protocol_are_the_service(self, clients: Clients, case: Case) -> None:
        clients.set_service(case, case.backends[0])
        other = case._replace(protocol="udp" if case.protocol == "tcp" else "tcp")
        for client, port in ((case, PORT + 1), (other, PORT)):
            assert error_of(lambda client=client, port=port: clients.connect(client, port=port)) == NO_ROUTE  # type: ignore[misc]
        assert clients.balancer.records() == []

    def test_another_backend_is_for_new_clients_alone(self, clients: Clients, case: Case) -> None:
        old_backend, new_backend = case.backends
        clients.set_service(case, old_backend)
        old = clients.connect(case)
        clients.set_service(case, new_backend)
        new = clients.connect(case)
        clients.assert_reaches(old, case, old_backend)
        clients.assert_reaches(new, case, new_backend)
        assert clients.balancer.records() == sorted(
            [clients.record(old, case, old_backend), clients.record(new, case, new_backend)]
        )

    def test_nothing_leads_to_a_removed_service(self, clients: Clients, case: Case) -> None:
        clients.set_service(case, case.backends[0])
        old = clients.connect(case)
        clients.balancer.remove_service(case.service, PORT, case.protocol)
        assert error_of(lambda: clients.connect(case)) == NO_ROUTE
        assert clients.balancer.records() == [clients.record(old, case, case.backends[0])]

    def test_a_socket_made_outside_the_cgroup_is_left_alone(self, clients: Clients, case: Case) -> None:
        """Where a socket was made counts, not where it is used. Afterwards this process is where it was."""
        clients.set_service(case, case.backends[0])
        home = own_cgroup()
        before = clients.sockets.make(family_of(case.called(case.service)), case.kind)
        with clients.balancer.clients():
            assert own_cgroup() == clients.balancer.cgroup
            assert error_of(lambda: before.connect((case.called(case.service), PORT))) == NO_ROUTE
        assert own_cgroup() == home
        after = clients.sockets.make(family_of(case.called(case.service)), case.kind)
        assert error_of(lambda: after.connect((case.called(case.service), PORT))) == NO_ROUTE
        assert clients.balancer.records() == []


@UDP
@pytest.mark.kernel
class TestDatagrams:
    """What is sent to a service, without a connection, gets to its backend, and the last of it is recorded."""

    def send(self, client: socket.socket, case: Case, port: int = PORT) -> None:
        client.sendto(b"?", (case.called(case.service), port))

    def test_each_arrives_and_it_has_one_record_until_it_is_closed(self, clients: Clients, case: Case) -> None:
        clients.set_service(case, case.backends[0])
        client = clients.make(case)
        for _ in range(2):
            self.send(client, case)
            data, sender = clients.backend(socket.SOCK_DGRAM, case.backends[0]).recvfrom(1)
            assert (data, sender[1]) == (b"?", client.getsockname()[1])
            assert clients.balancer.records() == [clients.record(client, case, case.backends[0])]
        client.close()
        assert clients.balancer.records() == []

    def test_through_another_service_to_the_same_backend_is_a_record_of_that(
        self, clients: Clients, case: Case
    ) -> None:
        client = clients.make(case)
        clients.set_service(case, case.backends[0])
        clients.balancer.set_service(case.service, PORT + 1, "udp", case.backends[0], BACKEND_PORT)
        for port in (PORT, PORT + 1):
            self.send(client, case, port)
        (record,) = clients.balancer.records()
        assert (record.service_port, record.rev_nat_index) == (PORT + 1, 2)

    def test_elsewhere_takes_the_place_of_the_last(self, clients: Clients, case: Case) -> None:
        client = clients.make(case)
        for backend in case.backends:
            clients.set_service(case, backend)
            self.send(client, case)
        assert clients.balancer.records() == [clients.record(client, case, case.backends[1])]

    def test_the_connection_of_a_socket_keeps_its_record(self, clients: Clients, case: Case) -> None:
        clients.set_service(case, case.backends[0])
        client = clients.connect(case)
        self.send(client, case)  # to the same backend
        clients.set_service(case, case.backends[1])
        self.send(client, case)
        assert clients.balancer.records() == [clients.record(client, case, backend) for backend in case.backends]
        client.close()
        assert clients.balancer.records() == []

    def test_a_connection_to_elsewhere_leaves_no_record_of_the_one_before(self, clients: Clients, case: Case) -> None:
        clients.set_service(case, case.backends[0])
        client = clients.connect(case)
        client.connect((case.called(case.backends[1]), BACKEND_PORT))
        assert clients.balancer.records() == []

    def test_connected_again_it_has_the_new_record_alone(self, clients: Clients, case: Case) -> None:
        clients.set_service(case, case.backends[0])
        client = clients.connect(case)
        clients.set_service(case, case.backends[1])
        client.connect((case.called(case.service), PORT))
        assert clients.balancer.records() == [clients.record(client, case, case.backends[1])]
        clients.assert_reaches(client, case, case.backends[1])

    def test_destroyed_and_closed_it_has_none(self, clients: Clients, case: Case) -> None:
        """The kernel takes the peer's address from a destroyed socket: the record has to be found without."""
        clients.set_service(case, case.backends[0])
        client = clients.connect(case)
        report = destroy_sockets(SocketFilter.to_backend(case.backends[0], BACKEND_PORT, "udp"))
        assert report.destroyed == 1
        assert clients.balancer.records() == [clients.record(client, case, case.backends[0])]
        client.close()
        assert clients.balancer.records() == []


@pytest.mark.kernel
class TestAV6Socket:
    """Its records may be of either family, and those of one make room for those of the other."""

    MAPPED, NATIVE = Case("udp", V4, mapped=True), Case("udp", V6)

    @pytest.mark.parametrize("cases", [(MAPPED, NATIVE), (NATIVE, MAPPED)], ids=["to v6", "to v4"])
    def test_that_sends(self, clients: Clients, cases: tuple[Case, Case]) -> None:
        client = clients.make(self.NATIVE)
        for case in cases:
            clients.set_service(case, case.backends[0])
            client.sendto(b"?", (case.called(case.service), PORT))
        assert clients.balancer.records() == [clients.record(client, cases[1], cases[1].backends[0], index=2)]

    @pytest.mark.parametrize("cases", [(MAPPED, NATIVE), (NATIVE, MAPPED)], ids=["to v6", "to v4"])
    def test_that_connects(self, clients: Clients, cases: tuple[Case, Case]) -> None:
        """The kernel refuses the second connection, whose source is of the other family, when the record is made."""
        for case in cases:
            clients.set_service(case, case.backends[0])
        client = clients.connect(cases[0])
        error_of(lambda: client.connect((cases[1].called(cases[1].service), PORT)))
        assert clients.balancer.records() == [clients.record(client, cases[1], cases[1].backends[0], index=2)]


@pytest.mark.kernel
class TestRecords:
    """Cilium's layout, under Cilium's names."""

    def test_the_bytes(self, clients: Clients) -> None:
        """Cilium pins nothing else there, and neither does the balancer."""
        expected = {
            "cilium_lb4_reverse_sk": (Case("tcp", V4), "7f000002", bytes(2), "0a60000a"),
            "cilium_lb6_reverse_sk": (
                Case("tcp", V6),
                "fd000000000000000000000000000002",
                bytes(6),
                "fd000096000000000000000000000010",
            ),
        }
        assert sorted(os.listdir(clients.balancer.directory)) == [*expected]
        for index, (name, (case, backend, padding, service)) in enumerate(expected.items(), 1):
            clients.set_service(case, case.backends[0])
            client = clients.connect(case)
            key = struct.pack("=Q", cookie_of(client)) + bytes.fromhex(backend) + b"\x23\x28" + padding
            value = bytes.fromhex(service) + b"\0\x50" + struct.pack("=H", index)
            descriptor = ebpf.open_pinned(os.path.join(clients.balancer.directory, name))
            try:
                sizes = len(key), len(value)
                assert ebpf.shape_of(descriptor) == (ebpf.BPF_MAP_TYPE_LRU_HASH, *sizes, clients.balancer.entries)
                assert ebpf.items(descriptor, *sizes) == {key: value}
            finally:
                os.close(descriptor)

    def test_each_service_has_its_index(self, clients: Clients) -> None:
        cases = [Case(protocol, service) for protocol in ("tcp", "udp") for service in (V4, V6)]
        for case in [*cases, *cases]:
            clients.set_service(case, case.backends[0])
        made = [clients.connect(case) for case in cases]
        assert clients.balancer.records() == sorted(
            clients.record(client, case, case.backends[0], index)
            for index, (client, case) in enumerate(zip(made, cases), 1)
        )

    @pytest.mark.parametrize("service", [V4, V6])
    def test_one_can_be_evicted(self, clients: Clients, service: str) -> None:
        case = Case("tcp", service)
        clients.set_service(case, case.backends[0])
        kept, evicted = clients.connect(case), clients.connect(case)
        clients.balancer.evict(clients.record(evicted, case, case.backends[0]))
        assert clients.balancer.records() == [clients.record(kept, case, case.backends[0])]
        evicted.close()
        assert clients.balancer.records() == [clients.record(kept, case, case.backends[0])]


@pytest.mark.kernel
class TestWhatIsLeft:
    """Nothing: no descriptor, no mount, no directory in /run, and no cgroup, wherever that is."""

    def seen(self) -> tuple[object, ...]:
        return descriptors(), Path("/proc/self/mountinfo").read_text(), os.listdir("/run"), own_cgroup()

    @pytest.fixture
    def made(self, network: None) -> Iterator[Balancer]:
        refuse(why_not())
        before = self.seen()
        made = Balancer()
        yield made
        assert made.cgroup
        assert self.seen() == before
        assert not os.path.exists(made.cgroup)

    def test_after_use_by_clients_that_outlive_it(self, made: Balancer) -> None:
        case = Case("tcp", V4)
        with Sockets() as sockets:
            with made:
                clients = Clients(made, sockets)
                clients.set_service(case, case.backends[0])
                client, unused = clients.connect(case), clients.make(case)
            clients.assert_reaches(client, case, case.backends[0])
            assert error_of(lambda: unused.connect((V4, PORT))) == NO_ROUTE

    def test_with_a_process_in_the_cgroup(self, made: Balancer) -> None:
        home = own_cgroup()
        with made, made.clients():
            inhabitant = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        with inhabitant:
            assert str(inhabitant.pid) in Path(home, "cgroup.procs").read_text().split()

    def test_after_an_error(self, made: Balancer) -> None:
        with pytest.raises(ZeroDivisionError), made, made.clients():
            raise ZeroDivisionError

    def test_when_a_program_is_refused(self, made: Balancer, monkeypatch: pytest.MonkeyPatch) -> None:
        def one_is_bad(v4: Family, v6: Family) -> dict[str, bytes]:
            return {**programs(v4, v6), "sock_release": assemble([move(R0, R2), *leave(1)])}

        monkeypatch.setattr(balancer, "programs", one_is_bad)
        with pytest.raises(PermissionError, match=r"BPF_PROG_LOAD: .*, of sock_release\n(?s:.*)R2 !read_ok"):
            made.__enter__()
