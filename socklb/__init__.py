# SPDX-License-Identifier: MIT
"""Destroy the sockets that are pinned to a backend that is gone, so that their owners reconnect at once.

`terminate_connections` takes backends and looks into every namespace, `TerminationLoop` follows their changes;
`find_sockets` and `destroy_sockets` take a `SocketFilter`; `probe` tells whether kernel and caller can. The kernel's
inet_diag does the work, over AF_NETLINK. Not in here: balancing, health checks, packet injection, anything not Linux.
The library prints nothing and needs nothing but the standard library.
"""

__version__ = "0.1.0"

from .engine.destroy import destroy_sockets
from .engine.find import find_sockets, live_cookies
from .engine.probe import Support, probe
from .engine.report import DestroyReport, Outcome
from .errors import (
    AuditError,
    KernelError,
    MalformedMessage,
    NotPermitted,
    NotSupported,
    RunStopped,
    SocklbError,
    UnboundedFilter,
)
from .filters import SocketFilter, autobound, cgroup, device, dport, dst, mark, sport, src
from .kernel.namespaces import NetworkNamespace
from .states import STATE_FILTER_TCP, STATE_FILTER_UDP, TcpState, state_mask, states_in
from .wire.reply import InetSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .filters.backend import Backend
    from .reverse_nat.maps import RevNatMaps
    from .termination import TerminationLoop, TerminationReport, terminate_connections
    from .termination.table import BackendState, BackendTable

# fmt: off
__all__ = [
    "STATE_FILTER_TCP", "STATE_FILTER_UDP", "AuditError", "Backend", "BackendState", "BackendTable", "DestroyReport",
    "InetSocket", "KernelError", "MalformedMessage", "NetworkNamespace", "NotPermitted", "NotSupported", "Outcome",
    "RevNatMaps", "RunStopped", "SocketFilter", "SocklbError", "Support", "TcpState", "TerminationLoop",
    "TerminationReport", "UnboundedFilter", "__version__", "autobound", "cgroup", "destroy_sockets", "device", "dport",
    "dst", "find_sockets", "live_cookies", "mark", "probe", "sport", "src", "state_mask", "states_in",
    "terminate_connections",
]
# fmt: on

# What works in many namespaces brings threads and more: it is imported when it is first asked for.
_LATER = {
    "Backend": ".filters.backend",
    **dict.fromkeys(("BackendState", "BackendTable"), ".termination.table"),
    **dict.fromkeys(("TerminationLoop", "TerminationReport", "terminate_connections"), ".termination"),
    "RevNatMaps": ".reverse_nat.maps",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_LATER[name], __name__), name)
    return value
