# SPDX-License-Identifier: MIT
"""Destroy what is still connected to backends that are gone."""

from __future__ import annotations

import errno
from functools import partial
from time import sleep

from ..engine.choice import ALL, chosen, is_one
from ..engine.run import Run
from ..errors import NotSupported
from ..features import has, missing
from ..filters.backend import Backend, check_backend, filters_to
from .reasons import ALIVE_AGAIN, NO_REV_NAT
from .schedule import LOOKS

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

if TYPE_CHECKING or has("conntrack"):
    from .conntrack_join import ConntrackJoin

AUTO = "auto"


def terminate_connections(
    backends: Iterable[Backend],
    *,
    namespaces: Namespaces = ALL,
    rev_nat: RevNatMaps | None = None,
    conntrack: bool | str = AUTO,
    external: bool = False,
    dry_run: bool = False,
    audit: Audit | None = None,
    progress: Progress | None = None,
) -> Report:
    """Destroy the sockets that are connected to any of these backends, in every network namespace that can be found.

    Costs one pass a namespace and protocol, however many backends there are; several namespaces go on at once. With
    `rev_nat` only sockets that the balancer sent there are destroyed, the others are skipped. `namespaces`, `dry_run`,
    `audit` and `progress` are as in `destroy_sockets`; the report's `.backends` has the sums of each backend.

    Clients whose peer is a service, and that conntrack has balanced to a backend, are cut too: of TCP the socket is
    destroyed, and the entry deleted; of UDP the entry alone ("rerouted"). A flow counts once, though it is looked for
    again after 2, 4, 8, 16 and 32 s as long as something is found, for the balancer's rules may lag. `conntrack`:
    "auto" (where it is permitted and present; `.conntrack` of the report says whether), True (an error else), or False.
    `external` deletes the entries of TCP clients without a socket here too ("cleared").

    A loopback or link-local address is another one in each namespace: of "all" its backends are looked for in the
    current one, the others are left alone, and `.left_alone` of the report names them. Name namespaces one by one to
    have them searched there. The link of a link-local backend is looked up in each namespace.

    A namespace that fails does not stop the others: its error is in the report. Raises TypeError or ValueError for
    wrong arguments; NotSupported when the kernel cannot destroy, or has no conntrack though it was required;
    NotPermitted if every namespace refuses; what `audit` raises, with the report so far in `.report`; KernelError where
    "all" is asked for and /proc cannot be read.
    """
    join = conntrack_join(conntrack, external=external, dry_run=dry_run)
    return terminate(
        backends, namespaces, rev_nat=rev_nat, join=join, looks=LOOKS, dry_run=dry_run, audit=audit, progress=progress
    )


def conntrack_join(
    conntrack: bool | str,
    *,
    external: bool = False,
    dry_run: bool = False,
    is_alive: Callable[[Backend], bool] = lambda backend: False,
) -> ConntrackJoin | None:
    """What looks into conntrack, None where that is not wanted. Raises TypeError or ValueError for wrong arguments,
    NotSupported where it is required and this copy of the package leaves it out.
    """
    if conntrack not in (True, False, AUTO):
        raise ValueError(f'conntrack is "auto", True or False, not {conntrack!r}')
    if external and not conntrack:
        raise ValueError("external is about conntrack entries: without conntrack there is nothing to delete")
    if not conntrack:
        return None
    if not has("conntrack"):
        if conntrack is True:
            raise NotSupported(errno.ENOSYS, missing("looking into conntrack", "conntrack"))
        return None
    return ConntrackJoin(is_required=conntrack is True, external=external, dry_run=dry_run, is_alive=is_alive)


def terminate(
    backends: Iterable[Backend],
    namespaces: Namespaces,
    *,
    rev_nat: RevNatMaps | None = None,
    join: ConntrackJoin | None = None,
    looks: Sequence[float] = (),
    is_last_look: Callable[[Backend], bool] = lambda backend: False,
    look_in: Namespaces | None = None,
    dry_run: bool = False,
    audit: Audit | None = None,
    progress: Progress | None = None,
    is_alive: Callable[[Backend], bool] = lambda backend: False,
    services: Mapping[Backend, Sequence[str]] = {},  # it is only read
    on_run: Callable[[Run], object] = lambda run: None,
) -> Report:
    """`terminate_connections`, sparing what is connected to a backend that `is_alive` says has come back. Records name
    the `services` that had a backend. `on_run` is called with the run before it begins: another thread, or a signal
    handler, may stop it. `look_in`: where conntrack is asked and its clients are looked for, if not in `namespaces`.
    """
    gone = _distinct(backends)
    if rev_nat is not None and not hasattr(rev_nat, "contains"):
        raise TypeError(f"rev_nat is RevNatMaps or None, not {rev_nat!r}")

    def why_spared(socket: InetSocket, namespace: NetworkNamespace) -> str:
        case = None if join is None else join.case_of(socket)
        if case is not None:
            return ALIVE_AGAIN if is_alive(case.flow.backend) else case.reason
        return ALIVE_AGAIN if is_alive(run.report.peer_of(socket, namespace)) else _why_unbalanced(socket, rev_nat)

    def target(outcome: Outcome) -> dict[str, Any]:
        names = services.get(run.report.backend_of(outcome))
        return {**backend_target(run.report, outcome), **({"services": list(names)} if names else {})}

    def pass_through() -> None:
        if join is not None:
            join.begin(run.report)
        run.search(
            filters_to(backend for backend in gone if not backend.is_local),
            where,
            local_filters=filters_to(backend for backend in gone if backend.is_local),
            is_one=is_one(namespaces),
            progress=progress,
        )
        if join is not None:
            join.look(run, gone, where if look_in is None else chosen(look_in), is_last=is_last_look)

    run = Run(
        dry_run=dry_run,
        audit=audit,
        spare=lambda batch, namespace: [why_spared(socket, namespace) for socket in batch],
        after=None if join is None else join.after,
        target=target,
        backends=gone,
    )
    on_run(run)
    if gone:
        where = chosen(namespaces)
        run.carry_out(pass_through)
        if join is not None:
            _look_again(run, join, looks, gone, where)
    return run.report


def _why_unbalanced(socket: InetSocket, rev_nat: RevNatMaps | None) -> str:
    is_unknown = rev_nat is not None and not rev_nat.contains(socket.cookie, socket.dst, socket.dport)
    return NO_REV_NAT if is_unknown else ""


def _look_again(
    run: Run, join: ConntrackJoin, pauses: Sequence[float], gone: list[Backend], where: Sequence[NetworkNamespace]
) -> None:
    """As long as a look has found something; all of them at most."""
    for number, pause in enumerate(pauses, 1):
        if not join.acted_on:
            return
        try:
            sleep(pause)
        except BaseException as error:
            error.report = run.report  # type: ignore[attr-defined]
            raise
        run.carry_out(partial(join.look, run, gone, where, is_last=_constantly(number == len(pauses))))


def _constantly(answer: bool) -> Callable[[Backend], bool]:
    return lambda _: answer


def _distinct(backends: Iterable[Backend]) -> list[Backend]:
    if isinstance(backends, (str, Backend)):
        raise TypeError(f"backends are several Backends, as in [Backend.parse('10.0.0.1:80/TCP')], not {backends!r}")
    distinct = list(dict.fromkeys(backends))
    for backend in distinct:
        check_backend(backend)
    return distinct


def backend_target(report: Report, outcome: Outcome) -> dict[str, str]:
    """What records name an outcome by: the backend that its socket is connected to."""
    return {"backend": str(report.backend_of(outcome))}
