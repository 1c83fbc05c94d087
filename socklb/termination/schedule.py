# SPDX-License-Identifier: MIT
"""When a backend that went down is next to be terminated: for the first time, once more, and where that has failed."""

from __future__ import annotations

from collections import namedtuple
from math import ceil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..kernel.namespaces import NetworkNamespace

PAUSES = (1, 2, 4, 8, 16, 32, *(60,) * 14)
"""Seconds between the attempts at a backend whose pass failed; after the last one, 15 minutes, it is given up."""

LOOKS = (2, 4, 8, 16, 32)
"""Seconds after a look into conntrack that has destroyed or deleted something until the next one."""

NEVER = float("inf")


class Scheduled(
    namedtuple(
        "Scheduled",
        "time services failures second_pass searched look looks",
        defaults=(0, None, frozenset(), NEVER, 0),
    )
):
    """`time`: the next pass, by monotonic(). `services`: those that had the backend alive. `failures`: how often a pass
    has failed, `searched`: where it has not.

    `second_pass`: when it is due once more where it was terminated; None as long as it was nowhere, NEVER afterwards.
    `look`: when conntrack is due once more, and `looks`: how many such there were, that one included.
    """

    __slots__ = ()
    time: float
    services: list[str]
    failures: int
    second_pass: float | None
    searched: frozenset[NetworkNamespace]
    look: float
    looks: int

    @property
    def is_second_pass(self) -> bool:
        """Whether it was terminated before, and the next pass is no repetition of one that failed."""
        return self.time in (self.second_pass, self.look)

    @property
    def is_last_look(self) -> bool:
        return self.time == self.look and self.looks == len(LOOKS)

    @property
    def is_waited_for(self) -> bool:
        """At the end of the input; attempts at what has failed are not."""
        return not self.failures or self.second_pass not in (None, NEVER) or self.look != NEVER

    @property
    def is_last_attempt(self) -> bool:
        return self.failures >= len(PAUSES)

    def after_pass(
        self,
        now: float,
        done: frozenset[NetworkNamespace],
        *,
        has_failed: bool,
        has_cut_flows: bool,
        second_pass: float | None,
    ) -> Scheduled | None:
        """What follows the pass that was due, None if nothing does. `done`: the namespaces that it is done with;
        `has_cut_flows`: whether it destroyed or deleted what conntrack had led to.

        The second pass does not wait for a place that fails: there the next attempt is part of it, or comes before.
        Looks are at whole seconds, so that those for several backends are one.
        """
        second, look, looks = self.second_pass, self.look, self.looks
        if self.time == second:
            second = NEVER
        elif second is None and (done or not has_failed):
            second = NEVER if second_pass is None else now + second_pass
        if self.time == look:
            look = NEVER
        if has_cut_flows and look == NEVER and looks < len(LOOKS):
            look, looks = float(ceil(now + LOOKS[looks])), looks + 1
        retry = now + PAUSES[self.failures] if has_failed else NEVER
        time = min(retry, NEVER if second is None else second, look)
        if time == NEVER:
            return None
        searched = frozenset() if time in (second, look) else self.searched | done
        return Scheduled(time, self.services, self.failures + 1 if has_failed else 0, second, searched, look, looks)
