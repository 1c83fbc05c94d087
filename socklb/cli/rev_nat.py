# SPDX-License-Identifier: MIT
"""`socklb rev-nat`: what the balancer's reverse-NAT maps say."""

from __future__ import annotations

import argparse

from ..engine.find import live_cookies
from ..errors import SocklbError
from ..kernel.namespaces import NetworkNamespace
from ..wire.address import format_address, format_endpoint
from .arguments import add_rev_nat_argument, open_rev_nat
from .help import HelpFormatter
from .namespaces import skipped_texts
from .output import BAD_INPUT, DONE, SOME_FAILED, complain, error_text, exit_code, print_json, quiet_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..reverse_nat.maps import RevNatEntry

_EXAMPLES = """\
examples:
  socklb rev-nat
  socklb rev-nat --stale --json
  socklb rev-nat --rev-nat=/sys/fs/bpf/tc/globals

An entry says that the balancer sent a socket, known by its cookie, to a backend when it had asked for a service. It is
stale when no such socket lives in any namespace of this host. Ends with 1 if some could not be looked at: a socket that
lives there counts as stale. Needs permission to read the maps (and CAP_BPF before Linux 5.19), and for --stale what
`socklb terminate` needs to see all namespaces.
"""
_ROW = "{:>20} {:>28} {:>28} {:>5}"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "rev-nat",
        help="what the balancer's reverse-NAT maps say",
        description="Show the reverse-NAT entries of the balancer: which socket it sent where.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add_rev_nat_argument(parser, "the directory of the maps")
    parser.add_argument("--stale", action="store_true", help="only those whose socket lives no more")
    parser.add_argument("--json", action="store_true", help='one JSON object: {"entries": [...]}')
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    problems: list[str] = []
    try:
        with open_rev_nat(options.rev_nat or "") as maps:
            entries = list(maps.entries())
        if options.stale:
            # The sockets are looked at after the entries: one that came in between is nobody's stale entry.
            found = NetworkNamespace.discover()
            problems = skipped_texts(found.skipped)
            alive = live_cookies(found)
            entries = [entry for entry in entries if entry.cookie not in alive]
    except (SocklbError, KeyboardInterrupt) as error:
        if options.json and exit_code(error) != BAD_INPUT:
            print_json({"entries": [], "error": error_text(error)})
        raise
    for text in problems:
        complain(text)
    with quiet_pipe():
        if options.json:
            said = {"error": "; ".join(problems)} if problems else {}
            print_json({"entries": [_record(entry) for entry in entries], **said})
        else:
            _print_table(entries)
    return SOME_FAILED if problems else DONE


def _record(entry: RevNatEntry) -> dict[str, Any]:
    return {
        **entry._asdict(),
        "backend_address": format_address(entry.backend_address),
        "service_address": format_address(entry.service_address),
    }


def _print_table(entries: list[RevNatEntry]) -> None:
    print(_ROW.format("Cookie", "Backend:Port", "Service:Port", "Index"))
    for entry in entries:
        backend = format_endpoint(entry.backend_address, entry.backend_port)
        service = format_endpoint(entry.service_address, entry.service_port)
        print(_ROW.format(entry.cookie, backend, service, entry.rev_nat_index))
