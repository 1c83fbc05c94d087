# SPDX-License-Identifier: MIT
"""TCP states, and the bit masks of them that the kernel takes (idiag_states in linux/inet_diag.h).

A mask has bit N set for state N of include/net/tcp_states.h. UDP uses two of these states.
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
    """TCP states by the kernel's numbers (include/net/tcp_states.h)."""

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

    Raises ValueError for a number outside 1..31 and TypeError for anything that is not an int, a bool included.
    """
    mask = 0
    for state in states:
        if isinstance(state, bool) or not isinstance(state, int):
            raise TypeError(f"a state must be an int or a TcpState, not {state!r}")
        if not 1 <= state <= _HIGHEST_STATE:
            raise ValueError(f"state {int(state)} is outside 1..{_HIGHEST_STATE}")
        mask |= 1 << state
    return mask


def states_in(mask: int) -> tuple[int, ...]:
    """The states of a mask, ascending; one without a name (bit 0 too) as a plain int.

    `state_mask(*states_in(m)) == m` for every mask without bit 0. Raises ValueError for a mask outside
    0..0xffffffff and TypeError for anything that is not an int.
    """
    _check_mask(mask)
    return tuple(
        TcpState(bit) if 1 <= bit <= TcpState.BOUND_INACTIVE else bit
        for bit in range(_HIGHEST_STATE + 1)
        if mask >> bit & 1
    )


def _check_mask(mask: int) -> None:
    if isinstance(mask, bool) or not isinstance(mask, int):
        raise TypeError(f"a state mask must be an int, not {mask!r}")
    if not 0 <= mask <= _ALL_BITS:
        raise ValueError(f"state mask {mask:#x} is outside 0..{_ALL_BITS:#x}")


STATE_FILTER_TCP = state_mask(
    TcpState.ESTABLISHED,
    TcpState.SYN_SENT,  # still connecting to a backend that is gone
    TcpState.SYN_RECV,  # a handshake that will not complete; a request socket answers to this bit and to NEW_SYN_RECV
    TcpState.FIN_WAIT1,  # closed here, and retransmits a FIN that will not be acknowledged
    TcpState.FIN_WAIT2,  # closed here, and waits for a FIN that will not come
    # No TIME_WAIT: such a socket has no owner to notify, and there are many.
    # No CLOSE: destroying such a socket answers ENOENT, which also means "no such socket".
    TcpState.CLOSE_WAIT,  # closed by the backend, and the application has not noticed
    TcpState.LAST_ACK,  # waits for an acknowledgement that will not come
    TcpState.LISTEN,  # matched by a filter on its own address, and spared unless asked for by name
    TcpState.CLOSING,  # closed on both sides, and waits for an acknowledgement that will not come
    TcpState.NEW_SYN_RECV,  # a request socket, the kernel's own form of SYN_RECV
    # No BOUND_INACTIVE: such a socket has a local address and no peer.
)
"""The states that a TCP filter matches by default: all but CLOSE, TIME_WAIT and BOUND_INACTIVE."""

STATE_FILTER_UDP = 0xFFFF
"""The states that a UDP filter matches, Cilium's value; a UDP socket is ESTABLISHED (connected) or CLOSE."""

_EVERY_NAMED = state_mask(*TcpState)
_CONNECTED = _EVERY_NAMED & ~state_mask(TcpState.LISTEN, TcpState.CLOSE, TcpState.BOUND_INACTIVE)
_BUCKET = state_mask(TcpState.SYN_RECV, TcpState.NEW_SYN_RECV, TcpState.TIME_WAIT)

# The groups of ss(8), as in its scan_state(). The two states that it does not know go with their kin: NEW_SYN_RECV with
# SYN_RECV, BOUND_INACTIVE with CLOSE.
_GROUPS = {
    "all": _EVERY_NAMED,
    "connected": _CONNECTED,
    "synchronized": _CONNECTED & ~state_mask(TcpState.SYN_SENT),
    "bucket": _BUCKET,
    "big": _EVERY_NAMED & ~_BUCKET,
}

_WORDS = {state.name.lower().replace("_", "-"): state for state in TcpState}  # the kernel's names
_WORDS.update(  # and those of ss(8), where they differ
    {
        "estab": TcpState.ESTABLISHED,
        "syn-rcv": TcpState.SYN_RECV,
        "fin-wait-1": TcpState.FIN_WAIT1,
        "fin-wait-2": TcpState.FIN_WAIT2,
        "unconn": TcpState.CLOSE,
        "unconnected": TcpState.CLOSE,
        "closed": TcpState.CLOSE,
        "listening": TcpState.LISTEN,
    }
)


def state_word(state: int) -> str:
    """The kernel's name of a state; the number, as text, of one without a name."""
    return TcpState(state).name if 1 <= state <= TcpState.BOUND_INACTIVE else str(int(state))


def named_states(states: States) -> tuple[int, int]:
    """(mask, states named one by one) for a mask, a TcpState, a word of ss(8), or an iterable of states and words.

    The second is a mask too, without the states that only a group word (`all`, `connected`, ...) stands for: it tells
    whether a state was named on purpose. Raises ValueError for an unknown word, an empty iterable or a number out of
    range, TypeError for anything else.
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
