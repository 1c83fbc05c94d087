"""ctnetlink from the other side: entries as kernels write them, in a kernel that is a function and in the real one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from struct import pack, unpack
from typing import NamedTuple, Optional
from unittest import mock

from hypothesis import strategies as st

from socklb import Backend
from socklb.conntrack import table
from socklb.conntrack.layout import (
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    IPCTNL_MSG_CT_GET_STATS,
    IPCTNL_MSG_CT_NEW,
    Flow,
    FlowTuple,
)
from socklb.wire.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_MULTI, NLM_F_REQUEST, encode_message, iter_attributes
from socklb.wire.request import PROTOCOLS as PROTOCOL_NUMBERS
from socklb.wire.socket_id import AF_INET, AF_INET6

from ..fake_kernel import Datagram, FakeKernel, Request, ack_message, done_message
from ..strategies import u8, u16, u32

IPCTNL_MSG_CT = 1 << 8
ORIGINAL, REPLY, STATUS, PROTOINFO, NAT_DST, TIMEOUT, MARK, ID, USE, ZONE, FILTER = 1, 2, 3, 4, 13, 7, 8, 12, 11, 18, 25
_TUPLE_ZONE = 3
_SRC, _DST, _PROTOCOL, _SPORT, _DPORT = 1, 2, 8, 0x10, 0x20  # of CTA_FILTER
_CREATE_EXCLUSIVELY = 0x600


def attribute(kind: int, payload: bytes) -> bytes:
    return pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nest(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | 0x8000, b"".join(attributes))


def tuple_of(kind: int, one: FlowTuple, zone: int = 0) -> bytes:
    v6 = 2 if len(one.src) == 16 else 0
    ip = nest(1, attribute(1 + v6, one.src), attribute(2 + v6, one.dst))
    ports = attribute(2, pack(">H", one.sport)), attribute(3, pack(">H", one.dport))
    return nest(kind, ip, nest(2, attribute(1, bytes([one.protocol])), *ports), *in_zone(_TUPLE_ZONE, zone))


def in_zone(kind: int, zone: int) -> list[bytes]:
    return [attribute(kind, pack(">H", zone))] if zone else []


class Entry(NamedTuple):
    """A flow, and the zone of its replies: that of the flow, or one of them is 0."""

    flow: Flow
    reply_zone: int = 0

    @property
    def tuples(self) -> list[bytes]:
        flow, zone = self.flow, self.flow.zone
        if zone == self.reply_zone:
            return [tuple_of(ORIGINAL, flow.original), tuple_of(REPLY, flow.reply), *in_zone(ZONE, zone)]
        return [tuple_of(ORIGINAL, flow.original, zone), tuple_of(REPLY, flow.reply, self.reply_zone)]

    @property
    def others(self) -> list[bytes]:
        """What comes behind the tuples, in the order of Linux 6.18."""
        flow = self.flow
        parts = [
            attribute(kind, pack(">I", n)) for kind, n in ((STATUS, flow.status), (MARK, 0), (ID, flow.id), (USE, 1))
        ]
        parts += [attribute(TIMEOUT, pack(">I", flow.expires_s))] if flow.expires_s is not None else []
        more = attribute(2, b"\0"), attribute(3, b"\0"), attribute(4, bytes(2)), attribute(5, bytes(2))
        state = (
            [] if flow.tcp_state is None else [nest(PROTOINFO, nest(1, attribute(1, bytes([flow.tcp_state])), *more))]
        )
        return parts + state

    @property
    def payload(self) -> bytes:
        return message_of(self.flow.original, *self.tuples, *self.others)

    @property
    def keys(self) -> set[tuple[FlowTuple, int]]:
        """What the kernel finds it by."""
        return {(self.flow.original, self.flow.zone), (self.flow.reply, self.reply_zone)}


def message_of(one: FlowTuple, *attributes: bytes) -> bytes:
    return bytes([AF_INET if len(one.src) == 4 else AF_INET6, 0, 0, 0]) + b"".join(attributes)


def inverse(one: FlowTuple) -> FlowTuple:
    return FlowTuple(one.protocol, one.dst, one.dport, one.src, one.sport)


def flow(
    service: str,
    backend: str = "",
    *,
    client: str = "",
    sport: int = 1024,
    status: int = 8,
    tcp_state: int = 3,
    id: int = 1,
    zone: int = 0,
) -> Flow:
    """A client's, of a service for which a backend answers, or the service itself; without DST_NAT as of IPVS."""
    asked, answers = Backend.parse(service), Backend.parse(backend or service)
    protocol = PROTOCOL_NUMBERS[asked.protocol]
    src = ip_address(client or ("10.0.0.1" if asked.address.version == 4 else "fd00::1"))
    original = FlowTuple(protocol, src.packed, sport, asked.address.packed, asked.port)
    reply = FlowTuple(protocol, answers.address.packed, answers.port, src.packed, sport)
    return Flow(original, reply, status, tcp_state if protocol == 6 else None, 600, id, zone)


