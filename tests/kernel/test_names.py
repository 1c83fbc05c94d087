"""Names that mean something only where and when they are looked up: interfaces, cgroup paths, processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from unittest import mock

import pytest

from socklb import SocketFilter, device, find_sockets
from socklb.kernel import mounts
from socklb.kernel.names import cgroup_id, cgroup_ids_below, cgroup_paths, interface_index, process_sockets
from socklb.kernel.processes import process_start_time

from .. import world
from ..rtnetlink import add_alternative_name
from ..sockets import Sockets, cookie_of, without_privilege


class TestInterfaces:
    @pytest.mark.kernel
    def test_loopback_has_the_index_that_the_kernel_gives_it(self, network: None) -> None:
        assert [(interface_index(name), name) for _, name in socket.if_nameindex()] == socket.if_nameindex()
        assert interface_index("lo") in dict(socket.if_nameindex())

    @pytest.mark.kernel
    def test_a_name_comes_before_an_index_and_alternative_names_count(self, sockets: Sockets) -> None:
        """In the language and as text; an int is an index."""
        long_name = "an-alternative-name-of-" + "x" * 104
        for name in ("2", "short", long_name):
            add_alternative_name(1, name)
        bound = sockets.make(socket.AF_INET, socket.SOCK_DGRAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        bound.bind(("127.0.0.1", 5000))
        for name, matches in (("2", True), ("1", True), ("3", False), ("lo", True), ("short", True), (long_name, True)):
            for filter in (SocketFilter.parse(f"dev {name}", "udp"), SocketFilter("udp", device(name))):
                assert [row.cookie for row in find_sockets(filter)] == [cookie_of(bound)] * matches
        assert not list(find_sockets(SocketFilter("udp", device(2))))

    @pytest.mark.parametrize(
        "name", ["nosuch0", "", "a name that is too long", "x" * 200, "l\0o", "löw", "²", "9" * 15]
    )
    def test_an_unknown_one_is_a_value_error_that_names_it(self, name: str) -> None:
        with pytest.raises(ValueError, match="embedded null" if "\0" in name else f"no interface '{name}'"):
            interface_index(name)


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that the mount table calls a cgroup2 file system, with one cgroup in it."""
    root = tmp_path / "a mount\\"
    for directory in (root, root / "web.slice"):
        directory.mkdir()
        (directory / "cgroup.controllers").touch()
    (root / "no-cgroup").mkdir()
    escaped = str(root).replace("\\", r"\134").replace(" ", r"\040")
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 0:21 / /proc rw - proc proc rw\n"
        "30 1 0:26 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu\n"
        f"41 31 0:38 / {escaped} rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
        "42 31 0:38 / /elsewhere rw,relatime - cgroup2 cgroup2 rw\n"
    )
    monkeypatch.setattr(mounts, "_MOUNTINFO", str(table))
    return root


