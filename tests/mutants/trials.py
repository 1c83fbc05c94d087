"""Runs tests on a broken copy of the package: in processes with a world each, which are told what to try by lines.

Such a process has imported pytest and hypothesis once, and forks for each trial.
"""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import py_compile
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, NoReturn

from .. import world

_ROOT = Path(__file__).resolve().parents[2]
PACKAGE = _ROOT / "socklb"
_MEMORY = 4 << 30
_IMPORTED = "Module already imported"  # hypothesis is, before pytest, which has nothing to rewrite in it


class Trial(NamedTuple):
    module: str  # of the package, and what to have there; "" for the package as it is
    source: str
    tests: list[str]
    seconds: int
    is_shown: bool


def outcomes(unbroken: list[Trial], trials: list[Trial], jobs: int) -> Iterator[bool]:
    """Whether the tests of each trial pass, in their order; those of the package as it is have to."""
    workers: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()

    def passes(trial: Trial) -> bool:
        worker = workers.get()
        try:
            return _asked(worker, trial)
        finally:
            workers.put(worker)

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(jobs) as pool:
        for _ in range(jobs):
            workers.put(stack.enter_context(_worker()))
        for trial, is_good in zip(unbroken, pool.map(passes, unbroken)):
            if not is_good:
                print(f"without a mutant they fail, or take too long: {' '.join(trial.tests)}", file=sys.stderr)
                sys.exit(2)
        yield from pool.map(passes, trials)


def _worker() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.mutants.trials"]
    return subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _asked(worker: subprocess.Popen[str], trial: Trial) -> bool:
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(json.dumps(trial), file=worker.stdin, flush=True)
    answer = worker.stdout.readline()
    if not answer:
        raise EOFError("a process that tries mutants has ended")
    return bool(json.loads(answer))


def main() -> int:
    if not world.is_inside() and not world.enter():
        sys.exit(world.why_none)
    with tempfile.TemporaryDirectory(prefix="socklb-mutants-") as scratch:
        copy = Path(scratch) / "mutated"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        # By hash: a mutant has the size and the second of the one before.
        compileall.compile_dir(copy, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        os.environ.update(SOCKLB_UNDER_TEST="mutated", PYTHONPATH=scratch, PYTHONDONTWRITEBYTECODE="1")
        sys.path.insert(0, scratch)
        for line in sys.stdin:
            trial = Trial(*json.loads(line))
            print(json.dumps(_passes_on(copy, trial)), flush=True)
    return 0


def _passes_on(copy: Path, trial: Trial) -> bool:
    if not trial.module:
        return _passes(trial)
    path = copy / trial.module
    before = path.read_text()
    path.write_text(trial.source)
    passes = _passes(trial)
    path.write_text(before)
    return passes


def _passes(trial: Trial) -> bool:
    """Whether its tests pass, in a process that has pytest and hypothesis already."""
    child = os.fork()
    if not child:
        try:
            _run_pytest(trial)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it left
    return status == 0


def _run_pytest(trial: Trial) -> NoReturn:
    import pytest

    os.setpgid(0, 0)
    signal.alarm(trial.seconds)  # which nothing in the tests handles
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if not trial.is_shown:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)  # what is said on stdout are the results
    sys.dont_write_bytecode = True
    paths = [f"tests/{name}" for name in trial.tests if (_ROOT / "tests" / name).exists()]
    os._exit(pytest.main(["-x", "-p", "no:cacheprovider", f"-Wignore:{_IMPORTED}:pytest.PytestWarning", *paths]))


if __name__ == "__main__":
    import hypothesis  # noqa: F401 - once for all children
    import pytest  # noqa: F401

    sys.exit(main())
