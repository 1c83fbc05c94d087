"""The ssh session that this process runs in, from the environments and the sockets of its ancestors."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from socklb.engine.session import OwnSession, own_session
from socklb.kernel import processes

from ..sockets import in_child

if TYPE_CHECKING:
    from socklb.engine.session import Endpoint

NOTHING = OwnSession(frozenset(), frozenset())
LINE = "192.0.2.7 50001 10.0.0.9 22"
Processes = Mapping[int, tuple[bytes, int, bytes, tuple[int, ...]]]
"""pid: (comm, parent, environ, inodes of its sockets)"""


def both_ways(client: tuple[str, int], server: tuple[str, int]) -> frozenset[tuple[Endpoint, Endpoint]]:
    ends = [(ip_address(address), port) for address, port in (client, server)]
    return frozenset([(ends[0], ends[1]), (ends[1], ends[0])])


V4 = both_ways(("192.0.2.7", 50001), ("10.0.0.9", 22))


def session_among(monkeypatch: pytest.MonkeyPatch, those: Processes, own: str | None = None) -> OwnSession:
    """What is found where /proc has these processes, and this one's parent is 30."""
    files: dict[tuple[int, str], bytes] = {}
    links: dict[str, str] = {}
    for pid, (comm, parent, environ, inodes) in those.items():
        files[pid, "comm"] = comm + b"\n"
        files[pid, "stat"] = b"%d (%s) S %d 1 1 0 -1" % (pid, comm, parent)
        files[pid, "environ"] = environ
        links.update({f"/proc/{pid}/fd/{n}": f"socket:[{inode}]" for n, inode in enumerate(inodes)})

    def listdir(directory: str) -> list[str]:
        names = [os.path.basename(path) for path in links if os.path.dirname(path) == directory]
        if not names:
            raise PermissionError
        return names

    with monkeypatch.context() as patched:
        patched.delenv("SSH_CONNECTION", raising=False)
        if own is not None:
            patched.setenv("SSH_CONNECTION", own)
        patched.setattr(os, "getppid", lambda: 30)
        patched.setattr(processes, "_read", lambda pid, name: files.get((pid, name), b""))
        patched.setattr(os, "listdir", listdir)
        patched.setattr(os, "readlink", links.__getitem__)
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
            pytest.param("127.0.0.1 1 ::1%% 2", both_ways(("127.0.0.1", 1), ("::1", 2)), id="odd-zone"),
            pytest.param("\udcff\udcfe 1 10.0.0.9 22", frozenset(), id="no-text"),
        ],
    )
    def test_of_this_process(
        self, monkeypatch: pytest.MonkeyPatch, text: str, tuples: frozenset[tuple[Endpoint, Endpoint]]
    ) -> None:
        assert session_among(monkeypatch, {}, text) == OwnSession(tuples, frozenset())


class TestAncestors:
    """The tuple of an ancestor's environment counts (sudo keeps none of it), and the sockets of an sshd among them."""

    ENVIRON = b"SSH_TTY=/dev/pts/1\0XSSH_CONNECTION=no\0SSH_CONNECTION=" + LINE.encode() + b"\0PATH=/bin\0"

    @pytest.mark.parametrize("whose", [30, 20, 10])
    def test_any_ancestor_s_environment_is_read(self, monkeypatch: pytest.MonkeyPatch, whose: int) -> None:
        parents = {30: 20, 20: 10, 10: 1, 1: 0}
        those = {
            pid: (b"bash", parent, self.ENVIRON if pid == whose else b"HOME=/\0", (pid,))
            for pid, parent in parents.items()
        }
        assert session_among(monkeypatch, those) == OwnSession(V4, frozenset())

    def test_sessions_within_sessions_all_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inner = b"SSH_CONNECTION=::1 1 ::1 22\0"
        those = {30: (b"bash", 20, inner, ()), 20: (b"bash", 1, self.ENVIRON, ())}
        assert session_among(monkeypatch, those).tuples == V4 | both_ways(("::1", 1), ("::1", 22))

    @pytest.mark.parametrize("comm", [b"sshd", b"sshd-session", b"sshd: a) S 9"])
    def test_what_an_sshd_holds_open(self, monkeypatch: pytest.MonkeyPatch, comm: bytes) -> None:
        those = {
            30: (b"bash", 20, b"", (300,)),
            20: (comm, 10, b"", (200, 201)),
            10: (b"sshd", 1, b"", (100,)),
            1: (b"systemd", 0, b"", (1,)),
        }
        assert session_among(monkeypatch, those) == OwnSession(frozenset(), frozenset({200, 201, 100}))

    def test_what_cannot_be_read_says_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert session_among(monkeypatch, {}) == NOTHING  # no /proc
        another_s = {30: (b"sshd", 20, b"", ()), 20: (b"sshd", 1, b"", (5,))}  # its descriptors are not to be listed
        assert session_among(monkeypatch, another_s) == OwnSession(frozenset(), frozenset({5}))

    @pytest.mark.kernel
    def test_on_the_real_proc(self) -> None:
        def below_sshd() -> tuple[int, frozenset[int]]:
            Path("/proc/self/comm").write_text("sshd-session")
            with socket.socket() as held:
                return os.fstat(held.fileno()).st_ino, in_child(look)

        def look() -> frozenset[int]:
            with socket.socket():
                return own_session().inodes

        inherited = set(processes.socket_inodes(os.getpid()))
        held, inodes = in_child(below_sshd)
        assert inodes - inherited == {held}
        assert in_child(look) == frozenset()
