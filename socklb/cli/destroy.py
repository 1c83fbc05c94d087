# SPDX-License-Identifier: MIT
"""`socklb destroy`: destroy the sockets that a filter means."""

from __future__ import annotations

import argparse

from ..engine.destroy import Operation
from ..engine.report import DestroyReport
from ..errors import SocklbError, UnboundedFilter
from .arguments import (
    FILTER_HELP,
    add_audit_argument,
    add_filter_arguments,
    add_netns_argument,
    audit_from,
    filters_from,
)
from .help import HelpFormatter
from .output import BAD_INPUT, DONE, SOME_FAILED, exit_code
from .verdicts import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..engine.everywhere import NamespacesReport
    from ..engine.ledger import Audit
    from ..filters import SocketFilter
    from ..wire.reply import InetSocket

_EXAMPLES = """\
examples:
  socklb destroy --dry-run dst 10.0.0.5 and dport = 5432     what would die
  socklb destroy --tcp 'dst 10.0.0.5:5432'
  socklb destroy --udp 'dst 10.96.0.10:53' --json
  socklb destroy --tcp --limit 100 'dst 10.0.0.0/24'
  socklb destroy --netns all --audit /var/log/socklb.jsonl 'dst 10.0.0.5:5432'

The owner of a destroyed socket gets an error at once (TCP and connected UDP: ECONNABORTED) and can reconnect.
Spared are listening TCP sockets (unless --state listening), UDP sockets without a peer (unless --unconnected), and the
ssh session that this runs in. Needs CAP_NET_ADMIN, and CAP_SYS_ADMIN to enter other namespaces; --dry-run needs
nothing here, but for fwmark.

"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "destroy",
        help="destroy the sockets that a filter means",
        description="Destroy the sockets that a filter means, in this network namespace or those of --netns.",
        epilog=_EXAMPLES + FILTER_HELP,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add_filter_arguments(parser)
    add_netns_argument(parser, "host")
    parser.add_argument("--dry-run", action="store_true", help="destroy nothing, tell what would be")
    parser.add_argument("--limit", metavar="N", type=_limit, help="destroy N at most, skip the rest")
    parser.add_argument(
        "--all", action="store_true", help="allow a filter that names no endpoint, or none: every socket is meant"
    )
    parser.add_argument("--unconnected", action="store_true", help="UDP sockets without a peer too")
    parser.add_argument("--json", action="store_true", help="one JSON object: the sums, and a verdict for each socket")
    add_audit_argument(parser)
    parser.set_defaults(run=run)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def run(options: argparse.Namespace) -> int:
    filters = filters_from(options)
    if not options.filter and not options.all:
        raise ValueError("destroy needs a FILTER (or --all, which means every socket)")
    texts = {filter.protocol: str(filter) for filter in filters}

    def subject(socket: InetSocket) -> dict[str, str]:
        return {"filter": texts[socket.protocol]}

    with audit_from(options) as audit:
        operation = _operation(filters, options, audit)
        try:
            report = _run_in(options, operation)
        except (SocklbError, KeyboardInterrupt) as error:
            if exit_code(error) != BAD_INPUT:
                show(getattr(error, "report", None) or DestroyReport(), subject, options, error)
            raise
    show(report, subject, options, None)
    return SOME_FAILED if report.failed or getattr(report, "errors", None) else DONE


def _operation(filters: list[SocketFilter], options: argparse.Namespace, audit: Audit | None) -> Operation:
    try:
        return Operation(
            filters,
            dry_run=options.dry_run,
            limit=options.limit,
            unconnected=options.unconnected,
            allow_unbounded=options.all,
            audit=audit,
        )
    except UnboundedFilter:
        raise UnboundedFilter(
            f"'{' '.join(options.filter)}' bounds no endpoint, so it could hit everything: name an address or a port, "
            "or say --all"
        ) from None


def _run_in(options: argparse.Namespace, operation: Operation) -> DestroyReport | NamespacesReport:
    """In this namespace, which takes no thread and not even /proc, or in those of --netns."""
    if not options.netns:
        return operation.run_in(None)
    from ..engine.everywhere import NamespacesReport, run_everywhere
    from .namespaces import namespaces_from
    from .progress import progress

    report = NamespacesReport()
    with progress() as tell:
        run_everywhere(operation, namespaces_from(options.netns), report, tell)
    return report
