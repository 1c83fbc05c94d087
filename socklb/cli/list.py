# SPDX-License-Identifier: MIT
"""`socklb list`: show the sockets that a filter matches."""

from __future__ import annotations

import sys
from collections import namedtuple
from contextlib import closing
from functools import cache, lru_cache
from itertools import chain, islice

from ..engine.choice import CURRENT
from ..engine.find import find_sockets
from ..engine.report import socket_record
from ..kernel.names import UnknownName, interface_names
from ..kernel.processes import holders
from ..states import state_word
from ..wire.address import format_endpoint
from ..wire.reply import decode_msg
from ..wire.request import PROTOCOL_NAMES
from .arguments import (
    FILTER_HELP,
    add_filter_arguments,
    add_netns_argument,
    add_processes_argument,
    describe,
    filters_from,
)
from .holders import UNSEEN, Unseen, holders_of, holders_record, users_words
from .output import ENDS, print_json, printable, terminal_width, warn
from .search import Search, stream_json
from .signals import ended_by_signals
from .verdicts import local_endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Iterator
    from typing import Any

    from ..filters import SocketFilter
    from ..kernel.namespaces import NetworkNamespace
    from ..wire.reply import InetSocket
    from .holders import Holders

_EXAMPLES = """\
examples:
  socklb list
  socklb list --tcp dst 10.0.0.5 and dport = 5432
  socklb list --udp --state established --json 'dst 10.96.0.10'
  socklb list -tpe state syn-sent           who waits, and for how long
  socklb list --summary --netns all         where most connections lead to

-p prints users:(("nginx",pid=12,fd=7)), as ss(8) does; "unseen" where no
process that one may look at holds the socket. -e adds the words of ss -tieno:
timer, uid (but for 0), ino, sk (the cookie), cgroup (its id, if it cannot be
seen from here), what is shut down, and tcp_info. tcp-ulp-mptcp marks a subflow:
when it is destroyed, the MPTCP connection may live on over others.

"""
# The operator % takes a third of the time of str.format.
_NARROW = "%-5s %-11s %6s %6s %23s %23s"  # 79 columns; a long v6 address takes more
_WIDE = "%-5s %-14s %7s %7s %28s %28s %6s %10s %10s"
_HEADS = ("Netid", "State", "Recv-Q", "Send-Q", "Local:Port", "Peer:Port", "Uid", "Inode", "Cookie")
_WIDE_COLUMNS = len(_WIDE % _HEADS)
_TAB = 8
_FEW = 4096  # sockets for which alone /proc is searched


class _Row(namedtuple("_Row", "namespace socket device processes", defaults=(None,))):
    """`device`: the name of the interface that the socket is bound to; `processes`: who holds it."""

    __slots__ = ()
    namespace: NetworkNamespace
    socket: InetSocket
    device: str | None
    processes: Holders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        description="Show the sockets that a filter matches, in this network namespace or those of --netns. In this "
        "one it needs no privilege, except for fwmark and for processes of others. Uid, inode and cookie are shown "
        "where the terminal is wide enough.",
        epilog=_EXAMPLES + FILTER_HELP,
    )
    add_filter_arguments(parser, may_show_all=True)
    add_netns_argument(parser, CURRENT)
    add_processes_argument(parser)
    parser.add_argument(
        "-e",
        "--extended",
        action="store_true",
        help="timer, uid, inode, cookie, cgroup and tcp_info, in the words of ss",
    )
    for flags in ("-i --info", "-o --options", "-m --memory"):
        advice = "write -e; -e --json has all that the kernel tells"
        parser.add_argument(*flags.split(), action="refuse", advice=advice)
    parser.add_argument(
        "-s", "--summary", action="store_true", help="only count them: by state, and by peer the ten with most sockets"
    )
    parser.add_argument(
        "--json", action="store_true", help='one JSON object: {"sockets": [...]}; with -e all attributes'
    )


def run(options: argparse.Namespace) -> int:
    if options.summary and (options.processes or options.extended):
        options.fail("argument --summary: not allowed with -p or -e")
    filters = filters_from(options)
    search = Search(options, CURRENT)
    extensions: tuple[str, ...] = ()
    if options.extended:
        from .details import EXTENSIONS

        extensions = EXTENSIONS
    unseen = Unseen()
    with closing(search.rows(lambda namespace: _rows_in(namespace, filters, extensions))) as found:
        rows = _with_processes(found, unseen) if options.processes else found
        if options.summary:
            _summarize(rows, search, as_json=options.json)
        elif options.json:
            stream_json("sockets", (_record(row, options) for row in rows), search.ended)
        else:
            with ended_by_signals():
                _print_table(rows, options)
    code = search.say_what_failed()
    if unseen.count:
        warn(str(unseen))
    return code


