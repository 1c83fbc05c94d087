# SPDX-License-Identifier: MIT
"""How many sockets a network namespace has: cheap to read, where a dump would walk the whole table."""

from __future__ import annotations

from ..wire.request import IPPROTO_TCP, IPPROTO_UDP
from ..wire.socket_id import AF_INET, AF_INET6

_FILES = (  # /proc/net would show the namespace of the main thread, not of the calling one
    "/proc/thread-self/net/sockstat",
    "/proc/thread-self/net/sockstat6",
)
_LINES = {
    b"TCP": (IPPROTO_TCP, AF_INET),
    b"UDP": (IPPROTO_UDP, AF_INET),
    b"TCP6": (IPPROTO_TCP, AF_INET6),
    b"UDP6": (IPPROTO_UDP, AF_INET6),
}


def sockets_in_use() -> dict[tuple[int, int], int]:
    """By (protocol, family), in the namespace of the calling thread; without those that cannot be read.

    The kernel counts neither time-wait mini-sockets nor TCP sockets that are only bound (net/ipv4/proc.c:
    sockstat_seq_show()).
    """
    counts = {}
    for path in _FILES:
        try:
            with open(path, "rb", buffering=0) as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, values = line.partition(b": ")
            words = values.split()
            if name in _LINES and words[:1] == [b"inuse"] and words[1:2] and words[1].isdigit():
                counts[_LINES[name]] = int(words[1])
    return counts
