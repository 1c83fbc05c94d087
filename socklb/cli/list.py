# SPDX-License-Identifier: MIT
"""`socklb list`: show the sockets that a filter matches."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from itertools import chain

from ..engine.choice import CURRENT
from ..engine.find import find_sockets
from ..engine.report import socket_record
from ..kernel.names import UnknownName, interface_names
from ..states import state_word
from ..wire.address import format_endpoint
from ..wire.request import PROTOCOL_NAMES
from .arguments import FILTER_HELP, add_filter_arguments, add_netns_argument, describe, filters_from
from .help import terminal_width
from .output import printable
from .search import Search
from .signals import ended_by_signals
from .verdicts import local_endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any, Union

    from ..filters import SocketFilter
    from ..kernel.namespaces import NetworkNamespace
    from ..wire.reply import InetSocket

    Rows = Generator[tuple[NetworkNamespace, InetSocket, Union[str, None]], None, None]

_EXAMPLES = """\
examples:
  socklb list
  socklb list --tcp dst 10.0.0.5 and dport = 5432
  socklb list --udp --state established --json 'dst 10.96.0.10'
  socklb list --netns all --tcp dst 10.0.0.5

"""
_NARROW = "{:5} {:11} {:>6} {:>6} {:>23} {:>23}"  # 79 columns; a long v6 address takes more
_WIDE = "{:5} {:14} {:>7} {:>7} {:>28} {:>28} {:>6} {:>10} {:>10}"
_HEADS = ("Netid", "State", "Recv-Q", "Send-Q", "Local:Port", "Peer:Port", "Uid", "Inode", "Cookie")
_WIDE_COLUMNS = len(_WIDE.format(*_HEADS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        description="Show the sockets that a filter matches, in this network namespace or those of --netns. In this "
        "one it needs no privilege, except for fwmark. Uid, inode and cookie are shown where the terminal is wide "
        "enough.",
        epilog=_EXAMPLES + FILTER_HELP,
    )
    add_filter_arguments(parser, may_show_all=True)
    add_netns_argument(parser, CURRENT)
    parser.add_argument("--json", action="store_true", help='one JSON object: {"sockets": [...]}')


def run(options: argparse.Namespace) -> int:
    filters = filters_from(options)
    search = Search(options, CURRENT)
    with closing(search.rows(lambda namespace: _rows_in(namespace, filters))) as rows:
        if options.json:
            search.print_json("sockets", map(_record, rows))
        else:
            with ended_by_signals():
                _print_table(rows, with_netns=bool(options.netns))
    return search.say_what_failed()


def _rows_in(namespace: NetworkNamespace, filters: list[SocketFilter]) -> Rows:
    """Each socket with its namespace and the name of the interface that it is bound to."""
    unknown: UnknownName | None = None
    devices: dict[int, str] | None = None
    for filter in filters:
        try:
            stream = find_sockets(filter, namespace=namespace)
        except UnknownName as error:
            unknown = error  # nothing can match this filter here
            continue
        with closing(stream):
            for socket in stream:
                if devices is None and socket.interface:
                    devices = interface_names(namespace)
                yield namespace, socket, (devices or {}).get(socket.interface)
    if unknown is not None:
        raise unknown


def _print_table(rows: Rows, *, with_netns: bool) -> None:
    """As ss(8) has it. What is not a terminal has no width, and gets all columns."""
    first = next(rows, None)  # before the header: on bad input nothing is printed
    width = terminal_width(sys.stdout)
    row = _WIDE if width is None or width >= _WIDE_COLUMNS else _NARROW
    print(row.format(*_HEADS) + (" Netns" if with_netns else ""))
    for namespace, socket, device in () if first is None else chain((first,), rows):
        columns = row.format(
            PROTOCOL_NAMES[socket.protocol],
            state_word(socket.state),
            socket.rqueue,
            socket.wqueue,
            local_endpoint(socket, device),
            format_endpoint(socket.dst, socket.dport or "*"),
            socket.uid,
            socket.inode,
            socket.cookie,
        )
        print(f"{columns} {printable(namespace.name)}" if with_netns else columns)


def _record(row: tuple[NetworkNamespace, InetSocket, str | None]) -> dict[str, Any]:
    namespace, socket, device = row
    return {"namespace": namespace.name, **socket_record(socket, device)}
