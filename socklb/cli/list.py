"""`socklb list`: show the sockets that a filter means."""

from __future__ import annotations

import argparse

from ..errors import SocklbError
from ..find import find_sockets
from ..kernel.namespaces import HOST_NAME
from ..report import socket_record
from ..states import state_word
from ..wire.reply import format_endpoint
from ..wire.request import PROTOCOL_NAMES
from .arguments import FILTER_HELP, add_filter_arguments, filters_from
from .help import HelpFormatter
from .output import DONE, error_text, print_whole, quiet_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..wire.reply import InetSocket

_EXAMPLES = """\
examples:
  socklb list
  socklb list --tcp dst 10.0.0.5 and dport = 5432
  socklb list --udp --state established --json 'dst 10.96.0.10'

"""
_ROW = "{:5} {:14} {:>7} {:>7} {:>28} {:>28} {:>6} {:>10} {}"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "list",
        help="show the sockets that a filter means",
        description="Show the sockets of this network namespace that a filter means. Needs no privilege (fwmark does).",
        epilog=_EXAMPLES + FILTER_HELP,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add_filter_arguments(parser)
    parser.add_argument("--json", action="store_true", help='one JSON object: {"sockets": [...]}')
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    # A generator starts when it is first asked, but names are looked up at once: bad input prints nothing here.
    streams = [find_sockets(filter) for filter in filters_from(options)]
    sockets = (socket for stream in streams for socket in stream)
    try:
        (_print_json if options.json else _print_table)(sockets)
    finally:
        for stream in streams:
            stream.close()
    return DONE


def _print_table(sockets: Iterator[InetSocket]) -> None:
    print(_ROW.format("Netid", "State", "Recv-Q", "Send-Q", "Local:Port", "Peer:Port", "Uid", "Inode", "Cookie"))
    for socket in sockets:
        print(
            _ROW.format(
                PROTOCOL_NAMES[socket.protocol],
                state_word(socket.state),
                socket.rqueue,
                socket.wqueue,
                format_endpoint(socket.src, socket.sport or "*"),
                format_endpoint(socket.dst, socket.dport or "*"),
                socket.uid,
                socket.inode,
                socket.cookie,
            )
        )


def _print_json(sockets: Iterator[InetSocket]) -> None:
    """One object, written while the sockets come, and closed in any case."""
    import json  # not needed for tables

    separator = "\n  "
    end = "]}\n"
    try:
        print_whole('{"sockets": [')
        for socket in sockets:
            print_whole(separator + json.dumps({"namespace": HOST_NAME, **socket_record(socket)}))
            separator = ",\n  "
    except (SocklbError, KeyboardInterrupt) as error:
        end = f'], "error": {json.dumps(error_text(error))}}}\n'
        raise
    finally:
        with quiet_pipe():
            print_whole(end)
