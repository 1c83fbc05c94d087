"""Run the tests against a sample of mutants of the package.

python -m tests.mutants [AREA ...] [--count N] [--seed N] [--jobs N]      (or tox -e mutants)

An area is one of the cosmic-ray configurations beside this file: the modules to mutate, and the tests to run.
cosmic-ray makes the mutants, runs the tests and reports: a diff of each mutant that survived, and the survival rate.
The exit code is 1 if more than 10% survived. `--count 0` takes every mutant.

cosmic-ray draws no sample, and writes mutants over the sources, one at a time. Both are arranged here: each job has a
share of the sample and a copy of the project.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import os
import py_compile
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkItem

_ROOT = Path(__file__).resolve().parents[2]
_CONFIGS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
_MAX_SURVIVORS = "10"  # per cent
_MAX_MEMORY = 4 << 30  # of each process: some mutants never stop allocating


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("areas", metavar="AREA", nargs="*", help=f"{', '.join(_CONFIGS)}: all by default")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    areas = options.areas or list(_CONFIGS)
    if not _CONFIGS.keys() >= set(areas):
        parser.error(f"an area is one of {', '.join(_CONFIGS)}")
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, resource.RLIM_INFINITY))
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="socklb-mutants-") as scratch, ThreadPoolExecutor(options.jobs) as pool:
        copies = [_copy_of_project(Path(scratch, f"copy{number}")) for number in range(options.jobs)]
        os.chdir(copies[0])
        list(pool.map(lambda area: _run("cosmic-ray", "baseline", _CONFIGS[area]), areas))
        sample = _sample(areas, options.count, options.seed)
        shares = [sample[number :: options.jobs] for number in range(options.jobs)]
        list(pool.map(_test_share, copies, shares))
        return _report(sample, [session for copy in copies for session in copy.glob("*.share")])


def _copy_of_project(directory: Path) -> Path:
    """The package and its tests, compiled so that bytecode follows its source even within one second."""
    for name in ("socklb", "tests"):
        shutil.copytree(_ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ROOT / "tox.ini", directory)
    compileall.compile_dir(directory / "socklb", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return directory


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    if subprocess.run(command, cwd=cwd).returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}")


def _sample(areas: list[str], count: int, seed: int) -> list[tuple[str, WorkItem]]:
    """The same mutants for the same seed, of all areas alike."""
    drawn = []
    for area in areas:
        session = f"{area}.all"
        _run("cosmic-ray", "init", _CONFIGS[area], session)
        _run("cr-filter-operators", session, _CONFIGS[area])
        with use_db(session) as db:
            drawn += [(area, item) for item in db.pending_work_items]
    drawn.sort(key=lambda pair: [(m.module_path, m.operator_name, m.occurrence) for m in pair[1].mutations])
    random.Random(seed).shuffle(drawn)
    return list(islice((pair for pair in drawn if all(map(_can_be_noticed, pair[1].mutations))), count or None))


def _can_be_noticed(mutation: MutationSpec) -> bool:
    """Whether it is valid Python (the `*` of a call is taken for an operator), and differs outside annotations."""
    source = mutation.module_path.read_text(encoding="utf-8")
    try:
        mutated = _evaluated(mutate_code(source, get_operator(mutation.operator_name)(), mutation.occurrence))
    except SyntaxError:
        return False
    return mutated != _evaluated(source)


def _evaluated(source: str) -> str:
    """The syntax tree without annotations, which nothing evaluates."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in {"annotation", "returns"}.intersection(node._fields):
            setattr(node, field, None)
    return ast.dump(tree)


def _test_share(copy: Path, share: list[tuple[str, WorkItem]]) -> None:
    for area, config in _CONFIGS.items():
        session = copy / f"{area}.share"
        with use_db(session) as db:
            db.add_work_items(item for name, item in share if name == area)
        _run("cosmic-ray", "exec", config, session, cwd=copy)


def _report(sample: list[tuple[str, WorkItem]], sessions: list[Path]) -> int:
    with use_db("whole") as whole:
        whole.add_work_items(item for _, item in sample)
        for session in sessions:
            with use_db(session) as share:
                for job, result in share.results:
                    # To cosmic-ray a mutant whose tests could not be run is killed.
                    if result.test_outcome not in (TestOutcome.KILLED, TestOutcome.SURVIVED):
                        sys.exit(f"the tests could not be run: {result.output}")
                    whole.set_result(job, result)
    _run("cr-report", "--surviving-only", "--show-diff", "whole")
    return subprocess.run(["cr-rate", "--fail-over", _MAX_SURVIVORS, "whole"]).returncode


if __name__ == "__main__":
    sys.exit(main())
