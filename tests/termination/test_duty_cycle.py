"""The credit of processor time: a burst goes at once, lasting churn takes a fifth of one processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb.termination import duty_cycle
from socklb.termination.duty_cycle import MOST, SHARE, DutyCycle

pieces = st.tuples(st.floats(0, 10), st.floats(0, 5), st.floats(0, 3))


class Clock:
    """The monotonic clock, and that of the processor; work takes at least as long as it uses one."""

    now = used = 0.0

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.used

    def work(self, used: float, asleep: float = 0.0) -> None:
        self.used += used
        self.now += used + asleep


@contextmanager
def clocks() -> Iterator[Clock]:
    clock = Clock()
    with (
        mock.patch.object(duty_cycle, "monotonic", clock.monotonic),
        mock.patch.object(duty_cycle, "process_time", clock.process_time),
    ):
        yield clock


@given(st.lists(pieces, max_size=20))
def test_no_more_is_used_than_a_fifth_of_the_time_and_what_was_saved_up(pieces: list[tuple[float, ...]]) -> None:
    """Whatever comes when, and however much it takes: that of the last piece apart, which nobody knew."""
    with clocks() as clock:
        cycle = DutyCycle()
        for idle, used, asleep in pieces:
            clock.now += idle
            pause = cycle.wait()
            clock.now += pause
            assert cycle.wait() == 0
            assert clock.used <= MOST + SHARE * clock.now
            with cycle.charged() as waited:
                clock.work(used, asleep)
            assert waited == pytest.approx(pause)


def test_what_need_not_be_done_any_more_has_not_waited() -> None:
    with clocks() as clock:
        cycle = DutyCycle()
        with cycle.charged():
            clock.work(10.0)
        assert cycle.wait() > 0
        cycle.forget()
        clock.now += 3600
        assert cycle.wait() == 0
        with cycle.charged() as waited:
            assert waited == 0


def test_a_burst_goes_at_once_and_lasting_churn_takes_its_fifth() -> None:
    with clocks() as clock:
        cycle, begun = DutyCycle(), 0
        while not cycle.wait():
            with cycle.charged():
                clock.work(0.5)
            begun += 1
        before = clock.used
        while clock.now < 1000:
            clock.now += cycle.wait()
            with cycle.charged():
                clock.work(0.5)
        assert begun == 6  # 2 s, and what was earned meanwhile
        assert (clock.used - before) / 1000 == pytest.approx(SHARE, rel=0.01)
