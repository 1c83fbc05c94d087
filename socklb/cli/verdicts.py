# SPDX-License-Identifier: MIT
"""How the commands that destroy show what became of the sockets."""

from __future__ import annotations

from ..engine.report import Report, outcome_record
from ..errors import SocklbError
from ..kernel.namespaces import CURRENT_NAME
from ..states import state_word
from ..wire.address import format_endpoint
from ..wire.request import PROTOCOL_NAMES
from .netns import warn_of_unsearched
from .output import BAD_INPUT, DONE, SOME_FAILED, error_text, exit_code, ignore_broken_pipe, print_json, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from ..engine.report import Counts, Outcome

    Target = Callable[[Report, Outcome], dict[str, str]]


def run_and_show(destroy: Callable[[], Report], target: Target, options: argparse.Namespace) -> int:
    """Run what destroys, show its report, and give the exit code.

    The report of a run that an error ended is shown too, an empty one if no run had begun; on bad input nothing is.
    """
    try:
        report = destroy()
    except (SocklbError, ValueError, KeyboardInterrupt) as error:
        if exit_code(error) != BAD_INPUT:
            nothing_done = Report(getattr(options, "backends", ()))
            _show(getattr(error, "report", None) or nothing_done, target, options, error)
        raise
    _show(report, target, options, None)
    return SOME_FAILED if report.failed or report.errors or report.unsearched else DONE


def _show(report: Report, target: Target, options: argparse.Namespace, error: BaseException | None) -> None:
    """The verdicts and their sums on standard output, as lines or (--json) as one object.

    Namespaces that failed or were skipped are named on standard error. `error` is what ended the run, if anything did.
    """
    problems = namespace_problems(report, error)
    warn_of_unsearched(report.unsearched, report.hidden)
    for text in problems:
        warn(text)
    with ignore_broken_pipe():
        if options.json:
            print_json(_as_json(report, target, options, [error_text(error)] if error is not None else problems))
            return
        unrecorded = {id(outcome) for outcome in report.unrecorded}
        for outcome in report.outcomes:
            print(outcome_line(outcome, is_unrecorded=id(outcome) in unrecorded))
        print(sums_text(report.counts))


def _as_json(report: Report, target: Target, options: argparse.Namespace, problems: list[str]) -> dict[str, Any]:
    return {
        **report.counts.as_dict(),
        **({"error": "; ".join(problems)} if problems else {}),
        **({"unrecorded": [outcome.socket.cookie for outcome in report.unrecorded]} if report.unrecorded else {}),
        "sockets": [outcome_record(o, target(report, o), options.dry_run) for o in report.outcomes],
        "namespaces": [
            {
                "name": namespace.name,
                "path": namespace.path,
                **counts.as_dict(),
                "error": error_text(report.errors[namespace]) if namespace in report.errors else None,
            }
            for namespace, counts in report.namespaces.items()
        ],
        "unsearched": [one._asdict() for one in report.unsearched],
        "backends": {str(backend): counts.as_dict() for backend, counts in report.backends.items()},
    }


def sums_text(counts: Counts) -> str:
    """ "2 matched: 1 destroyed, 0 gone, ..." """
    return f"{counts.matched} matched: " + ", ".join(f"{count} {name}" for name, count in counts._asdict().items())


def outcome_line(outcome: Outcome, *, is_unrecorded: bool) -> str:
    """One verdict for people."""
    socket = outcome.socket
    netns = outcome.namespace.name
    remarks = [outcome.reason] if outcome.reason else []
    if is_unrecorded:
        remarks.append("not in the audit")
    return (
        f"{outcome.verdict:9} {PROTOCOL_NAMES[socket.protocol]} {state_word(socket.state):11} "
        f"{format_endpoint(socket.src, socket.sport)} -> {format_endpoint(socket.dst, socket.dport)}"
        + ("" if netns == CURRENT_NAME else f" in {netns}")
        + (f" ({', '.join(remarks)})" if remarks else "")
    )


def namespace_problems(report: Report, ended: BaseException | None = None) -> list[str]:
    """What is to be said about namespaces that were not searched to the end, besides what ended the run."""
    return [
        f"in {namespace.name}: {error_text(error)}" for namespace, error in report.errors.items() if error is not ended
    ]
