# SPDX-License-Identifier: MIT
"""The netlink socket to ctnetlink: the entries of one network namespace, dumped, asked for, and deleted one by one."""

from __future__ import annotations

import _socket
import errno
import os

from ..errors import KernelError, MalformedMessage, NotPermitted, NotSupported
from ..kernel.netlink_socket import NetlinkSocket, batches
from ..wire.socket_id import AF_INET, AF_INET6
from .layout import (
    AF_UNSPEC,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    FILTER_DST_PORT,
    FILTER_IP_DST,
    FILTER_IP_SRC,
    FILTER_PROTO_NUM,
    FILTER_SRC_PORT,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    IPCTNL_MSG_CT_GET_STATS,
    IPCTNL_MSG_CT_NEW,
    decode_count,
    decode_flow,
    delete_request,
    filter_by,
    get_request,
    request,
)
from .scan import ByBackend, ByOriginal, Dnated, parse_dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from typing import TypeVar

    from .layout import Flow, FlowTuple
    from .scan import Scan

    T = TypeVar("T")
    Endpoint = tuple[int, bytes, int]

NETLINK_NETFILTER = 12

_QUESTIONS = 4
"""So many filtered dumps, each a walk of the whole table, cost less than receiving all of it."""

_EVERYTHING = AF_UNSPEC, b""
_HAS_REPLY_FILTERS = (5, 16)  # ad81d4daf6a3; before, CTA_FILTER on the reply tuple matches nothing
_TCP_LOOSE = "/proc/sys/net/netfilter/nf_conntrack_tcp_loose"  # of the thread's namespace
CONFIG = "CONFIG_NF_CT_NETLINK (or: modprobe nf_conntrack_netlink)"


def open_netlink() -> _socket.socket:
    """A NETLINK_NETFILTER socket in the network namespace of the calling thread."""
    return _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, NETLINK_NETFILTER)


def is_loose() -> bool:
    """Whether conntrack picks up TCP connections in their midst in the namespace of the calling thread: tcp_loose.
    Where that cannot be read: no.
    """
    try:
        with open(_TCP_LOOSE, encoding="ascii") as file:
            return file.read().strip() != "0"
    except OSError:
        return False


class ConntrackTable(NetlinkSocket):
    """The entries of the network namespace that it is made in. A context manager, for one thread at a time."""

    lacks = "NETLINK_NETFILTER: CONFIG_NETFILTER_NETLINK (or: modprobe nf_conntrack_netlink)"
    refuses_sends = True

    takes_filters = True
    """False for the process once the kernel has refused one, but not a dump of everything."""

    def __init__(self) -> None:
        super().__init__(open_netlink)
        self.may_have_zones = True
        """False once a dump of everything has shown none."""

    def count(self) -> int:
        """How many entries there are."""
        doing = "count the entries of conntrack"
        (answer,) = self._look_up(IPCTNL_MSG_CT_GET_STATS, IPCTNL_MSG_CT_GET_STATS, [request(AF_UNSPEC)], doing)
        if answer is None:
            raise self._error(errno.ENOENT, doing)
        return self._decoded(lambda: decode_count(answer, 0, len(answer)))

    def dnated(self) -> Iterator[Flow]:
        """The flows that are translated to another destination, streamed; an entry may come twice."""
        return self._flows(*_EVERYTHING, Dnated(), may_repeat_rows=False)

    def flows_to(self, wanted: Collection[Endpoint]) -> list[Flow]:
        """The flows to these backends (protocol, packed address, port) whose clients asked for something else.

        Few are asked for by filters in the kernel, v4 by address, v6 by protocol and port. For many there is one dump.
        Whatever the kernel sends is compared here.
        """
        return _once(self._flows_to(wanted, may_repeat_rows=True))

    def stream_to(self, wanted: Collection[Endpoint]) -> Iterator[Flow]:
        """`flows_to`, streamed; an entry may come twice."""
        return self._flows_to(wanted, may_repeat_rows=False)

    def _flows_to(self, wanted: Collection[Endpoint], *, may_repeat_rows: bool) -> Iterator[Flow]:
        for family, filter, asked_for in _questions(wanted):
            scan = ByBackend(asked_for, may_have_zones=bool(filter))
            yield from self._flows(family, filter, scan, may_repeat_rows=may_repeat_rows)
            self.may_have_zones = scan.may_have_zones

    def entries_of(self, originals: Collection[FlowTuple]) -> list[Flow]:
        """Every entry with one of these original tuples, in whatever zone."""
        are_few = self.takes_filters and len(originals) <= _QUESTIONS
        questions = [_by_original(one) for one in originals] if are_few else [_EVERYTHING]
        scan = ByOriginal(originals)
        return _once(flow for family, filter in questions for flow in self._flows(family, filter, scan))

    def _flows(self, family: int, filter: bytes, scan: Scan, *, may_repeat_rows: bool = True) -> Iterator[Flow]:
        """Dump with the filter; if the kernel refuses it, dump everything."""
        try:
            yield from self._scanned(family, filter, scan, may_repeat_rows=may_repeat_rows)
            return
        except NotSupported:
            if not filter:
                raise
        yield from self._scanned(*_EVERYTHING, scan, may_repeat_rows=may_repeat_rows)
        ConntrackTable.takes_filters = False

    def _scanned(self, family: int, filter: bytes, scan: Scan, *, may_repeat_rows: bool) -> Iterator[Flow]:
        dump = self._dump(
            IPCTNL_MSG_CT_GET,
            request(family, filter),
            lambda reply, sequence: parse_dump(reply, sequence, scan),
            "list the entries of conntrack",
            may_repeat_rows=may_repeat_rows,
        )
        for flows in dump:
            yield from flows

    def get(self, flows: Sequence[Flow]) -> list[Flow | None]:
        """The entries that have the original tuples of these flows now, each in its zone; None for none."""
        found = self._entries([get_request(flow.original, flow.zone) for flow in flows])
        return [
            now if now is not None and (now.original, now.zone) == (flow.original, flow.zone) else None
            for now, flow in zip(found, flows)
        ]

    def get_replies(self, replies: Sequence[FlowTuple]) -> list[Flow | None]:
        """The entries in zone 0 whose replies have these tuples; None for none."""
        found = self._entries([get_request(one, 0) for one in replies])
        return [flow if flow is not None and flow.reply == one else None for flow, one in zip(found, replies)]

    def _entries(self, requests: list[bytes]) -> list[Flow | None]:
        """The kernel finds an entry by either of its tuples."""
        rows: list[bytes | None] = []
        for batch in batches(requests):
            rows += self._look_up(IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_NEW, batch, "look up entries of conntrack")
        return self._decoded(lambda: [None if row is None else decode_flow(row, 0, len(row)) for row in rows])

    def delete(self, flows: Sequence[Flow]) -> list[int]:
        """Delete entries, each by its original tuple, zone and id; the errno of each, 0 for success."""
        codes: list[int] = []
        for batch in batches([delete_request(flow) for flow in flows]):
            some = self._order(IPCTNL_MSG_CT_DELETE, batch, "delete entries of conntrack")
            codes += [0 if self.was_repeated and code == errno.ENOENT else code for code in some]
        return codes

    # ------------------------------------------------------------------------------- the subsystem's own

    def _decoded(self, decode: Callable[[], T]) -> T:
        try:
            return decode()
        except MalformedMessage:
            self.close()
            raise

    def _describe(self, data: bytes) -> str:
        from .describe import describe  # takes a while to import, and few debug

        return describe(data)

    def _error(self, code: int, doing: str, text: str = "") -> KernelError:
        if code == errno.EPERM:
            return NotPermitted(
                code,
                f"{doing}: not permitted: to look, too, it needs CAP_NET_ADMIN in the user namespace that owns the "
                "network namespace; run as root, or grant the capability",
            )
        if code in (errno.EINVAL, errno.EOPNOTSUPP):
            return NotSupported(code, f"{doing}: this kernel has no conntrack that can be asked: {CONFIG}")
        return KernelError(code, f"{doing}: {os.strerror(code)}{f' ({text})' if text else ''}")


