"""When a backend is next to be terminated, pass after pass."""

from __future__ import annotations

from typing import NamedTuple, Optional

from hypothesis import given
from hypothesis import strategies as st

from socklb import NetworkNamespace
from socklb.termination.schedule import LOOKS, NEVER, PAUSES, Scheduled

PLACES = [NetworkNamespace(f"net{n}", "", 0, n) for n in range(3)]
seconds = st.floats(0, 40, allow_nan=False)


class Pass(NamedTuple):
    """What became of one, and what was scheduled before and after it."""

    before: Scheduled
    now: float
    done: frozenset[NetworkNamespace]
    has_failed: bool
    has_cut_flows: bool
    after: Optional[Scheduled]

    @property
    def looks(self) -> list[float]:
        """The look into conntrack that was scheduled by it, if any."""
        after = self.after
        return [after.look] if after is not None and after.looks > self.before.looks else []


@st.composite
def histories(draw: st.DrawFn, second_pass: Optional[float]) -> list[Pass]:
    """The passes for one backend, each a little late."""
    passes: list[Pass] = []
    scheduled: Optional[Scheduled] = Scheduled(draw(seconds), ["a service"])
    while scheduled is not None and len(passes) < 12:
        now, done = scheduled.time + draw(st.floats(0, 3)), frozenset(draw(st.sets(st.sampled_from(PLACES))))
        has_failed, has_cut_flows = draw(st.booleans()), draw(st.booleans())
        after = scheduled.after_pass(
            now, done, has_failed=has_failed, has_cut_flows=has_cut_flows, second_pass=second_pass
        )
        passes.append(Pass(scheduled, now, done, has_failed, has_cut_flows, after))
        scheduled = after
    return passes


of_any = (st.none() | seconds).flatmap(histories)


class TestLooks:
    """After a pass that cut flows conntrack is due again: after 2, 4, 8, 16 and 32 s, at whole seconds."""

    @given(of_any)
    def test_only_such_a_pass_leads_to_one_and_to_one_at_a_time(self, passes: list[Pass]) -> None:
        for each in passes:
            is_pending = each.before.look not in (NEVER, each.before.time)
            if is_pending:
                assert each.after is not None
                assert (each.after.look, each.after.looks) == (each.before.look, each.before.looks)
            else:
                assert len(each.looks) == (each.has_cut_flows and each.before.looks < len(LOOKS))
                assert each.looks or each.after is None or each.after.look == NEVER

    @given(of_any)
    def test_each_is_later_than_the_one_before_and_those_of_several_backends_are_one(self, passes: list[Pass]) -> None:
        made = [(look, each.now) for each in passes for look in each.looks]
        assert len(made) <= len(LOOKS)
        for (look, now), pause in zip(made, LOOKS):
            assert look.is_integer()
            assert now + pause <= look < now + pause + 1
        last = [each for each in passes if each.before.is_last_look]
        assert [each.before.time for each in last] in ([], [look for look, _ in made[len(LOOKS) - 1 :]])
        assert len(made) < len(LOOKS) or last or passes[-1].after is not None


class TestSecondPass:
    """Once, so many seconds after the first pass that was done with a place, or failed in none."""

    @given(seconds.flatmap(lambda pause: st.tuples(st.just(pause), histories(pause))))
    def test_there_is_one(self, drawn: tuple[float, list[Pass]]) -> None:
        pause, passes = drawn
        first = next((each.now for each in passes if each.done or not each.has_failed), NEVER)
        assert {each.before.second_pass for each in passes} <= {None, first + pause, NEVER}
        were_due = [each.before.time for each in passes if each.before.time == each.before.second_pass]
        assert were_due == [first + pause][: len(were_due)]
        after = passes[-1].after
        assert were_due or first == NEVER or (after is not None and after.second_pass == first + pause)

    @given(histories(None))
    def test_or_none(self, passes: list[Pass]) -> None:
        assert {each.before.second_pass for each in passes} <= {None, NEVER}


class TestAttempts:
    """What has failed is repeated with growing pauses, in the places that are left."""

    @given(of_any)
    def test_the_next_pass_is_the_first_that_is_due(self, passes: list[Pass]) -> None:
        for each in passes:
            after = each.after
            again = each.now + PAUSES[each.before.failures] if each.has_failed else NEVER
            if after is None:
                assert again == NEVER
            else:
                second_pass = NEVER if after.second_pass is None else after.second_pass
                assert after.time == min(again, after.look, second_pass) < NEVER
                assert after.failures == (each.before.failures + 1 if each.has_failed else 0)
                assert after.services == ["a service"]

    @given(of_any)
    def test_only_another_attempt_leaves_out_where_it_was_done(self, passes: list[Pass]) -> None:
        searched: set[NetworkNamespace] = set()
        for each in passes:
            searched |= each.done
            if each.after is not None:
                if each.after.is_second_pass:
                    searched = set()
                assert each.after.searched == searched
