# SPDX-License-Identifier: MIT
"""`socklb flows`: show which clients conntrack has balanced to a backend."""

from __future__ import annotations

import argparse
import sys
from collections import namedtuple
from contextlib import closing
from itertools import chain, islice

from ..conntrack.flows import find_flows
from ..engine.choice import ALL
from ..features import has, missing
from ..kernel.namespaces import NetworkNamespace
from ..kernel.processes import holders
from ..wire.address import format_address, format_endpoint
from ..wire.request import PROTOCOL_NAMES
from .arguments import add_backend_arguments, add_netns_argument, add_processes_argument, describe
from .holders import UNSEEN, holders_record, users_text
from .output import printable, terminal_width, warn
from .search import Search, stream_json
from .signals import ended_by_signals
from .verdicts import left_alone_texts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Any

    from ..conntrack.layout import Flow
    from ..filters.backend import Backend
    from ..kernel.processes import Process

_EXAMPLES = """\
examples:
  socklb flows                            whatever is balanced on this host
  socklb flows 10.244.2.2:8080/TCP        who is balanced to this backend
  socklb flows -p --netns current 10.244.2.2:53/UDP
  socklb flows --json

A flow is a connection of TCP or UDP in the tables of conntrack whose client
asked for a service, and is answered by a backend: kube-proxy, Docker's
published ports, any DNAT, IPVS where it uses conntrack. A loopback address is
another backend in each namespace: it is looked for in the current one, or in
those of --netns. Needs CAP_NET_ADMIN in the user namespaces that own the
network namespaces, and what `socklb terminate` needs to enter and see them.

-p finds a process by the socket that has the client's and the service's address
in one of the namespaces searched, also behind a further NAT in another one.
Where there is none: "no local socket", the client is elsewhere, or has no
connected socket; "no owner", no process holds the socket any more; "unseen",
none that one may look at does.
"""
_WIDE = "{:5} {:11} {:>7} {:>23} {:>23} {:>23} {}"
_NARROW = "{:5} {:11} {:>7} {:>25} {:>25}\n      to {} in {}"  # the first row has 77 columns
_HEADS = ("Netid", "State", "Expires", "Client:Port", "Service:Port", "Backend:Port", "Netns")
_WIDE_COLUMNS = 120
_BATCH = 4096  # flows whose processes are looked for at once

_NO_SOCKET, _NO_OWNER = "no local socket", "no owner"


class _Row(namedtuple("_Row", "namespace flow processes why_none", defaults=((), ""))):
    """`processes`: those that hold the client's socket; `why_none`, if none do."""

    __slots__ = ()
    namespace: NetworkNamespace
    flow: Flow
    processes: list[Process]
    why_none: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        description="Show which clients conntrack has balanced to a backend, by DNAT, in every network namespace of "
        "this host: what `socklb terminate` would look for beside the sockets that are connected to it.",
        epilog=_EXAMPLES,
    )
    add_backend_arguments(parser, "*")
    add_netns_argument(parser, ALL)
    add_processes_argument(parser)
    parser.add_argument("--json", action="store_true", help='one JSON object: {"flows": [...]}')


def run(options: argparse.Namespace) -> int:
    for backend in options.backends:
        if backend.link:
            raise ValueError(f"backend {str(backend)!r}: conntrack keeps link-local addresses without their link")
    if options.processes and not has("termination"):
        raise ValueError(missing("-p", "termination"))
    search = Search(options, ALL)
    with closing(_rows(search, options.backends)) as flows:
        rows = _with_processes(flows, search) if options.processes else flows
        if options.json:
            records = (_record(row, with_processes=options.processes) for row in rows)
            stream_json("flows", records, search.ended)
        else:
            with ended_by_signals():
                _print_table(rows, with_processes=options.processes)
    code = search.say_what_failed()
    for text in left_alone_texts(_left_alone(search, options.backends)):
        warn(text)
    return code