# ------------------------------------------------------------------------------------------- strategies

PROTOCOLS = (6, 17)
_addresses = {
    AF_INET: [bytes([10, 0, 0, n]) for n in range(3)],
    AF_INET6: [bytes([0xFD, *bytes(14), n]) for n in range(3)],
}
_addresses[AF_INET6].append(tuple_of(REPLY, FlowTuple(6, _addresses[AF_INET][1], 0, bytes(4), 0))[:16])  # a look-alike
_few_ports = st.sampled_from((53, 80, 8080))


@st.composite
def tuples(draw: st.DrawFn, family: Optional[int] = None, protocol: Optional[int] = None) -> FlowTuple:
    """Of so few addresses and ports that many are alike."""
    address = st.sampled_from(_addresses[draw(st.sampled_from((AF_INET, AF_INET6))) if family is None else family])
    number = draw(st.sampled_from(PROTOCOLS)) if protocol is None else protocol
    return FlowTuple(number, draw(address), draw(_few_ports), draw(address), draw(_few_ports))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    original = draw(tuples())
    family = AF_INET if len(original.src) == 4 else AF_INET6
    reply = draw(st.just(inverse(original)) | tuples(family, original.protocol))
    zone, reply_zone = draw(st.sampled_from(((0, 0), (0, 0), (0, 7), (7, 0), (7, 7), (0xFFFF, 0xFFFF))))
    state = draw(st.none() | u8) if original.protocol == 6 else None
    return Entry(Flow(original, reply, draw(u32), state, draw(st.none() | u32), draw(u32), zone), reply_zone)


flows = entries().map(lambda entry: entry.flow)


@st.composite
def tables(draw: st.DrawFn) -> list[Entry]:
    """Entries that one table can have: a tuple in a zone finds one of them, in one direction."""
    kept: list[Entry] = []
    taken: set[tuple[FlowTuple, int]] = set()
    for entry in draw(st.lists(entries(), max_size=12)):
        if taken.isdisjoint(entry.keys) and entry.flow.original != entry.flow.reply:
            kept.append(entry)
            taken |= entry.keys
    return kept


ends = st.tuples(
    st.sampled_from(PROTOCOLS), st.sampled_from([a for many in _addresses.values() for a in many]), _few_ports
)
"""(protocol, packed address, port), as wanted of a table."""

numbers = u8, u16, u32

# -------------------------------------------------------------------------------------------- the kernels

RELEASES = ("4.19.0", "5.8.0-rc1", "5.10.0-32-amd64", "6.18.44", "7.1")


