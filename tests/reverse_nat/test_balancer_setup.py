"""The balancer of the tests: what it is made of, where there can be one, and that nothing of it is left."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from socklb.kernel.mounts import mounts

from .. import world
from ..sockets import Sockets, error_of, in_child, without_privilege
from .balancer import Balancer, balancer, ebpf, fixture
from .balancer.assembler import (
    FP,
    R0,
    R1,
    R2,
    Code,
    W,
    assemble,
    jump,
    jump_if_equal,
    leave,
    load,
    load_map,
    move,
    store,
)
from .balancer.cgroup import own_cgroup
from .balancer.clients import PORT, V4, Case, Clients
from .balancer.programs import Family, programs


@pytest.mark.kernel
class TestWhatIsLeft:
    """Nothing, however it ends."""

    def seen(self) -> tuple[list[str], str, list[str], str]:
        return (
            sorted(os.listdir("/proc/self/fd")),
            Path("/proc/self/mountinfo").read_text(),
            os.listdir("/run"),
            own_cgroup(),
        )

    @pytest.fixture
    def made(self, network: None) -> Iterator[Balancer]:
        fixture.refuse(fixture.why_not())
        before = self.seen()
        made = Balancer()
        yield made
        assert made.cgroup
        assert self.seen() == before
        assert not os.path.exists(made.cgroup)

    def test_after_some_use(self, made: Balancer) -> None:
        with made, Sockets() as sockets:
            clients = Clients(made, sockets)
            clients.set_service(Case("tcp", V4), "127.0.0.2")
            clients.connect(Case("tcp", V4))
            assert os.path.isdir(made.directory)
            assert os.path.isdir(made.cgroup)

    def test_with_clients_that_outlive_it(self, made: Balancer) -> None:
        with Sockets() as sockets:
            with made:
                clients = Clients(made, sockets)
                clients.set_service(Case("tcp", V4), "127.0.0.2")
                client, unused = clients.connect(Case("tcp", V4)), clients.make(Case("tcp", V4))
            clients.assert_reaches(client, Case("tcp", V4), "127.0.0.2")
            assert error_of(lambda: unused.connect((V4, PORT))) == "ENETUNREACH"

    def test_with_a_process_in_the_cgroup(self, made: Balancer) -> None:
        home = own_cgroup()
        with made, made.clients():
            inhabitant = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        with inhabitant:
            pids = Path(home, "cgroup.procs").read_text().split()
            assert str(inhabitant.pid) in pids

    def test_after_an_error(self, made: Balancer) -> None:
        def fail() -> None:
            with made, made.clients():
                assert own_cgroup() == made.cgroup
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()

    def test_when_a_program_is_refused(self, made: Balancer, monkeypatch: pytest.MonkeyPatch) -> None:
        def one_is_bad(v4: Family, v6: Family) -> dict[str, bytes]:
            return {**programs(v4, v6), "sock_release": assemble([move(R0, R2), *leave(1)])}

        monkeypatch.setattr(balancer, "programs", one_is_bad)
        with pytest.raises(PermissionError, match=r"BPF_PROG_LOAD: .*, of sock_release\n(?s:.*)R2 !read_ok"):
            made.__enter__()


@pytest.mark.kernel
class TestMaps:
    """Maps of any kind can be made, filled, pinned and read."""

    @pytest.fixture
    def directory(self, balancer: Balancer) -> str:
        return balancer.directory

    def test_what_is_put_in_can_be_read_through_the_pin(self, directory: str) -> None:
        path = os.path.join(directory, "some map")
        made = ebpf.create_map(ebpf.BPF_MAP_TYPE_HASH, 28, 3, 100)
        entries = {bytes([number]) * 28: bytes([number]) * 3 for number in range(100)}
        for key, value in entries.items():
            ebpf.update(made, key, b"old")
            ebpf.update(made, key, value)
        ebpf.pin(made, path)
        os.close(made)
        pinned = ebpf.open_pinned(path)
        assert ebpf.shape_of(pinned) == (ebpf.BPF_MAP_TYPE_HASH, 28, 3, 100)
        assert ebpf.items(pinned, 28, 3) == entries
        os.close(pinned)

    def test_what_is_deleted_is_gone(self, directory: str) -> None:
        made = ebpf.create_map(ebpf.BPF_MAP_TYPE_HASH, 4, 4, 1)
        with pytest.raises(FileNotFoundError, match="BPF_MAP_DELETE_ELEM"):
            ebpf.delete(made, b"key1")
        ebpf.update(made, b"key1", b"val1")
        with pytest.raises(OSError, match="BPF_MAP_UPDATE_ELEM"):
            ebpf.update(made, b"key2", b"val2")  # it is full
        ebpf.delete(made, b"key1")
        assert ebpf.items(made, 4, 4) == {}
        os.close(made)


class TestAssembler:
    """Held against encodings written down by hand from the instruction set."""

    def test_a_jump_counts_from_the_next_instruction_and_a_map_takes_two(self) -> None:
        code: Code = [
            load(W, R1, R2, 4),
            jump_if_equal(R1, -2, "end"),
            *load_map(R1, 7),
            store(W, FP, -8, R1),
            jump("end"),
            "end",
            *leave(1),
        ]
        assert assemble(code).hex(" ", 8) == " ".join(
            [
                "6121040000000000",
                "15010400feffffff",
                "1811000007000000",
                "0000000000000000",
                "631af8ff00000000",
                "0500000000000000",
                "b700000001000000",
                "9500000000000000",
            ]
        )

    def test_a_jump_back(self) -> None:
        code: Code = ["begin", jump("begin")]
        assert assemble(code).hex() == "0500ffff00000000"

    def test_a_label_that_is_not_there_once_is_an_error(self) -> None:
        nowhere: Code = [jump("nowhere")]
        with pytest.raises(KeyError, match="nowhere"):
            assemble(nowhere)
        twice: Code = ["twice", *leave(0), "twice"]
        with pytest.raises(ValueError, match="twice"):
            assemble(twice)


class TestWhereThereIsNone:
    """Tests of the balancer are skipped with the reason; root has to have one where the kernel is required."""

    @pytest.mark.kernel
    def test_in_a_user_namespace(self) -> None:
        why, root = without_privilege(lambda: (fixture.why_not(), fixture.is_root()))
        assert (why, root) == (
            "it needs root: this is a user namespace, and bpf(2) wants the capabilities of the first one", False,
        )  # fmt: skip

    @pytest.mark.kernel
    def test_without_a_cgroup2(self, balancer: Balancer) -> None:
        def hide() -> None:
            world.unshare(world.CLONE_NEWNS)
            for mount in [mount for mount in mounts() if mount.type == "cgroup2"]:
                world.unmount(mount.point)

        assert in_child(fixture.why_not, hide) == "[Errno 19] no cgroup2 is mounted"

    @pytest.mark.parametrize(
        ("required", "root", "outcome"),
        [("1", True, pytest.fail.Exception), ("1", False, pytest.skip.Exception), ("", True, pytest.skip.Exception)],
    )
    def test_it_fails_for_root_where_the_kernel_is_required(
        self, monkeypatch: pytest.MonkeyPatch, required: str, root: bool, outcome: type[BaseException]
    ) -> None:
        monkeypatch.setenv("SOCKLB_REQUIRE_KERNEL", required)
        monkeypatch.setattr(fixture, "is_root", lambda: root)
        with pytest.raises(outcome, match="no balancer: no moon"):
            fixture.refuse("no moon")

    def test_no_reason_lets_the_test_run(self) -> None:
        fixture.refuse("")
