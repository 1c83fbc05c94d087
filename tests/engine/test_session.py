"""The ssh session that this process runs in, from the environments and the sockets of its ancestors."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import socklb
from socklb import InetSocket, SocketFilter, dst, find_sockets
from socklb.engine import session
from socklb.engine.session import OwnSession, own_session
from socklb.kernel import processes
from socklb.wire.reply import InetDiagMsg
from socklb.wire.socket_id import SocketId

from ..conntrack.ctnetlink import flow
from ..sockets import Sockets, in_child

if TYPE_CHECKING:
    from socklb.engine.session import Endpoint

NOTHING = OwnSession(frozenset(), frozenset())
LINE = "192.0.2.7 50001 10.0.0.9 22"
ALICE, MALLORY = 1000, 1001


needs_users = pytest.mark.skipif(
    Path("/proc/self/uid_map").read_text().split()[2:3] == ["1"],
    reason="there is one user alone in this user namespace",
)


class Fake(NamedTuple):
    """A process as /proc has it; `held`: inodes of sockets, or paths."""

    comm: bytes
    parent: int
    environ: bytes = b""
    held: tuple[object, ...] = ()
    uid: int = 0
    terminal: int = 0


def both_ways(
    client: tuple[str, int], server: tuple[str, int], *uids: int
) -> frozenset[tuple[Endpoint, Endpoint, int]]:
    one, other = ((ip_address(address).packed, port) for address, port in (client, server))
    return frozenset(ends for uid in (0, *uids) for ends in ((one, other, uid), (other, one, uid)))


V4 = both_ways(("192.0.2.7", 50001), ("10.0.0.9", 22))
ALICE_S = both_ways(("192.0.2.7", 50001), ("10.0.0.9", 22), ALICE)


def session_among(
    monkeypatch: pytest.MonkeyPatch, those: Mapping[int, Fake], own: str | None = None, uid: int = 0
) -> OwnSession:
    """What is found where /proc has these processes, and this one's parent is 30."""
    files = {"/proc/self/status": b"Name:\tpython\nPPid:\t30\n"}
    links: dict[str, str] = {}
    for pid, fake in those.items():
        files[f"/proc/{pid}/status"] = b"Name:\t%s\nPPid:\t%d\nUid:\t%d\t0\t0\t0\n" % (fake.comm, fake.parent, fake.uid)
        files[f"/proc/{pid}/stat"] = b"%d (%s) S %d 1 1 %d -1" % (pid, fake.comm, fake.parent, fake.terminal)
        files[f"/proc/{pid}/environ"] = fake.environ
        for number, held in enumerate(fake.held):
            links[f"/proc/{pid}/fd/{number}"] = f"socket:[{held}]" if isinstance(held, int) else str(held)

    def listdir(directory: str) -> list[str]:
        names = [os.path.basename(path) for path in links if os.path.dirname(path) == directory]
        if directory == "/proc":
            names = [*map(str, those), "self"]
        if not names:
            raise PermissionError
        return names

    with monkeypatch.context() as patched:
        patched.delenv("SSH_CONNECTION", raising=False)
        if own is not None:
            patched.setenv("SSH_CONNECTION", own)
        patched.setattr(os, "getuid", lambda: uid)
        patched.setattr(processes, "_read", lambda path: files.get(path, b""))
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
        self, monkeypatch: pytest.MonkeyPatch, text: str, tuples: frozenset[tuple[Endpoint, Endpoint, int]]
    ) -> None:
        assert session_among(monkeypatch, {}, text) == OwnSession(tuples, frozenset())


@pytest.mark.parametrize(
    ("client", "service", "backend", "is_own"),
    [
        ("192.0.2.7", "10.0.0.9:22/TCP", "10.0.0.5:2222/TCP", True),  # as ssh knows it
        ("192.0.2.7", "203.0.113.1:2222/TCP", "10.0.0.9:22/TCP", True),  # as sshd does
        ("192.0.2.8", "10.0.0.9:22/TCP", "10.0.0.9:22/TCP", False),
        ("192.0.2.7", "10.0.0.9:23/TCP", "10.0.0.5:22/TCP", False),
    ],
)
def test_a_flow_is_the_session_s_by_either_end(client: str, service: str, backend: str, is_own: bool) -> None:
    own = OwnSession(ALICE_S, frozenset())
    assert own.has_flow(flow(service, backend, client=client, sport=50001)) == is_own
    assert not own.has_flow(flow(service, backend, client=client, sport=50002))


