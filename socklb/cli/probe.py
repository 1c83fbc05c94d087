# SPDX-License-Identifier: MIT
"""`socklb probe`: can this kernel, and this caller, destroy sockets?"""

from __future__ import annotations

import argparse

from ..engine.probe import NO_FAMILY, NOT_PERMITTED, SUPPORTED, Support, probe
from ..features import has
from ..wire.socket_id import AF_INET
from .arguments import describe
from .output import CANNOT, DONE, REFUSED, error_as_json, ignore_broken_pipe, print_json

_EXAMPLES = """\
examples:
  socklb probe
  socklb probe --json

Tries it on sockets of its own, one for each protocol and family; no other
socket is touched. Ends with 3 if the kernel lacks something, else with 4 if the
caller lacks CAP_NET_ADMIN, else with 0. A host without IPv6 lacks nothing: it
has no such sockets. The line on conntrack says whether clients of service
addresses can be found (see socklb flows), and changes nothing of that.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(parser, run, epilog=_EXAMPLES)
    parser.add_argument("--json", action="store_true", help='one JSON object: {"tcp4": {"status": ..., ...}, ...}')


def run(options: argparse.Namespace) -> int:
    with error_as_json(options.json):
        answers = {_label(*key): support for key, support in probe().items()}
        shown = {**answers, **_conntrack()}
    with ignore_broken_pipe():
        if options.json:
            print_json({**{label: support._asdict() for label, support in shown.items()}, **_error(answers)})
        else:
            for label, support in shown.items():
                print(f"{label:9}  {support.status:13}  {support.missing}".rstrip())
    return _code(answers)


def _conntrack() -> dict[str, Support]:
    """Nothing in a copy that cannot ask it."""
    if not has("conntrack"):
        return {}
    from ..conntrack.support import conntrack_support

    return {"conntrack": conntrack_support()}


def _label(protocol: str, family: int) -> str:
    return protocol + ("4" if family == AF_INET else "6")


def _lacking(answers: dict[str, Support]) -> list[Support]:
    """The answers that stand in the way. Where there is no IPv6 there are no IPv6 sockets to destroy either."""
    there = [answer for answer in answers.values() if answer.status != NO_FAMILY]
    return [answer for answer in there or answers.values() if answer.status != SUPPORTED]


def _error(answers: dict[str, Support]) -> dict[str, str]:
    """For JSON, all that is missing in one text; nothing if nothing is."""
    missing = dict.fromkeys(answer.missing for answer in _lacking(answers))
    return {"error": "missing: " + "; ".join(missing)} if missing else {}


def _code(answers: dict[str, Support]) -> int:
    statuses = {answer.status for answer in _lacking(answers)}
    if statuses - {NOT_PERMITTED}:
        return CANNOT
    return REFUSED if statuses else DONE
