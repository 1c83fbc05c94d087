# SPDX-License-Identifier: MIT
"""`socklb destroy`: destroy the sockets that a filter matches."""

from __future__ import annotations

import argparse

from ..engine.choice import CURRENT
from ..engine.run import destroy_sockets
from ..errors import UnboundedFilter
from .arguments import (
    FILTER_HELP,
    add_filter_arguments,
    add_netns_argument,
    add_report_arguments,
    audit_from,
    describe,
    filters_from,
)
from .netns import namespaces_from
from .progress import progress
from .verdicts import run_and_show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..engine.report import Outcome, Report

_EXAMPLES = """\
examples:
  socklb destroy --dry-run dst 10.0.0.5 and dport = 5432     what would die
  socklb destroy --tcp 'dst 10.0.0.5:5432'
  socklb destroy --udp 'dst 10.96.0.10:53' --json
  socklb destroy --tcp --limit 100 'dst 10.0.0.0/24'
  socklb destroy --netns all --audit /var/log/socklb.jsonl 'dst 10.0.0.5:5432'

The owner of a destroyed socket gets an error at once (TCP and connected UDP:
ECONNABORTED) and can reconnect. Spared are listening TCP sockets (unless
--state listening), UDP sockets without a peer (unless --unconnected), and the
ssh session that this runs in.
Needs CAP_NET_ADMIN, and CAP_SYS_ADMIN to enter other namespaces. A dry run in
this namespace needs no privilege, except for fwmark.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        description="Destroy the sockets that a filter matches, in this network namespace or those of --netns.",
        epilog=_EXAMPLES + FILTER_HELP,
    )
    add_filter_arguments(parser, may_show_all=False)
    add_netns_argument(parser, CURRENT)
    parser.add_argument("--dry-run", action="store_true", help="destroy nothing, show what would be destroyed")
    parser.add_argument("--limit", metavar="N", type=_limit, help="destroy at most N sockets, skip the rest")
    parser.add_argument(
        "--unbounded", action="store_true", help="allow a filter that could match everything, or none at all"
    )
    parser.add_argument("--unconnected", action="store_true", help="UDP sockets without a peer too")
    add_report_arguments(parser)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def run(options: argparse.Namespace) -> int:
    filters = filters_from(options)
    if not options.filter and not options.unbounded:
        raise ValueError("destroy needs a FILTER (or --unbounded, to match every socket)")
    texts = {filter.protocol: str(filter) for filter in filters}

    def target(_: Report, outcome: Outcome) -> dict[str, str]:
        return {"filter": texts[outcome.client.protocol]}

    def destroy() -> Report:
        namespaces = namespaces_from(options.netns, CURRENT)
        with audit_from(options) as audit, progress(bool(options.netns)) as report_progress:
            return destroy_sockets(
                filters,
                namespaces=namespaces,
                dry_run=options.dry_run,
                limit=options.limit,
                unconnected=options.unconnected,
                allow_unbounded=options.unbounded,
                audit=audit,
                progress=report_progress,
            )

    try:
        return run_and_show(destroy, target, options)
    except UnboundedFilter:
        raise UnboundedFilter(
            f"'{' '.join(options.filter)}' could match everything: name an address (with a prefix of at least /16, v6: "
            "/32), at most 4096 ports, a device, a cgroup, a process or a user, or say --unbounded"
        ) from None
