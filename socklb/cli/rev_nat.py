# SPDX-License-Identifier: MIT
"""`socklb rev-nat`: show the entries of the balancer's reverse-NAT maps."""

from __future__ import annotations

import argparse
from contextlib import closing
from itertools import chain, islice

from ..engine.find import live_cookies
from ..kernel.discovery import discover_namespaces, unsearched
from ..wire.address import format_address, format_endpoint
from .arguments import add_rev_nat_dir_argument, describe, open_rev_nat
from .netns import unsearched_texts
from .output import DONE, SOME_FAILED, error_text, ignore_broken_pipe, warn
from .search import stream_json
from .signals import ended_by_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
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
_AT_ONCE = 32_768  # entries that are kept while the sockets are looked at
_ROW = "{:>20} {:>28} {:>28} {:>5}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(parser, run, epilog=_EXAMPLES)
    add_rev_nat_dir_argument(parser)
    parser.add_argument("--stale", action="store_true", help="only those whose socket no longer exists")
    parser.add_argument("--json", action="store_true", help='one JSON object: {"entries": [...]}')


def run(options: argparse.Namespace) -> int:
    look = _Look()

    def entries() -> Generator[RevNatEntry, None, None]:
        with open_rev_nat(options.rev_nat_dir) as maps:
            yield from look.stale(maps.entries()) if options.stale else maps.entries()

    with closing(entries()) as found:
        if options.json:
            stream_json("entries", map(_record, found), look.ended)
        else:
            with ended_by_signals(), ignore_broken_pipe():
                _print_table(found)
    for text in filter(None, (*look.problems, look.hidden)):
        warn(text)
    return SOME_FAILED if look.problems else DONE


class _Look:
    """At the sockets of this host, and what of that failed."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.hidden = ""

    def stale(self, entries: Iterator[RevNatEntry]) -> Iterator[RevNatEntry]:
        """Those without a socket. So many at a time, each time looking at the sockets after the entries: one that was
        made in between must not count as stale.
        """
        while batch := list(islice(entries, _AT_ONCE)):
            found = discover_namespaces()
            alive = live_cookies(found)
            self.problems, self.hidden = unsearched_texts(unsearched(found.refused, found)), found.hidden
            yield from (entry for entry in batch if entry.cookie not in alive)

    def ended(self, error: BaseException | None) -> dict[str, Any]:
        """What JSON has behind the entries."""
        text = "; ".join(self.problems) if error is None else error_text(error)
        return {"error": text} if text else {}


def _record(entry: RevNatEntry) -> dict[str, Any]:
    return {
        **entry._asdict(),
        "backend_address": format_address(entry.backend_address),
        "service_address": format_address(entry.service_address),
    }


def _print_table(entries: Iterator[RevNatEntry]) -> None:
    first = next(entries, None)  # before the header: on bad input nothing is printed
    print(_ROW.format("Cookie", "Backend:Port", "Service:Port", "Index"))
    for entry in () if first is None else chain((first,), entries):
        backend = format_endpoint(entry.backend_address, entry.backend_port)
        service = format_endpoint(entry.service_address, entry.service_port)
        print(_ROW.format(entry.cookie, backend, service, entry.rev_nat_index))
