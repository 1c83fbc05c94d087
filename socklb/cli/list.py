# SPDX-License-Identifier: MIT
"""`socklb list`: show the sockets that a filter matches."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from itertools import chain

from ..engine.find import find_sockets
from ..engine.report import socket_record
from ..engine.run import CURRENT
from ..errors import NotPermitted, NotSupported, SocklbError
from ..kernel.namespaces import CURRENT_NAME, NamespaceVanished, NetworkNamespace
from ..states import state_word
from ..wire.address import format_endpoint
from ..wire.request import PROTOCOL_NAMES
from .arguments import FILTER_HELP, add_command, add_filter_arguments, add_netns_argument, filters_from
from .help import terminal_width
from .netns import namespaces_from, warn_of_unsearched
from .output import DONE, SOME_FAILED, error_text, ignore_broken_pipe, interrupts_held_back, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from ..filters import SocketFilter
    from ..wire.reply import InetSocket
    from .arguments import Commands

    Rows = Generator[tuple[str, InetSocket], None, None]

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
_ROWS_A_WRITE = 256


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "list",
        run,
        help="show the sockets that a filter matches",
        description="Show the sockets that a filter matches, in this network namespace or those of --netns. In this "
        "one it needs no privilege, except for fwmark. Uid, inode and cookie are shown where the terminal is wide "
        "enough.",
        epilog=_EXAMPLES + FILTER_HELP,
    )
    add_filter_arguments(parser)
    add_netns_argument(parser, CURRENT)
    parser.add_argument("--json", action="store_true", help='one JSON object: {"sockets": [...]}')


def run(options: argparse.Namespace) -> int:
    filters = filters_from(options)
    failures: dict[str, Exception] = {}  # by the name of the namespace
    with closing(_rows(options, filters, failures)) as rows:
        if options.json:
            _print_json(rows, failures)
        else:
            _print_table(rows, with_netns=bool(options.netns))
    for text in _texts(failures):
        warn(text)
    return SOME_FAILED if failures else DONE


def _namespaces(options: argparse.Namespace) -> list[NetworkNamespace | None]:
    """None for the namespace that this runs in, or those of --netns, each once."""
    chosen = namespaces_from(options.netns, CURRENT)
    if chosen == CURRENT:
        return [None]
    if isinstance(chosen, list):
        return [*dict.fromkeys(chosen)]
    from ..kernel.discovery import discover_namespaces, unsearched

    found = discover_namespaces()
    warn_of_unsearched(unsearched(found.refused, found), found.hidden)
    return [*found]


def _rows(options: argparse.Namespace, filters: list[SocketFilter], failures: dict[str, Exception]) -> Rows:
    """Each socket with the name of its namespace.

    One of several namespaces that fails does not stop the others. A kernel that cannot does, being the same everywhere;
    and if none of them is permitted, that error is raised.
    """
    namespaces = _namespaces(options)
    # A generator starts when it is first asked, but names are looked up at once: bad input comes before all else.
    streams = [
        (CURRENT_NAME if namespace is None else namespace.name, find_sockets(filter, namespace=namespace))
        for namespace in namespaces
        for filter in filters
    ]
    try:
        for netns, stream in streams:
            try:
                for socket in stream:
                    yield netns, socket
            except NotSupported:
                raise
            except (SocklbError, ValueError) as error:
                if len(namespaces) == 1:
                    raise
                if not isinstance(error, NamespaceVanished):
                    failures.setdefault(netns, error)
    finally:
        for _, stream in streams:
            stream.close()
    refusals = [error for error in failures.values() if isinstance(error, NotPermitted)]
    if refusals and len(refusals) == len(namespaces):
        failures.clear()
        raise refusals[0]


def _texts(failures: dict[str, Exception]) -> list[str]:
    return [f"in {netns}: {error_text(error)}" for netns, error in failures.items()]


def _print_table(rows: Rows, *, with_netns: bool) -> None:
    """As ss(8) has it. What is not a terminal has no width, and gets all columns."""
    first = next(rows, None)  # before the header: on bad input nothing is printed
    width = terminal_width(sys.stdout)
    row = _WIDE if width is None or width >= _WIDE_COLUMNS else _NARROW
    print(row.format(*_HEADS) + (" Netns" if with_netns else ""))
    for netns, socket in () if first is None else chain((first,), rows):
        columns = row.format(
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
        print(f"{columns} {netns}" if with_netns else columns)


def _print_json(rows: Rows, failures: dict[str, Exception]) -> None:
    """One object, written while the sockets come, and complete however it ends; nothing at all for bad input."""
    import json  # tables do without

    waiting: list[str] = []
    begun = complete = False

    def write(end: str = "") -> None:
        """Print the rows that wait. An interrupt comes before or after it, so that no row is lost or printed twice."""
        nonlocal begun, complete
        with interrupts_held_back():
            start = ("," if waiting else "") if begun else '{"sockets": ['
            text = start + ",".join(waiting) + end
            waiting.clear()
            begun, complete = True, bool(end)
            print(text, end="")

    def finish(error: BaseException | None) -> None:
        text = "; ".join(_texts(failures)) if error is None else error_text(error)
        with ignore_broken_pipe():
            write(f'], "error": {json.dumps(text)}}}\n' if text else "]}\n")

    try:
        for netns, socket in rows:
            waiting.append("\n  " + json.dumps({"namespace": netns, **socket_record(socket)}))
            if len(waiting) == _ROWS_A_WRITE:
                write()
        finish(None)
    except BaseException as error:
        if isinstance(error, ValueError) and not (waiting or begun):
            raise
        if not complete:
            finish(error)
        if isinstance(error, ValueError):
            raise SocklbError(f"ended by {type(error).__name__}: {error}") from error
        raise
