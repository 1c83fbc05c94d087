"""Calls to a kernel whose replies are damaged, as many as one likes: each ends in a value or a documented error.

python -m tests.fuzz.mutated [--count 1000000] [--seed 0]

Counted are calls of which an answer was damaged. What breaks the law of `targets.replies`, or does not end, is kept in
found/replies, where the tests run it again.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
import time
import traceback
from collections import Counter
from random import Random

from .. import package_under_test

package_under_test.bind()

from . import targets  # noqa: E402 - only now does `socklb` mean the package under test
from .targets import replies  # noqa: E402

_SECONDS = 10
"""How long a call may take; none needs a hundredth of a second."""


class Hang(BaseException):
    """A call that does not end: nobody catches this by mistake."""


def _ring(*_: object) -> None:
    raise Hang


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"package under test: {targets.package()}", flush=True)
    before = signal.signal(signal.SIGALRM, _ring)
    started = time.monotonic()
    try:
        came, hits, broken = _run(options.count, Random(options.seed))
    finally:
        signal.signal(signal.SIGALRM, before)
    seconds = time.monotonic() - started
    print(f"{sum(came.values()):,} calls with {hits:,} damaged answers in {seconds:.0f} s, seed {options.seed}")
    for what, count in came.most_common():
        print(f"  {what:20} {count:12,}")
    print(f"{len(broken)} ways to break the law")
    return 1 if broken else 0


def _run(count: int, random: Random) -> tuple[Counter[str], int, set[str]]:
    came: Counter[str] = Counter()
    hits = 0
    broken: set[str] = set()
    left = count
    while left > 0:
        data = random.randbytes(random.randrange(8, 80))
        try:
            run = _in_time(data)
        except (Exception, Hang) as error:
            _keep(data, error, broken)
            run = replies.Run("broken", 1)
        if run.hits:
            came[run.came] += 1
            hits += run.hits
            left -= 1
    return came, hits, broken


def _in_time(data: bytes) -> replies.Run:
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        return replies.run(data)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _keep(data: bytes, error: BaseException, broken: set[str]) -> None:
    """The first input of each way to break the law."""
    *_, place = traceback.extract_tb(error.__traceback__)
    way = f"{type(error).__name__} at {place.filename}:{place.lineno}"
    if way in broken:
        return
    broken.add(way)
    folder = targets.FOUND / "replies"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"mutated-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    traceback.print_exception(type(error), error, error.__traceback__)
    print(f"{way}: {path}, {data.hex()}; again: {targets.again('replies', path)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
