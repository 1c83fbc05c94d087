"""Find the sockets that a filter means, and destroy them by the rules of who may die."""

from __future__ import annotations

import errno
import os

from .errors import KernelError, SocklbError, UnboundedFilter, kernel_error
from .filters.socket_filter import PROTOCOL_NAMES, SocketFilter
from .kernel import names
from .kernel.diag import BATCH, DiagSocket
from .kernel.namespaces import HOST_NAME, NetworkNamespace, inside
from .kernel.session import own_session, unmapped
from .report import DESTROYED, FAILED, GONE, SKIPPED, DestroyReport, Outcome, outcome_record
from .states import STATE_FILTER_TCP, STATE_FILTER_UDP, TcpState
from .wire.reply import InetSocket
from .wire.request import IPPROTO_TCP, SOCK_DIAG_BY_FAMILY, InetDiagReqV2, destroy_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from .kernel.session import OwnSession

    Audit = Callable[[dict[str, Any]], object]

LISTENING = "listening"
NOT_CONNECTED = "not connected"
OWN_SESSION = "own session"
DRY_RUN = "dry run"
LIMIT = "limit"
SHARED_ADDRESS = "another socket shares its address"
ONLY_BOUND = "only bound: the kernel destroys no TCP socket that has no peer"


def find_sockets(
    filter: SocketFilter, *, namespace: NetworkNamespace | None = None, extensions: Iterable[str] = ()
) -> Iterator[InetSocket]:
    """The sockets that the filter means, streamed: memory does not grow with their number.

    `namespace` None is the caller's. `extensions` names response attributes to ask for ("info", "cong", "meminfo",
    "skmeminfo", ...); some come without being asked for. Raises ValueError for a name that is unknown there,
    KernelError for what the kernel answers. A dump that is interrupted after its first row raises, for what was given
    out cannot be taken back.
    """
    return _find(_resolved(filter, namespace), namespace, _extension_bits(extensions))


def _extension_bits(names: Iterable[str]) -> int:
    if not names:
        return 0
    from .wire.attributes import extension_bits  # the codecs of attributes take a while to import

    return extension_bits(names)


def _find(filter: SocketFilter, namespace: NetworkNamespace | None, bits: int) -> Iterator[InetSocket]:
    with inside(namespace, DiagSocket) as diag:
        for socket in _dump(diag, filter, filter.request_states, namespace, bits=bits):
            if filter.matches(socket):
                yield socket


def _dump(
    diag: DiagSocket,
    filter: SocketFilter,
    states: int,
    namespace: NetworkNamespace | None,
    *,
    bits: int = 0,
    may_repeat_rows: bool = False,
) -> Iterator[InetSocket]:
    """Every row that the kernel has of the filter's protocol and families in these states."""
    protocol = filter.protocol
    doing = f"list {PROTOCOL_NAMES[protocol]} sockets in {_name(namespace)}"
    for family in filter.families:
        request = InetDiagReqV2(family, protocol, bits, states).encode()
        for rows in diag.dump(SOCK_DIAG_BY_FAMILY, request, doing, may_repeat_rows=may_repeat_rows):
            for row in rows:
                yield InetSocket(row, protocol)


def destroy_sockets(
    filter: SocketFilter,
    *,
    namespace: NetworkNamespace | None = None,
    dry_run: bool = False,
    limit: int | None = None,
    unconnected: bool = False,
    allow_unbounded: bool = False,
    audit: Audit | None = None,
) -> DestroyReport:
    """Destroy the sockets that the filter means, so that their owners get an error at once.

    Spared are listening TCP sockets (unless the filter's states name LISTEN), UDP sockets without a peer (unless
    `unconnected`), the ssh session one works in, all of them in a `dry_run`, and those beyond `limit`. `audit` is
    called with one dict for each verdict.

    Raises UnboundedFilter for a filter that names no endpoint (unless `allow_unbounded`); NotPermitted or NotSupported,
    when the kernel refuses, with the report so far in `.report`: what was still to be destroyed is `failed` in it.
    A dry run, and a run that matches nothing, needs no privilege.
    """
    return destroy_each(
        [filter],
        namespace=namespace,
        dry_run=dry_run,
        limit=limit,
        unconnected=unconnected,
        allow_unbounded=allow_unbounded,
        audit=audit,
    )


def destroy_each(
    filters: Sequence[SocketFilter],
    *,
    namespace: NetworkNamespace | None = None,
    dry_run: bool = False,
    limit: int | None = None,
    unconnected: bool = False,
    allow_unbounded: bool = False,
    audit: Audit | None = None,
) -> DestroyReport:
    """`destroy_sockets` for several filters, one protocol each, as one run: one netlink socket, one limit, one report."""
    _check_limit(limit)
    resolved = [_resolved(filter, namespace) for filter in filters]
    for filter in filters:
        if not allow_unbounded and not filter.is_bounded:
            raise UnboundedFilter(
                f"the filter '{filter}' does not bound the endpoint: name an address or a port, or say that every "
                "endpoint is meant"
            )
    report = DestroyReport()
    left = limit

    def conclude(outcome: Outcome, filter: SocketFilter) -> None:
        report.add(outcome)
        if audit is not None:
            audit(outcome_record(outcome, namespace=_name(namespace), filter=str(filter), dry_run=dry_run))

    try:
        with inside(namespace, DiagSocket) as diag:
            for filter, named in zip(resolved, filters):
                doomed = []
                for socket, reason in _spare(_collect(diag, filter, namespace), filter, unconnected):
                    reason = reason or (LIMIT if left is not None and len(doomed) >= left else "")
                    if not reason:
                        doomed.append(socket)
                    if reason or dry_run:
                        conclude(Outcome(socket, SKIPPED, reason or DRY_RUN), named)
                if left is not None:
                    left -= len(doomed)
                if not dry_run:
                    _Execution(diag, filter, namespace, lambda outcome, named=named: conclude(outcome, named)).run(doomed)
    except (SocklbError, KeyboardInterrupt) as error:
        error.report = report  # type: ignore[union-attr]
        raise
    return report


