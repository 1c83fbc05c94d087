# SPDX-License-Identifier: MIT
"""The kernel's hash table of TCP connections, as far as it shows."""

from __future__ import annotations

_ENTRIES = "/proc/sys/net/ipv4/tcp_ehash_entries"  # of the namespace that the thread which opens it is in
_SMALL = 4096


def is_small() -> bool:
    """Whether the calling thread's network namespace has a table of its own with so few buckets that 16 or more
    connections are often in one (net.ipv4.tcp_child_ehash_entries, since Linux 6.1). False where it cannot be read.
    """
    try:
        with open(_ENTRIES, "rb", buffering=0) as file:
            return 0 < int(file.read()) < _SMALL  # negative for the host's table
    except (OSError, ValueError):
        return False
