# SPDX-License-Identifier: MIT
"""Which sockets match: conditions, the language of ss(8) for them, and the filter that has one."""

from .conditions import Condition
from .constructors import autobound, cgroup, device, dport, dst, idle, mark, pid, sport, src, stalled, uid
from .language import FilterSyntaxError
from .socket_filter import SocketFilter

__all__ = [
    "Condition",
    "FilterSyntaxError",
    "SocketFilter",
    "autobound",
    "cgroup",
    "device",
    "dport",
    "dst",
    "idle",
    "mark",
    "pid",
    "sport",
    "src",
    "stalled",
    "uid",
]
