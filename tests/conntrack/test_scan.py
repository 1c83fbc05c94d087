"""Datagrams of a dump: the fast look at them finds what decoding every entry would."""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import Flow, MalformedMessage
from socklb.conntrack.layout import IPCTNL_MSG_CT_NEW, FlowTuple
from socklb.conntrack.scan import ByBackend, ByOriginal, Dnated, parse_dump
from socklb.wire.netlink import (
    NLM_F_DUMP_FILTERED,
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    Ack,
    Done,
    encode_ack,
    encode_done,
    encode_message,
)

from ..strategies import acks, damaged, dones
from .ctnetlink import (
    ORIGINAL,
    REPLY,
    Entry,
    attribute,
    ends,
    entries,
    flows,
    inverse,
    message_of,
    nest,
    tables,
    tuple_of,
    tuples,
)
from .test_layout import GOLDEN

if TYPE_CHECKING:
    from socklb.conntrack.scan import Scan

T = TypeVar("T")

SEQUENCE = 7
BALANCED = Entry(GOLDEN["BALANCED_V4"])
DONE = encode_message(NLMSG_DONE, NLM_F_MULTI, SEQUENCE, encode_done(Done(0, ()))[1])


def icmp(address: bytes) -> bytes:
    """CTA_PROTO_ICMP_ID, _TYPE and _CODE make a tuple as long as ports and a zone do."""
    source = 3 if len(address) == 16 else 1
    ip = nest(1, attribute(source, address), attribute(source + 1, address))
    proto = nest(2, attribute(1, b"\1"), attribute(4, b"\1\2"), attribute(5, b"\x08"), attribute(6, b"\0"))
    return message_of(FlowTuple(1, address, 0, address, 0), nest(ORIGINAL, ip, proto), nest(REPLY, ip, proto))


ICMP, ICMP_V6 = icmp(bytes(4)), icmp(bytes([0xFD, *bytes(14), 1]))
others = st.sampled_from((ICMP, ICMP_V6)) | tuples(protocol=132).map(
    lambda one: message_of(one, tuple_of(ORIGINAL, one), tuple_of(REPLY, inverse(one)))
)
"""Entries that are no flows: pings, and SCTP, which has ports."""

look_alikes = st.builds(
    lambda kind, before, one: attribute(kind, before + tuple_of(REPLY, one)),
    st.sampled_from((14, 19, 22, 26)),  # CTA_TUPLE_MASTER, _SECCTX, _LABELS, _STATUS_MASK
    st.binary(max_size=5),
    tuples(),
)
"""A reply tuple where none is, at any offset."""

usual_flags = st.sampled_from((NLM_F_MULTI, NLM_F_MULTI | NLM_F_DUMP_FILTERED))


def message(payload: bytes, flags: int = NLM_F_MULTI, type: int = IPCTNL_MSG_CT_NEW) -> bytes:
    return encode_message(type, flags, SEQUENCE, payload)


@st.composite
def datagrams(draw: st.DrawFn) -> tuple[bytes, list[Flow]]:
    """Entries in the order and with the flags of a kernel, with other attributes behind; and the flows."""
    found, parts = [], []
    flags = draw(usual_flags)
    for entry in draw(st.lists(others | entries(), max_size=8)):
        behind = b"".join(draw(st.lists(look_alikes, max_size=2)))
        parts.append(message((entry.payload if isinstance(entry, Entry) else entry) + behind, flags))
        found += [entry.flow] if isinstance(entry, Entry) else []
    return b"".join([*parts, draw(st.sampled_from((b"", DONE)))]), found


scans: st.SearchStrategy[Scan] = st.one_of(
    st.frozensets(ends).map(ByBackend),
    st.frozensets(tuples() | flows.map(lambda flow: flow.original)).map(ByOriginal),
    st.just(Dnated()),
)