class TestAncestors:
    """The tuple of an ancestor's environment counts (sudo keeps none of it), and the sockets of an sshd among them."""

    ENVIRON = b"SSH_TTY=/dev/pts/1\0XSSH_CONNECTION=no\0SSH_CONNECTION=" + LINE.encode() + b"\0PATH=/bin\0"

    @pytest.mark.parametrize("whose", [30, 20, 10])
    def test_any_ancestor_s_environment_is_read(self, monkeypatch: pytest.MonkeyPatch, whose: int) -> None:
        parents = {30: 20, 20: 10, 10: 1, 1: 0}
        those = {
            pid: Fake(b"bash", parent, self.ENVIRON if pid == whose else b"HOME=/\0", (pid,))
            for pid, parent in parents.items()
        }
        assert session_among(monkeypatch, those) == OwnSession(V4, frozenset())

    def test_sessions_within_sessions_all_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inner = b"SSH_CONNECTION=::1 1 ::1 22\0"
        those = {30: Fake(b"bash", 20, inner), 20: Fake(b"bash", 1, self.ENVIRON)}
        assert session_among(monkeypatch, those).tuples == V4 | both_ways(("::1", 1), ("::1", 22))

    def test_who_set_the_variable_speaks_for_root_and_for_himself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Else it would shield a socket of anybody."""
        those = {30: Fake(b"sudo", 20), 20: Fake(b"bash", 1, self.ENVIRON, uid=ALICE)}
        session = session_among(monkeypatch, those)
        assert session.tuples == ALICE_S
        assert session_among(monkeypatch, {}, LINE, uid=ALICE).tuples == ALICE_S
        id = SocketId(22, 50001, ip_address("10.0.0.9").packed, ip_address("192.0.2.7").packed, 0, 1)
        uids = (0, ALICE, MALLORY)
        own = [InetSocket(InetDiagMsg(socket.AF_INET, 1, 0, 0, id, 0, 0, 0, uid, 0).encode(()), 6) for uid in uids]
        assert [one.uid for one in own if session.has(one)] == [0, ALICE]

    @pytest.mark.parametrize("comm", [b"sshd", b"sshd-session", b"dropbear"])
    def test_what_an_ssh_server_holds_open(self, monkeypatch: pytest.MonkeyPatch, comm: bytes) -> None:
        """The user's part of it too, which is a child of root's."""
        those = {
            30: Fake(b"bash", 20, held=(300,), uid=ALICE),
            20: Fake(comm, 10, held=(200, "/dev/null", 201), uid=ALICE),
            10: Fake(comm, 9, held=(100,)),
            9: Fake(b"sshd", 1, held=(90,)),
            1: Fake(b"systemd", 0, held=(1,)),
        }
        assert session_among(monkeypatch, those) == OwnSession(frozenset(), frozenset({200, 201, 100, 90}))

    @pytest.mark.parametrize("comm", [b"sshd-", b"sshd: a) S 9", b"sshdx", b"sshd-auth2", b"SSHD"])
    def test_no_other_name_is_a_server_s(self, monkeypatch: pytest.MonkeyPatch, comm: bytes) -> None:
        assert session_among(monkeypatch, {30: Fake(comm, 1, held=(300,))}) == NOTHING

    def test_a_user_s_process_is_no_server_whatever_it_is_called(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A child of init neither, for that is where orphans go; nor a grandchild of a server."""
        those = {
            30: Fake(b"sshd", 20, held=(300,), uid=MALLORY),
            20: Fake(b"sshd", 1, held=(200,), uid=MALLORY),
            1: Fake(b"systemd", 0),
        }
        assert session_among(monkeypatch, those) == NOTHING
        those[1] = Fake(b"sshd", 0, held=(100,))
        assert session_among(monkeypatch, those).inodes == {200, 100}

    def test_what_cannot_be_read_says_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert session_among(monkeypatch, {}) == NOTHING  # no /proc
        another_s = {30: Fake(b"sshd", 20), 20: Fake(b"sshd", 1, held=(5,))}  # its descriptors are not to be listed
        assert session_among(monkeypatch, another_s) == OwnSession(frozenset(), frozenset({5}))

    @pytest.mark.kernel
    @pytest.mark.parametrize(
        ("name", "uid", "counts"),
        [("sshd-session", 0, True), ("sshdx", 0, False), pytest.param("sshd", MALLORY, False, marks=needs_users)],
    )
    def test_on_the_real_proc(self, name: str, uid: int, counts: bool) -> None:
        def below_sshd() -> tuple[int, frozenset[int]]:
            Path("/proc/self/comm").write_text(name)
            with socket.socket() as held:
                os.setresuid(uid, 0, 0)
                return os.fstat(held.fileno()).st_ino, in_child(look)

        def look() -> frozenset[int]:
            with socket.socket():
                return own_session().inodes

        inherited = set(processes.socket_inodes(os.getpid()))
        held, inodes = in_child(below_sshd)
        assert inodes - inherited == ({held} if counts else set())
        assert in_child(look) == frozenset()