def _check_limit(limit: int | None) -> None:
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit is an int or None, not {limit!r}")
    if limit < 1:
        raise ValueError(f"limit {limit} is below 1; a dry run destroys nothing")


def _resolved(filter: SocketFilter, namespace: NetworkNamespace | None) -> SocketFilter:
    if not isinstance(filter, SocketFilter):
        raise TypeError(f"filter is a SocketFilter, not {filter!r}")
    return filter if filter.is_resolved else inside(namespace, lambda: filter.resolved(names))


def _name(namespace: NetworkNamespace | None) -> str:
    return HOST_NAME if namespace is None else namespace.name


def _collect(diag: DiagSocket, filter: SocketFilter, namespace: NetworkNamespace | None) -> list[InetSocket]:
    """What the filter means, each socket once, however often an interrupted dump had to be repeated."""
    rows = _dump(diag, filter, filter.request_states, namespace, may_repeat_rows=True)
    return list({socket.cookie: socket for socket in rows if filter.matches(socket)}.values())


# ------------------------------------------------------------------------------------------ who is spared


def _spare(
    sockets: list[InetSocket], filter: SocketFilter, unconnected: bool
) -> Iterator[tuple[InetSocket, str]]:
    """Each socket with the reason why it is spared, "" for one that is not."""
    session = own_session() if sockets else None
    for socket in sockets:
        if session is not None and _is_own(socket, session):
            yield socket, OWN_SESSION
        elif socket.protocol == IPPROTO_TCP and socket.state == TcpState.LISTEN and not filter.names_listen:
            yield socket, LISTENING
        elif socket.protocol != IPPROTO_TCP and socket.state != TcpState.ESTABLISHED and not unconnected:
            yield socket, NOT_CONNECTED
        else:
            yield socket, ""


def _is_own(socket: InetSocket, session: OwnSession) -> bool:
    if socket.inode and socket.inode in session.inodes:
        return True
    if not session.tuples:
        return False
    return ((unmapped(socket.src), socket.sport), (unmapped(socket.dst), socket.dport)) in session.tuples


# ---------------------------------------------------------------------------------------------- the kill


class _Execution:
    """Destroys sockets in rounds, until each has its verdict."""

    def __init__(
        self,
        diag: DiagSocket,
        filter: SocketFilter,
        namespace: NetworkNamespace | None,
        conclude: Callable[[Outcome], None],
    ) -> None:
        self._diag, self._filter, self._namespace, self._conclude = diag, filter, namespace, conclude
        self._doing = f"destroy {PROTOCOL_NAMES[filter.protocol]} sockets in {_name(namespace)}"
        self._pending: dict[int, InetSocket] = {}  # by cookie, those without a verdict

    def run(self, doomed: list[InetSocket]) -> None:
        """ENOENT says little: a socket that is still there hides behind a twin with the same address.

        The twin is found first; once it is gone the next one is. So rounds follow as long as the last one destroyed
        something. A cookie that answered 0 is never tried again: a bound UDP twin stays where it is, and answers 0
        for ever.
        """
        self._pending = {socket.cookie: socket for socket in doomed}
        while self._pending:
            destroyed = self._round()
            if not self._pending:
                return
            there = self._still_there()
            for cookie, socket in list(self._pending.items()):
                if cookie not in there:
                    self._settle(socket, GONE)
                elif not destroyed:
                    only_bound = socket.protocol == IPPROTO_TCP and socket.state == TcpState.CLOSE
                    self._settle(socket, FAILED, ONLY_BOUND if only_bound else SHARED_ADDRESS, errno.ENOENT)

    def _round(self) -> int:
        """Try each once; how many were destroyed. Those that answered ENOENT stay pending."""
        sockets = list(self._pending.values())
        destroyed = 0
        for start in range(0, len(sockets), BATCH):
            batch = sockets[start : start + BATCH]
            requests = [destroy_request(socket.protocol, socket.family, socket.id_bytes) for socket in batch]
            refused = 0
            for socket, code in zip(batch, self._diag.destroy(requests, self._doing)):
                if code == 0:
                    destroyed += 1
                    self._settle(socket, DESTROYED)
                elif code in (errno.EPERM, errno.EOPNOTSUPP):
                    refused = code
                elif code != errno.ENOENT:
                    self._settle(socket, FAILED, os.strerror(code), code)
            if refused:
                self._give_up(kernel_error(refused, self._doing))
        return destroyed

    def _give_up(self, error: KernelError) -> None:
        for socket in list(self._pending.values()):
            self._settle(socket, FAILED, os.strerror(error.errno or 0), error.errno)
        raise error

    def _settle(self, socket: InetSocket, verdict: str, reason: str = "", error: int | None = None) -> None:
        del self._pending[socket.cookie]
        self._conclude(Outcome(socket, verdict, reason, error))

    def _still_there(self) -> set[int]:
        """The cookies of pending sockets that are in the table with the address they had, in whatever live state."""
        live = STATE_FILTER_TCP if self._filter.protocol == IPPROTO_TCP else STATE_FILTER_UDP
        states = live | self._filter.request_states
        rows = _dump(self._diag, self._filter, states, self._namespace, may_repeat_rows=True)
        return {
            socket.cookie
            for socket in rows
            if socket.cookie in self._pending and socket.id_bytes == self._pending[socket.cookie].id_bytes
        }
