"""Why mutants live on that no test can tell from the package, or that only cost more: by a piece of what they say."""

from __future__ import annotations

_THE_SAME = {
    'side <= "dst"': "a side is src or dst",
    "len(packed) <= 4": "an address has 4 or 16 bytes",
    "len(ports) != 1": "an address without a port is in no tree",
    "0 != len(": "no length is negative",
    "version >= 6": "a version is 4 or 6",
    "prefixlen >= 95": "that prefix is not within ::ffff:0:0/96",
    "_HIGHEST_STATE << 1": "no bit above the highest is set",
    "type_ <= NLMSGERR_ATTR_MSG": "the attribute below it is NLMSGERR_ATTR_UNUSED, which no kernel sends",
    "parts[ -1] if len(joined.parts) == 1": "the first of one is the last",
    "& -3": "the size of a program is a multiple of four",
    "65534 - 4": "the size of a program is a multiple of four",
    "(0 if ack.request else NLM_F_CAPPED) +": "the numbers have no bit in common",
    "SIZE ^ _OLD_END.size": "the numbers have no bit in common",
    "NLM_F_ACK = 5": "a request that is to be acknowledged has the other bit anyway",
    "live = STATE_FILTER_TCP if self._filter.protocol": "a UDP socket that leaves its state leaves its address",
    "_OLD.size ^ SIZE": "the numbers have no bit in common",
    "_DST | 4": "the numbers have no bit in common",
}
_COSTS = {
    "is not _WORTH_A_GUARD": "a program that is longer or slower, and lets through the same",
    "_common_bits(version, addresses[0], addresses[1])": "a guard that lets everything through",
    "len(v4) ^ len(v6)": "a program that is longer or slower, and lets through the same",
    "len(v4) << len(v6)": "a program that is longer or slower, and lets through the same",
    "len(parts) >> 2": "less is told to the kernel, and more matched again",
    "lambda i: _size(": "the smaller or is cut first, into more pieces",
    "_FEW_PORTS = ": "when one kind of guard is better than the other was measured",
    "_WORTH_A_GUARD = ": "from how many on a guard is worth it was measured",
}
_TOLERATED = {
    "+ /,": "options that may be given by position too",
}

REASONS = {**_THE_SAME, **_COSTS, **_TOLERATED}


def reason_for(said: str) -> str:
    """Why a mutant that is printed like this may live; "" if nobody has said so."""
    return next((reason for piece, reason in REASONS.items() if piece in said), "")
