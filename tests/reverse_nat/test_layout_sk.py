"""Keys and values of the reverse-NAT socket maps."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import MalformedMessage
from socklb.reverse_nat.layout import LAYOUTS, ReverseSkKey, ReverseSkValue, decode_key, decode_value

from ..strategies import packed_v4, packed_v6, ports, u16, u64
from ..wire import golden

keys = st.builds(ReverseSkKey, u64, packed_v4 | packed_v6, ports)
values = st.builds(ReverseSkValue, packed_v4 | packed_v6, ports, u16)

KEY_V4: golden.Fields = (
    ("cookie", "0102030405060708"),
    ("address", "0a000105"),
    ("port", "1f90"),
    ("pad", "0000"),
)
KEY_V6: golden.Fields = (
    ("cookie", "0102030405060708"),
    ("address", "fd000000000000000000000000000105"),
    ("port", "1f90"),
    ("pad", "0000"),
)
END_OF_KEY_V6: golden.Fields = (("padding", "00000000"),)
VALUE_V4: golden.Fields = (
    ("address", "0a60000a"),
    ("port", "0050"),
    ("rev_nat_index", "0700"),
)
VALUE_V6: golden.Fields = (
    ("address", "fd00000000000000000000000000600a"),
    ("port", "0050"),
    ("rev_nat_index", "0700"),
)
COOKIE = 0x0807060504030201

long_and_short = pytest.mark.parametrize("end", [(), END_OF_KEY_V6], ids=["28", "32"])


class TestGolden:
    """The bytes that a datapath on a little-endian machine writes."""

    pytestmark = golden.of_this_byte_order

    def test_a_v4_key(self) -> None:
        key, data = ReverseSkKey(COOKIE, bytes([10, 0, 1, 5]), 8080), golden.joined(KEY_V4)
        assert (key.encode(), decode_key(data), len(data)) == (data, key, 16)

    @long_and_short
    def test_a_v6_key_of_both_sizes(self, end: golden.Fields) -> None:
        """Old versions lack the last four bytes; every field has the same place."""
        key, data = ReverseSkKey(COOKIE, b"\xfd" + bytes(13) + b"\1\5", 8080), golden.joined(KEY_V6, end)
        assert (key.encode().ljust(len(data), b"\0"), decode_key(data)) == (data, key)
        assert len(data) == (32 if end else 28)

    def test_a_v4_value(self) -> None:
        value, data = ReverseSkValue(bytes([10, 96, 0, 10]), 80, 7), golden.joined(VALUE_V4)
        assert (value.encode(), decode_value(data), len(data)) == (data, value, 8)

    def test_a_v6_value(self) -> None:
        value, data = ReverseSkValue(b"\xfd" + bytes(13) + b"\x60\x0a", 80, 7), golden.joined(VALUE_V6)
        assert (value.encode(), decode_value(data), len(data)) == (data, value, 20)


class TestPlaces:
    """A different byte for each field; ports and addresses big-endian, the rest native."""

    @pytest.mark.parametrize("length", [4, 16], ids=["v4", "v6"])
    def test_of_a_key(self, length: int) -> None:
        data = b"\1" * 8 + b"\2" * length + b"\3\3" + bytes(2)
        key = ReverseSkKey(0x0101010101010101, b"\2" * length, 0x0303)
        assert (key.encode(), decode_key(data)) == (data, key)

    @pytest.mark.parametrize("length", [4, 16], ids=["v4", "v6"])
    def test_of_a_value(self, length: int) -> None:
        data = b"\1" * length + b"\2\2" + b"\3\3"
        value = ReverseSkValue(b"\1" * length, 0x0202, 0x0303)
        assert (value.encode(), decode_value(data)) == (data, value)

    def test_byte_orders(self) -> None:
        key = ReverseSkKey(0x0102030405060708, b"abcd", 0x0102).encode()
        assert key == (0x0102030405060708).to_bytes(8, sys.byteorder) + b"abcd" + b"\1\2" + bytes(2)
        assert ReverseSkValue(b"abcd", 0x0102, 0x0304).encode() == (
            b"abcd" + b"\1\2" + (0x0304).to_bytes(2, sys.byteorder)
        )

    def test_the_shapes_are_those_of_the_structures(self) -> None:
        for shape in LAYOUTS:
            assert len(ReverseSkKey(0, bytes(shape.address_size), 0).encode()) == min(shape.key_sizes)
            assert len(ReverseSkValue(bytes(shape.address_size), 0, 0).encode()) == shape.value_size
        assert [shape.name for shape in LAYOUTS] == ["cilium_lb4_reverse_sk", "cilium_lb6_reverse_sk"]


class TestRoundTrip:
    """What was written is read; of the bytes, all but the padding."""

    @given(keys)
    def test_a_key_comes_back(self, key: ReverseSkKey) -> None:
        data = key.encode()
        assert decode_key(data) == key
        if len(data) == 28:
            assert decode_key(data + bytes(4)) == key

    @given(values)
    def test_a_value_comes_back(self, value: ReverseSkValue) -> None:
        assert decode_value(value.encode()) == value

    @given(st.sampled_from((16, 28, 32)).flatmap(lambda size: st.binary(min_size=size, max_size=size)))
    def test_the_bytes_of_a_key_come_back_but_for_the_padding(self, data: bytes) -> None:
        end = 14 if len(data) == 16 else 26
        assert decode_key(data).encode().ljust(len(data), b"\0") == data[:end].ljust(len(data), b"\0")

    @given(st.sampled_from((8, 20)).flatmap(lambda size: st.binary(min_size=size, max_size=size)))
    def test_the_bytes_of_a_value_come_back(self, data: bytes) -> None:
        assert decode_value(data).encode() == data


class TestOtherSizes:
    """A length that no structure has is MalformedMessage, a field that does not fit ValueError."""

    @given(st.binary(max_size=40))
    def test_any_bytes_are_a_key_or_refused(self, data: bytes) -> None:
        if len(data) in (16, 28, 32):
            decode_key(data)
        else:
            with pytest.raises(
                MalformedMessage, match=rf"at offset 0: expected 16 or 28 or 32 bytes, got {len(data)}$"
            ):
                decode_key(data)

    @given(st.binary(max_size=30))
    def test_any_bytes_are_a_value_or_refused(self, data: bytes) -> None:
        if len(data) in (8, 20):
            decode_value(data)
        else:
            with pytest.raises(MalformedMessage, match=rf"at offset 0: expected 8 or 20 bytes, got {len(data)}$"):
                decode_value(data)

    @pytest.mark.parametrize(
        ("value", "word"),
        [
            (ReverseSkKey(-1, bytes(4), 1), "-1"),
            (ReverseSkKey(1 << 64, bytes(4), 1), str(1 << 64)),
            (ReverseSkKey(1, bytes(4), 65536), "65536"),
            (ReverseSkKey(1, bytes(16), -1), "-1"),
            (ReverseSkKey("x", bytes(4), 1), "'x'"),
            (ReverseSkKey(1, bytes(5), 1), "not 5"),
            (ReverseSkValue(bytes(4), 65536, 1), "65536"),
            (ReverseSkValue(bytes(16), 1, 65537), "65537"),
            (ReverseSkValue(b"", 1, 1), "not 0"),
        ],
        ids=repr,
    )
    def test_what_does_not_fit(self, value: ReverseSkKey | ReverseSkValue, word: str) -> None:
        with pytest.raises(ValueError, match=word):
            value.encode()
