"""Destroy the sockets that are pinned to a backend that is gone, so that their owners reconnect at once.

`find_sockets` and `destroy_sockets` take a `SocketFilter`; `probe` tells whether kernel and caller can. The kernel's
inet_diag does the work, over AF_NETLINK. Not in here: balancing, health checks, packet injection, anything not Linux.
The library prints nothing and needs nothing but the standard library.
"""

from .destroy import destroy_sockets
from .errors import AuditError, KernelError, MalformedMessage, NotPermitted, NotSupported, SocklbError, UnboundedFilter
from .filters import SocketFilter, autobound, cgroup, device, dport, dst, mark, sport, src
from .find import find_sockets
from .kernel.namespaces import NetworkNamespace
from .probe import Support, probe
from .report import DestroyReport, Outcome
from .states import STATE_FILTER_TCP, STATE_FILTER_UDP, TcpState, state_mask, states_in
from .version import __version__
from .wire.reply import InetSocket

__all__ = [
    "STATE_FILTER_TCP",
    "STATE_FILTER_UDP",
    "AuditError",
    "DestroyReport",
    "InetSocket",
    "KernelError",
    "MalformedMessage",
    "NetworkNamespace",
    "NotPermitted",
    "NotSupported",
    "Outcome",
    "SocketFilter",
    "SocklbError",
    "Support",
    "TcpState",
    "UnboundedFilter",
    "__version__",
    "autobound",
    "cgroup",
    "destroy_sockets",
    "device",
    "dport",
    "dst",
    "find_sockets",
    "mark",
    "probe",
    "sport",
    "src",
    "state_mask",
    "states_in",
]