def _family(address: bytes) -> int:
    return AF_INET if len(address) == 4 else AF_INET6


def _once(flows: Iterable[Flow]) -> list[Flow]:
    """A dump may name an entry twice. Not by their ids: of 100,000 entries two have the same one by chance."""
    return list({(flow.original, flow.zone): flow for flow in flows}.values())


def _questions(wanted: Collection[Endpoint]) -> list[tuple[int, bytes, Collection[Endpoint]]]:
    """The dumps that name the flows to these backends: the family of each, its filter, and whom it is about. A backend
    is in one of them: no flow comes once for each, also where the kernel ignores filters.
    """
    if not wanted:
        return []
    by_address: dict[bytes | tuple[int, int, int], list[Endpoint]] = {}
    by_port: dict[bytes | tuple[int, int, int], list[Endpoint]] = {}
    for one in wanted:
        protocol, src, port = one
        family = _family(src)
        by_address.setdefault(src if family == AF_INET else (family, protocol, port), []).append(one)
        by_port.setdefault((family, protocol, port), []).append(one)
    for those in (by_address, by_port):
        if len(those) <= _QUESTIONS and ConntrackTable.takes_filters and _has_reply_filters():
            return [(*_by_reply(of), several) for of, several in those.items()]
    return [(*_EVERYTHING, wanted)]


def _by_reply(of: bytes | tuple[int, int, int]) -> tuple[int, bytes]:
    """From a v4 address, or from a family's port of a protocol."""
    if isinstance(of, bytes):
        return AF_INET, filter_by(CTA_TUPLE_REPLY, flags=FILTER_IP_SRC, src=of)
    family, protocol, port = of
    flags = FILTER_PROTO_NUM | FILTER_SRC_PORT
    return family, filter_by(CTA_TUPLE_REPLY, flags=flags, protocol=protocol, sport=port)


def _by_original(one: FlowTuple) -> tuple[int, bytes]:
    """Its ports, and the addresses of v4."""
    flags = FILTER_PROTO_NUM | FILTER_SRC_PORT | FILTER_DST_PORT
    if _family(one.src) == AF_INET6:
        return AF_INET6, filter_by(CTA_TUPLE_ORIG, flags=flags, protocol=one.protocol, sport=one.sport, dport=one.dport)
    flags |= FILTER_IP_SRC | FILTER_IP_DST
    return AF_INET, filter_by(CTA_TUPLE_ORIG, flags=flags, **one._asdict())


def _has_reply_filters() -> bool:
    """Whether this kernel's CTA_FILTER works for the reply tuple."""
    numbers = os.uname().release.split(".")
    try:
        return (int(numbers[0]), int(numbers[1].partition("-")[0])) >= _HAS_REPLY_FILTERS
    except (IndexError, ValueError):
        return False
