# SPDX-License-Identifier: MIT
"""How the commands that destroy show what became of the sockets."""

from __future__ import annotations

from ..engine.report import ABSENT, REFUSED, Report, outcome_record
from ..kernel.namespaces import CURRENT_NAME
from ..states import state_word
from ..wire.address import format_endpoint
from ..wire.request import PROTOCOL_NAMES
from .netns import namespace_problems
from .output import (
    BAD_INPUT,
    DONE,
    ENDS,
    SOME_FAILED,
    error_text,
    exit_code,
    ignore_broken_pipe,
    prepare_json,
    print_json,
    printable,
    warn,
)
from .signals import ended_by_signals, showing

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection
    from typing import Any

    from ..engine.report import Counts, Outcome
    from ..filters.backend import Backend
    from ..wire.reply import InetSocket
    from .holders import Held

    Target = Callable[[Report, Outcome], dict[str, str]]


def run_and_show(
    destroy: Callable[[], Report], target: Target, options: argparse.Namespace, held: Held | None = None
) -> tuple[Report, int]:
    """Run what destroys, and show its report: that and the exit code.

    `held` knows which processes to name. The report of a run that an error ended is shown too, an empty one if no run
    had begun; on bad input nothing is.
    """
    if options.json:
        prepare_json()
    try:
        with ended_by_signals():
            report = destroy()
    except ENDS as error:
        if exit_code(error) != BAD_INPUT:
            _show(_report_of(error) or Report(getattr(options, "backends", ())), target, options, error, held)
        raise
    problems = _show(report, target, options, None, held)
    return report, SOME_FAILED if report.failed or problems or options.audit_problem else DONE


def _report_of(error: BaseException | None) -> Report | None:
    """The report of a run that an error ended; a signal may have come behind that error."""
    while error is not None and getattr(error, "report", None) is None:
        error = error.__context__
    return getattr(error, "report", None)


def _show(
    report: Report, target: Target, options: argparse.Namespace, error: BaseException | None, held: Held | None
) -> list[str]:
    """The verdicts and their sums on standard output, as lines or (--json) as one object.

    Namespaces that were not searched to the end are named on standard error; given back are the texts about those that
    were to be. `error` is what ended the run, if anything did.
    """
    problems, expected = namespace_problems(report.errors, report.unsearched, options.readable_only, error)
    with showing():
        conntrack = "" if error else conntrack_text(report.conntrack, options.dry_run)
        said = [*problems, *expected, *left_alone_texts(report.left_alone), report.hidden, conntrack]
        for text in filter(None, said):
            warn(text)
        with ignore_broken_pipe():
            if options.json:
                ended = [error_text(error)] if error is not None else []
                ended += filter(None, [options.audit_problem])
                try:
                    print_json(_as_json(report, target, options, ended + problems, held))
                except MemoryError:
                    problems = [*problems, "out of memory: the sockets are not listed"]
                    warn(problems[-1])
                    print_json({**report.counts.as_dict(), "error": "; ".join(ended + problems)})
            else:
                _print_lines(report, held, dry_run=options.dry_run)
    return problems


def _print_lines(report: Report, held: Held | None, *, dry_run: bool) -> None:
    unrecorded = {id(outcome) for outcome in report.unrecorded}
    for outcome in report.outcomes:
        users = held.text(outcome) if held is not None else ""
        print(outcome_line(outcome, report.device_of(outcome), is_unrecorded=id(outcome) in unrecorded, users=users))
    print(sums_text(report.counts, dry_run=dry_run) + (" (dry run)" if dry_run else ""))


def _as_json(
    report: Report, target: Target, options: argparse.Namespace, problems: list[str], held: Held | None
) -> dict[str, Any]:
    return {
        "dry_run": options.dry_run,
        **report.counts.as_dict(),
        "sockets": [
            {
                **outcome_record(one, target(report, one), report.device_of(one), options.dry_run),
                **({} if held is None else {"processes": held.record(one)}),
            }
            for one in report.outcomes
        ],
        "namespaces": [
            {
                "name": namespace.name,
                "path": namespace.path,
                **counts.as_dict(),
                "error": error_text(report.errors[namespace]) if namespace in report.errors else None,
            }
            for namespace, counts in report.namespaces.items()
        ],
        "backends": {str(backend): counts.as_dict() for backend, counts in report.backends.items()},
        "unsearched": [one._asdict() for one in report.unsearched],
        "left_alone": [str(backend) for backend in report.left_alone],
        "conntrack": report.conntrack,
        **(
            {"unrecorded": [outcome.socket and outcome.socket.cookie for outcome in report.unrecorded]}
            if report.unrecorded
            else {}
        ),
        **({"error": "; ".join(problems)} if problems else {}),
    }


_RARE = ("rerouted", "cleared", "would_destroy")
_RARE_IN_DRY_RUNS = ("destroyed", "rerouted", "cleared", "gone")


def sums_text(counts: Counts, *, dry_run: bool = False) -> str:
    """ "2 matched: 1 destroyed, 0 gone, ..."; some verdicts only where there are such."""
    rare = _RARE_IN_DRY_RUNS if dry_run else _RARE
    shown = [f"{n} {name}" for name, n in counts._asdict().items() if n or name not in rare]
    return f"{counts.matched} matched: {', '.join(shown)}".replace("would_destroy", "would be destroyed")


def outcome_line(outcome: Outcome, device: str | None, *, is_unrecorded: bool, users: str = "") -> str:
    """One verdict for people."""
    socket, flow = outcome.socket, outcome.flow
    client = outcome.client
    state = state_word(socket.state) if socket is not None else "-"
    source = local_endpoint(socket, device) if socket is not None else format_endpoint(client.src, client.sport)
    backend = f" to {format_endpoint(flow.backend.address, flow.backend.port)}" if flow is not None else ""
    peer = client.dst if socket is None else socket.dst_packed
    netns = outcome.namespace.name
    remarks = [outcome.reason] if outcome.reason else []
    if is_unrecorded:
        remarks.append("not in the audit")
    return (
        f"{outcome.verdict.replace('_', ' '):9} {PROTOCOL_NAMES[client.protocol]} {state:11} "
        f"{source} -> {format_endpoint(peer, client.dport or '*')}{backend}"
        + ("" if netns == CURRENT_NAME else f" in {printable(netns)}")
        + (f" {users}" if users else "")
        + (f" ({', '.join(remarks)})" if remarks else "")
    )


def local_endpoint(socket: InetSocket, device: str | None) -> str:
    """address%device:port, as ss(8) shows what a socket is bound to; the interface's number if it has no name."""
    address, _, port = format_endpoint(socket.src_packed, socket.sport or "*").rpartition(":")
    bound = f"%{printable(device or str(socket.interface))}" if socket.interface else ""
    return f"{address}{bound}:{port}"


def conntrack_text(status: str, dry_run: bool) -> str:
    """What is to be said of a report's `conntrack`: nothing where all was done that was asked for."""
    if status == ABSENT:
        return "conntrack is absent: clients of service addresses are left out"
    if status == REFUSED:
        text = "conntrack is not permitted: where CAP_NET_ADMIN is missing, clients of service addresses are left out"
        return text + ("; the real run would look there" if dry_run else "")
    return ""


def left_alone_texts(backends: Collection[Backend]) -> list[str]:
    """A line about those whose address means another one elsewhere; none if there is none."""
    if not backends:
        return []
    names = ", ".join(map(str, backends))
    return [f"searched for in the current namespace alone, for such an address is another one in each: {names}"]
