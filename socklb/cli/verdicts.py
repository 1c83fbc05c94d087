# SPDX-License-Identifier: MIT
"""How the commands that destroy show what became of the sockets."""

from __future__ import annotations

from ..engine.report import DestroyReport, outcome_record
from ..kernel.namespaces import HOST_NAME
from ..states import state_word
from ..wire.address import format_endpoint
from ..wire.request import PROTOCOL_NAMES
from .output import complain, error_text, print_json, quiet_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any, Union

    from ..engine.everywhere import NamespacesReport
    from ..engine.ledger import Subject
    from ..engine.report import Counts, Outcome

    Report = Union[DestroyReport, NamespacesReport]


def show(
    report: Report,
    subject: Subject,
    options: argparse.Namespace,
    error: BaseException | None,
    more: dict[str, Any] | None = None,
) -> None:
    """The verdicts and their sums on standard output, as lines or (--json) one object with `more` in it.

    Namespaces that failed or were skipped are told on standard error. `error` is what ended the run, if it was ended.
    """
    outcomes = _named(report)
    problems = []
    if not isinstance(report, DestroyReport):
        from .namespaces import tell_skipped  # one namespace alone needs none of it

        problems = namespace_problems(report, error)
        tell_skipped(report.skipped_namespaces)
    for text in problems:
        complain(text)
    with quiet_pipe():
        if options.json:
            said = [error_text(error)] if error is not None else problems
            print_json(
                {
                    **report.sums(),
                    **({"error": "; ".join(said)} if said else {}),
                    **({"unrecorded": [o.socket.cookie for o in report.unrecorded]} if report.unrecorded else {}),
                    "sockets": [outcome_record(o, where, subject(o.socket), options.dry_run) for where, o in outcomes],
                    **(more or {}),
                }
            )
            return
        unrecorded = {id(outcome) for outcome in report.unrecorded}
        for where, outcome in outcomes:
            print(outcome_line(where, outcome, id(outcome) in unrecorded))
        print(sums_text(report))


def sums_text(counts: Counts) -> str:
    """ "2 matched: 1 destroyed, 0 gone, ..." """
    sums = counts.sums()
    return f"{sums.pop('matched')} matched: " + ", ".join(f"{count} {name}" for name, count in sums.items())


def _named(report: Report) -> list[tuple[str, Outcome]]:
    """The outcomes, each with the name of its namespace."""
    if isinstance(report, DestroyReport):
        return [(HOST_NAME, outcome) for outcome in report.outcomes]
    return [(namespace.name, outcome) for namespace, outcome in report.outcomes]


def outcome_line(where: str, outcome: Outcome, is_unrecorded: bool) -> str:
    """One verdict for people; `where` is the name of the namespace."""
    socket = outcome.socket
    remarks = [outcome.reason] if outcome.reason else []
    if is_unrecorded:
        remarks.append("not in the audit")
    return (
        f"{outcome.verdict:9} {PROTOCOL_NAMES[socket.protocol]} {state_word(socket.state):11} "
        f"{format_endpoint(socket.src, socket.sport)} -> {format_endpoint(socket.dst, socket.dport)}"
        + ("" if where == HOST_NAME else f" in {where}")
        + (f" ({', '.join(remarks)})" if remarks else "")
    )


def namespace_problems(report: NamespacesReport, ended: BaseException | None = None) -> list[str]:
    """What is to be said about namespaces that were not searched to the end, besides what ended the run."""
    return [
        f"in {namespace.name}: {error_text(error)}" for namespace, error in report.errors.items() if error is not ended
    ]
