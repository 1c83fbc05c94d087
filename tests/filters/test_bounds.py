"""What names an endpoint, so that a destroy cannot hit everything by mistake."""

from __future__ import annotations

import pytest
from hypothesis import given

from socklb import cgroup, device, dport, dst, mark, sport, src
from socklb.filters import Condition
from socklb.filters.conditions import EVERYTHING, And, Host, Not, Or, Port

from .trees import conditions


class TestBounded:
    """An address with a prefix above 0, or a port test that excludes some port, bounds, un-negated; an `and` if any
    part does, an `or` if every part does, a `not` is pushed inward first. Nothing else bounds."""

    A, B, FREE = dst("10.0.0.1"), dport(80), device(1)

    @pytest.mark.parametrize(
        "condition",
        [A, B, src("::1"), dst("0.0.0.0/1"), dst("::/1"), dst("::ffff:0.0.0.0/97"), sport(0), dport(1, 65535),
         dport(0, 65534), dst("0.0.0.0/0", 80), A & FREE, A & ~B, A | B, ~~A, ~(~A | FREE), ~(~A & ~B),
         (A & FREE) | (B & ~A), Or(), ~And()],
        ids=str,
    )  # fmt: skip
    def test_these_bound(self, condition: Condition) -> None:
        assert condition.bounds()

    @pytest.mark.parametrize(
        "condition",
        [FREE, mark(1), cgroup(1), EVERYTHING, dst("0.0.0.0/0"), dst("::/0"), dst("::ffff:0:0/96"), dport(0, 65535),
         ~A, ~B, ~dport(1, 65535), ~~FREE, A | FREE, A | ~B, A | EVERYTHING, ~A & ~B, ~(A & B), ~(A | B), ~(~A & FREE),
         ~FREE, ~Or(), FREE & mark(1) & cgroup(1)],
        ids=str,
    )  # fmt: skip
    def test_these_do_not(self, condition: Condition) -> None:
        assert not condition.bounds()

    @given(conditions)
    def test_the_rule_for_any_tree(self, condition: Condition) -> None:
        assert condition.bounds() == _names_an_endpoint(_pushed_inward(condition))

    @given(conditions, conditions)
    def test_what_narrows_a_bounded_condition_leaves_it_bounded(self, a: Condition, b: Condition) -> None:
        assert not a.bounds() or ((a & b).bounds() and (b & a).bounds())


def _pushed_inward(condition: Condition, negated: bool = False) -> Condition:
    """The same with `not` on nothing but single tests."""
    if isinstance(condition, Not):
        return _pushed_inward(condition.part, not negated)
    if isinstance(condition, (And, Or)):
        kind = And if isinstance(condition, And) is not negated else Or
        return kind(*(_pushed_inward(part, negated) for part in condition.parts))
    return Not(condition) if negated else condition


def _names_an_endpoint(condition: Condition) -> bool:
    if isinstance(condition, And):
        return any(map(_names_an_endpoint, condition.parts))
    if isinstance(condition, Or):
        return all(map(_names_an_endpoint, condition.parts))
    if isinstance(condition, Host):
        return condition.network.prefixlen != 0
    if isinstance(condition, Port):
        return len(range(condition.low, condition.high + 1)) < 1 << 16
    return False
