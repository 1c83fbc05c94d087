"""What holds for every public call, however the answers are split, ordered, cut or lied about."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import SocklbError, find_sockets

from ..choices import Choices
from ..damage import Damaged
from ..fake_kernel import Datagram, FakeKernel, Living, Request
from ..kernel.test_diag_destroys import fragments
from .calls import DESTROYING, FEW, GOOD, LIST, TCP, Call, End
from .damages import DESTROY, DUMP, MALFORMED, SILENT, Befalls, Honest, at, length, noop, other_sequence
from .table import CALLS

EVERY = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
THAT_DESTROYS = pytest.mark.parametrize(
    "call", [pytest.param(call, id=name) for name, call in CALLS.items() if call.kind in DESTROYING]
)


class TestHonestAnswers:
    """Any fragmentation, any order of the rows, and no-operations anywhere: the same outcome."""

    @EVERY
    @given(order=st.randoms(use_true_random=False))
    def test_they_may_come_in_any_form(self, call: Call, order: Random) -> None:
        def reformed(requests: Sequence[Request], honest: Honest) -> list[Datagram]:
            messages = honest()
            if len(requests) == 1 and len(messages) > 1:  # a dump; what answers destroys comes in order
                rows = messages[:-1]
                order.shuffle(rows)
                messages[:-1] = rows
            padded = [one for message in messages for one in [noop(requests[0])] * order.randrange(2) + [message]]
            return list(fragments(padded, [order.random() < 0.5 for _ in padded]))

        for on in (DUMP, DESTROY):
            ended = call.against(Befalls(reformed, on))
            assert (ended.end, ended.told) == (call.as_end(GOOD, call.right), call.right)


def cut_at(place: int, sizes: list[int]) -> Any:
    """An answer in one datagram that ends early; `sizes` learns where its messages end."""

    def damage(requests: Sequence[Request], honest: Honest) -> list[Datagram]:
        messages = honest()
        sizes[:] = [sum(map(len, messages[:n])) for n in range(len(messages) + 1)]
        return [b"".join(messages)[:place]]

    return damage


class TestCutAnswers:
    """Cut between two messages it is silence that follows, cut anywhere else no kernel could have meant it."""

    def look(self, call: Call, on: str) -> None:
        place, sizes = 0, [0, 1 << 16]
        while place < sizes[-1]:
            ended = call.against(Befalls(cut_at(place, sizes), on, (1,)))
            end = SILENT if place in sizes[1:] else MALFORMED
            assert ended.end == call.as_end(end, ended.told), place
            if call.kind == LIST:
                # The rows of a datagram are told once it is read to its end.
                assert not ended.told or end == SILENT
            else:
                assert ended.told == call.so_far[on, 1]
            place += 1

    @EVERY
    def test_a_dump(self, call: Call) -> None:
        if call is not CALLS["destroy-in-batches"]:  # as `destroy`, only longer
            self.look(call, DUMP)

    @THAT_DESTROYS
    def test_a_destroy(self, call: Call) -> None:
        self.look(call, DESTROY)


class TestForeignAnswers:
    """A foreign port or a foreign sequence, of whichever message: refused."""

    @EVERY
    @given(which=st.integers(0, 99), port=st.integers(1, 0xFFFFFFFF))
    def test_a_port(self, call: Call, which: int, port: int) -> None:
        def damage(requests: Sequence[Request], honest: Honest) -> list[Datagram]:
            messages: list[Datagram] = list(honest())
            place = which % len(messages)
            message = messages[place]
            assert isinstance(message, bytes)
            messages[place] = message, port
            return messages

        self.is_refused(call, damage)

    @EVERY
    @given(which=st.integers(0, 99), step=st.integers(1, 0xFFFFFFFF - 200))
    def test_a_sequence(self, call: Call, which: int, step: int) -> None:
        def damage(requests: Sequence[Request], honest: Honest) -> list[Datagram]:
            messages = honest()
            place = which % len(messages)
            # In a batch the numbers of its other requests are not foreign.
            messages[place] = other_sequence(step + len(requests))(messages[place])
            return list(messages)

        self.is_refused(call, damage)

    def is_refused(self, call: Call, damage: Any) -> None:
        for on in (DUMP, DESTROY):
            if (on, 1) in call.so_far:
                ended = call.against(Befalls(damage, on, (1,)))
                assert ended.end == call.as_end(MALFORMED, ended.told)
                assert call.kind == LIST or ended.told == call.so_far[on, 1]


class TestLyingLengths:
    """A length that is not the message's: refused, or silence. One that takes in whole messages makes them an attribute
    of the row, number 0, which no kernel sends, and which is kept as it is.
    """

    @given(which=st.integers(0, 4), lie=st.integers(0, 600) | st.integers(0, 0xFFFFFFFF))
    def test_of_a_row_or_the_end(self, which: int, lie: int) -> None:
        def damage(requests: Sequence[Request], honest: Honest) -> list[Datagram]:
            messages = honest()
            messages[which % len(messages)] = length(lie)(messages[which % len(messages)])
            return [b"".join(messages)]

        told: dict[int, bool] = {}
        end = GOOD
        try:
            with FakeKernel(Befalls(damage, DUMP)(Living(FEW))).installed():
                told.update((socket.cookie, 0 in socket.attributes) for socket in find_sockets(TCP))
        except SocklbError as error:
            end = End.of(error)
        assert end in (MALFORMED, SILENT) or told.keys() == {1, 2, 3, 4} or any(told.values())

    @THAT_DESTROYS
    @given(lie=st.integers(0, 35) | st.integers(37, 0xFFFFFFFF))
    def test_of_an_acknowledgement(self, call: Call, lie: int) -> None:
        ended = call.against(Befalls(at(-1, length(lie)), DESTROY, (1,)))
        assert ended.end == call.as_end(MALFORMED, ended.told)
        assert ended.told == call.so_far[DESTROY, 1]


class TestForeignExceptions:
    """`struct.error`, IndexError, KeyError and AssertionError never leave the package, whatever the answers are."""

    @EVERY
    @given(plan=st.binary(max_size=80))
    def test_only_documented_errors_leave(self, call: Call, plan: bytes) -> None:
        """Any other would not be caught by what runs the calls. The command line has exit codes for them alone."""
        ended = call.on(FakeKernel(Damaged(call.make_world(), Choices(plan))))
        assert ended.end in (0, 1, 3, 4) or isinstance(ended.end, End)
