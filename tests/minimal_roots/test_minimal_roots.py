"""The smallest images: a root with an interpreter and its standard library, and less and less else.

Every test runs in a user namespace of its own, as any user could make it, with the sockets of the applications in its
network namespace; the command runs in a root that was entered by pivot_root.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import pytest

from .. import world
from ..cli.runner import Result
from ..sockets import Sockets, in_child, pending_error, talk
from .roots import BARE, NO_CTYPES, NO_JSON, WHOLE, ZIPAPP, MinimalRoot, Roots

pytestmark = pytest.mark.kernel

T = TypeVar("T")


def of(*roots: MinimalRoot) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("root", roots, ids=lambda root: root.name)


def in_own_network(function: Callable[[], T]) -> T:
    """What a function returns in a user namespace with a network namespace of its own, loopback up."""

    def enter() -> None:
        world.become(0, world.CLONE_NEWNET)
        world.loopback_up()

    return in_child(function, enter)


class Aftermath(NamedTuple):
    result: Result
    to_backend: list[str]
    """What SO_ERROR gave the five clients of the backend."""
    to_others: list[str]


def run_among_clients(roots: Roots, root: MinimalRoot, *words: str, stdin: str = "") -> Aftermath:
    """Run a command there, while applications outside are connected to port 9000 and to others."""

    def play() -> Aftermath:
        with Sockets() as sockets:
            clients = [
                sockets.tcp("127.0.0.2", 9000)[0],
                sockets.tcp("::ffff:127.0.0.2", 9000)[0],
                sockets.tcp("::1", 9000)[0],
                sockets.udp_pair("127.0.0.2", 9000)[0],
                sockets.udp_pair("::1", 9000)[0],
            ]
            others = [
                sockets.tcp("127.0.0.2", 9001),
                sockets.tcp("::1", 9001),
                sockets.udp_pair("127.0.0.2", 9001),
                sockets.tcp("127.0.0.3", 9000),
            ]
            result = roots.run(root, *words, stdin=stdin)
            for client, server in others:
                talk(client, server)
            return Aftermath(
                result, [pending_error(client) for client in clients], [pending_error(client) for client, _ in others]
            )

    return in_own_network(play)


BACKENDS = ("127.0.0.2:9000/TCP", "[::1]:9000/TCP", "127.0.0.2:9000/UDP", "[::1]:9000/UDP")
FILTER = "( dst 127.0.0.2 or dst ::1 ) and dport = 9000"
CUT = ["ECONNABORTED"] * 5
ALIVE = [""] * 5

LOOK_AROUND = """
import json, os, sys

def attempt(call):
    try:
        call()
    except (ImportError, OSError) as error:
        return type(error).__name__
    return "done"

def write():
    open("/app/file", "w").close()
    os.unlink("/app/file")

