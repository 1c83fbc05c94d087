# SPDX-License-Identifier: MIT
"""Destroy what is still connected to backends that are gone."""

from __future__ import annotations

from ..engine.run import ALL, Run
from ..filters import SocketFilter
from ..filters.backend import backend_of, check_backend
from ..wire.request import PROTOCOL_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..engine.audit import Audit
    from ..engine.report import Report
    from ..engine.run import Namespaces, Progress
    from ..filters.backend import Backend
    from ..reverse_nat.maps import RevNatMaps
    from ..wire.reply import InetSocket

NO_REV_NAT = "no reverse-NAT entry"
ALIVE_AGAIN = "its backend is alive again"


def terminate_connections(
    backends: Iterable[Backend],
    *,
    namespaces: Namespaces = ALL,
    rev_nat: RevNatMaps | None = None,
    dry_run: bool = False,
    audit: Audit | None = None,
    progress: Progress | None = None,
) -> Report:
    """Destroy the sockets that are connected to any of these backends, in every namespace of the host by default.

    Costs one pass a namespace and protocol, however many backends there are; several namespaces go on at once. With
    `rev_nat` only sockets that the balancer sent there are destroyed, the others are skipped. `namespaces`, `dry_run`,
    `audit` and `progress` are as in `destroy_sockets`; the report's `.backends` has the sums of each backend.

    A namespace that fails does not stop the others: its error is in the report. Raises NotSupported when the kernel
    cannot destroy, NotPermitted if every namespace refuses, and what `audit` raises, with the report so far in
    `.report`; KernelError where "all" is asked for and /proc cannot be read.
    """
    return terminate(backends, namespaces, rev_nat=rev_nat, dry_run=dry_run, audit=audit, progress=progress)


def terminate(
    backends: Iterable[Backend],
    namespaces: Namespaces,
    *,
    rev_nat: RevNatMaps | None = None,
    dry_run: bool = False,
    audit: Audit | None = None,
    progress: Progress | None = None,
    is_alive: Callable[[Backend], bool] = lambda backend: False,
) -> Report:
    """`terminate_connections`, sparing what is connected to a backend that `is_alive` says has come back."""
    gone = dict.fromkeys(backends)
    for backend in gone:
        check_backend(backend)

    def why_spared(socket: InetSocket) -> str:
        if is_alive(backend_of(socket)):
            return ALIVE_AGAIN
        if rev_nat is not None and not rev_nat.contains(socket.cookie, socket.dst, socket.dport):
            return NO_REV_NAT
        return ""

    def spare(batch: Sequence[InetSocket]) -> list[str]:
        return list(map(why_spared, batch))

    protocols = [protocol for protocol in PROTOCOL_NAMES.values() if any(b.protocol == protocol for b in gone)]
    run = Run(
        [SocketFilter.to_backends(b for b in gone if b.protocol == protocol) for protocol in protocols],
        dry_run=dry_run,
        audit=audit,
        spare=spare,
        target=backend_target,
        backends=gone,
    )
    return run.run(namespaces, progress) if gone else run.report


def backend_target(socket: InetSocket) -> dict[str, str]:
    """What records name a socket by: the backend that it is connected to."""
    return {"backend": str(backend_of(socket))}
