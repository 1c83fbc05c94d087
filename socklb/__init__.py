# SPDX-License-Identifier: MIT
"""Destroy the sockets that are pinned to a backend that is gone, so that their owners reconnect at once.

`terminate_connections` takes backends and looks into every network namespace, `TerminationLoop` follows their changes;
`find_sockets` and `destroy_sockets` take a `SocketFilter`; `find_flows` asks conntrack, `probe` what kernel and caller
can. Not in here: balancing, health checks, packet injection, anything not Linux. It prints nothing, logs to "socklb".
"""

from .engine.find import find_sockets, live_cookies
from .engine.report import Counts, Outcome, Report
from .engine.run import destroy_sockets
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
from .features import import_name, names_left
from .filters import (
    Condition,
    FilterSyntaxError,
    SocketFilter,
    autobound,
    cgroup,
    device,
    dport,
    dst,
    idle,
    mark,
    pid,
    sport,
    src,
    stalled,
    uid,
)
from .kernel.namespaces import NetworkNamespace
from .states import STATE_FILTER_TCP, STATE_FILTER_UDP, TcpState, state_mask, states_in
from .wire.reply import InetSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .conntrack import Flow, find_flows
    from .engine.probe import Support, probe
    from .filters.backend import Backend
    from .kernel.discovery import UnsearchedNamespace, discover_namespaces
    from .reverse_nat import RevNatEntry, RevNatMaps
    from .termination import BackendState, BackendTable, Instance, Pass, TerminationLoop, terminate_connections

__version__ = "0.1.0"
# fmt: off
__all__ = [
    "STATE_FILTER_TCP", "STATE_FILTER_UDP", "AuditError", "Backend", "BackendState", "BackendTable", "Condition",
    "Counts", "FilterSyntaxError", "Flow", "InetSocket", "Instance", "KernelError", "MalformedMessage",
    "NetworkNamespace", "NotPermitted", "NotSupported", "Outcome", "Pass", "Report", "RevNatEntry", "RevNatMaps",
    "RunStopped", "SocketFilter", "SocklbError", "Support", "TcpState", "TerminationLoop", "UnboundedFilter",
    "UnsearchedNamespace", "__version__", "autobound", "cgroup", "destroy_sockets", "device", "discover_namespaces",
    "dport", "dst", "find_flows", "find_sockets", "idle", "live_cookies", "mark", "pid", "probe", "sport", "src",
    "stalled", "state_mask", "states_in", "terminate_connections", "uid",
]
# fmt: on
__all__[:] = names_left(__all__)


def __dir__() -> set[str]:
    return {*globals(), *__all__}


if not TYPE_CHECKING:  # to type checkers a misspelt name would be there

    def __getattr__(name: str) -> object:
        """Import what a copy may leave out, or few programs need, when it is first asked for."""
        return globals().setdefault(name, import_name(name))
