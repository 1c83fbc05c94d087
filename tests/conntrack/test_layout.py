"""Entries of conntrack: what of them is read, what they say, and the messages that name one."""

from __future__ import annotations

import pickle
from ipaddress import ip_address
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import Backend, Flow, MalformedMessage
from socklb.conntrack import layout
from socklb.conntrack.layout import (
    FlowTuple,
    decode_count,
    decode_flow,
    decode_request,
    delete_request,
    encode_tuple,
    get_request,
)
from socklb.wire.netlink import iter_attributes
from socklb.wire.socket_id import AF_INET, AF_INET6

from ..strategies import damaged, u32
from ..wire.golden import Fields, joined, of_this_byte_order
from . import golden
from .ctnetlink import (
    ID,
    ORIGINAL,
    PROTOINFO,
    REPLY,
    STATUS,
    ZONE,
    Entry,
    attribute,
    entries,
    flows,
    message_of,
    nest,
    tuple_of,
    tuples,
)


def v4(protocol: int, src: str, sport: int, dst: str, dport: int) -> FlowTuple:
    return FlowTuple(protocol, ip_address(src).packed, sport, ip_address(dst).packed, dport)


TCP = v4(6, "10.1.0.2", 40000, "10.96.0.10", 80), v4(6, "10.244.2.2", 8080, "10.1.0.2", 40000)
UDP6 = v4(17, "fd00::1:2", 40001, "fd00::96:10", 53), v4(17, "fd00::244:2", 5353, "fd00::1:2", 40001)
IN_ZONE = v4(17, "10.1.0.3", 40002, "10.96.0.10", 53), v4(17, "10.244.2.2", 5353, "10.1.0.3", 40002)
OF_REPLY = v4(17, "10.1.0.4", 40002, "10.96.0.10", 53), v4(17, "10.244.2.2", 5353, "10.1.0.4", 40002)

GOLDEN = {
    "BALANCED_V4": Flow(*TCP, 0x1AE, 3, 599, 0x81B198BF, 0),
    "BALANCED_V6_IN_ZONE": Flow(*UDP6, 0x1AE, None, 599, 0xA69F27D5, 5),
    "ORIGINAL_IN_ZONE": Flow(*IN_ZONE, 0xE, None, 599, 0xD8316E2B, 11),
    "REPLY_IN_ZONE": Flow(*OF_REPLY, 0xE, None, 600, 0x96A46290, 0),
}
PAYLOAD = 16


def payload_of(fields: Fields) -> bytes:
    return joined(fields)[PAYLOAD:]


def decoded(payload: bytes) -> Optional[Flow]:
    return decode_flow(payload, 0, len(payload))


@of_this_byte_order
class TestGolden:
    @pytest.mark.parametrize(("name", "flow"), GOLDEN.items(), ids=GOLDEN)
    def test_an_entry(self, name: str, flow: Flow) -> None:
        payload = payload_of(getattr(golden, name))
        assert decoded(payload) == flow
        zone = flow.zone if name == "ORIGINAL_IN_ZONE" else 0  # as the tests write it, and the package asks for it
        assert payload.startswith(message_of(flow.original, tuple_of(ORIGINAL, flow.original, zone)))
        assert zone or payload.startswith(encode_tuple(ORIGINAL, flow.original), 4)

    @pytest.mark.parametrize("name", GOLDEN)
    def test_cut_anywhere_it_is_less_or_malformed(self, name: str) -> None:
        payload = payload_of(getattr(golden, name))
        whole = decoded(payload)
        for length in range(len(payload)):
            try:
                flow = decoded(payload[:length])
            except MalformedMessage:
                continue
            assert flow is not None
            assert whole is not None
            assert flow[:2] == whole[:2]  # those it cannot be without

    def test_accounting_and_timestamps_come_behind(self) -> None:
        assert decoded(payload_of(golden.BALANCED_V4) + joined(golden.ACCOUNTED)) == GOLDEN["BALANCED_V4"]

    def test_statistics(self) -> None:
        payload = payload_of(golden.STATISTICS)
        assert decode_count(payload, 0, len(payload)) == 4
        for length in range(12):
            with pytest.raises(MalformedMessage):
                decode_count(payload, 0, length)


