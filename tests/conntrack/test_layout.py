"""The messages of ctnetlink: entries as the kernel sends them, and what is asked of it."""

from __future__ import annotations

import copy
import pickle
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import Backend, Flow, MalformedMessage
from socklb.conntrack import layout
from socklb.conntrack.layout import (
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    FlowTuple,
    decode_count,
    decode_flow,
    delete_request,
    encode_tuple,
    filter_by,
    get_request,
)
from socklb.wire.netlink import encode_attribute

from ..ctnetlink import CLOSE, CONFIRMED, DST_NAT, TIME_WAIT, encode_entry, flow, nest, number, tuple_attribute
from ..strategies import damaged, u8, u32
from ..wire.golden import Fields, joined, of_this_byte_order
from . import golden
from .entries import entries, flows

TCP, UDP, ICMP, SCTP = 6, 17, 1, 132


def v4(*numbers: int) -> bytes:
    return bytes(numbers)


def v6(text: str) -> bytes:
    return bytes.fromhex(text)


CLIENT_V6, VIP_V6 = v6("fd000244000100000000000000000002"), v6("fd000096000000000000000000000010")
TENANT = FlowTuple(UDP, v4(10, 66, 0, 2), 40000, v4(10, 96, 0, 10), 53)
TO_TENANT = FlowTuple(UDP, v4(10, 244, 2, 2), 5353, v4(10, 66, 0, 2), 40000)

SENT: dict[str, tuple[Fields, Flow]] = {
    "tcp-v4": (
        golden.TCP_V4,
        Flow(
            FlowTuple(TCP, v4(10, 244, 1, 2), 44484, v4(10, 96, 0, 10), 80),
            FlowTuple(TCP, v4(10, 244, 2, 2), 8080, v4(10, 244, 1, 2), 44484),
            0x1AE, 3, 432_000, 0x15BA724D, 0,
        ),
    ),
    "udp-v6-with-accounting-and-timestamps": (
        golden.UDP_V6,
        Flow(
            FlowTuple(UDP, CLIENT_V6, 51374, VIP_V6, 80),
            FlowTuple(UDP, v6("fd000244000200000000000000000002"), 8080, CLIENT_V6, 51374),
            0x1AA, None, 29, 0xB8F1F4D0, 0,
        ),
    ),
    "zone": (golden.UDP_V4_ZONE, Flow(TENANT, TO_TENANT, 8, None, 600, 0xD0957D27, 11)),
    "zone-of-original": (golden.UDP_V4_ORIGINAL_ZONE, Flow(TENANT, TO_TENANT, 8, None, 599, 0xAA9BA9DC, 12)),
    "zone-of-reply": (golden.UDP_V4_REPLY_ZONE, Flow(TENANT, TO_TENANT, 8, None, 599, 0xB6BCB7B8, 0)),
}  # fmt: skip


def decoded(payload: bytes) -> Flow | None:
    return decode_flow(payload, 0, len(payload))


