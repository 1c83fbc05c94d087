"""The smallest images: a root with an interpreter and its standard library, each without something else.

Every test runs in a user namespace of its own, as any user could make it, with the sockets of the applications in its
network namespace; the command runs in a root that was entered by pivot_root.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import pytest

from .. import world
from ..cli.runner import Result
from ..sockets import Sockets, in_child, pending_error, talk
from .root import Place, Roots

pytestmark = pytest.mark.kernel

T = TypeVar("T")

WHOLE = Place("whole")
NO_CTYPES = Place("no ctypes", ctypes=False)
NO_PROC = Place("no /proc", proc=False)
NO_ETC = Place("no /etc", etc=False)
READ_ONLY = Place("read-only", writable=False)
NO_LOCALE = Place("no locale", locale=False)
ZIPAPP = Place("zipapp", zipapp=True)
NOTHING = Place("nothing", ctypes=False, proc=False, etc=False, writable=False, locale=False)
NOTHING_AND_ZIPAPP = NOTHING._replace(name="nothing, zipapp", zipapp=True)

EVERYWHERE = pytest.mark.parametrize(
    "place",
    [WHOLE, NO_CTYPES, NO_PROC, NO_ETC, READ_ONLY, NO_LOCALE, ZIPAPP, NOTHING, NOTHING_AND_ZIPAPP],
    ids=lambda place: place.name,
)


def in_own_network(function: Callable[[], T]) -> T:
    """What a function returns in a user namespace with a network namespace of its own, loopback up."""

    def enter() -> None:
        world.become(0, world.CLONE_NEWNET)
        world.loopback_up()

    return in_child(function, enter)


class Witnessed(NamedTuple):
    result: Result
    doomed: list[str]
    others: list[str]


def witness(roots: Roots, place: Place, *words: str, stdin: str = "") -> Witnessed:
    """Run a command there, and tell what the applications outside saw: the doomed are those to port 9000."""

    def scene() -> Witnessed:
        with Sockets() as sockets:
            doomed = [
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
            result = roots.run(place, *words, stdin=stdin)
            for client, server in others:
                talk(client, server)
            return Witnessed(
                result, [pending_error(client) for client in doomed], [pending_error(client) for client, _ in others]
            )

    return in_own_network(scene)


BACKENDS = ("127.0.0.2:9000/TCP", "[::1]:9000/TCP", "127.0.0.2:9000/UDP", "[::1]:9000/UDP")
FILTER = "( dst 127.0.0.2 or dst ::1 ) and dport = 9000"

LOOK_AROUND = """
import json, locale, os, sys

def attempt(call):
    try:
        call()
    except (ImportError, OSError, locale.Error) as error:
        return type(error).__name__, getattr(error, "errno", None)
    return None

def write(path):
    open(path, "w").close()
    os.unlink(path)

def listed(path):
    try:
        return sorted(os.listdir(path))
    except OSError:
        return None

