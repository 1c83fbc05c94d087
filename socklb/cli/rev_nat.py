# SPDX-License-Identifier: MIT
"""`socklb rev-nat`: show the entries of the balancer's reverse-NAT maps."""

from __future__ import annotations

import argparse

from ..engine.find import live_cookies
from ..kernel.discovery import discover_namespaces, unsearched
from ..wire.address import format_address, format_endpoint
from .arguments import add_rev_nat_dir_argument, describe, open_rev_nat
from .netns import unsearched_texts
from .output import DONE, SOME_FAILED, error_as_json, ignore_broken_pipe, print_json, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..reverse_nat import RevNatEntry

_EXAMPLES = """\
examples:
  socklb rev-nat
  socklb rev-nat --stale --json
  socklb rev-nat --rev-nat-dir /sys/fs/bpf/tc/globals

An entry records that the balancer sent a socket, identified by its cookie, to a
backend when it had asked for a service. It is stale if no such socket exists in
any namespace of this host. Ends with 1 if some namespaces could not be
searched: the entries of sockets there count as stale.
Needs permission to read the maps (and CAP_BPF before Linux 5.19), and for
--stale what `socklb terminate` needs to see all namespaces.
"""
_ROW = "{:>20} {:>28} {:>28} {:>5}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(parser, run, epilog=_EXAMPLES)
    add_rev_nat_dir_argument(parser)
    parser.add_argument("--stale", action="store_true", help="only those whose socket no longer exists")
    parser.add_argument("--json", action="store_true", help='one JSON object: {"entries": [...]}')


def run(options: argparse.Namespace) -> int:
    problems: list[str] = []
    hidden = ""
    with error_as_json(options.json, entries=[]):
        with open_rev_nat(options.rev_nat_dir) as maps:
            entries = list(maps.entries())
        if options.stale:
            # Look at the sockets after the entries: one that was made in between must not count as stale.
            found = discover_namespaces()
            alive = live_cookies(found)
            problems = unsearched_texts(unsearched(found.refused, found))
            hidden = found.hidden
            entries = [entry for entry in entries if entry.cookie not in alive]
    for text in (*problems, hidden) if hidden else problems:
        warn(text)
    with ignore_broken_pipe():
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
