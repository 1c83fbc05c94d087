# SPDX-License-Identifier: MIT
"""Cut what is still connected to backends that are gone."""

from __future__ import annotations

from functools import lru_cache

from ..engine.destroy import Operation
from ..engine.everywhere import NamespacesReport, run_everywhere
from ..engine.report import Counts, Outcome
from ..filters import SocketFilter
from ..filters.backend import Backend, check_backend
from ..wire.address import unmapped
from ..wire.request import PROTOCOL_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..engine.everywhere import Progress
    from ..engine.ledger import Audit
    from ..kernel.namespaces import NetworkNamespace
    from ..reverse_nat.maps import RevNatMaps
    from ..wire.address import IPAddress
    from ..wire.reply import InetSocket

NO_REV_NAT = "no reverse-NAT entry"
ALIVE_AGAIN = "its backend is alive again"


class TerminationReport(NamespacesReport):
    """What a termination did: the sums, each namespace's report or error, and in `backends` each backend's sums."""

    __slots__ = ("backends",)

    def __init__(self, backends: Iterable[Backend]) -> None:
        super().__init__()
        self.backends = {backend: Counts() for backend in backends}

    def _take(self, namespace: NetworkNamespace, outcome: Outcome) -> None:
        super()._take(namespace, outcome)
        self.backends[backend_of(outcome.socket)].count(outcome.verdict)


def terminate_connections(
    backends: Iterable[Backend],
    *,
    namespaces: Iterable[NetworkNamespace] | None = None,
    rev_nat: RevNatMaps | None = None,
    dry_run: bool = False,
    audit: Audit | None = None,
    progress: Progress | None = None,
) -> TerminationReport:
    """Destroy the sockets that are connected to any of these backends, in all namespaces of the host or in those given.

    One pass a namespace and protocol, however many backends there are; several namespaces at once. With `rev_nat` only
    sockets that the balancer itself sent there, the others are skipped. `audit` is called with one dict for each
    verdict, `progress` with (done, total, namespace) after each namespace.

    A namespace that fails does not stop the others: its error is in the report. Raises NotSupported when the kernel
    cannot destroy, NotPermitted if every namespace answered so, and whatever `audit` raises, with the report so far in
    `.report`; KernelError where /proc cannot be looked at and no namespaces are given.
    """
    return terminate(backends, namespaces, rev_nat=rev_nat, dry_run=dry_run, audit=audit, progress=progress)


def terminate(
    backends: Iterable[Backend],
    namespaces: Iterable[NetworkNamespace] | None,
    *,
    rev_nat: RevNatMaps | None = None,
    dry_run: bool = False,
    audit: Audit | None = None,
    progress: Progress | None = None,
    is_alive: Callable[[Backend], bool] = lambda backend: False,
) -> TerminationReport:
    """`terminate_connections`, but what is connected to a backend that `is_alive` says to be back is spared."""
    gone = dict.fromkeys(backends)
    for backend in gone:
        check_backend(backend)

    def spare(socket: InetSocket) -> str:
        if is_alive(backend_of(socket)):
            return ALIVE_AGAIN
        if rev_nat is not None and not rev_nat.contains(socket.cookie, socket.dst, socket.dport):
            return NO_REV_NAT
        return ""

    operation = Operation(
        [_to(gone, protocol) for protocol in PROTOCOL_NAMES.values() if any(b.protocol == protocol for b in gone)],
        dry_run=dry_run,
        audit=audit,
        spare=spare,
        subject=backend_as_subject,
    )
    report = TerminationReport(gone)
    if gone:
        run_everywhere(operation, namespaces, report, progress)
    return report


def _to(backends: Iterable[Backend], protocol: str) -> SocketFilter:
    return SocketFilter.to_backends(backend for backend in backends if backend.protocol == protocol)


def backend_as_subject(socket: InetSocket) -> dict[str, str]:
    """What records say that a socket was meant by."""
    return {"backend": str(backend_of(socket))}


def backend_of(socket: InetSocket) -> Backend:
    """The backend that a socket is connected to."""
    return _backend(socket.dst, socket.dport, socket.protocol)


@lru_cache(maxsize=1024)  # many sockets, few backends
def _backend(address: IPAddress, port: int, protocol: int) -> Backend:
    return Backend(unmapped(address), port, PROTOCOL_NAMES[protocol])
