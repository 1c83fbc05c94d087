# SPDX-License-Identifier: MIT
"""Destroy what is still connected to backends that are gone."""

from __future__ import annotations

from ..engine.choice import ALL
from ..engine.run import Run
from ..filters import SocketFilter
from ..filters.backend import Backend, check_backend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from ..engine.audit import Audit
    from ..engine.choice import Namespaces
    from ..engine.report import Outcome, Report
    from ..engine.run import Progress
    from ..kernel.namespaces import NetworkNamespace
    from ..reverse_nat.maps import RevNatMaps
    from ..wire.reply import InetSocket

_PIECE = 1500  # backends in a filter, about as many as fit into one dump: a run can be stopped between two

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
    """Destroy the sockets that are connected to any of these backends, in every network namespace that can be found.

    Costs one pass a namespace and protocol, however many backends there are; several namespaces go on at once. With
    `rev_nat` only sockets that the balancer sent there are destroyed, the others are skipped. `namespaces`, `dry_run`,
    `audit` and `progress` are as in `destroy_sockets`; the report's `.backends` has the sums of each backend.

    A loopback or link-local address is another one in each namespace: of "all" its backends are looked for in the
    current one, the others are left alone, and `.left_alone` of the report names them. Name namespaces one by one to
    have them searched there. The link of a link-local backend is looked up in each namespace.

    A namespace that fails does not stop the others: its error is in the report. Raises TypeError for what is no
    Backend; NotSupported when the kernel cannot destroy, NotPermitted if every namespace refuses, and what `audit`
    raises, with the report so far in `.report`; KernelError where "all" is asked for and /proc cannot be read.
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
    services: Mapping[Backend, Sequence[str]] = {},  # it is only read
    on_run: Callable[[Run], object] = lambda run: None,
) -> Report:
    """`terminate_connections`, sparing what is connected to a backend that `is_alive` says has come back. Records name
    the `services` that had a backend. `on_run` is called with the run before it begins: another thread, or a signal
    handler, may stop it.
    """
    gone = _distinct(backends)
    if rev_nat is not None and not hasattr(rev_nat, "contains"):
        raise TypeError(f"rev_nat is RevNatMaps or None, not {rev_nat!r}")

    def why_spared(socket: InetSocket, namespace: NetworkNamespace) -> str:
        if is_alive(run.report.backend_of(socket, namespace)):
            return ALIVE_AGAIN
        if rev_nat is not None and not rev_nat.contains(socket.cookie, socket.dst, socket.dport):
            return NO_REV_NAT
        return ""

    def spare(batch: Sequence[InetSocket], namespace: NetworkNamespace) -> list[str]:
        return [why_spared(socket, namespace) for socket in batch]

    def target(outcome: Outcome) -> dict[str, Any]:
        names = services.get(run.report.backend_of(outcome.socket, outcome.namespace))
        return {**backend_target(run.report, outcome), **({"services": list(names)} if names else {})}

    run = Run(
        _filters(backend for backend in gone if not backend.is_local),
        local_filters=_filters(backend for backend in gone if backend.is_local),
        dry_run=dry_run,
        allow_unbounded=True,  # each names its backends, and to find that out of thousands takes as long as a walk
        audit=audit,
        spare=spare,
        target=target,
        backends=gone,
    )
    on_run(run)
    return run.run(namespaces, progress) if gone else run.report


def _distinct(backends: Iterable[Backend]) -> list[Backend]:
    if isinstance(backends, (str, Backend)):
        raise TypeError(f"backends are several Backends, as in [Backend.parse('10.0.0.1:80/TCP')], not {backends!r}")
    distinct = list(dict.fromkeys(backends))
    for backend in distinct:
        check_backend(backend)
    return distinct


def _filters(backends: Iterable[Backend]) -> list[SocketFilter]:
    """At least one filter for each protocol, and for each link of link-local addresses: where there is no such link,
    nothing matches that one alone.
    """
    groups: dict[tuple[str, str], list[Backend]] = {}
    for backend in backends:
        groups.setdefault((backend.protocol, backend.link), []).append(backend)
    return [
        SocketFilter.to_backends(group[start : start + _PIECE])
        for _, group in sorted(groups.items())
        for start in range(0, len(group), _PIECE)
    ]


def backend_target(report: Report, outcome: Outcome) -> dict[str, str]:
    """What records name an outcome by: the backend that its socket is connected to."""
    return {"backend": str(report.backend_of(outcome.socket, outcome.namespace))}
