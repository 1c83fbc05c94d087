# SPDX-License-Identifier: MIT
"""`socklb probe`: can this kernel, and this caller, destroy sockets?"""

from __future__ import annotations

import argparse

from ..engine.probe import NOT_PERMITTED, SUPPORTED, Support, probe
from ..errors import SocklbError
from ..wire.socket_id import AF_INET
from .help import HelpFormatter
from .output import CANNOT, DONE, REFUSED, error_text, print_json, quiet_pipe

_EXAMPLES = """\
examples:
  socklb probe
  socklb probe --json

Tries it on throw-away sockets of its own, one for each protocol and family; no other socket is touched.
Ends with 3 if the kernel lacks something, else with 4 if the caller lacks CAP_NET_ADMIN, else with 0.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "probe",
        help="can this kernel, and this caller, destroy sockets?",
        description="Can this kernel, and this caller, destroy sockets?",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help='one JSON object: {"tcp4": {"status": ..., ...}, ...}')
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        answers = {_label(*key): support for key, support in probe().items()}
    except (SocklbError, KeyboardInterrupt) as error:
        if options.json:
            print_json({"error": error_text(error)})
        raise
    with quiet_pipe():
        if options.json:
            print_json({**{label: support._asdict() for label, support in answers.items()}, **_error(answers)})
        else:
            for label, support in answers.items():
                print(f"{label}  {support.status:13}  {support.missing}".rstrip())
    return _code(answers)


def _label(protocol: str, family: int) -> str:
    return protocol + ("4" if family == AF_INET else "6")


def _error(answers: dict[str, Support]) -> dict[str, str]:
    """For JSON, what is missing in one text; nothing if nothing is."""
    missing = dict.fromkeys(support.missing for support in answers.values() if support.missing)
    return {"error": "missing: " + "; ".join(missing)} if missing else {}


def _code(answers: dict[str, Support]) -> int:
    statuses = {support.status for support in answers.values()} - {SUPPORTED}
    if statuses - {NOT_PERMITTED}:
        return CANNOT
    return REFUSED if statuses else DONE
