"""One file that holds the whole package, made by the commands that README shows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import socklb

from .cli.runner import SECONDS, Preexec, Result, drop_privilege
from .places.root import MAIN
from .project import README, only_in_checkout
from .sockets import Sockets, pending_error, talk

PACKAGE = Path(socklb.__file__).resolve().parent

COMMANDS = f"""\
rm -rf build/zipapp && mkdir -p build/zipapp && cp -r socklb build/zipapp
find build/zipapp -name __pycache__ -prune -exec rm -r {{}} +
echo '{MAIN.strip()}' > build/zipapp/__main__.py
python3 -m zipapp --python '/usr/bin/env python3' --output socklb.pyz build/zipapp
"""


def environment() -> Mapping[str, str]:
    """`python3` is the interpreter that runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = tmp_path_factory.mktemp("checkout")
    shutil.copytree(PACKAGE, checkout / "socklb")
    (checkout / "socklb/__pycache__").mkdir(exist_ok=True)
    (checkout / "socklb/__pycache__/errors.cpython-30.pyc").write_bytes(b"of an interpreter that is long gone")
    for _ in range(2):  # what is left from the time before is no obstacle
        subprocess.run(["sh", "-ec", COMMANDS], cwd=checkout, env=environment(), check=True, timeout=SECONDS)
    return checkout / "socklb.pyz"


@pytest.fixture
def run(archive: Path, tmp_path: Path) -> Callable[..., Result]:
    """Run the archive, away from the package, isolated and without site: all that it has is itself."""

    def call(*words: str, preexec: Preexec = None, stdout: int = subprocess.PIPE) -> Result:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-W", "error", str(archive), *words],
            cwd=tmp_path,
            preexec_fn=preexec,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=SECONDS,
        )
        return Result(done.returncode, done.stdout or "", done.stderr)

    return call


@only_in_checkout
def test_the_commands_are_those_of_the_readme() -> None:
    assert "".join(f"    {line}\n" for line in COMMANDS.splitlines()) in README.read_text(encoding="utf-8")


class TestArchive:
    def test_it_holds_the_sources_and_nothing_else(self, archive: Path) -> None:
        with zipfile.ZipFile(archive) as opened:
            files = {name for name in opened.namelist() if not name.endswith("/")}
        sources = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
        assert files == {"__main__.py", "socklb/py.typed", *(f"socklb/{source}" for source in sources)}

    def test_nothing_is_compressed(self, archive: Path) -> None:
        """A minimal interpreter has no zlib."""
        with zipfile.ZipFile(archive) as opened:
            assert {entry.compress_type for entry in opened.infolist()} == {zipfile.ZIP_STORED}

    def test_it_can_be_executed(self, archive: Path) -> None:
        done = subprocess.run([archive, "--version"], env=environment(), capture_output=True, timeout=SECONDS)
        assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"socklb {socklb.__version__}\n", b"")


class TestExitCodes:
    """They are those of `main`."""

    def test_0_1_2(self, run: Callable[..., Result]) -> None:
        assert run("--help").code == 0
        with open("/dev/full", "w") as full:
            assert run("--help", stdout=full.fileno()).code == 1
        assert run("destroy", "dst nonsense").code == 2

    @pytest.mark.kernel
    def test_3_without_a_world_for_the_demo(self, run: Callable[..., Result]) -> None:
        assert run("demo", preexec=drop_privilege).code == 3

    @pytest.mark.kernel
    def test_4_without_privilege(self, run: Callable[..., Result], sockets: Sockets) -> None:
        client, server = sockets.tcp("127.0.0.2", 9000)
        result = run("destroy", "dst 127.0.0.2:9000", preexec=drop_privilege)
        assert result.code == 4
        assert "CAP_NET_ADMIN" in result.err
        talk(client, server)


class TestCommands:
    @pytest.mark.parametrize("words", [["--help"], ["list", "--help"], ["destroy", "--help"]], ids=" ".join)
    def test_help(self, run: Callable[..., Result], words: list[str]) -> None:
        result = run(*words)
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith("usage: socklb ")

    @pytest.mark.kernel
    def test_list_and_destroy(self, run: Callable[..., Result], sockets: Sockets) -> None:
        doomed = sockets.tcp("127.0.0.2", 9000)[0], sockets.udp("127.0.0.2", 9000)
        client, server = sockets.tcp("127.0.0.3", 9000)
        listed = run("list", "--json", "dst 127.0.0.2:9000")
        assert (listed.code, len(listed.json["sockets"])) == (0, 2)
        destroyed = run("destroy", "--json", "dst 127.0.0.2:9000")
        assert (destroyed.code, destroyed.err, json.loads(destroyed.out)["destroyed"]) == (0, "", 2)
        assert [pending_error(each) for each in doomed] == ["ECONNABORTED"] * 2
        talk(client, server)

    @pytest.mark.kernel
    def test_demo_and_probe(self, run: Callable[..., Result], network: None) -> None:
        assert run("demo").code == 0
        assert run("probe").out.count("supported") == 4
