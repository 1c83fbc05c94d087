"""The ssh session that one works in, read from the environments and the descriptors of one's ancestors."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from socklb.engine import session
from socklb.engine.session import OwnSession, own_session
from socklb.wire.address import unmapped

from ..sockets import in_child

if TYPE_CHECKING:
    from socklb.engine.session import Endpoint

NOTHING = OwnSession(frozenset(), frozenset())
LINE = "192.0.2.7 50001 10.0.0.9 22"


def both_ways(client: tuple[str, int], server: tuple[str, int]) -> frozenset[tuple[Endpoint, Endpoint]]:
    ends = [(ip_address(address), port) for address, port in (client, server)]
    return frozenset([(ends[0], ends[1]), (ends[1], ends[0])])


V4 = both_ways(("192.0.2.7", 50001), ("10.0.0.9", 22))


class Proc:
    """A /proc with these processes: pid -> (comm, parent, environ, inodes of its sockets); this one's parent is 30."""

    def __init__(self, processes: Mapping[int, tuple[bytes, int, bytes, tuple[int, ...]]]) -> None:
        self.files = {
            f"/proc/{pid}/{name}": content
            for pid, (comm, parent, environ, _) in processes.items()
            for name, content in (
                ("comm", comm + b"\n"),
                ("stat", b"%d (%s) S %d 1 1 0 -1" % (pid, comm, parent)),
                ("environ", environ),
            )
        }
        self.links = {
            f"/proc/{pid}/fd/{number}": f"socket:[{inode}]"
            for pid, (_, _, _, inodes) in processes.items()
            for number, inode in enumerate(inodes)
        }

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SSH_CONNECTION", raising=False)
        monkeypatch.setattr(os, "getppid", lambda: 30)
        monkeypatch.setattr(session, "_read", lambda path: self.files.get(path, b""))
        monkeypatch.setattr(os, "listdir", self.listdir)
        monkeypatch.setattr(os, "readlink", self.readlink)

    def listdir(self, directory: str) -> list[str]:
        names = [os.path.basename(path) for path in self.links if os.path.dirname(path) == directory]
        if not names:
            raise PermissionError
        return names

    def readlink(self, path: str) -> str:
        return self.links[path]


def seen(
    monkeypatch: pytest.MonkeyPatch, processes: Mapping[int, tuple[bytes, int, bytes, tuple[int, ...]]]
) -> OwnSession:
    with monkeypatch.context() as patched:
        Proc(processes).install(patched)
        return own_session()


class TestConnection:
    """SSH_CONNECTION is "client port server port", sshd(8); mapped addresses are made v4."""

    @pytest.mark.parametrize(
        ("text", "tuples"),
        [
            pytest.param(LINE, V4, id="v4"),
            pytest.param("2001:db8::7 50001 fd00::9 22", both_ways(("2001:db8::7", 50001), ("fd00::9", 22)), id="v6"),
            pytest.param("::ffff:192.0.2.7 50001 ::ffff:10.0.0.9 22", V4, id="mapped"),
            pytest.param("fe80::7%eth0 1 fe80::9%2 22", both_ways(("fe80::7", 1), ("fe80::9", 22)), id="zones"),
            pytest.param(f"  {LINE}\n", V4, id="white-space"),
            pytest.param("", frozenset(), id="empty"),
            pytest.param("UNKNOWN 65535 UNKNOWN 65535", frozenset(), id="sshd-did-not-know"),
            pytest.param("192.0.2.7 50001 10.0.0.9", frozenset(), id="three-words"),
            pytest.param(f"{LINE} more", frozenset(), id="five-words"),
            pytest.param("192.0.2.7 ssh 10.0.0.9 22", frozenset(), id="no-port"),
            pytest.param("192.0.2.777 1 10.0.0.9 22", frozenset(), id="no-address"),
            pytest.param("\udcff\udcfe 1 10.0.0.9 22", frozenset(), id="no-text"),
        ],
    )
    def test_in_one_s_own_environment(
        self, monkeypatch: pytest.MonkeyPatch, text: str, tuples: frozenset[tuple[Endpoint, Endpoint]]
    ) -> None:
        Proc({}).install(monkeypatch)
        monkeypatch.setenv("SSH_CONNECTION", text)
        assert own_session() == OwnSession(tuples, frozenset())

    def test_a_mapped_address_is_the_v4_address_that_it_is(self) -> None:
        for given, meant in (("::ffff:10.0.0.1", "10.0.0.1"), ("10.0.0.1", "10.0.0.1"), ("::1", "::1")):
            assert unmapped(ip_address(given)) == ip_address(meant)