print(json.dumps({
    "ctypes": attempt(lambda: __import__("_ctypes")),
    "zlib": attempt(lambda: __import__("zlib")),
    "self": attempt(lambda: os.stat("/proc/self")),
    "proc": listed("/proc"),
    "write": [attempt(lambda: write(path)) for path in ("/file", "/app/file", "/usr/lib/file")],
    "etc": listed("/etc"),
    "root": listed("/"),
    "encoding": sys.getfilesystemencoding(),
    "locale": attempt(lambda: locale.setlocale(locale.LC_ALL, "en_US.UTF-8")),
    "locales": [path for path in ("/usr/lib/locale", "/usr/share/locale") if os.path.exists(path)],
    "flags": [sys.flags.isolated, sys.flags.no_site, sys.flags.optimize],
    "site": "site" in sys.modules,
    "prefix": [sys.prefix, sys.exec_prefix],
}))
"""


class TestWhatIsMissing:
    """Each place lacks what it says, and the whole one has it: or what follows would prove nothing."""

    @pytest.fixture
    def seen(self, each: Roots) -> Callable[[Place], dict[str, Any]]:
        def look(place: Place) -> dict[str, Any]:
            result = in_own_network(lambda: each.python(place, LOOK_AROUND))
            assert (result.code, result.err) == (0, "")
            return dict(result.json)

        return look

    def test_a_root_is_the_interpreter_and_little_else(self, seen: Callable[[Place], dict[str, Any]]) -> None:
        whole = seen(WHOLE)
        assert set(whole["root"]) - {"lib64"} == {"app", "etc", "lib", "proc", "usr"}
        assert whole["prefix"] == ["/usr", "/usr"]
        assert whole["locales"] == []
        assert (whole["ctypes"], whole["self"], whole["write"]) == (None, None, [None] * 3)
        assert (whole["encoding"], whole["flags"], whole["site"]) == ("utf-8", [0, 0, 0], True)
        assert "passwd" in whole["etc"]

    @pytest.mark.parametrize("place", [NO_CTYPES, NOTHING], ids=lambda place: place.name)
    def test_no_ctypes(self, seen: Callable[[Place], dict[str, Any]], place: Place) -> None:
        assert seen(place)["ctypes"] == ["ModuleNotFoundError", None]

    @pytest.mark.parametrize("place", [NO_PROC, NOTHING], ids=lambda place: place.name)
    def test_no_proc(self, seen: Callable[[Place], dict[str, Any]], place: Place) -> None:
        nowhere = seen(place)
        assert (nowhere["proc"], nowhere["self"]) == ([], ["FileNotFoundError", 2])

    @pytest.mark.parametrize("place", [NO_ETC, NOTHING], ids=lambda place: place.name)
    def test_no_etc(self, seen: Callable[[Place], dict[str, Any]], place: Place) -> None:
        assert seen(place)["etc"] is None

    @pytest.mark.parametrize("place", [READ_ONLY, NOTHING], ids=lambda place: place.name)
    def test_nothing_can_be_written(self, seen: Callable[[Place], dict[str, Any]], place: Place) -> None:
        assert seen(place)["write"] == [["OSError", 30]] * 3

    @pytest.mark.parametrize("place", [NO_LOCALE, NOTHING], ids=lambda place: place.name)
    def test_no_locale(self, seen: Callable[[Place], dict[str, Any]], place: Place) -> None:
        bare = seen(place)
        assert (bare["encoding"], bare["locale"], bare["locales"]) == ("ascii", ["Error", None], [])

    @pytest.mark.parametrize("place", [ZIPAPP, NOTHING_AND_ZIPAPP], ids=lambda place: place.name)
    def test_isolated_without_site_and_docstrings(self, each: Roots, place: Place) -> None:
        program = "import sys; sys.path.insert(0, '/app/socklb.pyz'); import socklb; print(json.dumps("
        program += "{'path': socklb.__path__, 'doc': socklb.__doc__, 'zlib': 'zlib' in sys.modules}))"
        said = in_own_network(lambda: each.python(place, f"import json; {program}\n{LOOK_AROUND}"))
        archive, around = map(json.loads, said.out.splitlines())
        assert archive == {"path": ["/app/socklb.pyz/socklb"], "doc": None, "zlib": False}
        assert (around["flags"], around["site"]) == ([1, 1, 2], False)


class TestCommands:
    """They do what they do elsewhere."""

    @EVERYWHERE
    def test_those_meant_are_destroyed_and_nobody_else(self, each: Roots, place: Place) -> None:
        seen = witness(each, place, "destroy", "--json", FILTER)
        assert (seen.result.code, seen.result.err) == (0, "")
        sums = {name: seen.result.json[name] for name in ("matched", "destroyed", "gone", "skipped", "failed")}
        assert sums == {"matched": 5, "destroyed": 5, "gone": 0, "skipped": 0, "failed": 0}
        assert seen.doomed == ["ECONNABORTED"] * 5
        assert seen.others == [""] * 4

    @pytest.mark.parametrize("place", [WHOLE, NOTHING, NOTHING_AND_ZIPAPP], ids=lambda place: place.name)
    def test_a_dry_run_finds_them_and_spares_them(self, each: Roots, place: Place) -> None:
        seen = witness(each, place, "destroy", "--dry-run", FILTER)
        assert (seen.result.code, seen.result.err) == (0, "")
        assert seen.result.out.endswith("5 matched: 0 destroyed, 0 gone, 5 skipped, 0 failed\n")
        assert seen.doomed == [""] * 5

    @EVERYWHERE
    def test_terminate_in_the_namespace_it_runs_in(self, ours: Roots, place: Place) -> None:
        words = ("terminate", "--json", "--audit", "-", "--netns", "host", *BACKENDS)
        seen = witness(ours, place, *words)
        assert (seen.result.code, seen.result.json["destroyed"]) == (0, 5)
        assert [json.loads(line)["outcome"] for line in seen.result.err.splitlines()] == ["destroyed"] * 5
        assert seen.doomed == ["ECONNABORTED"] * 5
        assert seen.others == [""] * 4

    @pytest.mark.parametrize("place", [NOTHING, NOTHING_AND_ZIPAPP], ids=lambda place: place.name)
    def test_watch_in_the_namespace_it_runs_in(self, ours: Roots, place: Place) -> None:
        lines = [{"op": op, "backend": backend} for op in ("upsert", "delete") for backend in BACKENDS]
        told = "".join(f"{json.dumps(line)}\n" for line in lines)
        seen = witness(ours, place, "watch", "--source", "-", "--netns", "host", stdin=told)
        assert (seen.result.code, seen.result.err) == (0, "")
        assert seen.doomed == ["ECONNABORTED"] * 5
        assert seen.others == [""] * 4

    @pytest.mark.parametrize("place", [NO_PROC, NOTHING], ids=lambda place: place.name)
    def test_without_proc_nobody_knows_of_other_namespaces(self, ours: Roots, place: Place) -> None:
        seen = witness(ours, place, "terminate", *BACKENDS)
        assert seen.result.code == 1
        assert "/proc is not mounted" in seen.result.err
        assert seen.doomed == [""] * 5

    @pytest.mark.parametrize("place", [READ_ONLY, NOTHING], ids=lambda place: place.name)
    def test_an_audit_file_that_cannot_be_written_saves_everybody(self, ours: Roots, place: Place) -> None:
        seen = witness(ours, place, "destroy", "--audit", "/app/audit", FILTER)
        assert seen.result.code == 2
        assert "the audit file /app/audit cannot be opened" in seen.result.err
        assert seen.doomed == [""] * 5

    @pytest.mark.parametrize("place", [WHOLE, NOTHING, NOTHING_AND_ZIPAPP], ids=lambda place: place.name)
    def test_list_and_probe(self, each: Roots, place: Place) -> None:
        listed = witness(each, place, "list", "--json", FILTER).result
        assert (listed.code, len(listed.json["sockets"]), listed.err) == (0, 5, "")
        probed = in_own_network(lambda: each.run(place, "probe"))
        assert (probed.code, probed.out.count("supported"), probed.err) == (0, 4, "")

    @EVERYWHERE
    def test_the_demo_where_python_can_make_namespaces(self, each: Roots, place: Place) -> None:
        """Python itself since 3.12, before with ctypes; else it says so."""
        result = in_own_network(lambda: each.run(place, "demo", "--json"))
        if place.ctypes or each.interpreter.version >= (3, 12):
            assert (result.code, result.err) == (0, "")
            assert (result.json["destroyed"], result.json["wrong"]) == (6, 0)
        else:
            assert result.code == 3
            assert "neither os.unshare (3.12 and newer) nor a working ctypes" in result.err
            assert "run the demo with a newer Python" in result.json["error"]

    @pytest.mark.parametrize("place", [NO_LOCALE, NOTHING_AND_ZIPAPP], ids=lambda place: place.name)
    def test_words_that_no_locale_can_spell_are_bad_input(self, ours: Roots, place: Place) -> None:
        result = in_own_network(lambda: ours.run(place, "destroy", "--json", "dst h\u00f6lle"))
        assert (result.code, result.out) == (2, "")
        assert "column" in result.err

    def test_without_etc_services_have_no_names(self, ours: Roots) -> None:
        result = in_own_network(lambda: ours.run(NO_ETC, "list", "dport = :here-alone"))
        assert (result.code, result.out) == (2, "")
        assert "neither a port number nor a service name" in result.err

    @pytest.mark.parametrize("place", [WHOLE, ZIPAPP, NOTHING], ids=lambda place: place.name)
    def test_help(self, ours: Roots, place: Place) -> None:
        """Docstrings are gone with -OO, help texts are not."""
        result = in_own_network(lambda: ours.run(place, "destroy", "--help"))
        assert (result.code, result.err) == (0, "")
        assert "--dry-run" in result.out
        assert "Destroy the sockets that a filter means" in result.out
