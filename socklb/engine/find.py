# SPDX-License-Identifier: MIT
"""Find the sockets that a filter matches: ask the kernel, and match in Python what it could not."""

from __future__ import annotations

import errno

from ..errors import KernelError, mark_hidden
from ..filters import SocketFilter
from ..kernel import names
from ..kernel.diag import DiagSocket
from ..kernel.namespaces import CURRENT_NAME, NamespaceVanished, NetworkNamespace, current_first, run_in_netns
from ..kernel.sockstat import sockets_in_use
from ..states import TcpState, state_mask
from ..wire.bytecode import (
    INET_DIAG_BC_CGROUP_COND,
    INET_DIAG_BC_MARK_COND,
    INET_DIAG_REQ_BYTECODE,
)
from ..wire.netlink import encode_attribute
from ..wire.reply import InetSocket
from ..wire.request import (
    IPPROTO_TCP,
    PROTOCOL_NAMES,
    SOCK_DIAG_BY_FAMILY,
    TCPDIAG_GETSOCK,
    InetDiagReq,
    InetDiagReqV2,
)
from .parallel import in_parallel, is_worker
from .policy import check_filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from ..filters.compiler import Plan

# sockstat does not count these.
_UNCOUNTED = state_mask(TcpState.TIME_WAIT, TcpState.BOUND_INACTIVE)

# The bytecode op that a kernel with SOCK_DESTROY for UDP (Linux 4.9) may lack: it came with 5.9.
_LATER_OPS = frozenset({INET_DIAG_BC_CGROUP_COND})


def find_sockets(
    filter: SocketFilter, *, namespace: NetworkNamespace | None = None, extensions: Iterable[str] = ()
) -> Generator[InetSocket, None, None]:
    """The sockets that the filter matches, streamed: memory does not grow with their number.

    The iterator holds a netlink socket until it is exhausted, closed (`close()`), or raises.
    `namespace` None is the caller's. `extensions` names response attributes to ask for ("info", "cong", "meminfo",
    "skmeminfo", ...); some come without being asked for. Raises ValueError for an interface or cgroup that does not
    exist there, KernelError for what the kernel answers. A dump that is interrupted after its first row raises, since
    rows that were yielded cannot be taken back.
    """
    check_filters([filter], allow_unbounded=True)
    if namespace is not None and not isinstance(namespace, NetworkNamespace):
        raise TypeError(f"namespace is a NetworkNamespace or None, not {namespace!r}")
    resolved = filter if filter.is_resolved else run_in_netns(namespace, lambda: filter.resolved(names))
    return _find(resolved, namespace, extension_bits(extensions))


def _find(filter: SocketFilter, namespace: NetworkNamespace | None, bits: int) -> Generator[InetSocket, None, None]:
    netns = CURRENT_NAME if namespace is None else namespace.name
    with run_in_netns(namespace, SocketTable) as table:
        for socket in table.search(filter, filter.request_states, netns, bits=bits):
            if filter.accepts(socket):
                yield socket


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
            table = run_in_netns(namespace, SocketTable, thread_may_move=is_worker())
        except NamespaceVanished:
            return
        with table:
            for filter in filters:
                rows = table.search(filter, filter.request_states, namespace.name, may_repeat_rows=True)
                cookies.update(socket.cookie for socket in rows)

    in_parallel(look, current_first(namespaces))
    return cookies


class SocketTable:
    """The sockets of the network namespace that it is made in. A context manager; holds one netlink socket."""

    def __init__(self) -> None:
        # Sockets created later are out of scope, so the counts are read once.
        self._in_use = sockets_in_use()
        self.diag = DiagSocket()
        self._missing_ops: frozenset[int] = frozenset()  # bytecode ops that the kernel has refused
        self._takes_old_request = True

    def __enter__(self) -> SocketTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.diag.close()

    def collect(self, filter: SocketFilter, netns: str, bits: int = 0) -> dict[int, InetSocket]:
        """What the filter matches, by cookie: once, however often an interrupted dump had to be repeated."""
        found = self.search(filter, filter.request_states, netns, bits=bits, may_repeat_rows=True)
        return {socket.cookie: socket for socket in found if filter.accepts(socket)}

    def search(
        self, filter: SocketFilter, states: int, netns: str, *, bits: int = 0, may_repeat_rows: bool = False
    ) -> Iterator[InetSocket]:
        """The sockets in these states that the filter's condition (not its predicate) matches; `netns` is for errors.

        It costs one walk of the kernel's table for each program of the filter where the kernel answers for both
        families at once, and none for a family without a socket. What a kernel refuses is asked for in older ways.
        """
        families = self._families_in_use(filter, states)
        doing = f"list {PROTOCOL_NAMES[filter.protocol]} sockets in {netns}"
        while families:
            one_walk = filter.protocol == IPPROTO_TCP and filter.family is None and self._takes_old_request
            plan = filter.plan(self._missing_ops)
            rows = self._rows(plan, _requests(filter, families, states, bits, one_walk), doing, may_repeat_rows)
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
            yield from _matching(first, rows, filter.protocol, plan)
            return

    def _families_in_use(self, filter: SocketFilter, states: int) -> list[int]:
        if filter.protocol == IPPROTO_TCP and states & _UNCOUNTED:
            return list(filter.families)
        return [family for family in filter.families if self._in_use.get((filter.protocol, family), 1)]

    def _rows(
        self, plan: Plan, requests: list[tuple[int, bytes]], doing: str, may_repeat_rows: bool
    ) -> Iterator[list[bytes]]:
        for program in plan.programs:
            attribute = encode_attribute(INET_DIAG_REQ_BYTECODE, program) if program else b""
            for type_, request in requests:
                yield from self.diag.dump(type_, request + attribute, doing, may_repeat_rows=may_repeat_rows)


def _requests(
    filter: SocketFilter, families: list[int], states: int, bits: int, one_walk: bool
) -> list[tuple[int, bytes]]:
    """(message type, request) of each dump that is needed. The older request covers TCP of both families."""
    if one_walk:
        return [(TCPDIAG_GETSOCK, InetDiagReq(extensions=bits, states=states).encode())]
    return [(SOCK_DIAG_BY_FAMILY, InetDiagReqV2(family, filter.protocol, bits, states).encode()) for family in families]


def _matching(
    first: list[bytes] | None, others: Iterator[list[bytes]], protocol: int, plan: Plan
) -> Iterator[InetSocket]:
    residual, recheck = plan.residual, plan.recheck
    seen: set[int] | None = None if plan.disjoint else set()
    buffer = first
    while buffer is not None:
        for row in buffer:
            socket = InetSocket(row, protocol)
            if recheck is not None and not recheck.matches(socket):
                continue
            if residual is not None and not residual.matches(socket):
                continue
            if seen is not None:
                if socket.cookie in seen:
                    continue
                seen.add(socket.cookie)
            yield socket
        buffer = next(others, None)
