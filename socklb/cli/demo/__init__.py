# SPDX-License-Identifier: MIT
"""`socklb demo`: show what it does, in network namespaces of its own."""

from __future__ import annotations

import argparse

from ...engine.report import Counts
from ..arguments import describe
from ..output import DONE, SOME_FAILED, error_as_json, ignore_broken_pipe, print_json
from ..verdicts import sums_text
from .play import play
from .world import VICTIM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_DESCRIPTION = (
    "Build a user and a network namespace (no root and no network needed), start three backends, connect clients to "
    "each over TCP and UDP, by v4, v6 and v4-mapped addresses and by services that DNAT balances, cut the clients of "
    "one backend, and show who answered each before and after. Ends with 1 if one client too many or too few was cut, "
    "with 3 if such namespaces are not allowed here."
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
        commands, rows, reports = play()
    wrong = sum(not row["as_expected"] for row in rows)
    counts = Counts(*map(sum, zip(*(report.counts for report in reports))))
    with ignore_broken_pipe():
        if options.json:
            print_json({"commands": commands, "clients": rows, **counts.as_dict(), "wrong": wrong})
        else:
            _print_table(commands, rows, counts, wrong)
    return SOME_FAILED if wrong else DONE


def _print_table(commands: list[str], rows: list[dict[str, Any]], counts: Counts, wrong: int) -> None:
    print(f"Three backends, {len(rows)} clients. Backend {VICTIM} is gone, so this was run:\n")
    for command in commands:
        print(f"  {command}")
    print(f"\n  {'client':16} {'backend':8} {'before':8} after")
    for row in rows:
        remark = "" if row["as_expected"] else "   <- WRONG"
        print(f"  {row['client']:16} {row['backend']:8} {row['before']:8} {row['after']}{remark}")
    print(f"\n{sums_text(counts)}; {wrong} died or lived by mistake.")
