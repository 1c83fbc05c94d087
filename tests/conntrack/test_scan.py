"""The fast scan of a dump picks the entries that decoding all of them picks."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socklb import Flow, MalformedMessage
from socklb.conntrack.layout import FlowTuple, decode_flow
from socklb.conntrack.scan import ByBackend, ByOriginal, Dnated, parse_dump
from socklb.wire.netlink import (
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    Ack,
    Done,
    encode_ack,
    encode_attribute,
    encode_done,
    encode_message,
    iter_messages,
)

from ..ctnetlink import NEW, encode_entry, flow, tuple_attribute
from ..strategies import damaged
from .entries import entries, flows

SEQUENCE = 7
ANY_PROTOCOL = (6, 6, 17, 17, 1, 132)
Endpoint = tuple[int, bytes, int]


def message(payload: bytes, flags: int = NLM_F_MULTI, sequence: int = SEQUENCE) -> bytes:
    return encode_message(NEW, flags, sequence, payload)


def datagram(payloads: Sequence[bytes]) -> bytes:
    return b"".join(map(message, payloads))


def done(code: int = 0, extra_flags: int = 0, sequence: int = SEQUENCE) -> bytes:
    flags, payload = encode_done(Done(code, ()))
    return encode_message(NLMSG_DONE, flags | extra_flags, sequence, payload)


def flows_in(data: bytes) -> list[Flow]:
    """Every entry of TCP and UDP that is whole in its own message, decoded."""
    found = []
    for kind, _, _, _, start, end in iter_messages(data, len(data)):
        with suppress(MalformedMessage):
            found.append(decode_flow(data, start, end) if kind == NEW else None)
    return [one for one in found if one is not None]


# What looks like the begin of an entry's reply tuple with an address that is wanted, where none is: as addresses of v6,
# within attributes, at any offset.
_wanted_addresses = st.sampled_from([bytes([10, 0, 0, 1]), bytes.fromhex("fd000000000000000000000000000001")])
_look_alikes = st.builds(
    lambda address, kind, zone: tuple_attribute(kind, FlowTuple(6, address, 80, address, 80), zone),
    _wanted_addresses,
    st.sampled_from((1, 2)),
    st.sampled_from((0, 9)),
)
_hidden = st.builds(
    lambda kind, before, look_alike, size: encode_attribute(kind, before + look_alike[:size]),
    st.sampled_from((14, 19, 22, 26)),  # CTA_TUPLE_MASTER, _SECCTX, _LABELS, and one that is not known
    st.binary(max_size=5),
    _look_alikes,
    st.integers(12, 84),
)
_fake_v6 = _look_alikes.map(lambda look_alike: look_alike[:16])


@st.composite
def disguised(draw: st.DrawFn) -> Flow:
    """Over v6, with addresses that look like the begin of a tuple."""
    one = draw(flows(ANY_PROTOCOL))
    if len(one.original.src) == 4:
        return one
    ends = {end: draw(_fake_v6) for end in draw(st.sets(st.sampled_from(("src", "dst"))))}
    return one._replace(original=one.original._replace(**ends), reply=one.reply._replace(**ends))


_payloads = st.lists(entries(disguised(), _hidden).map(lambda entry: entry[0]), max_size=8)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[bytes, list[Flow], Any]:
    """A datagram, the entries in it, and something to draw from what is in it and near it."""
    data = datagram(draw(_payloads))
    return data, flows_in(data), draw(st.randoms(use_true_random=False))


def some_of(random: Any, items: Sequence[Any]) -> list[Any]:
    return [one for one in items if random.random() < 0.5]


def neighbours(flow: Flow) -> list[Endpoint]:
    """The source of the replies, and what differs from it by one thing."""
    protocol, src, sport, dst, _ = flow.reply
    return [(protocol, src, sport), (23 - protocol, src, sport), (protocol, src, sport ^ 1), (protocol, dst, sport)]


class TestAgreement:
    """Of any mixture of entries, with zones, of other protocols, whatever else they carry."""

    @given(mixtures())
    def test_by_backend(self, mixture: tuple[bytes, list[Flow], Any]) -> None:
        data, present, random = mixture
        endpoints = some_of(random, [each for one in present for each in neighbours(one)])
        endpoints += [(6, bytes([10, 0, 0, 1]), 80), (6, bytes.fromhex("fd000000000000000000000000000001"), 80)]
        found, end, interrupted = parse_dump(data, SEQUENCE, ByBackend(endpoints))
        assert found == [
            one for one in present if one.is_dnated and (one.protocol, one.reply.src, one.reply.sport) in endpoints
        ]
        assert (end, interrupted) == (None, 0)

    @given(mixtures())
    def test_by_original(self, mixture: tuple[bytes, list[Flow], Any]) -> None:
        data, present, random = mixture
        near = [one.original._replace(dport=one.original.dport ^ 1) for one in present]
        originals = some_of(random, [*(one.original for one in present), *(one.reply for one in present), *near])
        found, _, _ = parse_dump(data, SEQUENCE, ByOriginal(originals))
        assert found == [one for one in present if one.original in originals]

    @given(mixtures())
    def test_dnated(self, mixture: tuple[bytes, list[Flow], Any]) -> None:
        data, present, _ = mixture
        assert parse_dump(data, SEQUENCE, Dnated())[0] == [one for one in present if one.is_dnated]


class TestZones:
    """Whether an entry may be in a zone is seen in passing; where none is, another dump is spared."""

    @given(st.lists(flows(ANY_PROTOCOL).map(lambda one: one._replace(zone=0)), max_size=8))
    def test_none_is_seen_where_none_is(self, present: list[Flow]) -> None:
        scan = ByBackend([])
        parse_dump(datagram([encode_entry(one) for one in present]), SEQUENCE, scan)
        assert not scan.has_seen_zones

    @given(flows(), st.integers(1, 0xFFFF), st.booleans())
    def test_one_is_seen_whatever_comes_behind(self, one: Flow, zone: int, is_of_original: bool) -> None:
        scan = ByBackend([])
        parse_dump(message(encode_entry(one._replace(zone=zone), is_zone_of_original=is_of_original)), SEQUENCE, scan)
        parse_dump(message(encode_entry(one._replace(zone=0))), SEQUENCE, scan)
        assert scan.has_seen_zones


A, B = (flow("10.96.0.10:80/TCP", "10.0.0.5:8080/TCP", sport=port, id=port) for port in (1, 2))
ENTRY_A, ENTRY_B = map(encode_entry, (A, B))
SCANS: dict[str, Callable[[], Any]] = {
    "by-backend": lambda: ByBackend([(6, bytes([10, 0, 0, 5]), 8080)]),
    "by-original": lambda: ByOriginal([A.original, B.original]),
    "dnated": Dnated,
}
each_scan = pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)


def refused(code: int, sequence: int = SEQUENCE) -> bytes:
    flags, payload = encode_ack(Ack(code, NEW + 1, 0, sequence, 0, b"", ()))
    return encode_message(NLMSG_ERROR, flags, sequence, payload)


def empty(type: int, flags: int = 0) -> bytes:
    return encode_message(type, flags, SEQUENCE, b"")


class TestDatagrams:
    """A datagram has whole messages of one dump, and nothing behind its end; else it is MalformedMessage."""

    @each_scan
    def test_what_ends_a_dump_and_what_interrupts_it(self, scan: Callable[[], Any]) -> None:
        a, b = message(ENTRY_A), message(ENTRY_B)
        for data, expected in (
            (b"", ([], None, 0)),
            (a + b, ([A, B], None, 0)),
            (a + empty(NLMSG_NOOP) + b + done(), ([A, B], Done(0, ()), 0)),
            (done(errno.EIO), ([], Done(errno.EIO, ()), 0)),
            (a + empty(NLMSG_OVERRUN) + b, ([A, B], None, errno.ENOBUFS)),
            (message(ENTRY_A, NLM_F_MULTI | NLM_F_DUMP_INTR) + b, ([A, B], None, errno.EINTR)),
            (done(0, NLM_F_DUMP_INTR), ([], Done(0, ()), errno.EINTR)),
        ):
            assert parse_dump(data, SEQUENCE, scan()) == expected
        _, end, _ = parse_dump(a + refused(errno.EPERM), SEQUENCE, scan())
        assert end is not None
        assert end.errno == errno.EPERM

    @pytest.mark.parametrize(
        ("data", "what"),
        [
            (message(ENTRY_A, sequence=6), "sequence of a reply at offset 0: expected 7, got 6"),
            (done(sequence=8), "sequence of a reply"),
            (refused(errno.EPERM, sequence=8), "sequence of a reply"),
            (done() + message(ENTRY_A), "message behind the last at offset 20"),
            (refused(errno.EPERM) + done(), "message behind the last"),
            (empty(NEW + 2), "type of a reply at offset 0: expected 256, got 258"),
            (empty(NLMSG_DONE), "cut NLMSG_DONE"),
            (empty(NLMSG_ERROR), "cut NLMSG_ERROR"),
        ],
        ids=[
            "row-of-another",
            "done-of-another",
            "error-of-another",
            "behind-done",
            "behind-error",
            "type",
            "done",
            "error",
        ],
    )
    @each_scan
    def test_what_no_kernel_sends(self, scan: Callable[[], Any], data: bytes, what: str) -> None:
        with pytest.raises(MalformedMessage, match=what):
            parse_dump(data, SEQUENCE, scan())

    @each_scan
    def test_a_datagram_cut_at_any_length(self, scan: Callable[[], Any]) -> None:
        whole = message(ENTRY_A) + message(ENTRY_B) + done()
        ends = {0: [], len(message(ENTRY_A)): [A], len(whole) - len(done()): [A, B]}
        for size in range(len(whole)):
            if size in ends:
                assert parse_dump(whole[:size], SEQUENCE, scan()) == (ends[size], None, 0)
            else:
                with pytest.raises(MalformedMessage):
                    parse_dump(whole[:size], SEQUENCE, scan())
        with pytest.raises(MalformedMessage, match="behind the last"):
            parse_dump(whole + whole, SEQUENCE, scan())
        with pytest.raises(MalformedMessage, match="cut netlink header"):
            parse_dump(whole + bytes(3), SEQUENCE, scan())

    @given(_payloads, _payloads)
    def test_of_two_datagrams_in_one_come_the_entries_of_both(self, some: list[bytes], others: list[bytes]) -> None:
        together, _, _ = parse_dump(datagram(some + others), SEQUENCE, Dnated())
        assert together == [one for data in (some, others) for one in parse_dump(datagram(data), SEQUENCE, Dnated())[0]]

    @each_scan
    @given(data=damaged(_payloads.map(datagram)) | st.binary(max_size=200))
    @example(data=bytes(16))  # a length that does not advance
    def test_any_bytes_are_entries_or_malformed(self, scan: Callable[[], Any], data: bytes) -> None:
        try:
            found, _, _ = parse_dump(data, SEQUENCE, scan())
        except MalformedMessage:
            return
        assert set(found) <= {*flows_in(data)}
