"""One file that holds the whole package, made by the commands that README shows. Minimal roots run it too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .cli.runner import PACKAGE, SECONDS
from .minimal_roots.roots import MAIN
from .project import README, only_in_checkout
from .sockets import Sockets, pending_error, talk

COMMANDS = f"""\
rm -rf build/zipapp && mkdir -p build/zipapp && cp -r socklb build/zipapp
find build/zipapp -name __pycache__ -prune -exec rm -r {{}} +
echo '{MAIN.strip()}' > build/zipapp/__main__.py
python3 -m zipapp --python '/usr/bin/env python3' --output socklb.pyz build/zipapp
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = tmp_path_factory.mktemp("checkout")
    shutil.copytree(PACKAGE, checkout / "socklb", ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "socklb/__pycache__").mkdir()
    (checkout / "socklb/__pycache__/errors.cpython-30.pyc").write_bytes(b"of an interpreter that is long gone")
    for _ in range(2):  # what is left from the time before is no obstacle
        subprocess.run(["sh", "-ec", COMMANDS], cwd=checkout, env=environment(), check=True, timeout=SECONDS)
    return checkout / "socklb.pyz"


def environment() -> dict[str, str]:
    """`python3` is the interpreter that runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"}


def run(archive: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Execute the archive."""
    return subprocess.run(
        [archive, *words], env=environment(), capture_output=True, encoding="utf-8", timeout=SECONDS, cwd="/"
    )


@only_in_checkout
def test_the_commands_are_those_of_the_readme() -> None:
    lines = [line.strip() for line in README.read_text(encoding="utf-8").splitlines()]
    assert COMMANDS in "\n".join(lines)


def test_it_holds_the_package_and_nothing_else_uncompressed(archive: Path) -> None:
    """A minimal interpreter has no zlib."""
    with zipfile.ZipFile(archive) as opened:
        entries = [entry for entry in opened.infolist() if not entry.is_dir()]
    sources = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert {entry.filename for entry in entries} == {
        *("__main__.py", "socklb/py.typed", "socklb/LICENSE"),
        *(f"socklb/{source}" for source in sources),
    }
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}


def test_exit_codes_are_those_of_main(archive: Path) -> None:
    assert run(archive, "--help").returncode == 0
    assert run(archive, "destroy", "dst nonsense").returncode == 2


@pytest.mark.kernel
def test_it_lists_and_destroys(archive: Path, sockets: Sockets) -> None:
    clients = sockets.tcp("127.0.0.2", 9000)[0], sockets.udp("127.0.0.2", 9000)
    client, server = sockets.tcp("127.0.0.3", 9000)
    assert len(json.loads(run(archive, "list", "--json", "dst 127.0.0.2:9000").stdout)["sockets"]) == 2
    done = run(archive, "destroy", "--json", "dst 127.0.0.2:9000")
    assert (done.returncode, done.stderr, json.loads(done.stdout)["destroyed"]) == (0, "", 2)
    assert [pending_error(each) for each in clients] == ["ECONNABORTED"] * 2
    talk(client, server)
