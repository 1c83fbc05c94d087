"""Runs of the tests as processes, as somebody has them who starts them: outside of any world, on a copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# The tools' own, which .gitignore names.
CACHES = (".pytest_cache", "__pycache__")

TESTS = Path(__file__).resolve().parent
SECONDS = 120


def copy_tests(target: Path) -> None:
    """With a home and a temporary directory beside the folder that they are in."""
    shutil.copytree(TESTS, target, ignore=shutil.ignore_patterns(*CACHES, ".hypothesis"))
    for name in ("home", "tmp"):
        (target.parents[1] / name).mkdir()


def arguments(*words: str) -> list[str]:
    return [sys.executable, "-m", "pytest", *words]


def environment(directory: Path, **more: str) -> dict[str, str]:
    left_out = ("SOCKLB_", "PYTEST_", "COV", "HYPOTHESIS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    directories = {"HOME": str(directory.parent / "home"), "TMPDIR": str(directory.parent / "tmp")}
    return {**kept, **directories, "SOCKLB_PROFILE": "quick", **more}


def run(directory: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """pytest WORDS... in the directory that holds the folder of the tests."""
    return subprocess.run(
        arguments(*words),
        cwd=directory,
        env=environment(directory, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=SECONDS,
    )