class TestEntries:
    """An entry has an original tuple, one of the replies, and what else this or another kernel tells, in any order."""

    @of_this_byte_order
    @pytest.mark.parametrize(("fields", "expected"), SENT.values(), ids=SENT)
    def test_what_linux_6_18_sends(self, fields: Fields, expected: Flow) -> None:
        payload = joined(fields)
        assert decoded(payload) == expected
        assert decode_flow(b"\xff" * 3 + payload + b"\xff" * 5, 3, 3 + len(payload)) == expected

    @of_this_byte_order
    @pytest.mark.parametrize(("fields", "expected"), SENT.values(), ids=SENT)
    def test_a_cut_one_is_malformed_or_lacks_what_was_cut(self, fields: Fields, expected: Flow) -> None:
        payload = joined(fields)
        behind_tuples = payload.index(bytes.fromhex("08000300"))  # CTA_STATUS
        for size in range(len(payload)):
            try:
                cut = decoded(payload[:size])
            except MalformedMessage:
                continue
            assert cut is not None
            assert size >= behind_tuples - 8  # the zone
            assert (cut.original, cut.reply) == (expected.original, expected.reply)
            assert all(now in (0, None, full) for now, full in zip(cut[2:], expected[2:]))

    @given(entries())
    def test_what_was_encoded_is_decoded(self, entry: tuple[bytes, Flow]) -> None:
        payload, expected = entry
        assert decoded(payload) == expected
        assert decoded(payload + payload[4:]) == expected, "of an attribute that comes twice the last counts"

    @given(entries(flows((ICMP, SCTP, 0, 255))))
    def test_of_another_protocol_there_is_none(self, entry: tuple[bytes, Flow]) -> None:
        assert decoded(entry[0]) is None

    @given(damaged(entries().map(lambda entry: entry[0])) | st.binary(max_size=200))
    def test_any_bytes_are_an_entry_or_malformed(self, payload: bytes) -> None:
        try:
            found = decoded(payload)
        except MalformedMessage:
            return
        if found is not None:
            assert {len(found.original.src), len(found.original.dst)} <= {4, 16}
            assert f"{found} {found.state} {found.src} {found.dst} {found.family}".isprintable()
            assert {found.is_dnated, found.is_by_ipvs, found.is_closing} <= {False, True}
            assert decoded(encode_entry(found)) == found

    @pytest.mark.parametrize(
        "tuples",
        [
            tuple_attribute(1, TENANT),
            tuple_attribute(2, TO_TENANT),
            tuple_attribute(1, TENANT) + nest(2),
            tuple_attribute(1, TENANT) + nest(2, nest(2, number(1, UDP, 1), number(2, 1, 2), number(3, 1, 2))),
            tuple_attribute(1, TENANT._replace(dst=bytes(16))) + tuple_attribute(2, TO_TENANT),
            tuple_attribute(1, TENANT._replace(src=bytes(5), dst=bytes(5))) + tuple_attribute(2, TO_TENANT),
            tuple_attribute(1, TENANT) + nest(2, nest(1, encode_attribute(1, bytes(4))), nest(2, number(1, UDP, 1))),
        ],
        ids=["no-reply", "no-original", "empty", "no-addresses", "two-sizes", "another-size", "no-destination"],
    )
    def test_half_a_tuple_is_malformed(self, tuples: bytes) -> None:
        with pytest.raises(MalformedMessage, match=r"conntrack at offset 0: expected "):
            decoded(bytes(4) + tuples)


class TestMeaning:
    """What a flow says of itself goes by its tuples."""

    def test_its_ends_and_its_text(self) -> None:
        one = flow("10.96.0.10:80/TCP", "10.0.0.5:8080/TCP", sport=5)
        assert (str(one.src), one.sport, str(one.dst), one.dport, one.protocol) == (
            "10.0.0.1",
            5,
            "10.96.0.10",
            80,
            TCP,
        )
        assert (one.backend, one.family) == (Backend("10.0.0.5", 8080, "tcp"), 2)
        assert str(one) == "tcp 10.0.0.1:5 -> 10.96.0.10:80 to 10.0.0.5:8080"
        assert flow("[fd00::10]:53/UDP").family == 10
        assert str(flow("[fd00::10]:53/UDP")) == "udp [fd00::1]:1024 -> [fd00::10]:53 to [fd00::10]:53"

    @pytest.mark.parametrize(
        ("backend", "is_dnated"),
        [("10.0.0.5:80/TCP", True), ("10.96.0.10:8080/TCP", True), ("10.96.0.10:80/TCP", False)],
        ids=["address", "port-alone", "neither"],
    )
    @pytest.mark.parametrize("status", [CONFIRMED, CONFIRMED | DST_NAT], ids=["no-bit", "bit"])
    def test_it_is_translated_by_the_tuples_and_by_ipvs_without_the_bit(
        self, backend: str, is_dnated: bool, status: int
    ) -> None:
        one = flow("10.96.0.10:80/TCP", backend, status=status)
        assert (one.is_dnated, one.is_by_ipvs) == (is_dnated, is_dnated and not status & DST_NAT)

    def test_states_are_conntracks_words_and_two_are_closing(self) -> None:
        """enum tcp_conntrack, and one that is not known."""
        words = [
            *(
                "NONE",
                "SYN_SENT",
                "SYN_RECV",
                "ESTABLISHED",
                "FIN_WAIT",
                "CLOSE_WAIT",
                "LAST_ACK",
                "TIME_WAIT",
                "CLOSE",
            ),
            *("SYN_SENT2", "10"),
        ]
        states = [flow("10.96.0.10:80/TCP", tcp_state=number) for number in range(len(words))]
        assert [one.state for one in states] == words
        assert [one.tcp_state for one in states if one.is_closing] == [TIME_WAIT, CLOSE]
        of_udp = flow("10.96.0.10:53/UDP")
        assert (of_udp.state, of_udp.is_closing) == ("", False)

    @pytest.mark.parametrize("reply", [{"sport": 0}, {"src": bytes(4)}, {"src": v6("fe80" + "00" * 13 + "01")}])
    def test_what_can_be_no_backend_is_a_value_error(self, reply: dict[str, object]) -> None:
        one = flow("10.96.0.10:80/TCP")
        with pytest.raises(ValueError):  # noqa: PT011 - Backend's own, each with its text
            _ = one._replace(reply=one.reply._replace(**reply)).backend

    @given(flows())
    def test_it_is_a_value(self, one: Flow) -> None:
        assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
        assert len({one, copy.copy(one)}) == 1


