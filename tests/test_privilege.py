"""Each command with exactly the capabilities that it needs, and with one less.

It runs as an ordinary user, in a user namespace that owns its network namespaces: `current`, where it starts; `other`,
which is pinned as ip-netns(8) does it; and `process`, in which a process lives that has a capability more than it. Each
has a connection to 10.9.0.2:9000.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from typing import Any, NamedTuple, TypeVar

import pytest

from socklb import KernelError, NetworkNamespace, NotPermitted, SocketFilter, discover_namespaces, find_sockets
from socklb.reverse_nat.layout import ReverseSkKey

from . import world
from .capabilities import Capability, with_only
from .cli.agent import second_pass_after, without_start
from .cli.runner import COMMANDS, Result, run
from .reverse_nat.bpf_maps import Maps
from .sockets import Sockets, cookie_of, in_child, pending_error

pytestmark = pytest.mark.kernel

T = TypeVar("T")

CAP_NET_ADMIN, CAP_SYS_ADMIN = Capability.CAP_NET_ADMIN, Capability.CAP_SYS_ADMIN
CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH = Capability.CAP_SYS_PTRACE, Capability.CAP_DAC_READ_SEARCH
CAP_BPF = Capability.CAP_BPF

TARGET = "dst 10.9.0.2:9000"
BACKEND = "10.9.0.2:9000/TCP"
PINNED = "/run/netns/other"
PROCESS = "/proc/1/ns/net"
ENTER = (CAP_SYS_ADMIN,)
DESTROY_THERE = (CAP_SYS_ADMIN, CAP_NET_ADMIN)
DESTROY_EVERYWHERE = (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_SYS_PTRACE)
GOES_DOWN = f'{{"op":"upsert","backend":"{BACKEND}"}}\n{{"op":"delete","backend":"{BACKEND}"}}\n'


class Row(NamedTuple):
    """A command, the capabilities that it needs, and in which namespaces it cuts the connection.

    `partly` are those without which it still does something: (the capability, the exit code, what it cuts, and what it
    says about the rest).
    """

    words: tuple[str, ...]
    needs: tuple[Capability, ...] = ()
    cuts: tuple[str, ...] = ()
    partly: tuple[tuple[Capability, int, tuple[str, ...], str], ...] = ()
    stdin: str = ""

    def without(self, missing: Capability) -> tuple[int, tuple[str, ...], str]:
        """(the exit code, what it cuts, what it says) with one less than it needs."""
        partly = {capability: (code, cuts, said) for capability, code, cuts, said in self.partly}
        return partly.get(missing, (4, (), missing.name))


EVERYWHERE = (
    DESTROY_EVERYWHERE,
    ("other", "process", "current"),
    (
        (CAP_SYS_ADMIN, 1, ("current",), "enter namespace other: it needs CAP_SYS_ADMIN"),
        (
            CAP_SYS_PTRACE,
            1,
            ("other", "current"),
            f"{PROCESS}: Permission denied; CAP_SYS_PTRACE is missing",
        ),
    ),
)

ROWS = {
    "list": Row(("list", TARGET)),
    "list by mark": Row(("list", "fwmark 0"), (CAP_NET_ADMIN,)),
    "list pinned": Row(("list", "--netns", "other", TARGET), ENTER),
    "list process": Row(("list", "--netns", PROCESS, TARGET), (*ENTER, CAP_SYS_PTRACE)),
    "destroy": Row(("destroy", TARGET), (CAP_NET_ADMIN,), ("current",)),
    "destroy a listener": Row(("destroy", "--state", "listening", "sport = 9000"), (CAP_NET_ADMIN,)),
    "destroy nobody": Row(("destroy", "dst 10.9.0.99:9000")),
    "destroy pinned": Row(("destroy", "--netns", "other", TARGET), DESTROY_THERE, ("other",)),
    "destroy process": Row(("destroy", "--netns", PROCESS, TARGET), DESTROY_EVERYWHERE, ("process",)),
    "destroy everywhere": Row(("destroy", "--netns", "all", TARGET), *EVERYWHERE),
    "dry run": Row(("destroy", "--dry-run", TARGET)),
    "dry run by mark": Row(("destroy", "--dry-run", f"{TARGET} and fwmark 0"), (CAP_NET_ADMIN,)),
    "dry run pinned": Row(("destroy", "--dry-run", "--netns", "other", TARGET), ENTER),
    "terminate": Row(("terminate", "--netns", "current", BACKEND), (CAP_NET_ADMIN,), ("current",)),
    "terminate pinned": Row(("terminate", "--netns", PINNED, BACKEND), DESTROY_THERE, ("other",)),
    "terminate everywhere": Row(("terminate", BACKEND), *EVERYWHERE),
    "terminate, conntrack required": Row(
        ("terminate", "--conntrack", "--netns", "current", BACKEND), (CAP_NET_ADMIN,), ("current",)
    ),
    "dry run, conntrack required": Row(
        ("terminate", "--conntrack", "--dry-run", "--netns", "current", BACKEND), (CAP_NET_ADMIN,)
    ),
    "watch": Row(("watch", "--source", "-", "--netns", "current"), (CAP_NET_ADMIN,), ("current",), stdin=GOES_DOWN),
    "watch pinned": Row(
        ("watch", "--source", "-", "--netns", "other"),
        DESTROY_THERE,
        ("other",),
        tuple((capability, 1, (), f"{capability.name} in the user namespace") for capability in DESTROY_THERE),
        GOES_DOWN,
    ),
    "watch everywhere": Row(("watch", "--source", "-"), *EVERYWHERE, GOES_DOWN),
    "flows": Row(("flows", "--netns", "current"), (CAP_NET_ADMIN,)),
    "flows pinned": Row(("flows", "--netns", "other"), DESTROY_THERE),
    "flows everywhere": Row(("flows",), EVERYWHERE[0], (), tuple((*one[:2], (), one[3]) for one in EVERYWHERE[2])),
    "probe": Row(("probe",), (CAP_NET_ADMIN,)),
    "demo": Row(("demo",)),
}


def all_of(rows: dict[str, Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows.values(), ids=rows)


def one_less(rows: dict[str, Row]) -> pytest.MarkDecorator:
    """Every row with each of the capabilities that it needs, which is to be missing."""
    return pytest.mark.parametrize(
        ("row", "missing"),
        [
            pytest.param(row, missing, id=f"{name} without {missing.name}")
            for name, row in rows.items()
            for missing in row.needs
        ],
    )


class Scene:
    """The three namespaces, and the client of the connection in each."""

    def __init__(self, sockets: Sockets, stack: ExitStack) -> None:
        self.clients: dict[str, socket.socket] = {}
        for name in ("other", "process", "current"):
            world.new_network()
            listener = sockets.listen("10.9.0.2", 9000)
            self.clients[name] = sockets.make(socket.AF_INET, socket.SOCK_STREAM)
            self.clients[name].connect(listener.getsockname())
            sockets.keep(listener.accept()[0])
            if name == "other":
                os.mkdir(os.path.dirname(PINNED))
                open(PINNED, "x").close()
                world.bind("/proc/self/ns/net", PINNED)
            elif name == "process":
                stack.enter_context(process(CAP_DAC_READ_SEARCH, own_proc=True))

    def cut(self) -> tuple[str, ...]:
        return tuple(name for name, client in self.clients.items() if pending_error(client) == "ECONNABORTED")


@contextmanager
def process(*capabilities: Capability, own_proc: bool = False) -> Iterator[str]:
    """The path of the network namespace of a process with these capabilities: the caller's; with /proc of its own."""

    def prepare() -> None:
        if own_proc:
            world.mount("proc", "/proc")  # of the pid namespace that it is the first in
        with_only(*capabilities)()

    with subprocess.Popen(
        ["sh", "-c", "echo $$; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=prepare
    ) as inhabitant:
        assert inhabitant.stdout is not None
        yield f"/proc/{int(inhabitant.stdout.readline())}/ns/net"


def in_a_user_namespace(flags: int) -> None:
    world.become(1000, flags)


def on_the_scene(function: Callable[[Scene], T], move: Callable[[int], object] = in_a_user_namespace) -> T:
    """What a function returns there: with every capability, and with nothing mounted or opened that stays."""

    def enter() -> None:
        move(world.CLONE_NEWNET | world.CLONE_NEWNS | world.CLONE_NEWPID)
        world.private_mounts()
        world.mount("tmpfs", "/run")

    def play() -> T:
        with Sockets() as sockets, ExitStack() as stack:
            return function(Scene(sockets, stack))

    return in_child(play, enter)


def attempt(row: Row, *capabilities: Capability) -> tuple[Result, tuple[str, ...]]:
    """Run a command with these capabilities alone: what it said, and where the connection was cut."""
    return on_the_scene(lambda scene: (run_with(capabilities, *row.words, stdin=row.stdin), scene.cut()))


def run_with(capabilities: Iterable[Capability], *words: str, stdin: str = "") -> Result:
    patch = second_pass_after(0.05) if words[0] == "watch" else ""
    return run(*words, patch=patch, preexec=with_only(*capabilities), stdin=stdin)


def named(text: str) -> set[Capability]:
    return {capability for capability in Capability if capability.name in text}


def test_every_command_has_a_row() -> None:
    assert {row.words[0] for row in ROWS.values()} == set(COMMANDS) - {"rev-nat"}  # TestReverseNat


class TestExactly:
    """A process gets the capabilities that it is given, and has no way to others; or nothing below would prove much."""

    @pytest.mark.parametrize(
        "capabilities",
        [(), (CAP_NET_ADMIN,), (CAP_SYS_ADMIN, CAP_BPF)],
        ids=["none", "one", "two"],
    )
    def test_these_and_no_others(self, capabilities: tuple[Capability, ...]) -> None:
        program = "import os; print(os.getuid(), *[line for line in open('/proc/self/status')], sep='')"

        def look() -> str:
            return subprocess.run(
                [sys.executable, "-c", program],
                preexec_fn=with_only(*capabilities),
                check=True,
                stdout=subprocess.PIPE,
                encoding="utf-8",
            ).stdout

        uid, *lines = on_the_scene(lambda scene: look()).splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        mask = f"{sum(1 << capability for capability in capabilities):016x}"
        assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {mask}
        assert status["NoNewPrivs"] == "1"
        assert "1000" in uid


class TestCommands:
    @all_of(ROWS)
    def test_what_it_needs_is_enough(self, row: Row) -> None:
        result, cut = attempt(row, *row.needs)
        assert (result.code, without_start(result.err)) == (0, "")
        assert cut == row.cuts

    @one_less(ROWS)
    def test_one_less_is_4_and_names_the_missing_one(self, row: Row, missing: Capability) -> None:
        """As JSON, where the command has it."""
        row = row if row.words[0] == "watch" else row._replace(words=(*row.words, "--json"))
        result, cut = attempt(row, *(set(row.needs) - {missing}))
        code, cuts, said = row.without(missing)
        assert (result.code, cut) == (code, cuts)
        assert said in result.out + result.err
        assert named(result.out + result.err) <= {missing}


def refusal(function: Callable[[], object], *capabilities: Capability) -> tuple[str, str]:
    """(the class of the error, what it says) that a call ends with that has these capabilities alone; "" for none."""

    def call() -> tuple[str, str]:
        try:
            function()
        except KernelError as error:
            return type(error).__name__, str(error)
        return "", ""

    return in_child(call, with_only(*capabilities))


def search(path: str) -> Callable[[], object]:
    return lambda: list(find_sockets(SocketFilter("tcp"), namespace=NetworkNamespace.from_path(path)))


class TestOtherNamespaces:
    """CAP_SYS_PTRACE is for processes that have more capabilities than one has oneself, or are another user's."""

    def test_one_s_own_takes_nothing(self) -> None:
        assert on_the_scene(lambda scene: refusal(search("/proc/thread-self/ns/net"))) == ("", "")

    def test_that_of_a_process_with_no_more_than_one_has_takes_no_ptrace(self) -> None:
        def play(scene: Scene) -> tuple[str, str]:
            world.new_network()
            with process() as path:
                world.new_network()
                return refusal(search(path), CAP_SYS_ADMIN)

        assert on_the_scene(play) == ("", "")

    def test_that_of_a_mightier_process_takes_ptrace(self) -> None:
        """cap_ptrace_access_check(): CAP_DAC_READ_SEARCH is of no use."""

        def play(scene: Scene) -> tuple[tuple[str, str], tuple[str, str]]:
            world.new_network()
            with process(CAP_NET_ADMIN) as path:
                world.new_network()
                without = refusal(search(path), CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH)
                return without, refusal(search(path), CAP_SYS_ADMIN, CAP_SYS_PTRACE)

        (kind, said), with_it = on_the_scene(play)
        assert with_it == ("", "")
        assert (kind, named(said)) == (NotPermitted.__name__, {CAP_SYS_PTRACE})

    def test_a_process_that_ends_while_it_is_looked_at_has_vanished(
        self, network: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The kernel answers EACCES, as for one that may not be looked at (proc_ns_get_link())."""
        stat = os.stat
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as inhabitant:

            def stat_too_late(path: str, **options: Any) -> os.stat_result:
                if path == f"/proc/{inhabitant.pid}/ns/net":
                    inhabitant.kill()
                    inhabitant.wait()
                    raise PermissionError(errno.EACCES, "Permission denied")
                return stat(path, **options)

            monkeypatch.setattr(os, "stat", stat_too_late)
            assert discover_namespaces().refused == ()

    @pytest.mark.parametrize("capabilities", [(), (CAP_SYS_PTRACE,)], ids=["without", "with ptrace"])
    def test_discovery_skips_what_it_may_not_look_at(self, capabilities: tuple[Capability, ...]) -> None:
        def look() -> tuple[set[int], set[str]]:
            found = discover_namespaces()
            return {each.inode for each in found}, {one.path for one in found.refused}

        def play(scene: Scene) -> tuple[str, int, set[int], set[str]]:
            world.new_network()
            with process(CAP_NET_ADMIN) as path:
                world.new_network()
                return (path, os.stat(path).st_ino, *in_child(look, with_only(*capabilities)))

        path, inode, found, skipped = on_the_scene(play)
        assert (inode in found, path in skipped) == ((True, False) if capabilities else (False, True))


REVERSE_NAT_ROWS = {
    "rev-nat": Row(("rev-nat",)),
    "rev-nat stale": Row(
        ("rev-nat", "--stale"),
        (CAP_SYS_ADMIN, CAP_SYS_PTRACE),
        partly=((CAP_SYS_PTRACE, 1, (), f"{PROCESS}: Permission denied; CAP_SYS_PTRACE is missing"),),
    ),
    "terminate": Row(("terminate", "--rev-nat", BACKEND), *EVERYWHERE),
    "watch": Row(("watch", "--source", "-", "--rev-nat"), *EVERYWHERE, GOES_DOWN),
}


class TestReverseNat:
    """To read the maps: permission to the pinned files, and CAP_BPF where the kernel keeps bpf(2) from others.

    Since Linux 5.19 it does not: what kernel.unprivileged_bpf_disabled forbids is to make maps and programs. It is
    asked for in the first user namespace, so that the scene has none of its own here.
    """

    NAME = "cilium_lb4_reverse_sk"

    @pytest.fixture
    def words(self, maps: Maps) -> tuple[str, ...]:
        maps.lru(self.NAME, 16, 8)
        return "rev-nat", "--rev-nat-dir", maps.directory, "--json"

    def attempt(self, row: Row, *capabilities: Capability) -> tuple[Result, tuple[str, ...]]:
        """As above, with a record of each connection in maps that the process may read."""

        def play(scene: Scene) -> tuple[Result, tuple[str, ...]]:
            with Maps() as maps:
                maps.lru(self.NAME, 16, 8)
                for client in scene.clients.values():
                    key = ReverseSkKey(cookie_of(client), ip_address("10.9.0.2").packed, 9000)
                    maps.put(self.NAME, key.encode(), bytes(8))
                words = (*row.words, "--rev-nat-dir", maps.directory)
                return run_with(capabilities, *words, stdin=row.stdin), scene.cut()

        return on_the_scene(play, world.unshare)

    @all_of(REVERSE_NAT_ROWS)
    def test_what_it_needs_is_enough(self, row: Row, maps: Maps) -> None:
        """Where the kernel keeps bpf(2) from others it says so, and CAP_BPF is needed too."""
        result, cut = self.attempt(row, *row.needs)
        if named(result.out + result.err) == {CAP_BPF}:
            assert (result.code, cut) == (4, ())
            result, cut = self.attempt(row, *row.needs, CAP_BPF)
        assert (result.code, without_start(result.err)) == (0, "")
        assert cut == row.cuts

    @one_less({name: row for name, row in REVERSE_NAT_ROWS.items() if name != "watch"})
    def test_one_less_names_the_missing_one(self, row: Row, missing: Capability, maps: Maps) -> None:
        result, cut = self.attempt(row, *(set(row.needs) - {missing}), CAP_BPF)
        code, cuts, said = row.without(missing)
        assert (result.code, cut) == (code, cuts)
        assert said in result.err
        assert named(result.err) == {missing}

    def test_bpf_is_enough_for_the_owner(self, words: tuple[str, ...]) -> None:
        result = run(*words, preexec=with_only(CAP_BPF))
        assert (result.code, result.err, result.json) == (0, "", {"entries": []})

    @pytest.mark.parametrize("of", ["the map", "the directory"])
    @pytest.mark.parametrize("capabilities", [(CAP_BPF,), ()], ids=["with bpf", "with nothing"])
    def test_another_user_needs_to_get_at_the_files(
        self, maps: Maps, words: tuple[str, ...], of: str, capabilities: tuple[Capability, ...]
    ) -> None:
        path = maps.path(self.NAME) if of == "the map" else maps.directory
        os.chmod(path, 0o700)
        os.chown(path, 1234, 1234)
        result = run(*words, preexec=with_only(CAP_BPF, CAP_DAC_READ_SEARCH))
        assert (result.code, result.err, result.json) == (0, "", {"entries": []})
        refused = run(*words, preexec=with_only(*capabilities))
        assert refused.code == 4
        assert "it needs read permission to the pinned map" in refused.json["error"]
        assert named(refused.json["error"]) == {CAP_DAC_READ_SEARCH}
