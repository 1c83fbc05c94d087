# SPDX-License-Identifier: MIT
"""`socklb demo`: show what it does, in a world of its own."""

from __future__ import annotations

import argparse

from ..errors import SocklbError
from .help import HelpFormatter
from .output import DONE, SOME_FAILED, error_text, print_json, quiet_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..engine.report import DestroyReport

_EXPLANATION = """\
Builds a user and a network namespace of its own (no root, no network needed), starts three backends, connects clients
to each over TCP and UDP, by v4, v6 and v4-mapped addresses, destroys the connections to one backend, and shows what the
clients saw before and after. Ends with 1 if one connection too many or too few died, with 3 if there can be no such
namespace here.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="show what it does, in a world of its own",
        description=_EXPLANATION,
        epilog="examples:\n  socklb demo\n  socklb demo --json\n",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object: the clients, and the sums")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from .demo_world import VICTIM, play  # no other command needs it

    try:
        filter, rows, report = play()
    except (SocklbError, KeyboardInterrupt) as error:
        if options.json:
            print_json({"error": error_text(error)})
        raise
    wrong = sum(not row["as_expected"] for row in rows)
    with quiet_pipe():
        if options.json:
            print_json({"filter": filter, "clients": rows, **report.sums(), "wrong": wrong})
        else:
            _print_table(VICTIM, filter, rows, report, wrong)
    return SOME_FAILED if wrong else DONE


def _print_table(victim: str, filter: str, rows: list[dict[str, Any]], report: DestroyReport, wrong: int) -> None:
    print(f"Three backends, {len(rows)} clients. Backend {victim} is gone, so this was run:\n")
    print(f"  socklb destroy '{filter}'\n")
    print(f"  {'client':16} {'backend':8} {'before':8} after")
    for row in rows:
        remark = "" if row["as_expected"] else "   <- WRONG"
        print(f"  {row['client']:16} {row['backend']:8} {row['before']:8} {row['after']}{remark}")
    sums = report.sums()
    print(f"\n{sums['matched']} matched, {sums['destroyed']} destroyed, {wrong} died or lived by mistake.")