def native(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


class TestRequests:
    """A tuple is written as the kernel itself writes it; CTA_FILTER_*_FLAGS alone are in the byte order of the host."""

    @given(flows())
    def test_a_tuple(self, one: Flow) -> None:
        for kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY):
            assert encode_tuple(kind, one.original) == tuple_attribute(kind, one.original)

    @given(flows())
    def test_one_entry_is_asked_for_and_deleted_by_its_tuple_in_its_zone(self, one: Flow) -> None:
        head, zone = bytes([one.family, 0, 0, 0]), number(18, one.zone, 2)
        asked = head + tuple_attribute(1, one.original) + zone
        assert get_request(one.original, one.zone) == asked
        assert get_request(one.reply, one.zone, is_reply=True) == head + tuple_attribute(2, one.reply) + zone
        assert delete_request(one) == asked + number(12, one.id)

    def test_filters(self) -> None:
        def flags(original: int, reply: int) -> bytes:
            return nest(25, encode_attribute(1, native(original)), encode_attribute(2, native(reply)))

        address, ports = encode_attribute(1, v4(10, 0, 0, 5)), number(1, TCP, 1) + number(2, 8080, 2)
        by_address = filter_by(CTA_TUPLE_REPLY, flags=layout.FILTER_IP_SRC, src=v4(10, 0, 0, 5))
        assert by_address == nest(2, nest(1, address)) + flags(0, 1)
        by_port = filter_by(CTA_TUPLE_REPLY, flags=8 | 0x10, protocol=TCP, sport=8080)
        assert by_port == nest(2, nest(2, ports)) + flags(0, 0x18)
        for one in (TENANT, FlowTuple(TCP, CLIENT_V6, 1, VIP_V6, 2)):
            by_all = filter_by(CTA_TUPLE_ORIG, flags=0x3B, **one._asdict())
            assert by_all == tuple_attribute(1, one) + flags(0x3B, 0)


class TestCount:
    @given(u32, st.binary(max_size=8))
    def test_the_number_of_entries(self, count: int, other: bytes) -> None:
        payload = bytes(4) + encode_attribute(9, other) + number(1, count)
        assert decode_count(b"\xff" + payload, 1, 1 + len(payload)) == count

    @given(damaged(u8.map(lambda count: bytes(4) + number(1, count))))
    def test_any_bytes_are_a_number_or_malformed(self, payload: bytes) -> None:
        with suppress(MalformedMessage):
            assert decode_count(payload, 0, len(payload)) >= 0
