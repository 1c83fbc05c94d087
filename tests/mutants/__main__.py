"""Break the package in one place after another, and see whether the tests that belong to the place fail.

python -m tests.mutants [MODULE ...] [--count N] [--seed N] [--jobs N]      a sample, evenly over the modules

MODULE is a path in the package: wire/reply.py, wire, all that have tests named below by default. Prints each mutant
that survived and the score of each module; ends with 1 if the score of all is below 90%.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import py_compile
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NoReturn

from .. import world
from .operators import Mutant, mutants_of

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGE = _ROOT / "socklb"
_ENOUGH = 0.9
_SECONDS = 40  # a mutant that takes longer hangs, which is noticed too
_MEMORY = 4 << 30
_IMPORTED = "Module already imported"  # hypothesis is, before pytest, which has nothing to rewrite in it

# Which tests belong to a module: the first that fails ends it, so the likeliest stand first.
_TESTS = {
    "states.py": ["test_states.py", "test_tcp_states.py"],
    "destroy.py": ["test_destroy.py", "test_destroy_rounds.py", "test_report.py", "faults/test_laws.py"],
    "spare.py": ["test_spare.py", "test_destroy.py"],
    "ledger.py": ["test_ledger.py", "test_destroy.py"],
    "report.py": ["test_report.py", "termination/test_balanced.py"],
    **{f"wire/{path.name}": [f"wire/test_{path.name}", "wire"] for path in _PACKAGE.glob("wire/[a-z]*.py")},
    **{
        f"filters/{path.name}": [f"filters/test_{path.name}", "filters", "test_find.py"]
        for path in _PACKAGE.glob("filters/[a-z]*.py")
    },
    "wire/bytecode.py": ["wire/test_bytecode.py", "filters/test_compiler.py", "wire"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", metavar="MODULE", nargs="*", default=[""])
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = [name for name in sorted(_TESTS) if any(name.startswith(module) for module in options.modules)]
    if not chosen:
        parser.error("no such module")
    if options.share is None:
        return _share_out(options.jobs)
    if not world.is_inside():
        status, why = world.run_inside(sys.argv[1:], "tests.mutants")
        return status if status is not None else parser.error(why)
    return _run(_sample(chosen, options.count, options.seed)[options.share :: options.jobs])


def _sample(modules: list[str], count: int, seed: int) -> list[tuple[str, Mutant]]:
    """So many, one of each module in turn."""
    chance = random.Random(seed)
    left = {name: mutants_of((_PACKAGE / name).read_text()) for name in modules}
    for mutants in left.values():
        chance.shuffle(mutants)
    drawn: list[tuple[str, Mutant]] = []
    while len(drawn) < count and any(left.values()):
        drawn += [(name, mutants.pop()) for name, mutants in left.items() if mutants]
    return drawn[:count]


def _share_out(jobs: int) -> int:
    """Each job has a world of its own. Says how it went."""
    command = [sys.executable, "-m", "tests.mutants", *sys.argv[1:], f"--jobs={jobs}"]
    workers = [
        subprocess.Popen([*command, f"--share={n}"], cwd=_ROOT, stdout=subprocess.PIPE, text=True) for n in range(jobs)
    ]
    said = [json.loads(line) for worker in workers for line in worker.communicate()[0].splitlines()]
    if any(worker.returncode for worker in workers):
        return 2
    for name, line, change, killed in sorted(said):
        if not killed:
            print(f"survived: socklb/{name}:{line}: {change}")
    made, killed = Counter(name for name, *_ in said), Counter(name for name, *_, killed in said if killed)
    for name in sorted(made):
        print(f"{name:28} {killed[name]:4} of {made[name]:4} killed  {killed[name] / made[name]:4.0%}")
    score = sum(killed.values()) / len(said)
    print(f"{'in all':28} {sum(killed.values()):4} of {len(said):4} killed  {score:.1%}")
    return 0 if score >= _ENOUGH else 1


def _run(mutants: list[tuple[str, Mutant]]) -> int:
    """Try each on a copy of the package; a line of JSON each."""
    with tempfile.TemporaryDirectory(prefix="socklb-mutants-") as scratch:
        copy = Path(scratch) / "mutated"
        shutil.copytree(_PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        # By hash: a mutant has the size and the second of the one before.
        compileall.compile_dir(copy, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
        os.environ.update(SOCKLB_UNDER_TEST="mutated", PYTHONPATH=scratch, PYTHONDONTWRITEBYTECODE="1")
        sys.path.insert(0, scratch)
        if not _passes(sorted({name for module, _ in mutants for name in _TESTS[module]}), 600, is_shown=True):
            print("the tests fail without a mutant", file=sys.stderr)
            return 2
        for name, mutant in mutants:
            path = copy / name
            before = path.read_text()
            path.write_text(mutant.source())
            killed = not _passes(_TESTS[name], _SECONDS)
            path.write_text(before)
            print(json.dumps([name, mutant.line, mutant.change, killed]), flush=True)
    return 0


def _passes(tests: list[str], seconds: int, is_shown: bool = False) -> bool:
    """Whether these tests pass, in a process that has pytest and hypothesis already."""
    child = os.fork()
    if not child:
        try:
            _run_pytest([f"tests/{name}" for name in tests if (_ROOT / "tests" / name).exists()], seconds, is_shown)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it left
    return status == 0


def _run_pytest(tests: list[str], seconds: int, is_shown: bool) -> NoReturn:
    import pytest

    os.setpgid(0, 0)
    signal.alarm(seconds)  # which nothing in the tests handles
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if not is_shown:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)  # what is said on stdout are the results
    sys.dont_write_bytecode = True
    os._exit(pytest.main(["-x", "-p", "no:cacheprovider", f"-Wignore:{_IMPORTED}:pytest.PytestWarning", *tests]))


if __name__ == "__main__":
    import hypothesis  # noqa: F401 - once for all children
    import pytest  # noqa: F401

    sys.exit(main())
