# SPDX-License-Identifier: MIT
"""`socklb list`: show the sockets that a filter matches."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from itertools import chain

from ..engine.choice import CURRENT, chosen, raise_if_all_failed
from ..engine.find import find_sockets
from ..engine.report import socket_record
from ..errors import NotSupported, SocklbError
from ..kernel.names import UnknownName, interface_names
from ..kernel.namespaces import CannotEnter, NamespaceVanished, NetworkNamespace
from ..states import state_word
from ..wire.address import format_endpoint
from ..wire.request import PROTOCOL_NAMES
from .arguments import FILTER_HELP, add_filter_arguments, add_netns_argument, describe, filters_from
from .help import terminal_width
from .netns import namespace_problems, namespaces_from
from .output import DONE, SOME_FAILED, error_text, ignore_broken_pipe, json_dumps, printable, warn
from .signals import ended_by_signals, showing
from .verdicts import local_endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from typing import Any

    from ..filters import SocketFilter
    from ..kernel.discovery import UnsearchedNamespace
    from ..wire.reply import InetSocket

    Rows = Generator[tuple[NetworkNamespace, InetSocket, str | None], None, None]

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
    search = _Search(options.netns, filters)
    with closing(search.rows()) as rows:
        if options.json:
            _print_json(rows, search, options.readable_only)
        else:
            with ended_by_signals():
                _print_table(rows, with_netns=bool(options.netns))
    problems, expected = namespace_problems(search.errors, search.unsearched, options.readable_only)
    for text in filter(None, [*problems, *expected, search.hidden]):
        warn(text)
    return SOME_FAILED if problems else DONE


class _Search:
    """The sockets that filters match in some namespaces. `errors`, `unsearched`, `hidden`: as in a Report."""

    def __init__(self, words: list[str] | None, filters: list[SocketFilter]) -> None:
        self._words, self._filters = words, filters
        self.errors: dict[NetworkNamespace, BaseException] = {}
        self.unsearched: list[UnsearchedNamespace] = []
        self.hidden = ""

    def rows(self) -> Rows:
        """Each socket with its namespace and the name of the interface that it is bound to. One of several namespaces
        that fails does not stop the others, but for a kernel that cannot, being the same everywhere; if none could be
        searched, the first error is raised.
        """
        namespaces, refused = self._namespaces()
        for namespace in namespaces:
            try:
                yield from self._rows_in(namespace)
            except (SocklbError, ValueError) as error:
                is_of_kernel = isinstance(error, NotSupported) and not isinstance(error, CannotEnter)
                if is_of_kernel or len(namespaces) == 1:
                    raise
                if not isinstance(error, NamespaceVanished):
                    self.errors[namespace] = error
        raise_if_all_failed(self.errors, len(namespaces))
        if refused:
            from ..kernel.discovery import unsearched

            self.unsearched = unsearched(refused, [n for n in namespaces if n not in self.errors])

    def _namespaces(self) -> tuple[Sequence[NetworkNamespace], Sequence[UnsearchedNamespace]]:
        """Where to search, each once, and what was seen and may not be looked at."""
        found = chosen(namespaces_from(self._words, CURRENT))
        self.hidden = getattr(found, "hidden", "")
        return found, getattr(found, "refused", ())

    def _rows_in(self, namespace: NetworkNamespace) -> Rows:
        unknown: UnknownName | None = None
        devices: dict[int, str] | None = None
        for filter in self._filters:
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


def _print_json(rows: Rows, search: _Search, readable_only: bool) -> None:
    """One object, written while the sockets come, and complete however it ends; nothing at all for bad input."""
    dumps = json_dumps()

    waiting: list[str] = []
    begun = False

    def write(end: str = "") -> None:
        """Print the rows that wait. An interrupt comes before or after it, so that no row is lost or printed twice."""
        nonlocal begun
        with showing():
            start = ("," if waiting else "") if begun else '{"sockets": ['
            text = start + ",".join(waiting) + end
            waiting.clear()
            begun = True
            print(text, end="", flush=True)  # a pipe shows them as they come, whatever this Python holds back

    def finish(error: BaseException | None) -> None:
        problems, _ = namespace_problems(search.errors, search.unsearched, readable_only)
        text = "; ".join(problems) if error is None else error_text(error)
        more: dict[str, Any] = {}
        if search.unsearched:
            more["unsearched"] = [one._asdict() for one in search.unsearched]
        if text:
            more["error"] = text
        with ignore_broken_pipe():
            write("]" + "".join(f', "{name}": {dumps(value)}' for name, value in more.items()) + "}\n")

    try:
        with ended_by_signals():
            for namespace, socket, device in rows:
                waiting.append("\n  " + dumps({"namespace": namespace.name, **socket_record(socket, device)}))
                if len(waiting) == _ROWS_A_WRITE:
                    write()
    except BaseException as error:
        if isinstance(error, ValueError) and not (waiting or begun):
            raise
        finish(error)
        if isinstance(error, ValueError):
            raise SocklbError(f"ended by {type(error).__name__}: {error}") from error
        raise
    finish(None)