class Nothing:
    """What the fast look at a datagram is compared with: a look at each message, none of which is wanted."""

    def may_be_in(self, datagram: bytes) -> bool:
        return True

    def wants(self, datagram: bytes, message: int) -> bool:
        return False

    def takes(self, flow: Flow) -> bool:
        raise AssertionError(flow)


def near(flow: Flow) -> list[tuple[int, bytes, int]]:
    """The source of its replies, and what differs from it by one thing."""
    protocol, src, sport, dst, _ = flow.reply
    return [(protocol, src, sport), (23 - protocol, src, sport), (protocol, src, sport ^ 1), (protocol, dst, sport)]


def some_of(data: st.DataObject, items: list[T]) -> list[T]:
    chosen = data.draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items)))
    return [item for item, is_chosen in zip(items, chosen) if is_chosen]


class TestAgreement:
    """What is wanted of a dump is what decoding all of it would find: what is drawn is in it, or nearly."""

    @given(datagrams(), st.data())
    def test_by_backend(self, made: tuple[bytes, list[Flow]], data: st.DataObject) -> None:
        datagram, all_flows = made
        wanted = some_of(data, [end for one in all_flows for end in near(one)])
        found, end, interrupted = parse_dump(datagram, SEQUENCE, ByBackend(wanted))
        assert found == [
            one
            for one in all_flows
            if (one.protocol, one.reply.src, one.reply.sport) in wanted and one.original[3:] != one.reply[1:3]
        ]
        assert (end is not None, interrupted) == (datagram.endswith(DONE), 0)

    @given(datagrams(), st.data())
    def test_by_original(self, made: tuple[bytes, list[Flow]], data: st.DataObject) -> None:
        datagram, all_flows = made
        alike = [each for one in all_flows for each in (one.original, one.original._replace(dport=1), one.reply)]
        wanted = some_of(data, alike)
        assert parse_dump(datagram, SEQUENCE, ByOriginal(wanted))[0] == [
            one for one in all_flows if one.original in wanted
        ]

    @pytest.mark.parametrize("zones", [(0, 0), (0, 7), (7, 0), (7, 7)])
    @pytest.mark.parametrize("name", ["BALANCED_V4", "BALANCED_V6_IN_ZONE"])
    def test_each_is_found_by_what_is_its_own_and_by_nothing_near(self, name: str, zones: tuple[int, int]) -> None:
        one = GOLDEN[name]._replace(zone=zones[0])
        reply = one.reply._replace(src=one.reply.src[:-1] + b"\n")  # any byte may be in an address
        one = one._replace(reply=reply)
        datagram = message(Entry(one, zones[1]).payload)
        own, *others = near(one)
        alike = [one.original._replace(**{end: getattr(one.reply, end)}) for end in ("src", "sport", "dst", "dport")]
        for scan, is_found in (
            (ByBackend([own]), True),
            (ByBackend(others), False),
            (ByOriginal([one.original]), True),
            (ByOriginal([*alike, one.original._replace(protocol=23 - one.protocol)]), False),
        ):
            assert parse_dump(datagram, SEQUENCE, scan)[0] == ([one] if is_found else [])

    @given(datagrams())
    def test_dnated(self, made: tuple[bytes, list[Flow]]) -> None:
        datagram, all_flows = made
        expected = [one for one in all_flows if one.original[3:] != one.reply[1:3]]
        assert parse_dump(datagram, SEQUENCE, Dnated())[0] == expected


@given(tables(), st.frozensets(ends), st.booleans())
def test_an_entry_in_a_zone_is_noticed_even_if_it_is_not_wanted(
    table: list[Entry], wanted: frozenset[tuple[int, bytes, int]], is_known: bool
) -> None:
    scan = ByBackend(wanted, may_have_zones=is_known)
    for entry in table:
        parse_dump(message(entry.payload) + message(ICMP) + DONE, SEQUENCE, scan)
    assert scan.may_have_zones == (is_known or any(entry.flow.zone for entry in table))


