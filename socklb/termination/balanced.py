# SPDX-License-Identifier: MIT
"""Who is balanced to backends that are gone: conntrack's entries in every namespace, and the sockets they belong to.

An entry names the client's socket by its original tuple. The tuple alone proves little: tenants in different zones, and
containers on different bridges, may have equal addresses. So all entries and all sockets with a tuple are found before
any verdict, and what cannot be told apart is spared.

    entries whose reply source is gone  ->  sockets with their original tuple, wherever
                                        ->  behind a further NAT: the entry whose reply comes there, and its own tuple
"""

from __future__ import annotations

import errno
from _thread import allocate_lock
from functools import partial

from ..conntrack.clients import Clients, Servers, is_local
from ..conntrack.flows import endpoints_of
from ..conntrack.layout import FlowTuple
from ..conntrack.table import ConntrackTable, is_loose
from ..engine.find import table_in
from ..engine.parallel import in_parallel, is_worker
from ..engine.report import ABSENT, DONE, REFUSED
from ..errors import NotPermitted, NotSupported, SocklbError
from ..kernel.namespaces import CannotEnter, NamespaceVanished, current_first, run_in_netns
from ..wire.request import IPPROTO_TCP
from .reasons import ANSWERED_HERE, ELSEWHERE, OTHER_ZONE, SEVERAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from typing import TypeVar

    from ..conntrack.layout import Flow
    from ..filters.backend import Backend
    from ..kernel.namespaces import NetworkNamespace
    from ..wire.reply import InetSocket

    T = TypeVar("T")

_HOPS = 3  # of NAT between a client and the balancer that are followed


class Case:
    """An entry that leads to a backend that is gone: its namespace, and what was found of the client.

    `client` is the tuple of the client's socket, which may be behind a further NAT, and `origin` the namespace where
    conntrack has it. `sockets`: (namespace, socket) of each that has it. `reason`: why these are to be spared, or "".
    `has_own_socket`: whether each entry with that tuple has a socket; else it is not known which entry is whose.
    """

    __slots__ = ("client", "flow", "has_own_socket", "namespace", "origin", "reason", "sockets")

    def __init__(self, namespace: NetworkNamespace, flow: Flow) -> None:
        self.namespace, self.flow = namespace, flow
        self.origin, self.client = namespace, flow.original
        self.sockets: list[tuple[NetworkNamespace, InetSocket]] = []
        self.reason, self.has_own_socket = "", False

    @property
    def is_of_socket(self) -> bool:
        """Whether the socket is to be destroyed: IPVS has a table of its own, which sends UDP there again."""
        return self.flow.protocol == IPPROTO_TCP or self.flow.is_by_ipvs

    @property
    def place(self) -> NetworkNamespace | None:
        """The namespace where alone its client can be, None for any."""
        return self.origin if is_local(self.client) else None