class TestDecoding:
    @given(
        entries(), st.randoms(use_true_random=False), st.lists(st.tuples(st.integers(27, 99), st.binary(max_size=9)))
    )
    def test_an_entry_comes_back_however_a_kernel_orders_what_follows_the_tuples(
        self, entry: Entry, random: Any, unknown: list[tuple[int, bytes]]
    ) -> None:
        others = entry.tuples[2:] + entry.others + [attribute(*one) for one in unknown]
        random.shuffle(others)
        assert decoded(message_of(entry.flow.original, *entry.tuples[:2], *others)) == entry.flow

    @given(entries())
    def test_of_an_attribute_that_comes_twice_the_last_counts(self, entry: Entry) -> None:
        assert decoded(entry.payload + entry.payload[4:]) == entry.flow

    @given(damaged(entries().map(lambda entry: entry.payload)) | st.binary(max_size=300))
    def test_any_bytes_are_a_flow_or_none_or_malformed(self, payload: bytes) -> None:
        try:
            flow = decoded(payload)
        except MalformedMessage:
            return
        if flow is not None:
            assert str(flow)
            assert flow.family in (AF_INET, AF_INET6)

    @pytest.mark.parametrize("protocol", [1, 58, 132])
    def test_what_is_neither_tcp_nor_udp_is_none(self, protocol: int) -> None:
        """ICMP has no ports, but a type and an id."""
        ip = nest(1, attribute(1, bytes(4)), attribute(2, bytes(4)))
        both = [nest(kind, ip, nest(2, attribute(1, bytes([protocol])), attribute(4, bytes(2)))) for kind in (1, 2)]
        assert decoded(message_of(TCP[0], *both)) is None

    def test_what_is_offloaded_has_neither_a_timeout_nor_a_state(self) -> None:
        flow = decoded(message_of(TCP[0], tuple_of(ORIGINAL, TCP[0]), tuple_of(REPLY, TCP[1])))
        assert flow == Flow(*TCP, 0, None, None, 0, 0)
        assert (flow.state, flow.is_closing) == ("", False)

    @pytest.mark.parametrize(
        "attributes",
        [
            [],
            [tuple_of(ORIGINAL, TCP[0])],
            [nest(ORIGINAL), tuple_of(REPLY, TCP[1])],
            [tuple_of(ORIGINAL, TCP[0]._replace(src=bytes(5))), tuple_of(REPLY, TCP[1])],
            [tuple_of(ORIGINAL, TCP[0]._replace(dst=bytes(3))), tuple_of(REPLY, TCP[1])],
            [tuple_of(ORIGINAL, TCP[0]), tuple_of(REPLY, TCP[1]), attribute(STATUS, b"123")],
            [tuple_of(ORIGINAL, TCP[0]), tuple_of(REPLY, TCP[1]), attribute(ID, b"")],
            [tuple_of(ORIGINAL, TCP[0]), tuple_of(REPLY, TCP[1]), attribute(ZONE, b"1")],
            [tuple_of(ORIGINAL, TCP[0]), tuple_of(REPLY, TCP[1]), attribute(PROTOINFO, b"12")],
        ],
        ids=range(9),
    )
    def test_what_an_entry_cannot_be_without(self, attributes: list[bytes]) -> None:
        with pytest.raises(MalformedMessage):
            decoded(message_of(TCP[0], *attributes))


class TestFlow:
    def test_what_it_says(self) -> None:
        flow = GOLDEN["BALANCED_V4"]
        assert (flow.protocol, flow.family, flow.state) == (6, AF_INET, "ESTABLISHED")
        assert (str(flow.src), flow.sport, str(flow.dst), flow.dport) == ("10.1.0.2", 40000, "10.96.0.10", 80)
        assert flow.backend == Backend("10.244.2.2", 8080, "tcp")
        assert str(flow) == "tcp 10.1.0.2:40000 -> 10.96.0.10:80 to 10.244.2.2:8080"
        flow = GOLDEN["BALANCED_V6_IN_ZONE"]
        assert (flow.protocol, flow.family, flow.state) == (17, AF_INET6, "")
        assert str(flow) == "udp [fd00::1:2]:40001 -> [fd00::96:10]:53 to [fd00::244:2]:5353"

    @given(flows)
    def test_it_is_a_value(self, flow: Flow) -> None:
        again = pickle.loads(pickle.dumps(flow))
        assert (again, hash(again), type(again)) == (flow, hash(flow), type(flow))
        with pytest.raises(AttributeError):
            flow.status = 0

    @pytest.mark.parametrize(
        ("reply", "status", "is_dnated", "is_by_ipvs"),
        [
            (v4(6, "10.96.0.10", 80, "10.1.0.2", 40000), 0x20, False, False),
            (v4(6, "10.96.0.10", 80, "10.9.9.9", 1), 0x10, False, False),  # SNAT alone
            (v4(6, "10.244.2.2", 80, "10.1.0.2", 40000), 0x20, True, False),
            (v4(6, "10.96.0.10", 8080, "10.1.0.2", 40000), 0x20, True, False),  # of the port alone
            (v4(6, "10.244.2.2", 80, "10.1.0.2", 40000), 0xFFDF, True, True),
        ],
    )
    def test_the_tuples_tell_who_answers_and_the_bit_who_has_translated(
        self, reply: FlowTuple, status: int, is_dnated: bool, is_by_ipvs: bool
    ) -> None:
        flow = Flow(TCP[0], reply, status, 3, 1, 1, 0)
        assert (flow.is_dnated, flow.is_by_ipvs) == (is_dnated, is_by_ipvs)

    def test_states_have_the_words_of_conntrack_8(self) -> None:
        flow = GOLDEN["BALANCED_V4"]
        words = "NONE SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT CLOSE_WAIT LAST_ACK TIME_WAIT CLOSE SYN_SENT2 10 255"
        assert " ".join(flow._replace(tcp_state=number).state for number in (*range(11), 255)) == words
        assert [number for number in range(256) if flow._replace(tcp_state=number).is_closing] == [7, 8]


