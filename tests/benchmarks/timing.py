"""How things are timed: each round runs all of them in turn, and the best time of each counts."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Ratio(NamedTuple):
    name: str
    measured: float
    at_most: float

    @property
    def holds(self) -> bool:
        return self.measured <= self.at_most


class Subject(NamedTuple):
    """Something to be timed: `prepare` runs before each time, outside of it."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    every: int = 1  # how many rounds apart: the slow ones run in some only


def best_times(subjects: Mapping[str, Subject], rounds: int) -> dict[str, float]:
    """Milliseconds of each, the best of the rounds."""
    best: dict[str, float] = {}
    for number in range(rounds):
        for name, subject in subjects.items():
            if number % subject.every:
                continue
            subject.prepare()
            gc.collect()
            start = time.perf_counter()
            subject.run()
            elapsed = (time.perf_counter() - start) * 1000
            best[name] = min(elapsed, best.get(name, elapsed))
    return best


def ratios_of(best: Mapping[str, float], wanted: list[tuple[str, str, float]]) -> list[Ratio]:
    """(name, base, at most) triples as ratios, where both were measured."""
    return [Ratio(f"{a} / {b}", best[a] / best[b], most) for a, b, most in wanted if a in best and b in best]
