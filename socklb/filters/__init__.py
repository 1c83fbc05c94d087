"""Which sockets are meant: conditions, the language of ss(8) for them, and the filter that carries one."""

from .conditions import Condition, cgroup, device, dport, dst, mark, sport, src
from .language import FilterSyntaxError
from .socket_filter import SocketFilter

__all__ = [
    "Condition",
    "FilterSyntaxError",
    "SocketFilter",
    "cgroup",
    "device",
    "dport",
    "dst",
    "mark",
    "sport",
    "src",
]
