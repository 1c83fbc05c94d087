# SPDX-License-Identifier: MIT
"""Which sockets are meant: conditions, the language of ss(8) for them, and the filter that carries one."""

from .conditions import Condition
from .language import FilterSyntaxError
from .socket_filter import SocketFilter
from .vocabulary import autobound, cgroup, device, dport, dst, mark, sport, src

__all__ = [
    "Condition",
    "FilterSyntaxError",
    "SocketFilter",
    "autobound",
    "cgroup",
    "device",
    "dport",
    "dst",
    "mark",
    "sport",
    "src",
]
