# SPDX-License-Identifier: MIT
"""`socklb destroy`: destroy the sockets that a filter matches."""

from __future__ import annotations

from ..engine.choice import CURRENT, chosen, is_one
from ..engine.policy import check_filters
from ..engine.run import Run
from ..errors import UnboundedFilter
from ..filters.bounds import unbounded
from .arguments import (
    FILTER_HELP,
    add_filter_arguments,
    add_netns_argument,
    add_processes_argument,
    add_report_arguments,
    audit_from,
    describe,
    filters_from,
)
from .netns import namespaces_from
from .output import DONE, NO_MATCH, warn
from .progress import progress
from .verdicts import run_and_show

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from ..engine.report import Outcome, Report
    from ..filters import SocketFilter
    from .holders import Held

_EXAMPLES = """\
examples:
  socklb destroy --dry-run dst 10.0.0.5 and dport = 5432     what would die
  socklb destroy -p --tcp 'dst 10.0.0.5:5432'   names the processes, too
  socklb destroy --udp 'dst 10.96.0.10:53' --json
  socklb destroy --tcp --limit 100 'dst 10.0.0.0/24'
  socklb destroy --netns all --audit /var/log/socklb.jsonl 'dst 10.0.0.5:5432'

The owner of a destroyed socket gets an error at once (TCP and connected UDP:
ECONNABORTED) and can reconnect. Spared are listening TCP sockets (unless
--state listening), UDP sockets without a peer (unless --unconnected), and the
ssh session that this runs in. Where nothing matched, standard error says what
the same filter matches in other states, protocols, families and namespaces, and
which options take that in. -p names the processes that held a socket before it
was destroyed, "process unseen" where none that one may look at did.
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
    add_processes_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="destroy nothing, show what would be destroyed")
    parser.add_argument("--limit", metavar="N", type=_limit, help="destroy at most N sockets, skip the rest")
    parser.add_argument(
        "--unbounded", action="store_true", help="allow a filter that could match everything, or none at all"
    )
    parser.add_argument("--unconnected", action="store_true", help="UDP sockets without a peer too")
    parser.add_argument("--require-match", action="store_true", help="end with 5 if nothing matched")
    add_report_arguments(parser)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < 1:
        raise ValueError(f"{text!r} is not a whole number above 0")
    return int(text)


def run(options: argparse.Namespace) -> int:
    filters = filters_from(options)
    if not options.filter and not options.unbounded:
        raise ValueError("destroy needs a FILTER (or --unbounded, to match every socket)")
    held = _held(options)
    texts = {filter.protocol: str(filter) for filter in filters}

    def target(_: Report, outcome: Outcome) -> dict[str, str]:
        return {"filter": texts[outcome.client.protocol]}

    def destroy() -> Report:
        namespaces = namespaces_from(options.netns, CURRENT)
        with audit_from(options) as audit, progress(bool(options.netns)) as report_progress:
            check_filters(filters, options.unbounded)
            run = Run(
                dry_run=options.dry_run,
                limit=options.limit,
                unconnected=options.unconnected,
                audit=audit,
                spare=None if held is None else held.look,
                after=None if held is None else held.look_at_spared,
            )
            where, one = chosen(namespaces), is_one(namespaces)
            return run.carry_out(lambda: run.search(filters, where, is_one=one, progress=report_progress))

    try:
        report, code = run_and_show(destroy, target, options, held)
    except UnboundedFilter:
        raise unbounded(f"'{' '.join(options.filter)}'", "say --unbounded") from None
    if report.matched:
        return code
    _say_that_nothing_matched(options, filters, report)
    return code or (NO_MATCH if options.require_match else DONE)


def _held(options: argparse.Namespace) -> Held | None:
    if not options.processes:
        return None
    from .holders import Held

    return Held()


def _say_that_nothing_matched(options: argparse.Namespace, filters: Sequence[SocketFilter], report: Report) -> None:
    """On standard error, if it was to be said, or if other options match something."""
    from .near_misses import near_misses  # most runs match

    lines = near_misses(options, filters, [one for one in report.namespaces if one not in report.errors])
    text = "nothing matched" + (", and --require-match asks for a match" if options.require_match else "")
    if lines:
        warn("\n  ".join([f"{text}; the same filter matches with other options:", *lines]))
    elif options.require_match:
        warn(text)
