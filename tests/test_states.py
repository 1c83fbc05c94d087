"""States and their masks: the numbers, the default filters, and the words of ss(8)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import STATE_FILTER_TCP, STATE_FILTER_UDP, TcpState, state_mask, states_in
from socklb.states import named_states, state_word

from .strategies import named_states as named
from .strategies import state_masks, state_numbers

calls = st.lists(state_numbers, max_size=8)

# ss(8) in its own words: what `ss state WORD` asks the kernel for, read with strace from iproute2 6.1.
SS_CONNECTED = {1, 2, 3, 4, 5, 6, 8, 9, 11}
SS_GROUPS = {
    "all": SS_CONNECTED | {7, 10},
    "connected": SS_CONNECTED,
    "synchronized": SS_CONNECTED - {2},
    "bucket": {3, 6},
    "big": SS_CONNECTED - {3, 6} | {7, 10},
}
SS_WORDS = {
    "established": 1, "syn-sent": 2, "syn-recv": 3, "syn-rcv": 3, "fin-wait-1": 4, "fin-wait-2": 5, "time-wait": 6,
    "unconnected": 7, "close": 7, "closed": 7, "close-wait": 8, "last-ack": 9, "listening": 10, "closing": 11,
}  # fmt: skip
KERNEL_WORDS = {state.name: int(state) for state in TcpState}


class TestTcpState:
    """TcpState has the kernel's numbers (include/net/tcp_states.h)."""

    def test_the_numbers(self) -> None:
        assert [(state.name, int(state)) for state in TcpState] == [
            ("ESTABLISHED", 1), ("SYN_SENT", 2), ("SYN_RECV", 3), ("FIN_WAIT1", 4), ("FIN_WAIT2", 5), ("TIME_WAIT", 6),
            ("CLOSE", 7), ("CLOSE_WAIT", 8), ("LAST_ACK", 9), ("LISTEN", 10), ("CLOSING", 11), ("NEW_SYN_RECV", 12),
            ("BOUND_INACTIVE", 13),
        ]  # fmt: skip

    @pytest.mark.parametrize("state", range(256))
    def test_a_state_reads_as_its_name_and_an_unknown_one_as_its_number(self, state: int) -> None:
        assert state_word(state) == (TcpState(state).name if 1 <= state <= 13 else str(state))


class TestMask:
    """A mask has bit N for state N; `state_mask(*states_in(m)) == m` for every mask without bit 0."""

    @given(calls)
    def test_each_state_sets_its_own_bit(self, states: list[int]) -> None:
        assert state_mask(*states) == sum(2**state for state in set(states))

    @given(state_masks)
    def test_a_mask_without_bit_0_comes_back_from_its_states(self, mask: int) -> None:
        assert state_mask(*states_in(mask & ~1)) == mask & ~1

    @given(calls, calls)
    def test_masks_join_as_states_join_in_a_call(self, a: list[int], b: list[int]) -> None:
        assert state_mask(*a) | state_mask(*b) == state_mask(*a, *b)

    @given(state_masks)
    def test_states_ascend_named_where_they_have_a_name(self, mask: int) -> None:
        states = states_in(mask)
        assert states == tuple(bit for bit in range(32) if mask >> bit & 1)
        assert all(type(state) is (TcpState if 1 <= state <= 13 else int) for state in states)


NO_INT: tuple[Any, ...] = (True, False, "1", "LISTEN", 1.0, None, b"\1", (1,))


class TestWrongArguments:
    """A state outside 1..31 or a mask outside 0..0xffffffff is a ValueError, another type a TypeError; both show it."""

    @given(st.sampled_from((0, 32)) | st.integers().filter(lambda state: not 1 <= state <= 31))
    def test_a_state_out_of_range(self, state: int) -> None:
        for call in (lambda: state_mask(TcpState.LISTEN, state), lambda: named_states([state])):
            with pytest.raises(ValueError, match=rf"state {state} is outside 1\.\.31"):
                call()

    @pytest.mark.parametrize("mask", [-1, 1 << 32, -(1 << 31)])
    def test_a_mask_out_of_range(self, mask: int) -> None:
        for take in (states_in, named_states):
            with pytest.raises(ValueError, match=f"{mask:#x} is outside"):
                take(mask)

    @pytest.mark.parametrize("value", NO_INT, ids=repr)
    def test_what_is_no_int(self, value: Any) -> None:
        with pytest.raises(TypeError) as caught:
            state_mask(value)
        assert repr(value) in str(caught.value)
        with pytest.raises(TypeError) as caught:
            states_in(value)
        assert repr(value) in str(caught.value)


