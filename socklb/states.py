# SPDX-License-Identifier: MIT
"""TCP states, and the bit masks of them that the kernel takes (idiag_states in linux/inet_diag.h).

A mask has bit N set for the state numbered N in include/net/tcp_states.h. UDP borrows two of the numbers.
"""

from __future__ import annotations

from enum import IntEnum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Union

    States = Union[int, str, Iterable[Union[int, str]]]

_HIGHEST_STATE = 31
_ALL_BITS = 0xFFFFFFFF


class TcpState(IntEnum):
    """The kernel's numbers (include/net/tcp_states.h)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12
    BOUND_INACTIVE = 13


def state_mask(*states: int) -> int:
    """The u32 mask with one bit for each state.

    Raises ValueError for a number outside 1..31 and TypeError for what is no int (a bool is none here).
    """
    mask = 0
    for state in states:
        if isinstance(state, bool) or not isinstance(state, int):
            raise TypeError(f"a state is an int or a TcpState, not {state!r}")
        if not 1 <= state <= _HIGHEST_STATE:
            raise ValueError(f"state {int(state)} is outside 1..{_HIGHEST_STATE}")
        mask |= 1 << state
    return mask


def states_in(mask: int) -> tuple[int, ...]:
    """The states of a mask, ascending; a bit without a name (bit 0 too) comes back as a plain int.

    `state_mask(*states_in(m)) == m` for every mask without bit 0. Raises ValueError for a mask outside
    0..0xffffffff and TypeError for what is no int.
    """
    _check_mask(mask)
    return tuple(
        TcpState(bit) if 1 <= bit <= TcpState.BOUND_INACTIVE else bit
        for bit in range(_HIGHEST_STATE + 1)
        if mask >> bit & 1
    )


def _check_mask(mask: int) -> None:
    if isinstance(mask, bool) or not isinstance(mask, int):
        raise TypeError(f"a state mask is an int, not {mask!r}")
    if not 0 <= mask <= _ALL_BITS:
        raise ValueError(f"state mask {mask:#x} is outside 0..{_ALL_BITS:#x}")


STATE_FILTER_TCP = state_mask(
    TcpState.ESTABLISHED,  # the connection itself
    TcpState.SYN_SENT,  # still knocking at a backend that is gone
    TcpState.SYN_RECV,  # accepted half way; a request socket answers to this bit and to NEW_SYN_RECV
    TcpState.FIN_WAIT1,  # closed here, and retransmits a FIN that nobody will acknowledge
    TcpState.FIN_WAIT2,  # closed here, and waits for a FIN that will not come
    # TIME_WAIT is out: no owner is left to tell, and there are many.
    # CLOSE is out: destroying one answers ENOENT, which also means "no such socket".
    TcpState.CLOSE_WAIT,  # the backend said good-bye, the application has not noticed
    TcpState.LAST_ACK,  # waits for an acknowledgement that will not come
    TcpState.LISTEN,  # can be named by a filter on its own address; spared unless asked for by name
    TcpState.CLOSING,  # both said good-bye, the acknowledgement will not come
    TcpState.NEW_SYN_RECV,  # a request socket, the kernel's own form of SYN_RECV
    # BOUND_INACTIVE is out: it has an address of its own and no peer.
)
"""What a TCP filter looks at unless told otherwise: every state but CLOSE, TIME_WAIT and BOUND_INACTIVE."""

STATE_FILTER_UDP = 0xFFFF
"""What a UDP filter looks at: upstream's value. UDP uses ESTABLISHED (connected) and CLOSE (not connected) of it."""

_EVERY_NAMED = state_mask(*TcpState)
_CONNECTED = _EVERY_NAMED & ~state_mask(TcpState.LISTEN, TcpState.CLOSE, TcpState.BOUND_INACTIVE)
_BUCKET = state_mask(TcpState.SYN_RECV, TcpState.NEW_SYN_RECV, TcpState.TIME_WAIT)

# The groups of ss(8): what its scan_state() makes of the words, with the two states that it does not know put where
# they belong (NEW_SYN_RECV is a form of SYN_RECV, BOUND_INACTIVE one of CLOSE).
_GROUPS = {
    "all": _EVERY_NAMED,
    "connected": _CONNECTED,
    "synchronized": _CONNECTED & ~state_mask(TcpState.SYN_SENT),
    "bucket": _BUCKET,
    "big": _EVERY_NAMED & ~_BUCKET,
}

_WORDS = {state.name.lower().replace("_", "-"): state for state in TcpState}  # the kernel's names
_WORDS.update(  # and those of ss(8) that differ from them
    {
        "syn-rcv": TcpState.SYN_RECV,
        "fin-wait-1": TcpState.FIN_WAIT1,
        "fin-wait-2": TcpState.FIN_WAIT2,
        "unconnected": TcpState.CLOSE,
        "closed": TcpState.CLOSE,
        "listening": TcpState.LISTEN,
    }
)


def state_word(state: int) -> str:
    """The name of a state number as the kernel spells it; a number without a name as digits."""
    return TcpState(state).name if 1 <= state <= TcpState.BOUND_INACTIVE else str(int(state))


def named_states(states: States) -> tuple[int, int]:
    """Resolve a mask, a TcpState, a word of ss(8), or an iterable of both into (mask, states named one by one).

    The second mask leaves out what only a group word (`all`, `connected`, ...) brought in: a rule that asks whether
    somebody named a state on purpose looks there. Raises ValueError for an unknown word, an empty iterable or a number
    out of range, TypeError for anything else.
    """
    if isinstance(states, int) and not isinstance(states, TcpState):
        _check_mask(states)
        if not states:
            raise ValueError("an empty state mask selects no socket")
        return states, states
    words = (states,) if isinstance(states, (str, TcpState)) else tuple(states)
    if not words:
        raise ValueError("an empty set of states selects no socket")
    mask = named = 0
    for word in words:
        if not isinstance(word, str):
            bit = state_mask(word)
            mask, named = mask | bit, named | bit
            continue
        spelled = word.lower().replace("_", "-")
        if spelled in _WORDS:
            bit = state_mask(_WORDS[spelled])
            mask, named = mask | bit, named | bit
        elif spelled in _GROUPS:
            mask |= _GROUPS[spelled]
        else:
            raise ValueError(f"unknown state {word!r}; known are {', '.join(sorted({*_WORDS, *_GROUPS}))}")
    return mask, named
