"""`--netns`: in which network namespaces a command works; the same words for every command."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .. import world
from ..capabilities import with_only
from ..networks import Network, pinned_networks
from ..sockets import Sockets, eventually, in_child, pending_error, reused_pid
from .agent import delete, upsert, watching
from .runner import Result, drop_privilege, run
from .test_demo import become

pytestmark = pytest.mark.kernel

TO, BACKEND = "dst 10.9.0.2:9000", "10.9.0.2:9000/UDP"
COMMANDS = {
    "list": ["list", "--udp", TO],
    "destroy": ["destroy", "--udp", TO],
    "terminate": ["terminate", BACKEND],
}
ANY_COMMAND = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
DESTROYING = pytest.mark.parametrize("command", [COMMANDS["destroy"], COMMANDS["terminate"]], ids=lambda c: c[0])
EVERYWHERE = {"current", "web", "db"}
NO_NETLINK = "def refuse(): raise OSError(93, '')\nmodule('.kernel.diag').open_netlink = refuse"
OLD_PYTHON_WITHOUT_CTYPES = """
import os
if hasattr(os, "setns"):
    del os.setns
sys.modules["ctypes"] = None
"""


def connect(sockets: Sockets) -> socket.socket:
    return sockets.udp("10.9.0.2", 9000)


@pytest.fixture
def nets(network: None) -> Iterator[list[Network]]:
    with pinned_networks("web", "db") as made:
        yield made


@pytest.fixture
def clients(sockets: Sockets, nets: list[Network]) -> dict[str, socket.socket]:
    """One in each namespace, by its name."""
    return {"current": connect(sockets), **{net.namespace.name: net.make(connect) for net in nets}}


def cut(clients: dict[str, socket.socket]) -> set[str]:
    return {name for name, client in clients.items() if pending_error(client)}


def netns(*words: str) -> list[str]:
    return [part for word in words for part in ("--netns", word)]


class TestWhere:
    """`current`, `all`, a pinned NAME, a PID, or (a word with a slash) a PATH; may be repeated."""

    @ANY_COMMAND
    @pytest.mark.parametrize(
        ("words", "where"),
        [
            (["current"], {"current"}),
            (["web", "db"], {"web", "db"}),
            (["current", "db"], {"current", "db"}),
            (["web", "all"], EVERYWHERE),
            (["/proc/self/ns/net"], {"current"}),
            (["web", "/run/netns/web", "web"], {"web"}),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_is_where_it_works(
        self, clients: dict[str, socket.socket], command: list[str], words: list[str], where: set[str]
    ) -> None:
        result = run(*command, *netns(*words), "--json")
        assert (result.code, result.err) == (0, "")
        assert len(result.json["sockets"]) == len(where)
        named = words if words[0].startswith("/") else where
        assert {row["namespace"] for row in result.json["sockets"]} == {*named}
        assert cut(clients) == (set() if command[0] == "list" else where)

    @ANY_COMMAND
    def test_a_pid_is_where_that_process_is_unless_a_pin_has_this_name(
        self, clients: dict[str, socket.socket], nets: list[Network], command: list[str]
    ) -> None:
        with nets[0].make(lambda _: subprocess.Popen(["cat"], stdin=subprocess.PIPE)) as inhabitant:
            pid = str(inhabitant.pid)
            with pinned_networks(pid) as (pin,):
                connected = {**clients, "pinned": pin.make(connect)}
                pinned = run(*command, *netns(pid), "--json")
                assert cut(connected) == (set() if command[0] == "list" else {"pinned"})
            result = run(*command, *netns(pid), "--json")
        assert (pinned.code, [row["namespace"] for row in pinned.json["sockets"]]) == (0, [pid])
        assert (result.code, [row["namespace"] for row in result.json["sockets"]]) == (0, [f"pid {pid}"])
        assert cut(clients) == (set() if command[0] == "list" else {"web"})

    @pytest.mark.parametrize(
        ("command", "where"), [("list", {"current"}), ("destroy", {"current"}), ("terminate", EVERYWHERE)]
    )
    def test_without_it(self, clients: dict[str, socket.socket], command: str, where: set[str]) -> None:
        result = run(*COMMANDS[command], "--json")
        assert {row["namespace"] for row in result.json["sockets"]} == where
        assert cut(clients) == (set() if command == "list" else where)

    def test_tables_and_lines_name_it(self, clients: dict[str, socket.socket]) -> None:
        lines = run(*COMMANDS["list"], *netns("all")).out.splitlines()
        assert {line.split()[-1] for line in lines} == {"Netns", *EVERYWHERE}
        *lines, _ = run(*COMMANDS["terminate"]).out.splitlines()
        assert sorted(line.partition("10.9.0.2:9000")[2] for line in lines) == ["", " in db", " in web"]

    @DESTROYING
    def test_a_dry_run_cuts_nowhere(self, clients: dict[str, socket.socket], command: list[str]) -> None:
        result = run(*command, *netns("all"), "--dry-run", "--json")
        assert (result.code, result.json["would_destroy"], cut(clients)) == (0, 3, set())

    def test_a_limit_is_one_limit_for_all(self, nets: list[Network], sockets: Sockets) -> None:
        made = [connect(sockets) for _ in range(3)] + [net.make(connect) for net in nets for _ in range(3)]
        result = run(*COMMANDS["destroy"], *netns("all"), "--limit", "4", "--json")
        assert (result.code, result.json["destroyed"], result.json["skipped"]) == (0, 4, 5)
        assert {row["reason"] for row in result.json["sockets"] if row["outcome"] == "skipped"} == {"limit"}
        assert sum(bool(pending_error(client)) for client in made) == 4


@ANY_COMMAND
class TestUnknown:
    """2, the word is named, and nothing dies, in the known ones neither."""

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (
                ["nosuch"],
                "no network namespace is pinned as 'nosuch' (known: db, web); current, all, a PID, or a path ",
            ),
            (["current", "host"], "no network namespace is pinned as 'host'"),
            (["all", "99999999"], "is pinned as '99999999' (known: db, web), and no process has this PID\n"),
            (["all", "/run/nosuch"], "no network namespace at /run/nosuch\n"),
            (["/proc/self/status"], "/proc/self/status is not a network namespace\n"),
            (["/proc/self/ns/mnt"], "/proc/self/ns/mnt is not a network namespace\n"),
            ([""], ""),
        ],
    )
    def test_is_2(self, clients: dict[str, socket.socket], command: list[str], words: list[str], text: str) -> None:
        result = run(*command, *netns(*words))
        assert (result.code, result.out, cut(clients)) == (2, "", set())
        assert result.err.startswith("socklb: ")
        assert text in result.err
        assert run(*command, *netns(*words), "--json") == result

    def test_a_pin_that_is_only_a_file_now(self, nets: list[Network], command: list[str]) -> None:
        stale = Path("/run/netns/stale")
        stale.touch()
        try:
            result = run(*command, *netns("stale"), "--json")
            assert result == (2, "", f"socklb: {stale} is not a network namespace\n")
            assert run(*command, *netns("all"))[::2] == (0, "")
        finally:
            stale.unlink()

    def test_a_pin_of_another_kind(self, nets: list[Network], command: list[str]) -> None:
        pin = Path("/run/netns/link")
        pin.symlink_to("/proc/1/ns/mnt")
        try:
            assert run(*command, *netns("link")) == (2, "", f"socklb: {pin} is not a network namespace\n")
            assert run(*command, *netns("all"))[::2] == (0, "")
        finally:
            pin.unlink()


class TestLookedUpAgain:
    """`watch` looks the words up at each pass."""

    @pytest.mark.parametrize("word", ["{}", "/proc/{}/ns/net"])
    def test_a_pid_that_another_process_has_now(
        self, sockets: Sockets, clients: dict[str, socket.socket], nets: list[Network], word: str
    ) -> None:
        """It has ended, whoever has its number; what a bystander's namespace holds is left alone."""
        named = nets[0].make(lambda _: subprocess.Popen(["cat"], stdin=subprocess.PIPE))
        with named, watching("--netns", word.format(named.pid), "--netns", "db") as agent:
            agent.send(upsert(BACKEND))
            named.kill()
            named.wait()
            with reused_pid(named.pid):  # in this namespace
                agent.send(delete(BACKEND))
                eventually(lambda: bool(pending_error(clients["db"])), "the cut in db")
                result = agent.end()
        assert (result.code, cut(clients)) == (0, set())
        assert result.err == f"socklb: what {word.format(named.pid)} named has ended, and is another process now\n"


