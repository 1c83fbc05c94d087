"""Break the package in one place after another, and see whether the tests that belong to the place fail.

python -m tests.mutants [MODULE ...] [--count N] [--seed N] [--jobs N]      a sample, evenly over the modules

MODULE is a path in the package, or how it begins: wire/reply.py, wire. By default states.py, destroy.py, wire, filters.
`--count 0` takes all mutants. Prints each one that survived, with the reason if it may (`survivors`), and the score of
each module; ends with 1 if the score of all is below 90%, with 2 if the tests fail without a mutant.

The mutants are cosmic-ray's: its session says where which of its operators applies, and it rewrites the source.
Running them is not left to it, for it begins a new Python for each: here that is a fork (`trials`), in a world of its
own, on a copy of the package, and of thousands of mutants a sample is enough.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec

from .survivors import reason_for
from .trials import PACKAGE, Trial, outcomes

_ENOUGH = 0.9
_SECONDS = 40  # a mutant that takes longer hangs, which is noticed too
# Of small numbers, truth values, enum members and classes `==` and `is` say the same.
_THE_SAME = re.compile("core/ReplaceComparisonOperator_(Eq_Is|NotEq_IsNot|Is_Eq|IsNot_NotEq)")
_BY_DEFAULT = ["states.py", "destroy.py", "wire", "filters"]

# Which tests belong to a module: the first that fails ends it, so the likeliest stand first.
_TESTS = {
    "states.py": ["test_states.py", "test_tcp_states.py"],
    "destroy.py": [
        *("kernel/test_diag_verdicts.py", "test_destroy.py", "test_destroy_rounds.py"),
        *("test_report.py", "faults/test_laws.py"),
    ],
    "spare.py": ["test_spare.py", "test_destroy.py"],
    "ledger.py": ["test_ledger.py", "test_destroy.py"],
    "report.py": ["test_report.py", "termination/test_balanced.py"],
    **{f"wire/{path.name}": [f"wire/test_{path.name}", "wire"] for path in PACKAGE.glob("wire/[a-z]*.py")},
    **{
        f"filters/{path.name}": [f"filters/test_{path.name}", "filters", "test_find.py"]
        for path in PACKAGE.glob("filters/[a-z]*.py")
    },
    "wire/bytecode.py": ["wire/test_bytecode.py", "filters/test_compiler.py", "wire"],
}


class Mutant(NamedTuple):
    module: str
    line: int
    operator: str
    source: str

    def __str__(self) -> str:
        before = (PACKAGE / self.module).read_text().splitlines()
        changed = list(difflib.unified_diff(before, self.source.splitlines(), n=0, lineterm=""))[3:]
        lines = "".join(f"\n    {line[0]} {line[1:].strip()}" for line in changed)
        return f"socklb/{self.module}:{self.line}: {self.operator}{lines}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", metavar="MODULE", nargs="*", default=_BY_DEFAULT)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    chosen = [name for name in sorted(_TESTS) if name.startswith(tuple(options.modules))]
    if not chosen:
        parser.error("no such module")
    return _try_all(list(_sample(chosen, options.count, random.Random(options.seed))), options.jobs)


def _sample(modules: list[str], count: int, chance: random.Random) -> Iterator[Mutant]:
    """So many, one of each module in turn; all for 0."""
    left = []
    for name in modules:
        places = _places(name)
        chance.shuffle(places)
        left.append(_mutants(name, places))
    drawn = 0
    while left:
        for mutants in list(left):
            mutant = next(mutants, None)
            if mutant is None:
                left.remove(mutants)
                continue
            yield mutant
            drawn += 1
            if drawn == count:
                return


def _places(module: str) -> list[MutationSpec]:
    """Where cosmic-ray can break a module, and how, in an order that is always the same."""
    with use_db(":memory:") as session:
        init([PACKAGE / module], session, {})
        places = [mutation for item in session.work_items for mutation in item.mutations]
    places = [place for place in places if not _THE_SAME.fullmatch(place.operator_name)]
    return sorted(places, key=lambda place: (place.operator_name, place.occurrence))


def _mutants(module: str, places: list[MutationSpec]) -> Iterator[Mutant]:
    """Without what is no Python (`**` of a call is taken for a power), and what only type checkers see."""
    source = (PACKAGE / module).read_text()
    runs = _what_runs(source)
    for place in places:
        mutated = mutate_code(source, get_operator(place.operator_name)(), place.occurrence)
        try:
            is_broken = _what_runs(mutated) != runs
        except SyntaxError:
            continue
        if is_broken:
            yield Mutant(module, place.start_pos[0], place.operator_name, mutated)


def _what_runs(source: str) -> str:
    """The syntax of a module without annotations, which are not evaluated, and without what is under TYPE_CHECKING."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if hasattr(node, field):
                setattr(node, field, None)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.test, node.body = ast.Constant(None), []
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TYPE_CHECKING":
            node.value = ast.Constant(None)
    return ast.dump(tree)


def _try_all(mutants: list[Mutant], jobs: int) -> int:
    """Try each, and say how it went."""
    modules = sorted({mutant.module for mutant in mutants})
    unbroken = [Trial("", "", _TESTS[module], _SECONDS, True) for module in modules]
    trials = [Trial(mutant.module, mutant.source, _TESTS[mutant.module], _SECONDS, False) for mutant in mutants]
    killed: Counter[str] = Counter()
    for mutant, passes in zip(mutants, outcomes(unbroken, trials, jobs)):
        if passes:
            why = reason_for(str(mutant)) or "nobody has said why"
            print(f"survived: {mutant}\n    ({why})", flush=True)
        else:
            killed[mutant.module] += 1
    for name, made in sorted(Counter(mutant.module for mutant in mutants).items()):
        print(f"{name:28} {killed[name]:4} of {made:4} killed  {killed[name] / made:4.0%}")
    in_all = sum(killed.values())
    print(f"{'in all':28} {in_all:4} of {len(mutants):4} killed  {in_all / len(mutants):.1%}")
    return 0 if in_all >= _ENOUGH * len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
