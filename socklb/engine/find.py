# SPDX-License-Identifier: MIT
"""Find the sockets that a filter matches: ask the kernel, and match in Python what it could not."""

from __future__ import annotations

import errno
from itertools import chain, islice, repeat
from operator import itemgetter

from ..errors import KernelError, mark_hidden
from ..filters import SocketFilter
from ..kernel import hash_table, names
from ..kernel.diag import DiagSocket
from ..kernel.namespaces import CURRENT_NAME, NamespaceVanished, NetworkNamespace, current_first, run_in_netns
from ..kernel.netlink_socket import BATCH
from ..wire.bytecode import INET_DIAG_BC_CGROUP_COND, INET_DIAG_BC_MARK_COND, INET_DIAG_REQ_BYTECODE
from ..wire.netlink import encode_attribute
from ..wire.reply import InetSocket
from ..wire.request import (
    IPPROTO_TCP,
    PROTOCOL_NAMES,
    SOCK_DIAG_BY_FAMILY,
    TCPDIAG_GETSOCK,
    InetDiagReq,
    InetDiagReqV2,
    look_up_request,
)
from .parallel import in_parallel, is_worker
from .policy import check_filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from typing import Any

    from ..filters.compiler import Plan

    Seen = dict[int, Any]  # by cookie

# The bytecode op that a kernel with SOCK_DESTROY for UDP (Linux 4.9) may lack: it came with 5.9.
_LATER_OPS = frozenset({INET_DIAG_BC_CGROUP_COND})

_CHUNK = 16  # SKARR_SZ (net/ipv4/inet_diag.c): behind so many of one chain the kernel lets go of its lock
_MAX_DUMPS = 5
_INFO = 1 << 1  # of idiag_ext: INET_DIAG_INFO is 2


def find_sockets(
    filter: SocketFilter, *, namespace: NetworkNamespace | None = None, extensions: Iterable[str] = ()
) -> Generator[InetSocket, None, None]:
    """The sockets that the filter matches, streamed: memory does not grow with their number.

    The iterator holds a netlink socket until it is exhausted, closed (`close()`), or raises.
    `namespace` None is the caller's. `extensions` names response attributes to ask for ("info", "cong", "meminfo",
    "skmeminfo", ...); some come without being asked for. Raises ValueError for an interface, a cgroup or a process that
    does not exist there, NotSupported for `stalled` or `idle` of UDP, KernelError for what the kernel answers,
    SocklbError where it is continued in a forked process. A dump that is interrupted after its first row raises, since
    rows that were yielded cannot be taken back; a socket is skipped if another one, before it in the kernel's table,
    closes between two replies (`destroy_sockets` looks again).
    """
    check_filters([filter], allow_unbounded=True)
    if namespace is not None and not isinstance(namespace, NetworkNamespace):
        raise TypeError(f"namespace is a NetworkNamespace or None, not {namespace!r}")
    resolved = filter if filter.is_resolved else run_in_netns(namespace, lambda: filter.resolved(names))
    return _find(resolved, namespace, extension_bits(extensions))


def _find(wanted: SocketFilter, namespace: NetworkNamespace | None, bits: int) -> Generator[InetSocket, None, None]:
    with run_in_netns(namespace, lambda: SocketTable(namespace)) as table:  # never moves its thread
        pairs = table.search(wanted, wanted.request_states, bits=bits)
        yield from filter(wanted.accepts, map(itemgetter(1), pairs))  # of a host there are many: no loop in Python


def extension_bits(names: Iterable[str]) -> int:
    """idiag_ext for the response attributes of these names. Raises ValueError for one that cannot be asked for."""
    if not names:
        return 0
    from ..wire.attributes import extension_bits  # the codecs of attributes take a while to import

    return extension_bits(names)


def live_cookies(namespaces: Iterable[NetworkNamespace]) -> set[int]:
    """The cookies of all sockets that exist in these namespaces, in any state; several are looked at at once.

    A namespace that has vanished has none. Raises KernelError if another one cannot be searched.
    """
    cookies: set[int] = set()
    filters = [SocketFilter(protocol, states="all") for protocol in PROTOCOL_NAMES]

    def look(namespace: NetworkNamespace) -> None:
        try:
            table = table_in(namespace)
        except NamespaceVanished:
            return
        with table:
            for filter in filters:
                rows = table.search_all(filter, filter.request_states)
                cookies.update(cookie for cookie, _ in rows)

    in_parallel(look, current_first(namespaces))
    return cookies


