"""Other people's images: python3-minimal of three Debians, PyPy, a CPython on musl, busybox; each also without /proc.

`.ci/roots` makes them, and SOCKLB_ROOTS names the folder: `tox -e roots`. Each command works, or ends with 3 before
anything is done and says what is missing.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .roots import BARE, NO_CTYPES, GivenRoots, MinimalRoot
from .test_minimal_roots import ALIVE, BACKENDS, CUT, FILTER, Aftermath, in_own_network, of, run_among_clients

_FOLDER = os.environ.get("SOCKLB_ROOTS", "")
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not _FOLDER, reason="SOCKLB_ROOTS names no folder that .ci/roots has filled"),
]

LACKS = {
    "bookworm": ["ctypes", "json", "queue"],
    "trixie": ["ctypes", "queue"],
    "sid": ["ctypes", "queue"],
    "musl": ["ctypes"],
    "pypy": [],
}
_LACKED = """
import importlib
def lacks(name):
    try: importlib.import_module(name)
    except ImportError: return True
print([name for name in ("ctypes", "json", "queue") if lacks(name)])
"""
LINES = [{"op": op, "backend": backend} for op in ("upsert", "delete") for backend in BACKENDS]


@pytest.fixture(params=[*LACKS, "bookworm by busybox", "musl by busybox"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def roots(user_namespaces: None, name: str) -> GivenRoots:
    tree, _, by = name.partition(" ")
    return GivenRoots(Path(_FOLDER, tree), by_busybox=bool(by))


def lacks(name: str) -> list[str]:
    return LACKS[name.partition(" ")[0]]


def is_without(module: str, seen: Aftermath) -> bool:
    """Whether it ended with 3 for want of this before anything was done."""
    said = f"{module}, which this Python lacks: install" if module != "/proc" else "/proc is not mounted"
    return seen.result.code == 3 and said in seen.result.err and seen.to_backend == ALIVE


@of(NO_CTYPES, BARE)
class TestCommands:
    def test_what_it_lacks(self, roots: GivenRoots, root: MinimalRoot, name: str) -> None:
        """Or what follows would prove nothing."""
        result = in_own_network(lambda: roots.python(root, _LACKED))
        assert (result.code, result.out) == (0, f"{lacks(name)}\n"), result

    @pytest.mark.parametrize("words", [("destroy", FILTER), ("terminate", "--netns", "current", *BACKENDS)])
    def test_in_the_current_namespace(self, roots: GivenRoots, root: MinimalRoot, words: tuple[str, ...]) -> None:
        seen = run_among_clients(roots, root, *words)
        assert (seen.result.code, seen.to_backend) == (0, CUT), seen.result

    def test_terminate_everywhere(self, roots: GivenRoots, root: MinimalRoot) -> None:
        seen = run_among_clients(roots, root, "terminate", "--readable-only", *BACKENDS)
        if root == BARE:
            assert is_without("/proc", seen), seen.result
        else:
            assert (seen.result.code, seen.to_backend) == (0, CUT), seen.result

    @pytest.mark.parametrize("where", [(), ("--netns", "current")], ids=["everywhere", "current"])
    def test_watch(self, roots: GivenRoots, root: MinimalRoot, name: str, where: tuple[str, ...]) -> None:
        source = "".join(f"{json.dumps(line)}\n" for line in LINES)
        seen = run_among_clients(roots, root, "watch", "--source", "-", "--readable-only", *where, stdin=source)
        if "json" in lacks(name):
            assert is_without("json", seen), seen.result
        elif root == BARE and not where:
            assert is_without("/proc", seen), seen.result
        else:
            assert (seen.result.code, seen.to_backend) == (0, CUT), seen.result

    def test_demo(self, roots: GivenRoots, root: MinimalRoot, name: str) -> None:
        result = in_own_network(lambda: roots.run(root, "demo"))
        if "json" in lacks(name):  # Python 3.11, which cannot make a namespace without ctypes
            assert (result.code, "neither os.unshare" in result.err) == (3, True), result
        else:
            assert (result.code, "6 destroyed, 0 died or lived by mistake" in result.out) == (0, True), result
