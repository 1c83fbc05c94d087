"""The smallest roots: what is particular to one or another."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .. import world
from ..cli.runner import Result
from .clients import ALIVE, BACKENDS, CUT, FILTER, in_own_network, run_among_clients
from .roots import BARE, NO_CTYPES, NO_ETC, NO_JSON, WHOLE, ZIPAPP, MinimalRoot, Roots

pytestmark = pytest.mark.kernel


def of(*roots: MinimalRoot) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("root", roots, ids=lambda root: root.name)


LOOK_AROUND = """
import json, os, sys
try:
    import zlib
except ImportError:
    zlib = None
print(json.dumps({
    "zlib": zlib is not None,
    "encoding": sys.getfilesystemencoding(),
    "flags": [sys.flags.isolated, sys.flags.no_site, sys.flags.optimize],
    "root": sorted({"dev", "run", "sys", "tmp"} & set(os.listdir("/"))),
}))
"""


class TestCommands:
    """They do what they do elsewhere."""

    @of(BARE, ZIPAPP)
    def test_are_as_small_as_they_claim(self, ours: Roots, root: MinimalRoot) -> None:
        """Or what follows would prove nothing."""
        result = in_own_network(lambda: ours.python(root, LOOK_AROUND))
        assert (result.code, result.err) == (0, "")
        assert result.json == {
            "zlib": "zlib" in sys.builtin_module_names,  # Debian builds it in
            "encoding": "utf-8" if root.is_zipapp else "ascii",
            "flags": [1, 1, 2] if root.is_zipapp else [0, 0, 0],
            "root": [],
        }

    @of(ZIPAPP)
    def test_json_and_audit(self, ours: Roots, root: MinimalRoot) -> None:
        words = ("terminate", "--json", "--audit", "-", "--netns", "current", *BACKENDS)
        seen = run_among_clients(ours, root, *words)
        assert (seen.result.code, seen.result.json["destroyed"]) == (0, 5)
        assert [json.loads(line)["outcome"] for line in seen.result.err.splitlines()] == ["destroyed"] * 5
        assert (seen.to_backend, seen.to_others) == (CUT, [""] * 4)

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
        assert (probed.code, probed.out.count("supported"), probed.err) == (0, 5, "")

    @of(NO_JSON)
    @pytest.mark.parametrize(
        "words",
        [
            *(("destroy", "--json", FILTER), ("destroy", "--audit", "-", FILTER), ("list", "--json")),
            *(("probe", "--json"), ("demo", "--json"), ("rev-nat", "--json")),
        ],
        ids=lambda words: " ".join(words[:2]),
    )
    def test_what_needs_json_says_so_first(self, ours: Roots, root: MinimalRoot, words: tuple[str, ...]) -> None:
        seen = run_among_clients(ours, root, *words)
        text = f"socklb: {words[1]} needs the module json, which this Python lacks: install its whole standard library"
        assert (seen.result.code, seen.result.out, seen.result.err.startswith(text)) == (3, "", True), seen.result
        assert seen.to_backend == ALIVE

    @of(BARE)
    def test_words_that_no_locale_can_spell_are_bad_input(self, ours: Roots, root: MinimalRoot) -> None:
        result = in_own_network(lambda: ours.run(root, "destroy", "--json", "dst h\u00f6lle"))
        assert (result.code, result.out) == (2, "")
        assert "column" in result.err

    @of(NO_ETC)
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
