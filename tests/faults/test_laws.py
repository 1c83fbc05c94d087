"""What holds however the answers are split, ordered, cut or lied about: for a list, for a destroy and for a probe."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import SocklbError, find_sockets

from ..fake_kernel import Datagram, FakeKernel, Request, StatefulTable
from .calls import CALLS, DESTROY, DESTROY_IN_BATCHES, DUMP, FEW, FIND, FIND_IN_TWO_DUMPS, GOOD, TCP, Call, End
from .faults import MALFORMED, SILENT, Damage, Honest, InjectFault, at, length, noop, other_sequence

EACH = {
    "find": FIND,
    "find in two dumps": FIND_IN_TWO_DUMPS,
    **{name: CALLS[name] for name in ("live_cookies", "destroy_sockets", "probe")},
    "destroy in batches": DESTROY_IN_BATCHES,
}
CALL = pytest.mark.parametrize("call", EACH.values(), ids=EACH)
CALL_AND_ON = pytest.mark.parametrize(
    ("call", "on"),
    [
        pytest.param(call, on, id=f"{name}-{on}")
        for name, call in EACH.items()
        for on in (DUMP, DESTROY)
        if (on, 1) in call.so_far and (on, call) != (DUMP, DESTROY_IN_BATCHES)  # which is only longer
    ],
)


def check_end(call: Call, on: str, damage: Damage, end: End) -> None:
    """The first answer is damaged; what streams rows may have given out some of that dump."""
    result = call.against(InjectFault(damage, on, (1,)))
    assert result.end == end
    assert result.reported == call.so_far[on, 1] or (call in (FIND, FIND_IN_TWO_DUMPS) and result.reported)


@CALL
@given(order=st.randoms(use_true_random=False))
def test_honest_answers_may_come_in_any_form(call: Call, order: Random) -> None:
    """Any fragmentation, any order of the rows, and no-operations anywhere: the same result."""

    def reformed(requests: Sequence[Request], honest: Honest) -> list[Datagram]:
        messages = honest()
        if len(requests) == 1 and len(messages) > 1:  # a dump; what answers destroys comes in order
            rows = messages[:-1]
            order.shuffle(rows)
            messages[:-1] = rows
        datagrams = [b""]
        for message in messages:
            datagrams[-1] += noop(requests[0]) * order.randrange(2) + message
            if order.random() < 0.5:
                datagrams.append(b"")
        return [datagram for datagram in datagrams if datagram]

    for on in (DUMP, DESTROY):
        call.check(call.against(InjectFault(reformed, on)), GOOD, call.right)


@CALL_AND_ON
def test_cut_between_two_messages_it_is_silence_that_follows_and_anywhere_else_it_is_malformed(
    call: Call, on: str
) -> None:
    place, ends = 0, [0, 1 << 16]

    def cut(requests: Sequence[Request], honest: Honest) -> list[Datagram]:
        messages = honest()
        ends[:] = [sum(map(len, messages[:n])) for n in range(len(messages) + 1)]
        return [b"".join(messages)[:place]]

    while place < ends[-1]:
        check_end(call, on, cut, SILENT if place in ends[1:] else MALFORMED)
        place += 1


@CALL_AND_ON
@given(which=st.integers(0, 99), step=st.integers(1, 0xFFFFFFFF - 200))
def test_a_foreign_sequence_is_refused_whichever_message_has_it(call: Call, on: str, which: int, step: int) -> None:
    def with_sequence(requests: Sequence[Request], honest: Honest) -> list[Datagram]:
        messages = honest()
        place = which % len(messages)
        # In a batch the numbers of its other requests are not foreign.
        messages[place] = other_sequence(step + len(requests))(messages[place])
        return list(messages)

    check_end(call, on, with_sequence, MALFORMED)


@given(which=st.integers(0, 4), lie=st.integers(0, 600) | st.integers(0, 0xFFFFFFFF))
def test_a_length_that_lies_in_a_dump_is_refused_or_silence_follows(which: int, lie: int) -> None:
    """One that takes in whole messages makes them an attribute of the row, number 0, which no kernel sends."""

    def damage(requests: Sequence[Request], honest: Honest) -> list[Datagram]:
        messages = honest()
        messages[which % len(messages)] = length(lie)(messages[which % len(messages)])
        return [b"".join(messages)]

    found: dict[int, bool] = {}
    end = GOOD
    try:
        with FakeKernel(InjectFault(damage, DUMP)(StatefulTable(FEW))).installed():
            found.update((socket.cookie, 0 in socket.attributes) for socket in find_sockets(TCP))
    except SocklbError as error:
        end = End.of(error)
    assert end in (MALFORMED, SILENT) or found.keys() == {1, 2, 3, 4} or any(found.values())


@pytest.mark.parametrize("call", [call for call in EACH.values() if (DESTROY, 1) in call.so_far])
@given(lie=st.integers(0, 35) | st.integers(37, 0xFFFFFFFF))
def test_an_acknowledgement_whose_length_lies_is_refused(call: Call, lie: int) -> None:
    check_end(call, DESTROY, at(-1, length(lie)), MALFORMED)
