"""Every kind of root: destroy, terminate, watch and demo work, or end with 3 before anything is done and say what is
missing.

Those of the interpreter that runs the tests and of the distribution's are built here. Other people's images
(python3-minimal of three Debians, a CPython on musl, started by busybox too, PyPy) are made by `.ci/roots`, and
SOCKLB_ROOTS names the folder: `tox -e roots`.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from .clients import ALIVE, BACKENDS, CUT, FILTER, Aftermath, in_own_network, run_among_clients
from .roots import (
    BARE,
    NO_CTYPES,
    NO_ETC,
    NO_JSON,
    NO_PROC,
    READ_ONLY,
    WHOLE,
    ZIPAPP,
    GivenRoots,
    MinimalRoot,
    Roots,
    given,
)

pytestmark = pytest.mark.kernel


class Kind(NamedTuple):
    of: str
    """A fixture, or a folder that `.ci/roots` has made."""
    root: MinimalRoot


BUSYBOX = "by busybox"
BUILT = (
    *(Kind("ours", root) for root in (WHOLE, NO_CTYPES, NO_JSON, NO_ETC, NO_PROC, READ_ONLY, BARE, ZIPAPP)),
    *(Kind("system", root) for root in (WHOLE, BARE)),
)
GIVEN = (
    Kind("bookworm", MinimalRoot("as it is", ("ctypes", "json", "queue"))),
    Kind("trixie", MinimalRoot("as it is", ("ctypes", "queue"))),
    Kind("sid", MinimalRoot("as it is", ("ctypes", "queue"))),
    Kind("musl", MinimalRoot("as it is", ("/etc", "ctypes"))),
    Kind("musl", MinimalRoot(BUSYBOX, ("/etc", "ctypes"))),
    Kind("musl", BARE),
    Kind("pypy", MinimalRoot("as it is")),
    Kind("pypy", BARE._replace(lacks=("/proc", "writing"))),
)
_LACKED = """
import importlib, os
def lacks(what):
    if what == "writing": return not os.access("/", os.W_OK)
    if what.startswith("/"): return not (os.path.exists(what) and os.listdir(what))
    try: importlib.import_module(what)
    except ImportError: return True
print([what for what in ("/etc", "/proc", "ctypes", "json", "queue", "writing") if lacks(what)])
"""
WATCH = ("watch", "--source", "-", "--readable-only")
LINES = [{"op": op, "backend": backend} for op in ("upsert", "delete") for backend in BACKENDS]
SOURCE = "".join(f"{json.dumps(line)}\n" for line in LINES)


@pytest.fixture(params=[*BUILT, *GIVEN], ids=lambda kind: f"{kind.of}, {kind.root.name}")
def kind(request: pytest.FixtureRequest) -> Kind:
    found = request.param
    assert isinstance(found, Kind)
    return found


@pytest.fixture
def roots(request: pytest.FixtureRequest, user_namespaces: None, kind: Kind) -> Roots:
    if kind in BUILT:
        built = request.getfixturevalue(kind.of)
        assert isinstance(built, Roots)
        return built
    return GivenRoots(given(kind.of), by_busybox=kind.root.name == BUSYBOX)


def is_without(lacked: str, seen: Aftermath) -> bool:
    """Whether it ended with 3 for want of this before anything was done."""
    said = "/proc is not mounted" if lacked == "/proc" else f"{lacked}, which this Python lacks: install"
    return seen.result.code == 3 and said in seen.result.err and seen.to_backend == ALIVE


def test_what_it_lacks(roots: Roots, kind: Kind) -> None:
    """Or what follows would prove nothing."""
    result = in_own_network(lambda: roots.python(kind.root, _LACKED))
    assert (result.code, result.out) == (0, f"{[*kind.root.lacks]}\n"), result


def test_destroy(roots: Roots, kind: Kind) -> None:
    assert_cut(run_among_clients(roots, kind.root, "destroy", FILTER))


@pytest.mark.parametrize("words", [("terminate", "--readable-only", *BACKENDS), WATCH], ids=["terminate", "watch"])
def test_everywhere(roots: Roots, kind: Kind, words: tuple[str, ...]) -> None:
    """Or, where other namespaces cannot be found, in the current one."""
    seen = run_among_clients(roots, kind.root, *words, stdin=SOURCE)
    if "json" in kind.root.lacks and words == WATCH:
        assert is_without("json", seen), seen.result
        return
    if "/proc" in kind.root.lacks:
        assert is_without("/proc", seen), seen.result
        seen = run_among_clients(roots, kind.root, *words, "--netns", "current", stdin=SOURCE)
    assert_cut(seen)


def assert_cut(seen: Aftermath) -> None:
    assert (seen.result.code, seen.to_backend, seen.to_others) == (0, CUT, [""] * 4), seen.result


def test_demo_where_python_can_make_namespaces(roots: Roots, kind: Kind) -> None:
    """Python itself since 3.12, before with ctypes; else it says so."""
    itself = in_own_network(lambda: roots.python(kind.root, "import os; os.unshare"))
    result = in_own_network(lambda: roots.run(kind.root, "demo"))
    if itself.code == 0 or "ctypes" not in kind.root.lacks:
        assert (result.code, "; 0 died or lived by mistake" in result.out) == (0, True), result
    else:
        assert (result.code, "neither os.unshare (3.12 and newer) nor a working ctypes" in result.err) == (3, True)
        assert "run the demo with a newer Python" in result.err
