"""Every public call x every fault: the right outcome or the documented error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from .calls import GOOD, KILL, LIST, PROBE, SET, Call, End, Told, twins
from .damages import ALWAYS, DUMP, FAULTS, Befalls, Fault
from .table import CALLS, each

FIRST, SECOND, TWICE = (1,), (2,), (1, 2)


def occasions(call: Call, fault: Fault) -> Iterator[tuple[str, Sequence[int]]]:
    """When a fault befalls a call. An end is an end, however often it would have come again."""
    if (fault.on, 1) in call.so_far:
        yield "first", FIRST
        if fault.repeats:
            yield "twice", TWICE
        if fault.repeats or fault.only_looks_different:
            yield "always", ALWAYS
    if (fault.on, 2) in call.so_far:
        yield "second", SECOND


def end_of(call: Call, fault: Fault, when: Sequence[int]) -> End:
    if fault.repeats and when is ALWAYS:
        return fault.in_the_end
    return {LIST: fault.lists, SET: fault.kills, KILL: fault.kills, PROBE: fault.probes}[call.kind]


def told_by(call: Call, fault: Fault, when: Sequence[int], hit: Befalls) -> Told:
    """What a call tells that goes on: only what was hit is any different."""
    if call.kind == KILL and fault.on != DUMP:
        return {**call.right, **each((one.body.id.cookie for requests in hit.hit for one in requests), fault.verdict)}
    if call.kind == PROBE:
        return {label: fault.status if n in when else said for n, (label, said) in enumerate(call.right.items(), 1)}
    return call.right


CASES = [
    pytest.param(call, fault, when, id=f"{call_name}-{fault_name}-{occasion}")
    for call_name, call in CALLS.items()
    for fault_name, fault in FAULTS.items()
    for occasion, when in occasions(call, fault)
]


@pytest.mark.parametrize(("call", "fault", "when"), CASES)
def test_the_right_outcome_or_the_documented_error(call: Call, fault: Fault, when: Sequence[int]) -> None:
    befallen = Befalls(fault.damage, fault.on, when)
    ended = call.against(befallen)
    assert befallen.hit, "it happened"
    end = end_of(call, fault, when)
    assert ended.end == call.as_end(end, ended.told)
    if end == GOOD:
        expected = told_by(call, fault, when, befallen)
        if call.make_world is twins and fault.verdict == "gone":
            # The attempt that was lost has made the way free to another twin.
            assert set(ended.told.values()) <= {"gone", "destroyed"}
            assert ended.told.keys() == expected.keys()
        else:
            assert ended.told == expected
    elif call.kind == LIST:
        assert call.so_far[fault.on, when[0]].items() <= ended.told.items()
    else:
        assert ended.told == call.so_far[fault.on, when[0]]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_without_a_fault_everything_is_right(call: Call) -> None:
    ended = call.against(lambda usual: usual)
    assert (ended.end, ended.told) == (call.as_end(GOOD, call.right), call.right)