@pytest.mark.kernel
@needs_users
def test_a_forged_variable_shields_no_socket_of_another_user(sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = sockets.tcp("127.0.0.2", 9000)
    address, port = client.getsockname()
    monkeypatch.setenv("SSH_CONNECTION", f"{address} {port} 127.0.0.2 9000")
    for uid, is_shielded in ((0, True), (MALLORY, False)):
        os.fchown(client.fileno(), uid, -1)
        (row,) = find_sockets(SocketFilter("tcp", dst("127.0.0.2", 9000)))
        assert (row.uid, own_session().has(row)) == (uid, is_shielded)


def pts(number: int) -> int:
    return os.makedev(136, number)


class TestMultiplexers:
    """tmux and screen outlive the session that started them: that of each client counts, whose terminal they hold."""

    @pytest.mark.parametrize("comm", [b"tmux: server", b"tmux", b"screen"])
    @pytest.mark.parametrize("number", [0, 7, 300])
    def test_each_attached_client_s_server(self, monkeypatch: pytest.MonkeyPatch, comm: bytes, number: int) -> None:
        those = {
            30: Fake(b"bash", 20, uid=ALICE, terminal=pts(9)),
            20: Fake(comm, 1, held=("/dev/ptmx", f"/dev/pts/{number}", "/dev/null", 200), uid=ALICE),
            1: Fake(b"init", 0),
            43: Fake(b"tmux: client", 42, held=(430,), uid=ALICE, terminal=pts(number)),
            42: Fake(b"bash", 41, held=(420,), uid=ALICE, terminal=pts(number)),
            41: Fake(b"sshd-session", 40, held=(410,), uid=ALICE),
            40: Fake(b"sshd-session", 1, held=(400,)),
            53: Fake(b"bash", 52, uid=ALICE, terminal=pts(number + 1)),  # a session that is not attached
            52: Fake(b"sshd", 1, held=(520,)),
        }
        assert session_among(monkeypatch, those).inodes == {410, 400}

    @pytest.mark.parametrize("program", ["a stand-in", "tmux"])
    @pytest.mark.kernel
    def test_with_a_real_one(self, tmp_path: Path, program: str) -> None:
        """A process called sshd holds a socket, and starts a client on a terminal; what that starts looks around."""
        if program != "a stand-in" and shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        found = tmp_path / "found"
        commands = {
            "a stand-in": [sys.executable, "-c", STAND_IN],
            "tmux": ["tmux", "-L", "socklb-test", "-f", "/dev/null", "new-session"],
        }
        look = [sys.executable, "-c", LOOK, str(Path(socklb.__file__).parents[1]), session.__name__, str(found)]
        with (
            socket.socket() as held,
            subprocess.Popen(
                [sys.executable, "-c", SERVER, *commands[program], *look],
                pass_fds=[held.fileno()],
                env={**os.environ, "TERM": "vt100", "TMUX_TMPDIR": str(tmp_path)},
            ) as server,
        ):
            inode = os.fstat(held.fileno()).st_ino
            assert server.wait(60) == 0
            assert str(inode) in found.read_text().split()


SERVER = """
import os, pty, sys
open("/proc/self/comm", "w").write("sshd")
child, terminal = pty.fork()
if not child:
    os.closerange(3, 100)
    os.execvp(sys.argv[1], sys.argv[1:])
try:
    while os.read(terminal, 1 << 16):
        pass
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
LOOK = """
import importlib, sys, time
sys.path.insert(0, sys.argv[1])
session = importlib.import_module(sys.argv[2])
for _ in range(100):  # until the client is attached
    inodes = session.own_session().inodes
    if inodes:
        break
    time.sleep(0.05)
open(sys.argv[3], "w").write(" ".join(map(str, inodes)))
"""
STAND_IN = """
import os, subprocess, sys
reader, writer = os.pipe()
if os.fork():
    os.close(writer)
    sys.exit(os.read(reader, 1) != b"+")
os.setsid()
if os.fork():
    os._exit(0)
terminal = os.open(os.ttyname(0), os.O_RDWR | os.O_NOCTTY)
open("/proc/self/comm", "w").write("tmux: server")
done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL)
os.write(writer, b"-" if done.returncode else b"+")
"""