def _rows_in(
    namespace: NetworkNamespace, filters: list[SocketFilter], extensions: tuple[str, ...]
) -> Generator[_Row, None, None]:
    """Each socket with its namespace and the name of the interface that it is bound to."""
    unknown: UnknownName | None = None
    devices: dict[int, str] | None = None
    for filter in filters:
        try:
            stream = find_sockets(filter, namespace=namespace, extensions=extensions)
        except UnknownName as error:
            unknown = error  # nothing can match this filter here
            continue
        with closing(stream):
            for socket in stream:
                if devices is None and socket.interface:
                    devices = interface_names(namespace)
                yield _Row(namespace, socket, (devices or {}).get(socket.interface))
    if unknown is not None:
        raise unknown


def _with_processes(rows: Iterator[_Row], unseen: Unseen) -> Iterator[_Row]:
    """Look into /proc once, when some sockets are known: for these alone, or if there are more for all sockets."""
    first = list(islice(rows, _FEW))
    known = holders({row.socket.inode for row in first} if len(first) < _FEW else None)
    for namespace, socket, device, _ in chain(first, rows):
        processes = holders_of(socket.inode, known)
        unseen.count += processes is None
        yield _Row(namespace, socket, device, processes)


def _print_table(rows: Iterator[_Row], options: argparse.Namespace) -> None:
    """As ss(8) has it. What is not a terminal has no width, and gets all columns."""
    first = next(rows, None)  # before the header: on bad input nothing is printed
    width = terminal_width(sys.stdout)
    is_wide = not options.extended and (width is None or width >= _WIDE_COLUMNS)
    heads = _WIDE % _HEADS if is_wide else _NARROW % _HEADS[:6]
    for word in ("Netns" if options.netns else "", "Process" if options.processes else ""):
        heads += f" {word}" if word and _fits(heads, word, width) else ""
    print(heads)
    for each in () if first is None else chain((first,), rows):
        line, below = _line(each, options, is_wide=is_wide, width=width)
        print(line)
        for words in _folded(below, width):
            print(f"\t{words}")


def _line(each: _Row, options: argparse.Namespace, *, is_wide: bool, width: int | None) -> tuple[str, list[str]]:
    """Of one socket, with the words that stand below it, for want of room or because they are many."""
    line = _columns(each, is_wide=is_wide)
    below: list[str] = []
    if options.netns:
        name = printable(each.namespace.name)
        if _fits(line, name, width):
            line = f"{line} {name}"
        else:
            below.append(f"netns:{name}")
    if options.processes and each.processes != []:
        users = [UNSEEN] if each.processes is None else users_words(each.processes)
        if not below and _fits(line, "".join(users), width):
            line = f"{line} {''.join(users)}"
        else:
            below += users
    if options.extended:
        from .details import details

        below += details(each.socket)
    return line, below


def _columns(row: _Row, *, is_wide: bool) -> str:
    message = decode_msg(row.socket.row)  # faster than one property after the other
    sport, dport, src, dst, interface, cookie = message.id
    columns = (
        PROTOCOL_NAMES[row.socket.protocol],
        _state_word(message.state),
        message.rqueue,
        message.wqueue,
        local_endpoint(row.socket, row.device) if interface else f"{_host(src)}{sport or '*'}",
        f"{_host(dst)}{dport or '*'}",
    )
    return _WIDE % (*columns, message.uid, message.inode, cookie) if is_wide else _NARROW % columns


_state_word = cache(state_word)


@lru_cache(maxsize=4096)  # many sockets have few addresses
def _host(packed: bytes) -> str:
    """What stands before a port."""
    return format_endpoint(packed, "")


def _fits(line: str, word: str, width: int | None) -> bool:
    """Whether a line takes one more word."""
    return width is None or len(line) + 1 + len(word) <= width


def _folded(words: list[str], width: int | None) -> Iterator[str]:
    """In one line, or in as many as a terminal takes, a tab before each."""
    line = ""
    for word in words:
        if line and not _fits(line, word, width and width - _TAB):
            yield line
            line = ""
        line += f" {word}" if line else word
    if line:
        yield line


def _summarize(rows: Iterator[_Row], search: Search, *, as_json: bool) -> None:
    from .summary import Summary

    summary = Summary()
    try:
        with ended_by_signals():
            summary.add(row.socket for row in rows)
    except ENDS as error:
        if as_json and not isinstance(error, ValueError):
            print_json({**summary.record(), **search.ended(error)})
        raise
    if as_json:
        print_json({**summary.record(), **search.ended(None)})
    else:
        for line in summary.lines():
            print(line)


def _record(row: _Row, options: argparse.Namespace) -> dict[str, Any]:
    namespace, socket, device, processes = row
    record = {"namespace": namespace.name, **socket_record(socket, device)}
    if options.processes:
        record["processes"] = holders_record(processes)
    if options.extended:
        from .details import details_record

        record.update(details_record(socket))
    return record