def _left_alone(search: Search, backends: list[Backend]) -> list[Backend]:
    """Those whose address means another one elsewhere, where all namespaces were to be searched."""
    is_all = hasattr(search.namespaces, "refused") and len(search.namespaces) > 1
    return [backend for backend in backends if backend.is_local and is_all]


def _rows(search: Search, backends: list[Backend]) -> Generator[_Row, None, None]:
    def look(namespace: NetworkNamespace) -> Iterator[_Row]:
        wanted = None
        if backends:
            is_here = namespace == NetworkNamespace.current()
            elsewhere = () if is_here else _left_alone(search, backends)
            wanted = [backend for backend in backends if backend not in elsewhere]
        with closing(find_flows(wanted, namespace=namespace)) as flows:
            for flow in flows:
                yield _Row(namespace, flow)

    return search.rows(look)


def _with_processes(rows: Iterator[_Row], search: Search) -> Iterator[_Row]:
    """So many at a time that neither the sockets nor /proc are read too often, nor all flows kept."""
    from ..termination.balanced import Balanced, Case  # a copy may leave it out

    while batch := list(islice(rows, _BATCH)):
        cases = [Case(row.namespace, row.flow) for row in batch]
        with Balanced((), [one for one in search.namespaces if one not in search.errors]) as balanced:
            balanced.find(None)  # where there are entries: behind a further NAT there is another one
            balanced.find_sockets(cases)
        for namespace, error in {**balanced.refused, **balanced.errors}.items():
            search.note_failure(namespace, error)
        known = holders({socket.inode for case in cases for _, socket in case.sockets})
        for row, case in zip(batch, cases):
            yield row._replace(**_held_by([socket.inode for _, socket in case.sockets], known))


def _held_by(inodes: list[int], known: dict[int, list[Process]]) -> dict[str, Any]:
    processes = [*dict.fromkeys(process for inode in inodes for process in known.get(inode, ()))]
    why_none = UNSEEN if any(inodes) else _NO_OWNER if inodes else _NO_SOCKET
    return {"processes": processes, "why_none": "" if processes else why_none}


def _print_table(rows: Iterator[_Row], *, with_processes: bool) -> None:
    """A line for each, in a narrow terminal two. What is not a terminal has no width, and gets one."""
    first = next(rows, None)  # before the header: on bad input nothing is printed
    width = terminal_width(sys.stdout)
    layout = _WIDE if width is None or width >= _WIDE_COLUMNS else _NARROW
    print(layout.format(*_HEADS) + (": Process" if with_processes else ""))
    for row in () if first is None else chain((first,), rows):
        flow = row.flow
        print(
            layout.format(
                PROTOCOL_NAMES[flow.protocol],
                flow.state or "-",
                "-" if flow.expires_s is None else f"{flow.expires_s}s",
                format_endpoint(flow.src, flow.sport),
                format_endpoint(flow.dst, flow.dport),
                _answering(flow),
                _remarks(row),
            )
        )


def _answering(flow: Flow) -> str:
    """Who answers, be it something that no Backend can be."""
    return format_endpoint(flow.reply.src, flow.reply.sport)


def _remarks(row: _Row) -> str:
    zone = f", zone {row.flow.zone}" if row.flow.zone else ""
    holding = users_text(row.processes) if row.processes else row.why_none
    return f"{printable(row.namespace.name)}{zone}{': ' if holding else ''}{holding}"


def _record(row: _Row, *, with_processes: bool) -> dict[str, Any]:
    flow = row.flow
    protocol = PROTOCOL_NAMES[flow.protocol]
    record: dict[str, Any] = {
        "namespace": row.namespace.name,
        "protocol": protocol,
        "src": format_address(flow.src),
        "sport": flow.sport,
        "dst": format_address(flow.dst),
        "dport": flow.dport,
        "backend": f"{_answering(flow)}/{protocol.upper()}",
        "state": flow.state or None,
        "expires_s": flow.expires_s,
        "zone": flow.zone,
        "conntrack_id": flow.id,
    }
    if with_processes:
        record["processes"] = holders_record(None if row.why_none == UNSEEN else row.processes)
    return record