class TestWhoMayNotLook:
    """A process of somebody else is missed only if it is where nobody has searched."""

    @ANY_COMMAND
    def test_who_is_where_the_search_was_is_not_missed(self, network: None, command: list[str]) -> None:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other_s:
            result = run(*command, *netns("all"), preexec=drop_privilege)
            other_s.kill()
        assert "namespaces not searched" not in result.err

    @ANY_COMMAND
    def test_who_is_elsewhere_is(self, nets: list[Network], command: list[str]) -> None:
        with nets[0].make(lambda _: subprocess.Popen(["cat"], stdin=subprocess.PIPE)) as inhabitant:
            result = run(*command, *netns("current", "all"), preexec=with_only())
            inhabitant.kill()
        said = [line for line in result.err.splitlines() if line.startswith("socklb: namespaces not ")]
        reason = "Permission denied; CAP_SYS_PTRACE is missing"
        assert said == [f"socklb: namespaces not searched: /proc/{inhabitant.pid}/ns/net: {reason}"]


@contextmanager
def loop_among_the_pins() -> Iterator[None]:
    """One that is there, and that nobody may look at: a link to itself."""
    path = Path("/run/netns/loop")
    path.symlink_to("loop")
    try:
        yield
    finally:
        path.unlink()


def as_user(*words: str) -> tuple[Result, str]:
    """As a user who is root at home, and nobody elsewhere; and what became of the client that he has at home."""

    def go() -> tuple[Result, str]:
        become(0)()  # type: ignore[misc]
        world.new_network()
        with Sockets() as own:
            client = connect(own)
            return run(*words), pending_error(client)

    return in_child(go)


