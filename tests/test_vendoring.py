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
        timeout=600,
    )


def test_the_original_is_out_of_reach(root: Path) -> None:
    """Or nothing below could fail."""
    assert "No module named 'socklb'" in python(root, "-c", "import socklb").stderr


class TestUnderAnotherName:
    @pytest.mark.kernel
    def test_it_destroys_what_matches_and_nobody_else(self, root: Path, sockets: Sockets) -> None:
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
    @pytest.mark.parametrize("words", [["--help"], ["list", "--json"], ["probe"], ["demo"]], ids=" ".join)
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
        assert len(inside) > 20


TWO_COPIES = f"""
import sys
sys.path.insert(0, "elsewhere")
import {COPY} as one, other as two

print(one.destroy_sockets(one.SocketFilter.parse("dst 127.0.0.2", "udp")).destroyed)
print(two.destroy_sockets(two.SocketFilter.parse("dst 127.0.0.3", "udp")).destroyed)
print(len([*one.find_sockets(one.SocketFilter("udp"))]), len([*two.find_sockets(two.SocketFilter("udp"))]))
for package, other in ((one, two), (two, one)):
    try:
        package.destroy_sockets(other.SocketFilter("udp"), allow_unbounded=True)
    except TypeError as error:
        print("TypeError")
    try:
        package.destroy_sockets(package.SocketFilter("udp"))
    except other.SocklbError:
        print("the other's")
    except package.UnboundedFilter:
        print("its own")
"""


@pytest.mark.kernel
def test_two_copies_live_in_one_process(root: Path, sockets: Sockets) -> None:
    vendor(root / "elsewhere", "other")
    clients = [sockets.udp(f"127.0.0.{last}", 53) for last in (2, 3, 4)]
    done = python(root, "-c", TWO_COPIES)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["1", "1", "1 1", *["TypeError", "its own"] * 2]
    assert [pending_error(client) for client in clients] == ["ECONNABORTED"] * 2 + [""]
