# SPDX-License-Identifier: MIT
"""What the same filter matches with other options, where nothing matched: other states, protocols, families, and other
network namespaces. It is only counted, and said as far as one may look.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing, suppress
from itertools import islice, takewhile
from time import monotonic

from ..engine.find import find_sockets
from ..errors import SocklbError
from ..filters import SocketFilter
from ..filters.language import parse
from ..kernel.discovery import discover_namespaces
from ..kernel.namespaces import NetworkNamespace
from ..states import TcpState, named_states, state_word, states_in
from ..wire.request import IPPROTO_TCP, IPPROTO_UDP, PROTOCOL_NAMES
from ..wire.socket_id import AF_INET6
from .output import ENDS
from .signals import ended_by_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from ..wire.reply import InetSocket

_MOST = 10_000  # so many are counted
_SECONDS = 2.0  # then no further namespace is searched
_NO_OWNER = ", but no process holds them any more, and they end by themselves"
_NO_PEER = "cannot be destroyed, it has no peer"


def near_misses(
    options: argparse.Namespace, filters: Sequence[SocketFilter], searched: Iterable[NetworkNamespace]
) -> list[str]:
    """A line for each kind of socket, with the options that take it in. A signal ends the search, and nothing else."""
    lines: list[str] = []
    end = monotonic() + _SECONDS
    with suppress(*ENDS), ended_by_signals():
        kinds = Counter(islice(_missed(options, filters, list(searched), end), _MOST))
        more = _more(sum(kinds.values()), end)
        lines += [f"{more}{count} {what}: {how}" for (what, how), count in kinds.most_common()]
        if options.netns is None:
            lines += _in_other_namespaces(options, filters, end)
    return lines


def _more(count: int, end: float) -> str:
    return "at least " if count >= _MOST or monotonic() > end else ""


def _missed(
    options: argparse.Namespace, filters: Sequence[SocketFilter], searched: Sequence[NetworkNamespace], end: float
) -> Iterator[tuple[str, str]]:
    """What each socket is, and how it would have matched."""
    asked = {filter.protocol for filter in filters}
    for filter in [*filters, *_of_the_other_protocol(options, filters)]:
        wide = SocketFilter(filter.protocol, filter.where, states="all", predicate=filter.predicate)
        if filter.protocol in asked and filter.family is None and not wide.states & ~filter.states:
            continue  # all that there is has been looked for
        for namespace in searched:
            if monotonic() > end:
                return
            with suppress(SocklbError, ValueError), closing(find_sockets(wide, namespace=namespace)) as sockets:
                for socket in sockets:
                    if monotonic() > end:
                        return
                    how = _how(options, filter, socket, is_asked=filter.protocol in asked)
                    if how:
                        yield f"{PROTOCOL_NAMES[socket.protocol]} {state_word(_state(socket))}", how


def _of_the_other_protocol(options: argparse.Namespace, filters: Sequence[SocketFilter]) -> list[SocketFilter]:
    """The filter that was not asked for; none if both were, or where what is to match is of one protocol alone."""
    if len(filters) > 1:
        return []
    (asked,) = filters
    other = IPPROTO_UDP if asked.protocol == IPPROTO_TCP else IPPROTO_TCP
    with suppress(ValueError):
        return [SocketFilter.parse(" ".join(options.filter), other, states=options.state, family=asked.family)]
    return []


def _how(options: argparse.Namespace, filter: SocketFilter, socket: InetSocket, *, is_asked: bool) -> str:
    """The options that would have taken a socket in and destroyed it, "" if none are missing."""
    state, is_tcp = _state(socket), socket.protocol == IPPROTO_TCP
    missing = [] if is_asked else ["-t" if is_tcp else "-u"]
    if filter.family not in (None, socket.family):
        missing.append("-6" if socket.family == AF_INET6 else "-4")
    is_unnamed = is_tcp and state == TcpState.LISTEN and not filter.names_listen
    if is_unnamed or not filter.states & socket.answers_to:
        missing.append(_state_option(options, socket))
    if not is_tcp and state != TcpState.ESTABLISHED and not options.unconnected:
        missing.append("--unconnected")
    if is_tcp and state == TcpState.CLOSE and missing:
        return _NO_PEER
    return " and ".join(missing) + (_NO_OWNER if state == TcpState.TIME_WAIT and missing else "")


def _state(socket: InetSocket) -> int:
    """The one by which it is found: TIME_WAIT of a mini-socket, whatever it waits for."""
    return states_in(socket.answers_to)[0]


def _state_option(options: argparse.Namespace, socket: InetSocket) -> str:
    """What to write for its state; --state is not taken beside a filter that names states itself."""
    _, named, excluded = parse(" ".join(options.filter), PROTOCOL_NAMES[socket.protocol])
    word = state_word(_state(socket)).lower().replace("_", "-")
    option = f'"state {word}" in front of the filter' if named else f"--state {word}"
    is_excluded = excluded and named_states(excluded)[0] & socket.answers_to
    return f"{option} and no exclude of it" if is_excluded else option


def _in_other_namespaces(options: argparse.Namespace, filters: Sequence[SocketFilter], end: float) -> list[str]:
    counts: list[int] = []
    current = NetworkNamespace.current()
    for namespace in discover_namespaces(threads=False):
        if monotonic() > end or sum(counts) >= _MOST:
            break
        if namespace != current:
            with suppress(SocklbError, ValueError):  # it has vanished, or may not be entered
                counts.append(_count(options, filters, namespace, end))
    found = [count for count in counts if count]
    if not found:
        return []
    more = _more(sum(found), end)
    return [f"{more}{sum(found)} in {len(found)} of {len(counts)} other network namespaces: --netns all"]


def _count(
    options: argparse.Namespace, filters: Sequence[SocketFilter], namespace: NetworkNamespace, end: float
) -> int:
    """Those that would be destroyed with no further option."""
    total = 0
    for filter in filters:
        with closing(find_sockets(filter, namespace=namespace)) as sockets:
            some = takewhile(lambda _: monotonic() <= end, islice(sockets, _MOST - total))
            total += sum(not _how(options, filter, socket, is_asked=True) for socket in some)
    return total
