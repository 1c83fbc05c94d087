"""Framing: what was encoded is decoded, and what no kernel sends is refused at the offset where it goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import MalformedMessage
from socklb.wire import netlink
from socklb.wire.netlink import (
    NLMSG_DONE,
    NLMSG_ERROR,
    Ack,
    Done,
    decode_ack,
    decode_done,
    encode_ack,
    encode_attribute,
    encode_attributes,
    encode_done,
    encode_message,
    iter_attributes,
    iter_messages,
)

from ..strategies import acks, attribute_pairs, damaged, dones, u8, u16, u32
from . import golden

T = TypeVar("T")
Answer = Union[Ack, Done]


class Message(NamedTuple):
    type: int
    flags: int
    sequence: int
    port: int
    payload: bytes

    @property
    def bytes(self) -> bytes:
        return encode_message(self.type, self.flags, self.sequence, self.payload, self.port)


whole_messages = st.builds(Message, u16, u16, u32, u32, st.binary(max_size=40))
streams = st.lists(whole_messages, max_size=4)


def encoded(messages: Iterable[Message]) -> bytes:
    return b"".join(message.bytes for message in messages)


def messages_in(data: bytes) -> Iterator[Message]:
    for type_, flags, sequence, port, start, end in iter_messages(data, len(data)):
        yield Message(type_, flags, sequence, port, data[start:end])


def until_malformed(items: Iterator[T], at_most: int) -> tuple[list[T], MalformedMessage | None]:
    """The items up to the first malformed one, and its error. More than `at_most` is a reader that does not advance."""
    read: list[T] = []
    try:
        read.extend(islice(items, at_most + 1))  # keeps those before an error
    except MalformedMessage as error:
        return read, error
    assert len(read) <= at_most
    return read, None


def native(number: int, size: int) -> bytes:
    return number.to_bytes(size, sys.byteorder)


class TestPlaces:
    """Each field has the place that linux/netlink.h gives it; lengths count the header and no padding."""

    def test_nlmsghdr(self) -> None:
        data = encode_message(0x0202, 0x0303, 0x04040404, b"\x06", port=0x05050505)
        assert data == native(17, 4) + b"\2\2" + b"\3\3" + b"\4\4\4\4" + b"\5\5\5\5" + b"\6" + bytes(3)

    def test_nlattr(self) -> None:
        assert encode_attribute(0x0202, b"\x03") == native(5, 2) + b"\2\2" + b"\3" + bytes(3)

    def test_nlmsgerr(self) -> None:
        code = (-1).to_bytes(4, sys.byteorder, signed=True)
        assert encode_ack(Ack(1, 0x0202, 0x0303, 0x04040404, 0x05050505, b"\6\6\6\6", ())) == (
            0, code + native(20, 4) + b"\2\2\3\3\4\4\4\4\5\5\5\5\6\6\6\6"
        )  # fmt: skip

    @pytest.mark.parametrize(("length", "aligned"), [(0, 0), (1, 4), (3, 4), (4, 4), (5, 8), (0xFFFF, 0x10000)])
    def test_padding_goes_to_the_next_multiple_of_four(self, length: int, aligned: int) -> None:
        assert netlink.align(length) == aligned


class TestMessages:
    """A datagram holds whole messages; one that is cut, or does not advance, is MalformedMessage."""

    @given(streams, st.binary(max_size=40))
    def test_what_was_encoded_is_decoded_and_nothing_behind_the_size(self, messages: list[Message], old: bytes) -> None:
        data = encoded(messages)
        assert list(messages_in(data)) == messages
        assert list(iter_messages(data + old, len(data))) == list(iter_messages(data, len(data)))

    @given(streams, whole_messages)
    def test_a_cut_message_is_refused_at_every_length(self, before: list[Message], last: Message) -> None:
        start, size = len(encoded(before)), 16 + len(last.payload)
        for cut in range(1, size):
            messages, error = until_malformed(messages_in(encoded([*before, last])[: start + cut]), len(before))
            assert messages == before
            assert error is not None
            assert error.offset == start
            assert cut >= 16 or (error.expected, error.got) == ("16 bytes", str(cut))
        assert list(messages_in(encoded([*before, last])[: start + size])) == [*before, last], "without its padding"

    @given(damaged(streams.map(encoded)))
    def test_any_bytes_are_messages_or_malformed_in_no_more_steps_than_headers_fit(self, data: bytes) -> None:
        messages, error = until_malformed(iter_messages(data, len(data)), len(data) // 16)
        behind = 0
        for *_, start, end in messages:
            assert behind + 16 <= start <= end <= len(data)
            behind = end
        assert error is None or behind <= error.offset < len(data)

    @pytest.mark.parametrize("length", [0, 1, 15, 25, 0xFFFFFFFF])
    def test_a_length_that_does_not_advance_or_leads_outside(self, length: int) -> None:
        first, second = encode_message(20, 0, 1, b""), encode_message(20, 0, 1, bytes(8))
        messages, error = until_malformed(messages_in(first + native(length, 4) + second[4:]), 2)
        assert error is not None
        assert (len(messages), error.offset, error.expected, error.got) == (1, 16, "16..24", length)


class TestAttributes:
    """Attributes one after another, flags left in the type; one that is cut or does not advance is MalformedMessage."""

    @given(st.lists(attribute_pairs, max_size=5), u8)
    def test_what_was_encoded_is_decoded(self, pairs: list[tuple[int, bytes]], start: int) -> None:
        data = bytes(start) + encode_attributes(pairs)
        assert list(iter_attributes(data, start, len(data))) == pairs

    @given(attribute_pairs, st.integers(0, 9))
    def test_a_cut_attribute_is_refused_at_every_length(self, pair: tuple[int, bytes], before: int) -> None:
        data = bytes(before) + encode_attribute(*pair)
        for size in range(1, 4 + len(pair[1])):
            with pytest.raises(MalformedMessage) as caught:
                list(iter_attributes(data, before, before + size))
            assert caught.value.offset == before

    @given(damaged(st.lists(attribute_pairs, max_size=4).map(encode_attributes)), st.integers(0, 9))
    def test_any_bytes_are_attributes_or_malformed_in_no_more_steps_than_headers_fit(
        self, data: bytes, start: int
    ) -> None:
        end = start + len(data)
        pairs, error = until_malformed(iter_attributes(bytes(start) + data, start, end), len(data) // 4)
        assert all(payload in data for _, payload in pairs)
        assert error is None or start <= error.offset < end

    @pytest.mark.parametrize("length", [0, 3, 9, 0xFFFF])
    def test_a_length_that_does_not_advance_or_leads_outside(self, length: int) -> None:
        data = native(4, 2) + bytes(2) + native(length, 2) + bytes(6)
        pairs, error = until_malformed(iter_attributes(data, 0, len(data)), 2)
        assert error is not None
        assert (len(pairs), error.offset, error.expected, error.got) == (1, 4, "4..8", length)

    def test_a_payload_that_nla_len_cannot_count_is_a_wrong_argument(self) -> None:
        assert len(encode_attribute(1, bytes(0xFFFB))) == 0x10000
        with pytest.raises(ValueError, match="at most 65531 fit"):
            encode_attribute(1, bytes(0xFFFC))


class TestAcksAndDones:
    """NLMSG_ERROR and NLMSG_DONE carry an errno, and with NETLINK_EXT_ACK a text."""

    EITHER = pytest.mark.parametrize(("decode", "size"), [(decode_ack, 20), (decode_done, 4)], ids=["ack", "done"])

    @given(acks(), dones, u8)
    def test_they_come_back(self, ack: Ack, done: Done, start: int) -> None:
        flags, payload = encode_ack(ack)
        assert decode_ack(bytes(start) + payload, start, start + len(payload), flags) == ack
        flags, payload = encode_done(done)
        assert decode_done(bytes(start) + payload, start, start + len(payload), flags) == done

    @EITHER
    @given(damaged((acks().map(encode_ack) | dones.map(encode_done)).map(lambda encoded: encoded[1])), u16, u8)
    def test_any_bytes_are_an_answer_or_malformed(
        self, decode: Callable[[bytes, int, int, int], Answer], size: int, payload: bytes, flags: int, start: int
    ) -> None:
        end = start + len(payload)
        answers, error = until_malformed(map(decode, [bytes(start) + payload], [start], [end], [flags]), 1)
        for answer in answers:
            assert 0 <= answer.errno <= 4095
            assert isinstance(answer.text, str)
        assert error is None or start <= error.offset <= end

    @EITHER
    @given(st.binary(min_size=1, max_size=20))
    def test_only_ack_tlvs_announces_attributes(
        self, decode: Callable[[bytes, int, int, int], Answer], size: int, behind: bytes
    ) -> None:
        for flags in (netlink.NLM_F_MULTI, netlink.NLM_F_CAPPED):
            assert decode(bytes(size) + behind, 0, size + len(behind), flags).attributes == ()

    @EITHER
    def test_a_number_that_is_no_negated_errno_or_a_short_payload_is_malformed(
        self, decode: Callable[[bytes, int, int, int], Answer], size: int
    ) -> None:
        for code in (1, 4096, -4096, -(1 << 31)):
            payload = code.to_bytes(4, sys.byteorder, signed=True) + bytes(16)
            with pytest.raises(MalformedMessage) as caught:
                decode(payload, 0, len(payload), netlink.NLM_F_CAPPED)
            assert (caught.value.offset, caught.value.expected, caught.value.got) == (0, "-4095..0", code)
        for short in range(size):
            with pytest.raises(MalformedMessage, match=f"expected {size} bytes, got {short}"):
                decode(bytes(20), 0, short, 0)

    @pytest.mark.parametrize(("length", "echoed"), [(73, 57), (15, -1), (0xFFFFFFFF, 0xFFFFFFEF)])
    def test_an_error_without_the_request_that_it_announces_is_malformed(self, length: int, echoed: int) -> None:
        _, payload = encode_ack(Ack(2, 21, 5, 1, 0, bytes(56), (), length))
        with pytest.raises(MalformedMessage) as caught:
            decode_ack(payload, 0, len(payload), 0)
        assert (caught.value.offset, caught.value.expected, caught.value.got) == (20, "0..56 bytes", echoed)

    @given(acks())
    def test_a_success_echoes_no_request_whatever_its_flags(self, ack: Ack) -> None:
        _, payload = encode_ack(ack._replace(errno=0, request=b"", attributes=()))
        for flags in (0, netlink.NLM_F_CAPPED):
            assert decode_ack(payload, 0, len(payload), flags)[:6] == (0, *ack[1:5], b"")

    @pytest.mark.parametrize(
        ("attributes", "text"),
        [
            ((), ""),
            (((2, bytes(4)),), ""),
            (((2, bytes(4)), (1, b"no such thing\0")), "no such thing"),
            (((1, b"without a NUL"),), "without a NUL"),
            (((1, b"\xff"),), "\ufffd"),
        ],
    )
    def test_the_text_is_the_message_attribute(self, attributes: tuple[tuple[int, bytes], ...], text: str) -> None:
        assert Done(22, attributes).text == text
        assert Ack(22, 20, 1, 1, 0, b"", attributes).text == text


@golden.of_this_byte_order
class TestGolden:
    """The kernel's own bytes decode to what was requested and answered, and encode to the same bytes."""

    @pytest.mark.parametrize(
        ("fields", "code", "asked", "text"),
        [
            (golden.DESTROYED, 0, (21, 5, 7, 72, 0), ""),
            (golden.NOT_FOUND, 2, (21, 5, 7, 72, 0), ""),
            (golden.NOT_FOUND_UNCAPPED, 2, (21, 5, 7, 72, 56), ""),
            (golden.REFUSED_WITH_TEXT, 34, (24, 0x405, 7, 36, 0), "Attribute failed policy validation"),
        ],
        ids=["destroyed", "not found", "not found, uncapped", "refused with text"],
    )
    def test_acks(self, fields: golden.Fields, code: int, asked: tuple[int, int, int, int, int], text: str) -> None:
        data = golden.joined(fields)
        (message,) = messages_in(data)
        ack = decode_ack(data, 16, len(data), message.flags)
        assert (message.type, ack.errno, ack.text) == (NLMSG_ERROR, code, text)
        assert (ack.type, ack.flags, ack.sequence, ack.length, len(ack.request)) == asked
        flags, payload = encode_ack(ack)
        assert message._replace(flags=flags, payload=payload).bytes == data

    @pytest.mark.parametrize(
        ("fields", "code", "text"),
        [
            (golden.DONE, 0, ""),
            (golden.DONE_UNSUPPORTED, 2, ""),
            (golden.DONE_WITH_TEXT, 22, "Unsupported attribute in link dump request"),
        ],
        ids=["done", "unsupported", "with text"],
    )
    def test_dones(self, fields: golden.Fields, code: int, text: str) -> None:
        data = golden.joined(fields)
        (message,) = messages_in(data)
        done = decode_done(data, 16, len(data), message.flags)
        assert (message.type, done.errno, done.text) == (NLMSG_DONE, code, text)
        flags, payload = encode_done(done)
        assert message._replace(flags=flags, payload=payload).bytes == data

    def test_a_row_of_a_dump(self) -> None:
        row = golden.joined(golden.ESTABLISHED_V4)
        (message,) = messages_in(golden.joined(golden.DUMP_HEADER) + row)
        assert message == Message(20, netlink.NLM_F_MULTI, 7, 0x2E6B, row)