class TestCgroups:
    """The id of a cgroup v2 is the inode of its directory; a relative path is taken below the cgroup2 mount."""

    def test_a_relative_path_is_below_the_first_mount(self, mounted: Path) -> None:
        assert cgroup_id("web.slice") == (mounted / "web.slice").stat().st_ino
        assert cgroup_id(".") == mounted.stat().st_ino

    def test_all_below_are_as_deep_as_there_are(self, mounted: Path) -> None:
        inner = mounted / "web.slice" / "a.service" / "b"
        inner.mkdir(parents=True)
        expected = {path.stat().st_ino for path in (inner, inner.parent, mounted / "web.slice")}
        for path in ("web.slice/", str(mounted / "web.slice/")):
            assert cgroup_ids_below(path) == expected
        with pytest.raises(ValueError, match="is not a cgroup v2"):
            cgroup_ids_below("missing.slice/")

    def test_an_absolute_path_needs_no_mount_table(self, mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mounts, "_MOUNTINFO", "/nonexistent")
        assert cgroup_id(str(mounted / "web.slice")) == (mounted / "web.slice").stat().st_ino

    def test_the_paths_of_all(self, mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those below the first mount, without what has gone while it was looked at; none without a mount."""
        (mounted / "web.slice" / "web.service").mkdir()
        usual = os.walk
        monkeypatch.setattr(os, "walk", lambda top: [*usual(top), (f"{top}/gone", [], [])])
        paths = cgroup_paths()
        assert paths.pop((mounted / "no-cgroup").stat().st_ino) == "/no-cgroup"  # there is none in a cgroup2
        expected = {"/": ".", "/web.slice": "web.slice", "/web.slice/web.service": "web.slice/web.service"}
        assert paths == {(mounted / name).stat().st_ino: path for path, name in expected.items()}
        monkeypatch.setattr(mounts, "_MOUNTINFO", "/nonexistent")
        assert cgroup_paths() == {}

    @pytest.mark.parametrize("path", ["missing.slice", "no-cgroup", "web.slice/cgroup.controllers", "/", "/etc/passwd"])
    def test_what_is_no_cgroup_is_a_value_error_that_names_it(self, mounted: Path, path: str) -> None:
        with pytest.raises(ValueError, match="is not a cgroup v2: ") as caught:
            cgroup_id(path)
        assert path in str(caught.value)

    @pytest.mark.parametrize("text", ["", "22 1 0:21 / /proc rw - proc proc rw\n", "nonsense\n"])
    def test_without_a_mount_a_relative_path_is_a_value_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        (tmp_path / "mountinfo").write_text(text)
        for table in (tmp_path / "mountinfo", tmp_path / "missing"):
            monkeypatch.setattr(mounts, "_MOUNTINFO", str(table))
            with pytest.raises(ValueError, match="no cgroup2 file system is mounted"):
                cgroup_id("web.slice")

    @pytest.mark.kernel
    def test_it_is_the_id_that_a_socket_s_row_carries(self, sockets: Sockets) -> None:
        memberships = Path("/proc/self/cgroup").read_text().splitlines()
        try:
            (own,) = (line[len("0::/") :] for line in memberships if line.startswith("0::/"))
            expected = cgroup_id(own)
        except ValueError as error:
            world.cannot(f"no cgroup v2 here: {error}")
        cookie = cookie_of(sockets.udp("127.0.0.1", 5000))
        (row,) = find_sockets(SocketFilter("udp", family=socket.AF_INET))
        assert (row.cookie, row.attributes["cgroup_id"]) == (cookie, expected)


def of(pid: int) -> frozenset[int] | None:
    return process_sockets(pid, process_start_time(pid))


class TestProcesses:
    def test_the_sockets_that_it_holds_and_its_child_does_not(self, sockets: Sockets) -> None:
        ours = os.fstat(sockets.udp("127.0.0.1", 5000).fileno()).st_ino
        theirs = "import socket, sys, os; s = socket.socket(); print(os.fstat(s.fileno()).st_ino, flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", theirs], stdin=PIPE, stdout=PIPE) as child:
            assert child.stdout
            inode = int(child.stdout.readline())
            assert of(child.pid) == frozenset({inode})
            held = of(os.getpid())
            assert held is not None
            assert (ours in held, inode in held) == (True, False)
            child.communicate(b"\n")

    def test_another_one_with_its_number_is_none(self) -> None:
        with pytest.raises(ValueError, match=f"there is no process {os.getpid()} in /proc, or no longer"):
            process_sockets(os.getpid(), 1)

    def test_one_whose_descriptors_may_not_be_listed_is_unknown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of another user, with CAP_SYS_PTRACE and without CAP_DAC_READ_SEARCH."""
        monkeypatch.setattr(os, "listdir", mock.Mock(side_effect=PermissionError))
        assert of(os.getpid()) is None

    def test_one_that_may_not_be_looked_at_is_unknown_and_one_that_is_not_there_an_error(self) -> None:
        with subprocess.Popen(["sleep", "60"]) as other:
            try:
                assert without_privilege(lambda: of(other.pid)) is None
            finally:
                other.kill()
        with pytest.raises(ValueError, match=f"there is no process {other.pid} "):
            of(other.pid)