class Balanced:
    """The cases of one look into every namespace. A context manager: it keeps the tables open where cases are."""

    def __init__(
        self,
        backends: Collection[Backend],
        namespaces: Iterable[NetworkNamespace],
        while_waiting: Callable[[], object] = lambda: None,
    ) -> None:
        self._endpoints = endpoints_of(backends)
        self._elsewhere = endpoints_of(backend for backend in backends if not backend.is_local)
        self._here: NetworkNamespace | None = None  # where alone those on loopback are meant, unless None
        self._namespaces, self._while_waiting = list(namespaces), while_waiting
        self.cases: list[Case] = []
        self.is_loose: dict[NetworkNamespace, bool] = {}  # tcp_loose, where there are cases
        self.refused: dict[NetworkNamespace, SocklbError] = {}
        self.errors: dict[NetworkNamespace, Exception] = {}
        self._is_absent = self._is_refused = False
        self._tables: dict[NetworkNamespace, ConntrackTable] = {}
        self._tracked: list[NetworkNamespace] = []  # those that have entries
        self._lock = allocate_lock()  # a table is for one thread at a time

    def __enter__(self) -> Balanced:
        return self

    def __exit__(self, *_: object) -> None:
        for table in self._tables.values():
            table.close()

    def _everywhere(self, look: Callable[[NetworkNamespace], object]) -> None:
        """Look into each namespace; what one of them answers does not stop the others."""

        def look_in(namespace: NetworkNamespace) -> None:
            try:
                look(namespace)
            except NamespaceVanished:
                return
            except (NotPermitted, CannotEnter) as error:
                self.refused[namespace] = error
            except (SocklbError, ValueError) as error:  # ValueError: it is no network namespace
                self.errors[namespace] = error

        in_parallel(look_in, current_first(self._namespaces), while_waiting=self._while_waiting)

    # ------------------------------------------------------------------------------------------- entries

    def find(self, here: NetworkNamespace | None) -> None:
        """Find the entries. Backends on a loopback address are looked for in `here` alone, unless it is None."""
        self._here = here

        def look(namespace: NetworkNamespace) -> None:
            try:
                self._find_in(namespace)
            except CannotEnter:
                raise
            except NotSupported:
                self._is_absent = True

        self._everywhere(look)
        self.cases.sort(key=lambda case: (case.flow.original, case.flow.id))

    @property
    def status(self) -> str:
        """Whether conntrack was asked, for the report."""
        if self._is_absent:
            return ABSENT
        return REFUSED if self._is_refused else DONE

    def _gone_in(self, namespace: NetworkNamespace) -> Collection[tuple[int, bytes, int]]:
        return self._endpoints if self._here in (None, namespace) else self._elsewhere

    def _find_in(self, namespace: NetworkNamespace) -> None:
        table = run_in_netns(namespace, ConntrackTable, thread_may_move=is_worker())
        try:
            try:
                if not table.count():
                    return
            except NotPermitted:
                self._is_refused = True
                raise
            self._tracked.append(namespace)
            cases = [Case(namespace, flow) for flow in table.flows_to(self._gone_in(namespace)) if not flow.is_closing]
            if cases:
                self.is_loose[namespace] = run_in_netns(namespace, is_loose, thread_may_move=is_worker())
                self._tables[namespace] = table
                self.cases += cases
        finally:
            if namespace not in self._tables:
                table.close()

    def is_still_there(self, case: Case) -> bool:
        """Whether conntrack still leads the same connection to the same backend."""
        with self._lock:
            return self._are_still_there(case.namespace, [case])[0]

    def _are_still_there(self, namespace: NetworkNamespace, cases: Sequence[Case]) -> list[bool]:
        """By id and reply: the kernel makes the id from the original tuple and an address in memory, so that an entry
        often has that of the one before it.
        """
        now = self._tables[namespace].get([case.flow for case in cases])
        return [
            one is not None and (one.id, one.reply) == (case.flow.id, case.flow.reply) for case, one in zip(cases, now)
        ]

    def delete(self, cases: Sequence[Case]) -> list[int]:
        """Delete the entries of cases, as far as they are still the same; the errno of each."""
        codes: dict[Case, int] = dict.fromkeys(cases, errno.ENOENT)
        with self._lock:
            for namespace, those in _by(cases, lambda case: case.namespace).items():
                try:
                    self._delete_in(namespace, those, codes)
                except SocklbError as error:  # it does not stop the other namespaces
                    codes.update(dict.fromkeys(those, getattr(error, "errno", None) or errno.EIO))
        return [codes[case] for case in cases]

    def _delete_in(self, namespace: NetworkNamespace, cases: Sequence[Case], codes: dict[Case, int]) -> None:
        are_there = self._are_still_there(namespace, cases)
        same = [case for case, is_there in zip(cases, are_there) if is_there]
        codes.update(zip(same, self._tables[namespace].delete([case.flow for case in same])))

    # ------------------------------------------------------------------------------------------- sockets

    def locate(self) -> None:
        """Find the sockets of those cases that are about sockets, and judge which of them may not be told apart."""
        self.find_sockets([case for case in self.cases if case.is_of_socket])
        self._judge([case for case in self.cases if case.sockets])

    def find_sockets(self, cases: Sequence[Case]) -> None:
        """Those that have the tuples of the cases' clients, as the balancer knows them or behind a further NAT."""
        unresolved = cases
        for _ in range(1 + _HOPS):
            self._search(unresolved)
            unresolved = self._behind_nat([case for case in unresolved if not case.sockets])
            if not unresolved:
                break

    def _search(self, cases: Sequence[Case]) -> None:
        """The sockets that have the tuples of the cases' clients."""
        by_client = _by(cases, lambda case: case.client)
        clients = Clients(by_client)

        def look(namespace: NetworkNamespace) -> None:
            with table_in(namespace) as table:
                for client, socket in clients.sockets_in(table):
                    for case in by_client[client]:
                        if case.place in (None, namespace):
                            case.sockets.append((namespace, socket))

        if cases:
            self._everywhere(look)

    def _behind_nat(self, cases: Sequence[Case]) -> list[Case]:
        """Those cases for which another namespace has an entry whose replies come to the client; they get its own."""
        found: dict[Case, None] = {}
        for namespace in self._tracked:
            asked = [case for case in cases if case.origin != namespace and case.place is None]
            replies = [case.client.inverse for case in asked]
            inner_flows = self._ask(namespace, partial(ConntrackTable.get_replies, replies=replies)) if asked else ()
            for case, inner in zip(asked, inner_flows or ()):
                if inner is not None and inner.original != case.client and case not in found:
                    case.client, case.origin = inner.original, namespace
                    found[case] = None
        return list(found)

    def _ask(self, namespace: NetworkNamespace, ask: Callable[[ConntrackTable], Sequence[T]]) -> Sequence[T] | None:
        """Ask conntrack of one namespace: nothing comes from one that has vanished; None if it fails, see `errors`."""
        try:
            if namespace in self._tables:
                with self._lock:
                    return ask(self._tables[namespace])
            with run_in_netns(namespace, ConntrackTable) as table:
                return ask(table)
        except NamespaceVanished:
            return ()
        except SocklbError as error:
            self.errors[namespace] = error
            return None

    # ---------------------------------------------------------------------------------------- who is who

    def _judge(self, cases: Sequence[Case]) -> None:
        """Say which sockets are to be spared; as many as there are entries are one's each."""
        reasons = {**self._rivals(cases), **dict.fromkeys(self._answered_here(cases), ANSWERED_HERE)}
        for those in _by(cases, lambda case: (case.client, case.place)).values():
            sockets = those[0].sockets
            are_too_many = len(sockets) > len(those)
            reason = next((reasons[case] for case in those if case in reasons), SEVERAL if are_too_many else "")
            for case in those:
                case.reason, case.has_own_socket = reason, len(sockets) == len(those)
            if not are_too_many:
                _pair(those, sockets)

    def _rivals(self, cases: Sequence[Case]) -> dict[Case, str]:
        """The cases whose tuples lead to a backend that lives too, or lead on: why each is spared."""
        rivals: dict[Case, str] = {}
        for namespace in self._tracked:
            table = self._tables.get(namespace)
            has_zones = table is not None and table.may_have_zones
            own = {case: case.flow.original for case in cases if has_zones and case.namespace == namespace}
            others = {case: case.client for case in cases if case.origin != namespace and case.place is None}
            for asked, reason in ((own, OTHER_ZONE), (others, ELSEWHERE)):
                alive = self._leading_elsewhere(namespace, {*asked.values()})
                for case, original in asked.items():
                    if alive is None or original in alive:
                        rivals.setdefault(case, reason)
        return rivals

    def _leading_elsewhere(self, namespace: NetworkNamespace, originals: set[FlowTuple]) -> set[FlowTuple] | None:
        """Those of the tuples with an entry, in whatever zone, that leads elsewhere; None where that is unknown."""
        found = self._ask(namespace, partial(ConntrackTable.entries_of, originals=originals)) if originals else ()
        return None if found is None else {one.original for one in found if self._leads_elsewhere(one, namespace)}

    def _answered_here(self, cases: Sequence[Case]) -> list[Case]:
        """Those with a local socket at the other end, which the service's address has: nobody has translated that
        connection, so that the entry is another one's, of a client elsewhere.
        """
        by_answer = _by(cases, lambda case: case.client.inverse)
        servers = Servers(by_answer)
        answered: dict[Case, None] = {}

        def look(namespace: NetworkNamespace) -> None:
            with table_in(namespace) as table:
                for answer, _ in servers.sockets_in(table):
                    answered.update((case, None) for case in by_answer[answer] if case.place in (None, namespace))

        if cases:
            self._everywhere(look)
        return list(answered)

    def _leads_elsewhere(self, flow: Flow, namespace: NetworkNamespace) -> bool:
        """Whether an entry of a namespace translates, and not to a backend that is gone there."""
        source = (flow.protocol, flow.reply.src, flow.reply.sport)
        return (
            flow.is_translated and not flow.is_closing and not (flow.is_dnated and source in self._gone_in(namespace))
        )


def _pair(cases: Sequence[Case], sockets: Sequence[tuple[NetworkNamespace, InetSocket]]) -> None:
    """Give the cases one of the sockets each, as long as there are any: above all that of its own namespace."""
    left = list(sockets)
    for case in cases:
        case.sockets = [one for one in left if one[0] == case.origin][:1]
        left = [one for one in left if one not in case.sockets]
    for case in cases:
        if not case.sockets:
            case.sockets, left = left[:1], left[1:]


def _by(cases: Iterable[Case], key: Callable[[Case], T]) -> dict[T, list[Case]]:
    groups: dict[T, list[Case]] = {}
    for case in cases:
        groups.setdefault(key(case), []).append(case)
    return groups