@pytest.mark.parametrize(
    ("zone", "reply_zone", "has"), [(0, 0, False), (7, 7, True), (7, 0, True), (0, 7, False)]
)  # the last: no other entry has the same original tuple
@pytest.mark.parametrize("wanted", [[], [(6, BALANCED.flow.reply.src, 8080)]])
def test_a_zone_is_that_of_the_original_direction(
    zone: int, reply_zone: int, has: bool, wanted: Sequence[tuple[int, bytes, int]]
) -> None:
    for flow in (BALANCED.flow, GOLDEN["BALANCED_V6_IN_ZONE"]):
        scan = ByBackend(wanted, may_have_zones=False)
        entry = Entry(flow._replace(zone=zone), reply_zone)
        parse_dump(message(entry.payload) + message(ICMP) + message(ICMP_V6), SEQUENCE, scan)
        assert scan.may_have_zones == has


def outcome(datagram: bytes, scan: Scan) -> tuple[Any, ...] | str:
    try:
        return parse_dump(datagram, SEQUENCE, scan)
    except MalformedMessage as error:
        return str(error)


unusual = st.one_of(
    st.builds(message, st.just(ICMP), st.sampled_from((0, NLM_F_MULTI | NLM_F_DUMP_INTR, NLM_F_MULTI, 0xFFFF))),
    st.builds(
        message, st.binary(max_size=9), st.just(2), st.sampled_from((NLMSG_NOOP, NLMSG_OVERRUN, 99, IPCTNL_MSG_CT_NEW))
    ),
    acks().map(lambda ack: message(encode_ack(ack)[1], encode_ack(ack)[0], NLMSG_ERROR)),
    dones.map(lambda done: message(encode_done(done)[1], encode_done(done)[0], NLMSG_DONE)),
    entries().map(lambda entry: encode_message(IPCTNL_MSG_CT_NEW, NLM_F_MULTI, SEQUENCE + 1, entry.payload)),
    entries().map(lambda entry: message(entry.payload)),
)
any_datagram = damaged(st.lists(unusual, max_size=4).map(b"".join)) | st.binary(max_size=60)


@given(any_datagram)
def test_where_nothing_is_wanted_no_message_but_an_entry_is_passed_over(datagram: bytes) -> None:
    assert outcome(datagram, ByBackend([])) == outcome(datagram, Nothing())


@given(any_datagram, scans)
def test_any_bytes_are_flows_or_malformed(datagram: bytes, scan: Scan) -> None:
    outcome(datagram, scan)


@pytest.mark.parametrize("wanted", [[], [(6, bytes(4), 80)]])
def test_messages_that_are_no_entries(wanted: Sequence[tuple[int, bytes, int]]) -> None:
    scan = ByBackend(wanted)
    before = message(BALANCED.payload)
    assert parse_dump(before + message(b""), SEQUENCE, scan) == ([], None, 0)
    noop = message(b"1", type=NLMSG_NOOP)  # padded
    assert parse_dump(noop + before + noop, SEQUENCE, scan) == ([], None, 0)
    assert parse_dump(before + message(b"", type=NLMSG_OVERRUN), SEQUENCE, scan) == ([], None, 105)
    assert parse_dump(message(BALANCED.payload, NLM_F_MULTI | NLM_F_DUMP_INTR) + before, SEQUENCE, scan) == (
        [],
        None,
        4,
    )
    refused = Ack(1, IPCTNL_MSG_CT_NEW, 0, SEQUENCE, 0, b"", (), 36)
    flags, payload = encode_ack(refused)
    assert parse_dump(message(payload, flags, NLMSG_ERROR), SEQUENCE, scan) == ([], refused, 0)
    wrong = [
        before + DONE + before,
        message(ICMP, type=0x101),
        before[:-1],
        pack("=I", 15) + before[4:],
        pack("=I", 0) + before[4:],
        DONE[:15],
    ]
    for datagram in (*wrong, encode_message(IPCTNL_MSG_CT_NEW, NLM_F_MULTI, 8, ICMP)):
        with pytest.raises(MalformedMessage):
            parse_dump(datagram, SEQUENCE, scan)
