"""A copy of the package's directory works under any name, beside other copies, with nothing else installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import socklb

from .sockets import Sockets, pending_error, talk

PACKAGE = Path(socklb.__file__).resolve().parent
COPY = "app._vendor.socklb_copy"
TESTS = __name__.rpartition(".")[0]


def vendor(root: Path, name: str) -> None:
    """Copy the package so that it can be imported as `name` with `root` on the path."""
    target = root.joinpath(*name.split("."))
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    for parent in target.relative_to(root).parents:
        if parent.parts:
            (root / parent / "__init__.py").touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    vendor(tmp_path, COPY)
    return tmp_path


def python(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python without site-packages in a directory: all that it can import is there, or of the standard library."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    return subprocess.run(
        [sys.executable, "-S", "-B", "-W", "error", *words],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def test_the_original_is_out_of_reach(root: Path) -> None:
    """Or nothing below could fail."""
    assert "No module named 'socklb'" in python(root, "-c", "import socklb").stderr


class TestUnderAnotherName:
    @pytest.mark.parametrize("words", [["--help"], ["--version"], ["destroy", "--help"]], ids=" ".join)
    def test_it_helps(self, root: Path, words: list[str]) -> None:
        done = python(root, "-m", COPY, *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(("usage: socklb ", "socklb "))

    @pytest.mark.kernel
    def test_it_destroys_those_meant_and_nobody_else(self, root: Path, sockets: Sockets) -> None:
        doomed = [sockets.tcp(address, 9000)[0] for address in ("127.0.0.2", "::ffff:127.0.0.2")]
        others = [sockets.tcp("127.0.0.2", 9001), sockets.tcp("::1", 9000), sockets.udp_pair("127.0.0.2", 9000)]
        done = python(root, "-m", COPY, "destroy", "--tcp", "--json", "dst 127.0.0.2 and dport = 9000")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["destroyed"] == 2
        assert [pending_error(client) for client in doomed] == ["ECONNABORTED"] * 2
        for client, server in others:
            assert pending_error(client) == ""
            talk(client, server)

    @pytest.mark.kernel
    @pytest.mark.parametrize("words", [["list", "--json"], ["probe"], ["demo"]], ids=" ".join)
    def test_every_other_command_works(self, root: Path, network: None, words: list[str]) -> None:
        done = python(root, "-m", COPY, *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout

    def test_every_module_can_be_imported_alone(self, root: Path) -> None:
        """Those that are imported when first needed, too."""
        names = [".".join(path.relative_to(root).with_suffix("").parts) for path in sorted(root.rglob("*.py"))]
        inside = [name for name in names if name.startswith(COPY) and not name.endswith("__main__")]
        program = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name); print(name)"
        done = python(root, "-c", program, *inside)
        assert done.stderr == ""
        assert done.stdout.split() == inside
        assert f"{COPY}.wire.attributes" in inside


TWO_COPIES = f"""
import sys
sys.path.insert(0, "elsewhere")
import {COPY} as one, other as two
from other.cli import main

assert one.SocketFilter is not two.SocketFilter
assert not any(name.partition(".")[0] == "socklb" for name in sys.modules)
print(one.destroy_sockets(one.SocketFilter.parse("dst 127.0.0.2", "udp")).destroyed)
print(two.destroy_sockets(two.SocketFilter.parse("dst 127.0.0.3", "udp")).destroyed)
print(len([*one.find_sockets(one.SocketFilter("udp"))]), len([*two.find_sockets(two.SocketFilter("udp"))]))
here = one.NetworkNamespace.current()  # what is imported when first needed: threads, the codecs of attributes
for socket in one.find_sockets(one.SocketFilter.parse("dport = 53", "udp"), namespace=here, extensions=["meminfo"]):
    print("meminfo" in socket.attributes)
for package, other in ((one, two), (two, one)):
    filter = other.SocketFilter("udp")
    try:
        package.destroy_sockets(filter, allow_unbounded=True)
    except TypeError as error:
        print("TypeError")
