# SPDX-License-Identifier: MIT
"""`socklb demo`: show what it does, in network namespaces of its own."""

from __future__ import annotations

import argparse

from ..arguments import describe
from ..output import DONE, SOME_FAILED, error_as_json, ignore_broken_pipe, print_json
from .world import VICTIM, play

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...engine.report import Report

_DESCRIPTION = (
    "Build a user and a network namespace (no root and no network needed), start three backends, connect clients to "
    "each over TCP and UDP, by v4, v6 and v4-mapped addresses, destroy the connections to one backend, and show what "
    "the clients saw before and after. Ends with 1 if one connection too many or too few died, with 3 if such "
    "namespaces are not allowed here."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        description=_DESCRIPTION,
        epilog="examples:\n  socklb demo\n  socklb demo --json\n",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object: the clients, and the sums")


def run(options: argparse.Namespace) -> int:
    with error_as_json(options.json):
        filter, rows, report = play()
    wrong = sum(not row["as_expected"] for row in rows)
    with ignore_broken_pipe():
        if options.json:
            print_json({"filter": filter, "clients": rows, **report.counts.as_dict(), "wrong": wrong})
        else:
            _print_table(VICTIM, filter, rows, report, wrong)
    return SOME_FAILED if wrong else DONE


def _print_table(victim: str, filter: str, rows: list[dict[str, Any]], report: Report, wrong: int) -> None:
    print(f"Three backends, {len(rows)} clients. Backend {victim} is gone, so this was run:\n")
    print(f"  socklb destroy '{filter}'\n")
    print(f"  {'client':16} {'backend':8} {'before':8} after")
    for row in rows:
        remark = "" if row["as_expected"] else "   <- WRONG"
        print(f"  {row['client']:16} {row['backend']:8} {row['before']:8} {row['after']}{remark}")
    print(f"\n{report.matched} matched, {report.destroyed} destroyed, {wrong} died or lived by mistake.")
