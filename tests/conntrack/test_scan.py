"""Datagrams of a dump: the fast look at them finds what decoding every entry would."""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack
from typing import TYPE_CHECKING, Any

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
from .ctnetlink import Entry, attribute, ends, entries, flows, message_of, nest, tables, tuples

if TYPE_CHECKING:
    from socklb.conntrack.scan import Scan

SEQUENCE = 7
DONE = encode_message(NLMSG_DONE, NLM_F_MULTI, SEQUENCE, encode_done(Done(0, ()))[1])
_ICMP_PARTS = [attribute(1, b"\1"), attribute(4, b"\1\2"), attribute(5, b"\x08"), attribute(6, b"\0")]
ICMP = message_of(
    FlowTuple(1, bytes(4), 0, bytes(4), 0),
    *(nest(kind, nest(1, attribute(1, bytes(4)), attribute(2, bytes(4))), nest(2, *_ICMP_PARTS)) for kind in (1, 2)),
)
"""A ping: its tuples are as long as those of UDP in a zone."""

usual_flags = st.sampled_from((NLM_F_MULTI, NLM_F_MULTI | NLM_F_DUMP_FILTERED))


def message(payload: bytes, flags: int = NLM_F_MULTI, type: int = IPCTNL_MSG_CT_NEW) -> bytes:
    return encode_message(type, flags, SEQUENCE, payload)


@st.composite
def datagrams(draw: st.DrawFn) -> tuple[bytes, list[Flow]]:
    """Entries in the order and with the flags of a kernel, some of them of ICMP; and the flows."""
    found, parts = [], []
    flags = draw(usual_flags)
    for entry in draw(st.lists(st.none() | entries(), max_size=8)):
        parts.append(message(ICMP if entry is None else entry.payload, flags))
        found += [entry.flow] if entry else []
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


@given(datagrams(), scans)
def test_it_finds_the_flows_that_are_wanted_and_no_others(made: tuple[bytes, list[Flow]], scan: Scan) -> None:
    datagram, all_flows = made
    found, end, interrupted = parse_dump(datagram, SEQUENCE, scan)
    assert found == [flow for flow in all_flows if scan.takes(flow)]
    assert (end is not None, interrupted) == (datagram.endswith(DONE), 0)


@given(flows, st.frozensets(ends))
def test_a_flow_is_to_a_backend_if_its_replies_come_from_there_and_it_asked_for_another(
    flow: Flow, wanted: frozenset[tuple[int, bytes, int]]
) -> None:
    source = (flow.protocol, flow.reply.src, flow.reply.sport)
    assert ByBackend(wanted).takes(flow) == (source in wanted and source[1:] != flow.original[3:])


@given(tables(), st.frozensets(ends), st.booleans())
def test_an_entry_in_a_zone_is_noticed_even_if_it_is_not_wanted(
    table: list[Entry], wanted: frozenset[tuple[int, bytes, int]], is_known: bool
) -> None:
    scan = ByBackend(wanted, may_have_zones=is_known)
    for entry in table:
        parse_dump(message(entry.payload) + message(ICMP) + DONE, SEQUENCE, scan)
    assert scan.may_have_zones == (is_known or any(entry.flow.zone for entry in table))


def outcome(datagram: bytes, scan: Scan) -> tuple[Any, ...] | str:
    try:
        return parse_dump(datagram, SEQUENCE, scan)
    except MalformedMessage as error:
        return str(error)


unusual = st.one_of(
    st.builds(message, st.just(ICMP), st.sampled_from((0, NLM_F_MULTI | NLM_F_DUMP_INTR, NLM_F_MULTI, 0xFFFF))),
    st.builds(message, st.binary(max_size=9), st.just(2), st.sampled_from((NLMSG_NOOP, NLMSG_OVERRUN, 99, 0x101))),
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
    before = message(ICMP)
    assert parse_dump(before + message(b"", type=NLMSG_NOOP), SEQUENCE, scan) == ([], None, 0)
    assert parse_dump(before + message(b"", type=NLMSG_OVERRUN), SEQUENCE, scan) == ([], None, 105)
    assert parse_dump(message(ICMP, NLM_F_MULTI | NLM_F_DUMP_INTR) + before, SEQUENCE, scan) == ([], None, 4)
    refused = Ack(1, IPCTNL_MSG_CT_NEW, 0, SEQUENCE, 0, b"", (), 36)
    flags, payload = encode_ack(refused)
    assert parse_dump(message(payload, flags, NLMSG_ERROR), SEQUENCE, scan) == ([], refused, 0)
    wrong = [before + DONE + before, message(ICMP, type=0x101), before[:-1], pack("=I", 15) + before[4:], DONE[:15]]
    for datagram in (*wrong, encode_message(IPCTNL_MSG_CT_NEW, NLM_F_MULTI, 8, ICMP)):
        with pytest.raises(MalformedMessage):
            parse_dump(datagram, SEQUENCE, scan)