class TestAncestors:
    """The tuple of an ancestor's environment counts (sudo keeps none of it), and the sockets of an sshd among them."""

    ENVIRON = b"SSH_TTY=/dev/pts/1\0XSSH_CONNECTION=no\0SSH_CONNECTION=" + LINE.encode() + b"\0PATH=/bin\0"

    @pytest.mark.parametrize("whose", [30, 20, 10])
    def test_any_ancestor_s_environment_is_read(self, monkeypatch: pytest.MonkeyPatch, whose: int) -> None:
        parents = {30: 20, 20: 10, 10: 1, 1: 0}
        processes = {
            pid: (b"bash", parent, self.ENVIRON if pid == whose else b"HOME=/\0", (pid,))
            for pid, parent in parents.items()
        }
        assert seen(monkeypatch, processes) == OwnSession(V4, frozenset())

    def test_sessions_within_sessions_are_all_one_s_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inner = b"SSH_CONNECTION=::1 1 ::1 22\0"
        processes = {30: (b"bash", 20, inner, ()), 20: (b"bash", 1, self.ENVIRON, ())}
        assert seen(monkeypatch, processes).tuples == V4 | both_ways(("::1", 1), ("::1", 22))

    @pytest.mark.parametrize("comm", [b"sshd", b"sshd-session", b"sshd: a) S 9"])
    def test_what_an_sshd_holds_open_is_one_s_own(self, monkeypatch: pytest.MonkeyPatch, comm: bytes) -> None:
        processes = {
            30: (b"bash", 20, b"", (300,)),
            20: (comm, 10, b"", (200, 201)),
            10: (b"sshd", 1, b"", (100,)),
            1: (b"systemd", 0, b"", (1,)),
        }
        assert seen(monkeypatch, processes) == OwnSession(frozenset(), frozenset({200, 201, 100}))

    def test_descriptors_that_are_no_sockets_are_passed_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        proc = Proc({30: (b"sshd", 0, b"", (7,))})
        proc.links.update({"/proc/30/fd/8": "/dev/null", "/proc/30/fd/9": "pipe:[9]", "/proc/30/fd/x": "socket:[8]"})

        def readlink(path: str) -> str:
            if path.endswith("x"):
                raise FileNotFoundError  # closed in between
            return proc.links[path]

        with monkeypatch.context() as patched:
            proc.install(patched)
            patched.setattr(os, "readlink", readlink)
            assert own_session().inodes == {7}

    def test_what_cannot_be_read_says_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert seen(monkeypatch, {}) == NOTHING  # no /proc
        another_s = {30: (b"sshd", 20, b"", ()), 20: (b"sshd", 1, b"", (5,))}  # its descriptors are not to be listed
        assert seen(monkeypatch, another_s) == OwnSession(frozenset(), frozenset({5}))

    def test_a_circle_of_parents_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        processes = {30: (b"a", 20, self.ENVIRON, ()), 20: (b"b", 30, b"", ())}
        assert seen(monkeypatch, processes).tuples == V4


class TestReadingProc:
    """The same on the real /proc."""

    def test_a_file_that_cannot_be_read_is_empty(self, tmp_path: Path) -> None:
        assert session._read(str(tmp_path / "missing")) == b""
        assert session._read(str(tmp_path)) == b""

    @pytest.mark.kernel
    def test_ancestors_are_all_up_to_the_first_process(self) -> None:
        parent, ancestors = in_child(lambda: in_child(lambda: (os.getppid(), list(session._ancestors()))))
        assert ancestors == [parent, 1]

    @pytest.mark.kernel
    def test_an_environment_is_the_one_that_a_process_started_with(self) -> None:
        with subprocess.Popen(["cat"], env={"NAME": "value"}, stdin=subprocess.PIPE) as process:
            assert session._environment_value(process.pid, b"NAME") == "value"
            assert session._environment_value(process.pid, b"NAM") == ""

    @pytest.mark.kernel
    def test_what_an_sshd_above_holds_is_found_and_what_others_hold_is_not(self) -> None:
        def below_sshd() -> tuple[set[int], frozenset[int]]:
            Path("/proc/self/comm").write_text("sshd-session")
            with socket.socket() as held:
                return {os.fstat(held.fileno()).st_ino}, in_child(look)

        def look() -> frozenset[int]:
            with socket.socket():
                return own_session().inodes

        inherited = set(session._socket_inodes(os.getpid()))
        held, inodes = in_child(below_sshd)
        assert inodes - inherited == held
        assert in_child(look) == frozenset()
