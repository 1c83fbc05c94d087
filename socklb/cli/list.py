# SPDX-License-Identifier: MIT
"""`socklb list`: show the sockets that a filter means."""

from __future__ import annotations

import argparse
from contextlib import closing

from ..engine.find import find_sockets, place
from ..engine.report import socket_record
from ..errors import NotPermitted, NotSupported, SocklbError
from ..kernel.namespaces import NamespaceVanished, NetworkNamespace
from ..states import state_word
from ..wire.address import format_endpoint
from ..wire.request import PROTOCOL_NAMES
from .arguments import FILTER_HELP, add_filter_arguments, add_netns_argument, filters_from
from .help import HelpFormatter
from .namespaces import namespaces_from, tell_skipped
from .output import DONE, SOME_FAILED, complain, error_text, print_whole, quiet_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from ..filters import SocketFilter
    from ..wire.reply import InetSocket

    Rows = Generator[tuple[str, InetSocket], None, None]

_EXAMPLES = """\
examples:
  socklb list
  socklb list --tcp dst 10.0.0.5 and dport = 5432
  socklb list --udp --state established --json 'dst 10.96.0.10'
  socklb list --netns all --tcp dst 10.0.0.5

"""
_HEADS = ("Netid", "State", "Recv-Q", "Send-Q", "Local:Port", "Peer:Port", "Uid", "Inode", "Cookie", "Netns")
_ROW = "{:5} {:14} {:>7} {:>7} {:>28} {:>28} {:>6} {:>10} {:>10} {}"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "list",
        help="show the sockets that a filter means",
        description="Show the sockets that a filter means, of this network namespace or those of --netns. Needs no "
        "privilege here (fwmark does).",
        epilog=_EXAMPLES + FILTER_HELP,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    add_filter_arguments(parser)
    add_netns_argument(parser, "host")
    parser.add_argument("--json", action="store_true", help='one JSON object: {"sockets": [...]}')
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    filters = filters_from(options)
    failures: dict[str, Exception] = {}  # by the name of the namespace
    with closing(_rows(options, filters, failures)) as rows:
        if options.json:
            _print_json(rows, failures)
        else:
            _print_table(rows)
    for text in _texts(failures):
        complain(text)
    return SOME_FAILED if failures else DONE


def _places(options: argparse.Namespace) -> list[NetworkNamespace | None]:
    """None, for the namespace that this runs in, or those of --netns, each once."""
    if not options.netns:
        return [None]
    chosen = namespaces_from(options.netns)
    if chosen is not None:
        return [*dict.fromkeys(chosen)]
    found = NetworkNamespace.discover()
    tell_skipped(found.skipped)
    return [*found]


def _rows(options: argparse.Namespace, filters: list[SocketFilter], failures: dict[str, Exception]) -> Rows:
    """Each socket with the name of its namespace.

    One of several namespaces that fails does not stop the others, but a kernel that cannot does, for it is the same
    everywhere; nor is there more to be had where none is permitted.
    """
    places = _places(options)
    # A generator starts when it is first asked, but names are looked up at once: bad input is told before all else.
    streams = [(place(where), find_sockets(filter, namespace=where)) for where in places for filter in filters]
    try:
        for where, stream in streams:
            try:
                for socket in stream:
                    yield where, socket
            except NotSupported:
                raise
            except (SocklbError, ValueError) as error:
                if len(places) == 1:
                    raise
                if not isinstance(error, NamespaceVanished):
                    failures.setdefault(where, error)
    finally:
        for _, stream in streams:
            stream.close()
    refusals = [error for error in failures.values() if isinstance(error, NotPermitted)]
    if refusals and len(refusals) == len(places):
        failures.clear()
        raise refusals[0]


def _texts(failures: dict[str, Exception]) -> list[str]:
    return [f"in {where}: {error_text(error)}" for where, error in failures.items()]


def _print_table(rows: Rows) -> None:
    print(_ROW.format(*_HEADS))
    for where, socket in rows:
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
                where,
            )
        )


def _print_json(rows: Rows, failures: dict[str, Exception]) -> None:
    """One object, written while the sockets come, and closed in any case; nothing at all for bad input."""
    import json  # not needed for tables

    opening, separator = '{"sockets": [', "\n  "
    ended: BaseException | None = None
    try:
        for where, socket in rows:
            print_whole(opening + separator + json.dumps({"namespace": where, **socket_record(socket)}))
            opening, separator = "", ",\n  "
    except ValueError:
        raise
    except BaseException as error:
        ended = error
    said = "; ".join(_texts(failures)) if ended is None else error_text(ended)
    with quiet_pipe():
        print_whole(opening + (f'], "error": {json.dumps(said)}}}\n' if said else "]}\n"))
    if ended is not None:
        raise ended