class FakeConntrack:
    """The entries of one namespace in a kernel of some release; as a FakeKernel's answer.

    With `at_once` entries in a datagram of a dump. `refusal` is what it answers to a filter. Without a tuple a DELETE
    empties it, as it does the real one.
    """

    def __init__(
        self, entries: Iterable[Entry], release: str = "6.18.44", *, at_once: int = 3, refusal: int = 0
    ) -> None:
        self.entries, self.at_once, self.refusal = list(entries), at_once, refusal
        self.release = release
        major, minor = release.split(".")[:2]
        self._version = int(major), int(minor.partition("-")[0])

    def __call__(self, requests: Sequence[Request]) -> list[Datagram]:
        return [datagram for request in requests for datagram in self._answer(request)]

    def _answer(self, request: Request) -> list[bytes]:
        asked = {kind & 0x3FFF: payload for kind, payload in iter_attributes(request.payload, 4, len(request.payload))}
        if request.type == IPCTNL_MSG_CT_GET_STATS:
            count = attribute(1, pack(">I", len(self.entries)))
            return [encode_message(IPCTNL_MSG_CT_GET_STATS, NLM_F_MULTI, request.sequence, bytes(4) + count)]
        if request.type == IPCTNL_MSG_CT_GET and request.flags & NLM_F_DUMP:
            if FILTER in asked and self.refusal:
                return [ack_message(request, self.refusal)]
            rows = [row(request, entry) for entry in self.entries if self._passes(entry, request.payload[0], asked)]
            parts = [b"".join(rows[at : at + self.at_once]) for at in range(0, len(rows), self.at_once)]
            return [*parts[:-1], b"".join([*parts[-1:], done_message(request)])]
        if request.type == IPCTNL_MSG_CT_GET:
            found = self._named(asked)
            return [row(request, found, 0) if found else ack_message(request, errno.ENOENT)]
        assert request.type == IPCTNL_MSG_CT_DELETE
        code = self._delete(asked)
        return [ack_message(request, code)] if code or request.flags & NLM_F_ACK else []

    def _passes(self, entry: Entry, family: int, asked: dict[int, bytes]) -> bool:
        """Whether a dump names an entry."""
        if family not in (0, entry.payload[0]):
            return False
        if FILTER not in asked or self._version < (5, 8):
            return True
        assert family  # else EOPNOTSUPP
        ((kind, flags),) = [
            (kind, unpack("=I", payload)[0]) for kind, payload in iter_attributes(asked[FILTER], 0, len(asked[FILTER]))
        ]
        if kind == REPLY and self._version < (5, 16):
            return False
        one = entry.flow.original if kind == ORIGINAL else entry.flow.reply
        tuple_asked = asked[kind]
        assert family == AF_INET or not flags & (_SRC | _DST)  # else the wrong ones come
        assert flags & _PROTOCOL or not flags & (_SPORT | _DPORT)  # else EINVAL
        fields = (
            (_SRC, attribute(1, one.src)),
            (_DST, attribute(2, one.dst)),
            (_PROTOCOL, attribute(1, bytes([one.protocol]))),
            (_SPORT, attribute(2, pack(">H", one.sport))),
            (_DPORT, attribute(3, pack(">H", one.dport))),
        )
        return all(field in tuple_asked for flag, field in fields if flags & flag)

    def _named(self, asked: dict[int, bytes]) -> Optional[Entry]:
        """The entry that has this tuple in this zone in either direction."""
        zone = unpack(">H", asked.get(ZONE, bytes(2)))[0]
        wanted = asked[ORIGINAL]
        matching = (
            entry
            for entry in self.entries
            if any((tuple_of(1, one)[4:], at) == (wanted, zone) for one, at in entry.keys)
        )
        return next(matching, None)

    def _delete(self, asked: dict[int, bytes]) -> int:
        if ORIGINAL not in asked:
            self.entries.clear()
            return 0
        found = self._named(asked)
        if found is None or pack(">I", found.flow.id) != asked.get(ID, pack(">I", found.flow.id)):
            return errno.ENOENT
        self.entries.remove(found)
        return 0

    @contextmanager
    def installed(self) -> Iterator[FakeKernel]:
        """In this context every ConntrackTable talks to it."""
        with installed(FakeKernel(self), self.release) as kernel:
            yield kernel


@contextmanager
def installed(kernel: FakeKernel, release: str = "6.18.44") -> Iterator[FakeKernel]:
    uname = mock.Mock(return_value=mock.Mock(release=release))
    takes_filters = mock.patch.object(table.ConntrackTable, "takes_filters", True)
    with mock.patch.object(table, "open_netlink", kernel.open), mock.patch("os.uname", uname), takes_filters:
        yield kernel
    assert all(made.closed for made in kernel.sockets), "a netlink socket was left open"


def row(request: Request, entry: Entry, flags: int = NLM_F_MULTI) -> bytes:
    return encode_message(IPCTNL_MSG_CT_NEW, flags, request.sequence, entry.payload)


def make(*entries: Entry) -> None:
    """Have these entries made in this network namespace. Those with IPS_DST_NAT get it by translation."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        for start in range(0, len(entries), 200):
            batch = entries[start : start + 200]
            last = len(batch) - 1
            flags = [NLM_F_REQUEST | _CREATE_EXCLUSIVELY | (NLM_F_ACK if n == last else 0) for n in range(len(batch))]
            messages = [
                encode_message(IPCTNL_MSG_CT_NEW, flag, n, _new(entry))
                for n, (entry, flag) in enumerate(zip(batch, flags))
            ]
            netlink.send(b"".join(messages))
            code = -unpack("=i", netlink.recv(65536)[16:20])[0]
            if code:
                raise OSError(code, errno.errorcode[code])


def _new(entry: Entry) -> bytes:
    flow, parts = entry.flow, entry.tuples
    is_translated = bool(flow.status & 0x20)
    if is_translated:  # the kernel does it, and finds the reply tuple by itself
        kind = 4 if len(flow.reply.src) == 16 else 1
        port = nest(3, attribute(1, pack(">H", flow.reply.sport)))
        parts[1] = tuple_of(REPLY, inverse(flow.original), entry.reply_zone if flow.zone != entry.reply_zone else 0)
        parts.append(nest(NAT_DST, attribute(kind, flow.reply.src), port))
    status = attribute(STATUS, pack(">I", flow.status & 0xF))
    state = [nest(PROTOINFO, nest(1, attribute(1, bytes([flow.tcp_state]))))] if flow.tcp_state is not None else []
    return message_of(flow.original, *parts, attribute(TIMEOUT, pack(">I", flow.expires_s or 600)), status, *state)