def table_in(namespace: NetworkNamespace) -> SocketTable:
    """The sockets of a network namespace, for a thread of `in_parallel`, which stays there."""
    return run_in_netns(namespace, lambda: SocketTable(namespace), thread_may_move=is_worker())


class SocketTable:
    """The sockets of a network namespace, which it is made in. A context manager; holds one netlink socket."""

    def __init__(self, namespace: NetworkNamespace | None) -> None:
        self.diag = DiagSocket()
        self._namespace = namespace
        self._name = CURRENT_NAME if namespace is None else namespace.name
        self._may_have_skipped = False
        self._missing_ops: frozenset[int] = frozenset()  # bytecode ops that the kernel has refused
        self._takes_old_request = True

    def __enter__(self) -> SocketTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.diag.close()

    def search_all(
        self, filter: SocketFilter, states: int, bits: int = 0, seen: Seen | None = None
    ) -> Iterator[tuple[int, InetSocket]]:
        """`search`, but each socket once and none skipped. `seen` may be the caller's, who may put something into it in
        the place of None.

        The kernel goes on in a chain of its table by counting: when sockets before that place have closed, it skips as
        many others. So a search that went on, in a further datagram or a long chain, is repeated until it finds nothing
        new, also where nothing matched: the skipped one might.

        Rows with struct tcp_info are three times as long: it is asked for of those sockets alone that match all else.
        """
        seen = {} if seen is None else seen
        plan = filter.plan(self._missing_ops)
        if not plan.needs_info or bits & _INFO:
            yield from self._search_until_all(filter, states, bits, seen)
            return
        undecided: dict[int, InetSocket] = {}
        for cookie, socket in self._search_until_all(filter, states, bits, seen, without_info=True):
            if plan.lets_through(socket):
                yield cookie, socket
            else:
                undecided[cookie] = socket
        yield from self._decide(filter, undecided, states, bits)

    def _decide(
        self, filter: SocketFilter, undecided: dict[int, InetSocket], states: int, bits: int
    ) -> Iterator[tuple[int, InetSocket]]:
        """Those of these sockets that match, with tcp_info; of twins, which hide each other, by a dump."""
        lets_through = filter.plan(self._missing_ops).lets_through
        doing = f"look up {PROTOCOL_NAMES[filter.protocol]} sockets in {self._name}"
        pending = iter(list(undecided.values()))
        while batch := list(islice(pending, BATCH)):
            for socket, row in zip(batch, self.look_up(filter, batch, bits, doing)):
                found = undecided.pop((row or socket).cookie, None)  # what nothing was found of has gone
                if row is not None and found is not None and lets_through(row):
                    yield row.cookie, row
        if undecided:
            rows = self._search_until_all(filter, states, bits, {})
            yield from ((cookie, row) for cookie, row in rows if cookie in undecided)

    def _search_until_all(
        self, filter: SocketFilter, states: int, bits: int, seen: Seen, *, without_info: bool = False
    ) -> Iterator[tuple[int, InetSocket]]:
        for attempt in range(_MAX_DUMPS):
            known = len(seen)
            self._may_have_skipped = False
            yield from self.search(filter, states, bits=bits, seen=seen, without_info=without_info)
            if not self._may_have_skipped or (attempt and len(seen) == known):
                return

    def _has_long_chains(self) -> bool:
        """Asked for when it matters: the kernel takes the longer to open such a file the more namespaces there are."""
        try:
            return run_in_netns(self._namespace, hash_table.is_small)
        except (KernelError, ValueError):
            return True  # it cannot be entered any more

    def look_up(
        self, filter: SocketFilter, sockets: Sequence[InetSocket], bits: int, doing: str
    ) -> list[InetSocket | None]:
        """What the kernel finds at the address of each socket, in whatever state: None for nothing.

        The rows of TCP say whether they are subflows of MPTCP, which comes with INET_DIAG_INFO.
        """
        bits |= _INFO if filter.protocol == IPPROTO_TCP else 0
        requests = [look_up_request(socket.protocol, socket.family, socket.id_bytes, bits) for socket in sockets]
        rows = self.diag.look_up(requests, doing)
        return [None if row is None else InetSocket(row, filter.protocol) for row in rows]

    def still_matches(self, filter: SocketFilter, socket: InetSocket) -> bool:
        """Whether a socket that has matched does so as it is now."""
        return filter.plan(self._missing_ops).lets_through(socket) and filter.accepts(socket)

    def search(
        self,
        filter: SocketFilter,
        states: int,
        *,
        bits: int = 0,
        seen: Seen | None = None,
        without_info: bool = False,
    ) -> Iterator[tuple[int, InetSocket]]:
        """The sockets in these states that the filter's condition (not its predicate) matches.
        `without_info`: also those that only tcp_info could decide, which is not asked for.

        `seen` takes the cookies of those that were yielded, which are not yielded again: with it a dump that was
        interrupted after its first row can be repeated. Without it cookies are not read: each is yielded with 0.

        It costs one walk of the kernel's table for each program of the filter where the kernel answers for both
        families at once, else one for each family. What a kernel refuses is asked for in older ways.
        """
        doing = f"list {PROTOCOL_NAMES[filter.protocol]} sockets in {self._name}"
        while True:
            one_walk = filter.protocol == IPPROTO_TCP and filter.family is None and self._takes_old_request
            plan = filter.plan(self._missing_ops)
            asked = bits | _INFO if plan.needs_info and not without_info else bits
            rows = self._rows(plan, _requests(filter, states, asked, one_walk), doing, seen is not None)
            try:
                first = next(rows, None)
            except KernelError as error:
                if error.errno == errno.EINVAL and _LATER_OPS & plan.ops:
                    self._missing_ops = _LATER_OPS
                elif error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT) and one_walk:
                    self._takes_old_request = False
                elif error.errno == errno.EPERM and INET_DIAG_BC_MARK_COND in plan.ops:
                    raise mark_hidden(f"{doing} by mark") from None
                else:
                    raise
                continue
            if seen is None and not plan.disjoint:
                seen = {}
            lets_through = plan.may_let_through if without_info else plan.lets_through
            yield from _matching(first, rows, filter.protocol, lets_through if plan.checks else None, seen)
            return

    def _rows(
        self, plan: Plan, requests: list[tuple[int, bytes]], doing: str, may_repeat_rows: bool
    ) -> Iterator[list[bytes]]:
        for program in plan.programs:
            attribute = encode_attribute(INET_DIAG_REQ_BYTECODE, program) if program else b""
            for type_, request in requests:
                dump = self.diag.dump(type_, request + attribute, doing, may_repeat_rows=may_repeat_rows)
                for number, rows in enumerate(dump):
                    if may_repeat_rows and (number or (len(rows) >= _CHUNK and self._has_long_chains())):
                        self._may_have_skipped = True
                    yield rows


def _requests(filter: SocketFilter, states: int, bits: int, one_walk: bool) -> list[tuple[int, bytes]]:
    """(message type, request) of each dump that is needed. The older request covers TCP of both families."""
    if one_walk:
        return [(TCPDIAG_GETSOCK, InetDiagReq(extensions=bits, states=states).encode())]
    return [
        (SOCK_DIAG_BY_FAMILY, InetDiagReqV2(family, filter.protocol, bits, states).encode())
        for family in filter.families
    ]


def _matching(
    first: list[bytes] | None,
    others: Iterator[list[bytes]],
    protocol: int,
    lets_through: Callable[[InetSocket], bool] | None,
    seen: Seen | None,
) -> Iterator[tuple[int, InetSocket]]:
    for rows in () if first is None else chain((first,), others):
        sockets = map(InetSocket, rows, repeat(protocol))
        if seen is None:
            yield from zip(repeat(0), sockets if lets_through is None else filter(lets_through, sockets))
            continue
        for socket in sockets:
            cookie = socket.cookie
            if cookie not in seen and (lets_through is None or lets_through(socket)):
                seen[cookie] = None
                yield cookie, socket