for package, other in ((one, two), (two, one)):
    try:
        package.destroy_sockets(package.SocketFilter("udp"))
    except other.SocklbError:
        print("the other's")
    except package.UnboundedFilter:
        print("its own")
sys.exit(main(["destroy", "dst 127.0.0.4"]))
"""

# What a module holds (classes, functions, modules) by the name of where it came from.
ORIGINS = f"""
import sys
sys.path.insert(0, "elsewhere")
import {COPY}.cli as one, other.cli as two

for name in ("SocklbError", "MalformedMessage", "KernelError", "NotPermitted", "NotSupported", "UnboundedFilter"):
    mine, others = (getattr(sys.modules[package + ".errors"], name) for package in ("{COPY}", "other"))
    assert not issubclass(mine, others) and not issubclass(others, mine), name
held = {{"{COPY}": set(), "other": set()}}
for name, module in list(sys.modules.items()):
    for package, origins in held.items():
        if name == package or name.startswith(package + "."):
            for value in vars(module).values():
                origin = getattr(value, "__module__", None) or getattr(value, "__name__", None)
                origins.update(each for each in held if f"{{origin}}.".startswith(each + "."))
for package, origins in held.items():
    print(package, *origins)
"""


@pytest.mark.kernel
def test_two_copies_live_in_one_process(root: Path, sockets: Sockets) -> None:
    vendor(root / "elsewhere", "other")
    clients = [sockets.udp(f"127.0.0.{last}", 53) for last in (2, 3, 4, 5)]
    done = python(root, "-c", TWO_COPIES)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:9] == ["1", "1", "2 2", "True", "True", "TypeError", "TypeError", "its own", "its own"]
    assert lines[-1] == "1 matched: 1 destroyed, 0 gone, 0 skipped, 0 failed"
    assert [pending_error(client) for client in clients] == ["ECONNABORTED"] * 3 + [""]


def test_neither_copy_holds_anything_of_the_other(root: Path) -> None:
    vendor(root / "elsewhere", "other")
    done = python(root, "-c", ORIGINS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{COPY} {COPY}", "other other"]


@pytest.mark.parametrize(("words", "absent"), [(f"{COPY}.cli", "other"), ("other.cli", "app")])
def test_neither_imports_the_other(root: Path, words: str, absent: str) -> None:
    vendor(root / "elsewhere", "other")
    program = f"import sys; sys.path.insert(0, 'elsewhere'); import {words}; print({absent!r} in sys.modules)"
    done = python(root, "-c", program)
    assert (done.stdout, done.stderr) == ("False\n", "")


# What the tests do on a copy: its modules answer to the original's names, and every name in it means what it meant.
BOUND = f"""
import os, sys
sys.path.append({str(Path(__file__).resolve().parents[TESTS.count(".") + 1])!r})
os.environ["SOCKLB_UNDER_TEST"] = "{COPY}"
from importlib import import_module
from {TESTS} import package_under_test

package_under_test.bind()
import socklb
for name in sys.argv[1:]:
    package = import_module(("{COPY}" + name).rpartition(".")[0])
    original = import_module("{COPY}" + name)
    meant = dict(vars(package))
    assert import_module("socklb" + name) is original, name
    assert vars(package) == meant, name
assert socklb.engine.probe is sys.modules["{COPY}.engine.probe"].probe
assert sys.modules["socklb.engine.probe"].__spec__.name == "{COPY}.engine.probe"
"""


def test_bound_by_the_tests_every_name_means_what_it_meant(root: Path) -> None:
    """`probe` is a module, and in the package the function of that name."""
    package = root.joinpath(*COPY.split("."))
    paths = (path.relative_to(package).with_suffix("") for path in package.rglob("[a-z]*.py"))
    names = sorted("." + ".".join(path.parts) for path in paths)
    assert ".probe" in names
    done = python(root, "-c", BOUND, *names)
    assert (done.returncode, done.stderr) == (0, "")