anything = st.none() | st.booleans() | st.integers() | st.binary(max_size=20) | st.text(max_size=3) | st.floats()
any_address = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16) | anything
any_tuple = tuples() | st.builds(FlowTuple, st.just(6) | anything, any_address, anything, any_address, anything)
any_flow = flows | st.builds(Flow, any_tuple, any_tuple, anything, anything, anything, u32 | anything, anything)


class TestDeleting:
    """A DELETE without a tuple empties the table, and so does one whose family is not that of an address."""

    @given(any_flow)
    def test_whatever_the_flow_one_entry_is_named_by_tuple_zone_and_id_or_it_is_a_wrong_argument(
        self, flow: Flow
    ) -> None:
        try:
            payload = delete_request(flow)
        except (TypeError, ValueError):
            return
        size = len(flow.original.src)
        assert (payload[0], payload[1:4]) == ({4: 2, 16: 10}[size], bytes(3))
        parts = [(kind, data) for kind, data in iter_attributes(payload, 4, len(payload))]
        in_a_zone = [(ZONE, int(flow.zone).to_bytes(2, "big"))] if flow.zone else []  # 0 is what it is without
        ((kind, named), *others) = parts
        assert others == [*in_a_zone, (ID, int(flow.id).to_bytes(4, "big"))]
        assert kind == ORIGINAL | 0x8000
        assert attribute(kind, named) == tuple_of(ORIGINAL, flow.original)
        ip = dict(iter_attributes(named, 4, 4 + 2 * (4 + size)))
        assert [len(address) for address in ip.values()] == [size, size]

    @given(flows)
    def test_any_flow_that_a_kernel_names_can_be_deleted_and_asked_for(self, flow: Flow) -> None:
        for payload, id in ((delete_request(flow), flow.id), (get_request(flow.original, flow.zone), None)):
            assert decode_request(payload, 0, len(payload)) == (flow.original, flow.zone, id)

    @pytest.mark.parametrize(
        ("changed", "word"),
        [
            ({"id": 1 << 32}, "id 4294967296"),
            ({"id": None}, "id None"),
            ({"zone": 65536}, "zone 65536"),
            ({"zone": None}, "zone None"),
            ({"original": TCP[0]._replace(sport=65536)}, "port 65536"),
            ({"original": TCP[0]._replace(protocol=256)}, "protocol 256"),
            ({"original": TCP[0]._replace(src=b"", dst=b"")}, "packed addresses of 4 or 16 bytes"),
            ({"original": TCP[0]._replace(dst=bytes(16))}, "packed addresses of 4 or 16 bytes"),
        ],
        ids=str,
    )
    def test_what_does_not_fit_is_a_wrong_argument(self, changed: dict[str, Any], word: str) -> None:
        with pytest.raises(ValueError, match=word):
            delete_request(GOLDEN["BALANCED_V4"]._replace(**changed))


def test_numbers() -> None:
    assert (layout.IPCTNL_MSG_CT_NEW, layout.IPCTNL_MSG_CT_GET) == (0x100, 0x101)
    assert (layout.IPCTNL_MSG_CT_DELETE, layout.IPCTNL_MSG_CT_GET_STATS) == (0x102, 0x105)
