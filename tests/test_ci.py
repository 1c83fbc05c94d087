"""What CI runs does not pass by testing less: the oldest CPython, the newest, and one between are there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from .project import ROOT, only_in_checkout

pytestmark = only_in_checkout

TOOLS = ("dirname", "ls", "sed", "sort", "wc")
REACHED = 42  # the exit code of whoever is asked for a virtual environment


def run(directory: Path, versions: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """On a machine with these CPythons and nothing else."""
    for name in TOOLS:
        (directory / name).symlink_to(str(shutil.which(name)))
    programs = {"ss": "exit 0", "python3": f"exit {REACHED}", **{f"python{version}": "exit 0" for version in versions}}
    for name, text in programs.items():
        (directory / name).write_text(f"#!/bin/sh\n{text}\n")
        (directory / name).chmod(0o755)
    return subprocess.run(
        [str(shutil.which("bash")), ROOT / ".ci" / "run"],
        env={"PATH": str(directory), "PYENV_ROOT": str(directory)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


@pytest.mark.parametrize("versions", [["3.9", "3.11", "3.13"], ["3.9", "3.10", "3.11", "3.12", "3.13"]], ids=",".join)
def test_with_enough_it_goes_on(tmp_path: Path, versions: list[str]) -> None:
    done = run(tmp_path, versions)
    assert (done.returncode, done.stderr) == (REACHED, "")
    assert f"CPythons on this machine: {' '.join(versions)}\n" in done.stdout


@pytest.mark.parametrize(
    "versions",
    [[], ["3.9", "3.13"], ["3.10", "3.11", "3.12", "3.13"], ["3.9", "3.10", "3.11", "3.12"], ["3.10", "3.11", "3.12"]],
    ids=",".join,
)
def test_with_less_it_fails(tmp_path: Path, versions: list[str]) -> None:
    done = run(tmp_path, versions)
    assert done.returncode == 1
    assert "this run would prove too little" in done.stderr