print(json.dumps({
    "ctypes": attempt(lambda: __import__("_ctypes")),
    "zlib": attempt(lambda: __import__("zlib")),
    "proc": attempt(lambda: os.stat("/proc/self")),
    "write": attempt(write),
    "encoding": sys.getfilesystemencoding(),
    "flags": [sys.flags.isolated, sys.flags.no_site, sys.flags.optimize],
    "root": sorted({"app", "dev", "etc", "lib", "proc", "run", "sys", "usr"} & set(os.listdir("/"))),
}))
"""


class TestWhatIsMissing:
    """Or what follows would prove nothing."""

    @of(WHOLE, NO_CTYPES, BARE, ZIPAPP)
    def test_is_not_there(self, ours: Roots, root: MinimalRoot) -> None:
        result = in_own_network(lambda: ours.python(root, LOOK_AROUND))
        assert (result.code, result.err) == (0, "")
        assert result.json == {
            "ctypes": "done" if root.is_whole else "ModuleNotFoundError",
            "zlib": "done" if "zlib" in sys.builtin_module_names else "ModuleNotFoundError",  # Debian builds it in
            "proc": "FileNotFoundError" if root.is_bare else "done",
            "write": "OSError" if root.is_bare else "done",
            "encoding": "ascii" if root == BARE else "utf-8",
            "flags": [1, 1, 2] if root.is_zipapp else [0, 0, 0],
            "root": ["app", *(["etc"] if root.is_whole else []), "lib", "proc", "usr"],
        }


class TestCommands:
    """They do what they do elsewhere."""

    @of(WHOLE, NO_CTYPES, BARE, ZIPAPP)
    def test_destroy(self, each: Roots, root: MinimalRoot) -> None:
        seen = run_among_clients(each, root, "destroy", "--json", FILTER)
        assert (seen.result.code, seen.result.err) == (0, "")
        assert (seen.result.json["matched"], seen.result.json["destroyed"]) == (5, 5)
        assert (seen.to_backend, seen.to_others) == (CUT, [""] * 4)

    @of(NO_CTYPES, ZIPAPP)
    def test_terminate_in_the_current_namespace(self, ours: Roots, root: MinimalRoot) -> None:
        words = ("terminate", "--json", "--audit", "-", "--netns", "current", *BACKENDS)
        seen = run_among_clients(ours, root, *words)
        assert (seen.result.code, seen.result.json["destroyed"]) == (0, 5)
        assert [json.loads(line)["outcome"] for line in seen.result.err.splitlines()] == ["destroyed"] * 5
        assert (seen.to_backend, seen.to_others) == (CUT, [""] * 4)

    @of(ZIPAPP)
    def test_watch_in_the_current_namespace(self, ours: Roots, root: MinimalRoot) -> None:
        lines = [{"op": op, "backend": backend} for op in ("upsert", "delete") for backend in BACKENDS]
        source = "".join(f"{json.dumps(line)}\n" for line in lines)
        seen = run_among_clients(ours, root, "watch", "--source", "-", "--netns", "current", stdin=source)
        assert (seen.result.code, seen.result.err) == (0, "")
        assert (seen.to_backend, seen.to_others) == (CUT, [""] * 4)

    @of(BARE)
    def test_without_proc_other_namespaces_are_not_known(self, ours: Roots, root: MinimalRoot) -> None:
        seen = run_among_clients(ours, root, "terminate", *BACKENDS)
        assert seen.result.code == 3
        assert "/proc is not mounted" in seen.result.err
        assert seen.to_backend == ALIVE

    @of(NO_CTYPES)
    def test_other_namespaces_that_this_python_cannot_enter(self, ours: Roots, root: MinimalRoot) -> None:
        def play() -> Result:
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE, preexec_fn=world.new_network):
                return ours.run(root, "terminate", "--readable-only", "10.0.0.1:80/TCP")

        result = in_own_network(play)
        if ours.interpreter.version >= (3, 12):
            assert result.code == 0
        else:
            assert (result.code, "(cat): setns: this Python has neither os.setns" in result.err) == (1, True), result

    @of(BARE)
    def test_an_audit_file_that_cannot_be_written_saves_everybody(self, ours: Roots, root: MinimalRoot) -> None:
        seen = run_among_clients(ours, root, "destroy", "--audit", "/app/audit", FILTER)
        assert seen.result.code == 2
        assert "the audit file /app/audit cannot be opened" in seen.result.err
        assert seen.to_backend == ALIVE

    @of(BARE, ZIPAPP)
    def test_list_and_probe(self, ours: Roots, root: MinimalRoot) -> None:
        listed = run_among_clients(ours, root, "list", "--json", FILTER).result
        assert (listed.code, len(listed.json["sockets"]), listed.err) == (0, 5, "")
        probed = in_own_network(lambda: ours.run(root, "probe"))
        assert (probed.code, probed.out.count("supported"), probed.err) == (0, 4, "")

    @of(WHOLE, NO_CTYPES, ZIPAPP)
    def test_the_demo_where_python_can_make_namespaces(self, each: Roots, root: MinimalRoot) -> None:
        """Python itself since 3.12, before with ctypes; else it says so."""
        result = in_own_network(lambda: each.run(root, "demo", "--json"))
        if root.is_whole or each.interpreter.version >= (3, 12):
            assert (result.code, result.err) == (0, "")
            assert (result.json["destroyed"], result.json["wrong"]) == (6, 0)
        else:
            assert result.code == 3
            assert "neither os.unshare (3.12 and newer) nor a working ctypes" in result.err
            assert "run the demo with a newer Python" in result.json["error"]

    @of(NO_JSON)
    @pytest.mark.parametrize(
        "words",
        [
            *(("destroy", "--json", FILTER), ("destroy", "--audit", "-", FILTER), ("watch", "--source", "-")),
            *(("list", "--json"), ("probe", "--json"), ("demo", "--json"), ("rev-nat", "--json")),
        ],
        ids=lambda words: " ".join(words[:2]),
    )
    def test_what_needs_json_says_so_first(self, ours: Roots, root: MinimalRoot, words: tuple[str, ...]) -> None:
        seen = run_among_clients(ours, root, *words)
        text = f"socklb: {words[1]} needs the module json, which this Python lacks: install its whole standard library"
        assert (seen.result.code, seen.result.out, seen.result.err.startswith(text)) == (3, "", True), seen.result
        assert seen.to_backend == ALIVE

    @of(NO_JSON)
    @pytest.mark.parametrize("words", [("destroy", FILTER), ("terminate", "--netns", "current", *BACKENDS)])
    def test_tables_need_no_json(self, ours: Roots, root: MinimalRoot, words: tuple[str, ...]) -> None:
        seen = run_among_clients(ours, root, *words)
        assert (seen.result.code, seen.result.err, seen.to_backend) == (0, "", CUT)

    @of(BARE)
    def test_words_that_no_locale_can_spell_are_bad_input(self, ours: Roots, root: MinimalRoot) -> None:
        result = in_own_network(lambda: ours.run(root, "destroy", "--json", "dst h\u00f6lle"))
        assert (result.code, result.out) == (2, "")
        assert "column" in result.err

    @of(NO_CTYPES)
    def test_without_etc_services_have_no_names(self, ours: Roots, root: MinimalRoot) -> None:
        assert in_own_network(lambda: ours.run(WHOLE, "list", "dport = :here-alone")).code == 0
        result = in_own_network(lambda: ours.run(root, "list", "dport = :here-alone"))
        assert (result.code, result.out) == (2, "")
        assert "neither a port number nor a service name" in result.err

    @of(ZIPAPP)
    def test_help(self, ours: Roots, root: MinimalRoot) -> None:
        """Docstrings are gone with -OO, help texts are not."""
        result = in_own_network(lambda: ours.run(root, "destroy", "--help"))
        assert (result.code, result.err) == (0, "")
        assert "Destroy the sockets that a filter matches" in result.out