class TestNamesFromElsewhere:
    """They must neither steer a terminal nor end a report."""

    @pytest.mark.parametrize("command", ["list", "destroy"])
    @pytest.mark.parametrize(
        ("name", "encoding", "shown"),
        [("a\x1b[31mb", "utf-8", r"a\x1b[31mb"), ("caf\xe9", "ascii", r"caf\xe9"), ("x\udcff", "utf-8", r"x\udcff")],
        ids=["escape", "not in ASCII", "not UTF-8"],
    )
    def test_are_escaped(self, network: None, command: str, name: str, encoding: str, shown: str) -> None:
        with pinned_networks(name) as (net,):
            net.make(connect)
            result = run(command, "--netns", f"/run/netns/{name}", TO, env={"PYTHONIOENCODING": encoding})
        assert (result.code, result.err) == (0, "")
        assert f"/run/netns/{shown}" in result.out

    def test_messages_too(self, network: None) -> None:
        result = run("list", "--netns", "/nowhere/\x1b[31m\nsocklb: done")
        assert result[:2] == (2, "")
        assert result.err == r"socklb: no network namespace at /nowhere/\x1b[31m\nsocklb: done" + "\n"


class TestSomeFail:
    """One that cannot be entered is 1 and named, the others are done. One that cannot be seen is said, and no error."""

    @DESTROYING
    def test_one_that_is_another_s(self, clients: dict[str, socket.socket], command: list[str]) -> None:
        result, own = as_user(*command, *netns("current", "web"), "--json")
        assert (result.code, own, cut(clients)) == (1, "ECONNABORTED", set())
        assert result.err.startswith("socklb: in web: enter namespace web: it needs CAP_SYS_ADMIN")
        assert (result.json["destroyed"], result.json["failed"]) == (1, 0)
        assert f"socklb: {result.json['error']}\n" == result.err
        here, web = sorted(result.json["namespaces"], key=lambda row: str(row["name"]))
        assert (here["name"], here["destroyed"], here["error"]) == ("current", 1, None)
        assert (web["name"], web["path"], web["destroyed"]) == ("web", "/run/netns/web", 0)
        assert result.err == f"socklb: in web: {web['error']}\n"
        lines, own = as_user(*command, *netns("current", "web"))
        assert (lines.code, lines.err, own) == (1, result.err, "ECONNABORTED")
        assert lines.out.endswith("1 matched: 1 destroyed, 0 gone, 0 skipped, 0 failed\n")

    @pytest.mark.parametrize("json", [[], ["--json"]], ids=["table", "json"])
    def test_one_that_is_another_s_in_a_list(self, nets: list[Network], json: list[str]) -> None:
        """It is said once, and not once a protocol."""
        result, _ = as_user("list", *netns("web", "current", "db"), *json)
        assert result.code == 1
        texts = [line.partition(": it needs CAP_SYS_ADMIN")[0] for line in result.err.splitlines()]
        assert texts == [f"socklb: in {name}: enter namespace {name}" for name in ("web", "db")]
        if json:
            assert [row["namespace"] for row in result.json["sockets"]] == ["current"]
            assert result.json["error"] == "; ".join(line[len("socklb: ") :] for line in result.err.splitlines())
        else:
            assert len(result.out.splitlines()) == 2

    @ANY_COMMAND
    @pytest.mark.parametrize(
        ("words", "capability"),
        [(["web"], "CAP_SYS_ADMIN"), (["web", "db"], "CAP_SYS_ADMIN"), (["/proc/1/ns/net"], "CAP_SYS_PTRACE")],
        ids=["one", "two", "a path that may not be looked at"],
    )
    def test_none_that_may_be_entered_is_4(
        self, clients: dict[str, socket.socket], command: list[str], words: list[str], capability: str
    ) -> None:
        result = run(*command, *netns(*words), "--json", preexec=drop_privilege)
        assert (result.code, result.json["sockets"], cut(clients)) == (4, [], set())
        assert capability in result.json["error"]
        assert all(line[len("socklb: ") :] in result.json["error"] for line in result.err.splitlines())
        if command[0] == "terminate":
            assert list(result.json["backends"]) == [BACKEND]

    @ANY_COMMAND
    def test_one_that_cannot_be_seen_is_said(self, clients: dict[str, socket.socket], command: list[str]) -> None:
        with loop_among_the_pins():
            result = run(*command, *netns("all"), "--json")
            expected = run(*command, *netns("all"), "--readable-only")
        assert (result.code, len(result.json["sockets"])) == (1, 3)
        text = "namespaces not searched: /run/netns/loop: Too many levels of symbolic links"
        assert (result.err, result.json["error"]) == (f"socklb: {text}\n", text)
        one = {"path": "/run/netns/loop", "reason": "Too many levels of symbolic links", "count": 1}
        assert result.json["unsearched"] == [one]
        assert (expected.code, expected.err) == (0, result.err)

    @ANY_COMMAND
    def test_what_is_hidden_is_said_once_and_no_error(
        self, clients: dict[str, socket.socket], command: list[str]
    ) -> None:
        patch = "module('.kernel.discovery')._hidden = lambda *_: 'three are hidden'"
        result = run(*command, *netns("all"), "--json", patch=patch)
        assert (result.code, result.err) == (0, "socklb: three are hidden\n")
        assert run(*command, *netns("current", "web"), patch=patch).err == ""

    @ANY_COMMAND
    @pytest.mark.parametrize(
        ("patch", "text"),
        [(NO_NETLINK, "CONFIG_INET_DIAG"), (OLD_PYTHON_WITHOUT_CTYPES, "nor a working ctypes")],
        ids=["no netlink", "no ctypes"],
    )
    @pytest.mark.parametrize("words", [["web"], ["web", "db"]], ids=" ".join)
    def test_what_no_namespace_can_is_3(
        self, clients: dict[str, socket.socket], command: list[str], words: list[str], patch: str, text: str
    ) -> None:
        result = run(*command, *netns(*words), "--json", patch=patch)
        assert (result.code, cut(clients)) == (3, set())
        assert text in result.json["error"]

    @ANY_COMMAND
    def test_without_ctypes_the_current_one_works(self, sockets: Sockets, command: list[str]) -> None:
        connect(sockets)
        result = run(*command, *netns("current"), "--json", patch=OLD_PYTHON_WITHOUT_CTYPES)
        assert (result.code, len(result.json["sockets"])) == (0, 1)
