"""The table of mounts, as the kernel writes it and whatever paths are called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from socklb.kernel import mounts as mounts_module
from socklb.kernel.mounts import Mount, mounts

from .. import world


@pytest.mark.kernel
class TestTheKernels:
    def test_what_the_world_of_the_tests_has_mounted(self) -> None:
        of_point = {mount.point: mount for mount in mounts()}
        assert of_point["/proc"][:] == ("/", "/proc", "proc")
        assert of_point["/run"][:] == ("/", "/run", "tmpfs")

    def test_the_root_of_a_namespace_s_mount_says_its_kind(self, tmp_path: Path) -> None:
        path = tmp_path / "pin"
        path.touch()
        world.bind("/proc/self/ns/net", str(path))
        try:
            found = [mount for mount in mounts() if mount.type == "nsfs"]
        finally:
            world.unmount(str(path))
        assert found == [Mount(f"net:[{os.stat('/proc/self/ns/net').st_ino}]", str(path), "nsfs")]
        assert "nsfs" not in {mount.type for mount in mounts()}

    @pytest.fixture
    def awkward(self, tmp_path: Path) -> Iterator[list[str]]:
        """Mount points that have in their names whatever could be taken for something else."""
        names = (
            *(b"a b", b"tab\t", b"new\nline", b"back\\slash", b"\\040", b"\\134040", b" - ", b"#hash"),
            *(
                b"carriage\rreturn",
                b"\x0b\x0c\x1c\x1f",
                b"no\xc2\xa0break",
                b"next\xc2\x85line",
                b"\xe2\x80\xa8",
                b"\xff",
            ),
        )
        made: list[str] = []
        try:
            for name in names:
                path = os.path.join(str(tmp_path), os.fsdecode(name))
                os.mkdir(path)
                world.mount("tmpfs", path)
                made.append(path)
            yield made
        finally:
            for path in made:
                world.unmount(path)

    def test_mount_points_of_any_name(self, awkward: list[str], tmp_path: Path) -> None:
        """And none hides those behind it."""
        assert [mount.point for mount in mounts() if mount.point.startswith(str(tmp_path))] == awkward


def escaped(path: bytes) -> bytes:
    """As seq_path() of the kernel writes it for show_mountinfo()."""
    return b"".join(b"\\%03o" % byte if bytes([byte]) in b" \t\n\\" else bytes([byte]) for byte in path)


paths = st.binary(max_size=12).map(lambda some: b"/" + some.replace(b"\0", b"/"))
optional_fields = st.lists(st.sampled_from((b"shared:1", b"master:2", b"unbindable")), max_size=2)
Line = tuple[bytes, bytes, list[bytes], bytes]
lines = st.tuples(paths, paths, optional_fields, st.sampled_from((b"tmpfs", b"nsfs", b"fuse.sshfs")))


class TestTheFormat:
    """proc_pid_mountinfo(5); a path's white space and backslashes in octal."""

    @pytest.fixture
    def table(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(mounts_module, "_MOUNTINFO", str(tmp_path / "mountinfo"))
        return tmp_path / "mountinfo"

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(lines, max_size=4))
    def test_what_was_written_is_read(self, table: Path, written: list[Line]) -> None:
        table.write_bytes(
            b"".join(
                b"36 35 98:0 %s %s rw,noatime%s - %s none rw\n"
                % (escaped(root), escaped(point), b"".join(b" " + field for field in fields), kind)
                for root, point, fields, kind in written
            )
        )
        assert list(mounts()) == [
            (os.fsdecode(root), os.fsdecode(point), kind.decode()) for root, point, _, kind in written
        ]

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.binary(max_size=200))
    def test_any_bytes_are_read(self, table: Path, data: bytes) -> None:
        table.write_bytes(data)
        assert all(isinstance(mount, Mount) for mount in mounts())

    def test_a_line_that_is_none_hides_no_other(self, table: Path) -> None:
        line = b"36 35 98:0 / /%d rw - tmpfs none rw\n"
        table.write_bytes(line % 1 + b"none\n\n" + line % 2)
        assert [mount.point for mount in mounts()] == ["/1", "/2"]

    def test_where_there_is_no_table_there_are_no_mounts(self, table: Path) -> None:
        assert list(mounts()) == []
