"""What all values have in common: immutable, hashable, and the same after a copy or a pickle."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import InetSocket, SocketFilter, autobound
from socklb.filters.conditions import EVERYTHING
from socklb.values import Value

from .filters.trees import backends, conditions, written_conditions
from .strategies import families


def predicate(socket: InetSocket) -> bool:
    return socket.uid == 0


_states: st.SearchStrategy[Any] = st.sampled_from((None, "all", "big", "listening", [1, 10], 1 << 10))
filters = st.builds(
    SocketFilter,
    st.sampled_from(("tcp", "udp")),
    conditions | written_conditions | st.just(autobound()),
    states=_states,
    family=st.none() | families,
    predicate=st.sampled_from((None, predicate)),
)
values: st.SearchStrategy[Any] = conditions | written_conditions | st.just(autobound()) | filters | backends


@given(values)
def test_copies_and_pickles_are_equal(value: Any) -> None:
    """And of equal hash, and print the same; whatever was derived or cached meanwhile."""
    copies = [pickle.loads(pickle.dumps(value, version)) for version in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in (*copies, copy.copy(value), copy.deepcopy(value)):
        assert other == value
        assert hash(other) == hash(value)
        assert (type(other), str(other), repr(other)) == (type(value), str(value), repr(value))


@given(values)
def test_nothing_can_be_assigned(value: Any) -> None:
    names = [name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())]
    names += getattr(value, "_fields", []) if isinstance(value, tuple) else []
    for name in (*names, "another"):
        with pytest.raises(AttributeError):
            setattr(value, name, None)
        with pytest.raises(AttributeError):
            delattr(value, name)


def test_a_plan_does_not_take_part() -> None:
    planned, fresh = (SocketFilter("tcp", EVERYTHING) for _ in range(2))
    plan = planned.plan()
    assert planned == fresh
    assert hash(planned) == hash(fresh)
    assert pickle.dumps(planned) == pickle.dumps(fresh)
    assert planned.plan() is plan is not copy.copy(planned).plan()


def test_a_filter_pickles_if_its_predicate_does() -> None:
    assert pickle.loads(pickle.dumps(SocketFilter("tcp", predicate=predicate))).predicate is predicate
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(SocketFilter("tcp", predicate=lambda socket: True))


def test_equal_are_those_of_one_type_with_equal_fields() -> None:
    """A slot with an underscore is no field."""

    class One(Value):
        __slots__ = ("_derived", "of")

        def __init__(self, of: int) -> None:
            self._set(of=of, _derived=object())

    class Other(One):
        __slots__ = ("_derived", "of")

    assert One(1) == One(1) != One(2)
    assert hash(One(1)) == hash(One(1))
    assert One(1) != Other(1)
    assert One(1) != 1
    assert repr(One(1)) == "One(of=1)"