class TestDefaultFilters:
    """TCP: every state but CLOSE and TIME_WAIT (and BOUND_INACTIVE: it has no peer). UDP: Cilium's value."""

    def test_the_values(self) -> None:
        assert STATE_FILTER_TCP == 0x1F3E
        assert STATE_FILTER_UDP == 0xFFFF

    def test_tcp_is_every_state_but_three(self) -> None:
        out = {TcpState.CLOSE, TcpState.TIME_WAIT, TcpState.BOUND_INACTIVE}
        assert set(states_in(STATE_FILTER_TCP)) == {*TcpState} - out

    def test_udp_has_both_states_of_a_udp_socket(self) -> None:
        assert {TcpState.ESTABLISHED, TcpState.CLOSE} <= set(states_in(STATE_FILTER_UDP))


class TestWords:
    """`--state` and `states=` take the words of ss(8) and the kernel's names, in any case, with - or _."""

    @pytest.mark.parametrize(("word", "state"), [*SS_WORDS.items(), *KERNEL_WORDS.items()])
    def test_a_word_is_one_state_and_names_it(self, word: str, state: int) -> None:
        bit = state_mask(state)
        for spelled in (word.lower(), word.upper(), word.replace("-", "_"), word.replace("_", "-").title()):
            assert named_states(spelled) == named_states([spelled]) == (bit, bit)

    @pytest.mark.parametrize(("word", "states"), SS_GROUPS.items())
    def test_a_group_is_what_ss_makes_of_it_and_names_no_state(self, word: str, states: set[int]) -> None:
        """Of the two states that ss does not know, NEW_SYN_RECV goes with SYN_RECV and BOUND_INACTIVE with CLOSE."""
        with_kin = states | ({12} if 3 in states else set()) | ({13} if 7 in states else set())
        for spelled in (word, word.upper()):
            assert named_states(spelled) == (state_mask(*with_kin), 0)

    @given(st.lists(named | st.sampled_from([*SS_WORDS, *SS_GROUPS]), min_size=1, max_size=6))
    def test_an_iterable_is_the_union_of_its_words_and_states(self, words: list[Any]) -> None:
        each = [named_states([word]) for word in words]
        mask, names = 0, 0
        for one_mask, one_names in each:
            mask, names = mask | one_mask, names | one_names
        assert named_states(words) == named_states(iter(words)) == (mask, names)
        assert names & ~mask == 0

    @given(state_masks.filter(bool))
    def test_a_mask_names_every_state_in_it(self, mask: int) -> None:
        assert named_states(mask) == (mask, mask)

    @pytest.mark.parametrize("words", ["nope", "", "listen ing", ["established", "nope"], ["1"]])
    def test_an_unknown_word_is_shown_with_the_known_ones(self, words: Any) -> None:
        last = words if isinstance(words, str) else words[-1]
        with pytest.raises(ValueError, match=f"unknown state '{last}'; known are all, .*established.*unconnected"):
            named_states(words)

    @pytest.mark.parametrize("nothing", [0, [], ()])
    def test_no_state_at_all_is_an_error(self, nothing: Any) -> None:
        with pytest.raises(ValueError, match="selects no socket"):
            named_states(nothing)

    @pytest.mark.parametrize("value", [True, None, 1.0, [True], [None], [1.0], [["established"]]], ids=repr)
    def test_what_cannot_be_a_state_is_a_type_error(self, value: Any) -> None:
        with pytest.raises(TypeError):
            named_states(value)
