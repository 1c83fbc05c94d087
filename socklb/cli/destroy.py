"""`socklb destroy`: destroy the sockets that a filter means."""

from __future__ import annotations

import argparse

from ..destroy import destroy_each
from ..errors import SocklbError, UnboundedFilter
from ..kernel.namespaces import HOST_NAME
from ..report import DestroyReport, outcome_record
from ..states import state_word
from ..wire.reply import format_endpoint
from ..wire.request import PROTOCOL_NAMES
from .arguments import FILTER_HELP, add_filter_arguments, filters_from
from .help import HelpFormatter
from .output import BAD_INPUT, DONE, SOME_FAILED, error_text, exit_code, print_json, quiet_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..filters import SocketFilter

_EXAMPLES = """\
examples:
  socklb destroy --dry-run dst 10.0.0.5 and dport = 5432     what would die
  socklb destroy --tcp 'dst 10.0.0.5:5432'
  socklb destroy --udp 'dst 10.96.0.10:53' --json
  socklb destroy --tcp --limit 100 'dst 10.0.0.0/24'

The owner of a destroyed socket gets an error at once (TCP and connected UDP: ECONNABORTED) and can reconnect.
Spared are listening TCP sockets (unless --state listening), UDP sockets without a peer (unless --unconnected), and the
ssh session that this runs in. Needs CAP_NET_ADMIN; --dry-run needs nothing, but for fwmark.

"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "destroy",
        help="destroy the sockets that a filter means",
        description="Destroy the sockets that a filter means, in this network namespace.",
        epilog=_EXAMPLES + FILTER_HELP,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add_filter_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="destroy nothing, tell what would be")
    parser.add_argument("--limit", metavar="N", type=_limit, help="destroy N at most, skip the rest")
    parser.add_argument(
        "--all", action="store_true", help="allow a filter that names no endpoint, or none: every socket is meant"
    )
    parser.add_argument("--unconnected", action="store_true", help="UDP sockets without a peer too")
    parser.add_argument("--json", action="store_true", help="one JSON object: the sums, and a verdict for each socket")
    parser.set_defaults(run=run)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def run(options: argparse.Namespace) -> int:
    filters = filters_from(options)
    if not options.filter and not options.all:
        raise ValueError("destroy needs a FILTER (or --all, which means every socket)")
    try:
        report = destroy_each(
            filters,
            dry_run=options.dry_run,
            limit=options.limit,
            unconnected=options.unconnected,
            allow_unbounded=options.all,
        )
    except UnboundedFilter:
        raise UnboundedFilter(
            f"'{' '.join(options.filter)}' bounds no endpoint, so it could hit everything: name an address or a port, "
            "or say --all"
        ) from None
    except (SocklbError, KeyboardInterrupt) as error:
        if exit_code(error) != BAD_INPUT:
            with quiet_pipe():
                _print(getattr(error, "report", None) or DestroyReport(), filters, options, error)
        raise
    with quiet_pipe():
        _print(report, filters, options, None)
    return SOME_FAILED if report.failed else DONE


def _print(
    report: DestroyReport, filters: list[SocketFilter], options: argparse.Namespace, error: BaseException | None
) -> None:
    if options.json:
        said = {} if error is None else {"error": error_text(error)}
        texts = {filter.protocol: str(filter) for filter in filters}
        sockets = [
            {
                "namespace": HOST_NAME,
                "filter": texts[outcome.socket.protocol],
                "dry_run": options.dry_run,
                **outcome_record(outcome),
            }
            for outcome in report.outcomes
        ]
        print_json({**report.sums(), **said, "sockets": sockets})
        return
    for outcome in report.outcomes:
        socket = outcome.socket
        line = (
            f"{outcome.verdict:9} {PROTOCOL_NAMES[socket.protocol]} {state_word(socket.state):11} "
            f"{format_endpoint(socket.src, socket.sport)} -> {format_endpoint(socket.dst, socket.dport)}"
        )
        print(f"{line} ({outcome.reason})" if outcome.reason else line)
    sums = report.sums()
    print(f"{sums.pop('matched')} matched: " + ", ".join(f"{count} {name}" for name, count in sums.items()))
