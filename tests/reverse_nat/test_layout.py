"""Byte layouts: what bpf(2) takes and answers; keys and values of the reverse-NAT socket maps."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import MalformedMessage
from socklb.reverse_nat import layout
from socklb.reverse_nat.layout import (
    LAYOUTS,
    MapInfo,
    ReverseSkKey,
    ReverseSkValue,
    decode_batch,
    decode_key,
    decode_map_info,
    decode_value,
    encode_batch,
    encode_element,
    encode_info,
    encode_object,
)

from ..strategies import packed_v4, packed_v6, ports, u16, u32, u64
from ..wire import golden

names = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=15)
infos = st.builds(MapInfo, u32, u32, u32, u32, u32, u32, names)
keys = st.builds(ReverseSkKey, u64, packed_v4 | packed_v6, ports)
values = st.builds(ReverseSkValue, packed_v4 | packed_v6, ports, u16)


def of_sizes(*sizes: int) -> st.SearchStrategy[bytes]:
    return st.sampled_from(sizes).flatmap(lambda size: st.binary(min_size=size, max_size=size))


class TestBpf:
    """linux/bpf.h."""

    def test_each_field_has_its_place(self) -> None:
        assert encode_element(0x01010101, 2, 3) == b"\1\1\1\1" + bytes(4) + b"".join(map(native, (2, 3, 0)))
        assert encode_object(1, 0x02020202) == native(1) + bytes(4) + b"\2\2\2\2"
        assert encode_info(0x01010101, 0x02020202, 3) == b"\1\1\1\1" + b"\2\2\2\2" + native(3)
        batch = b"".join(map(native, (1, 2, 3, 4))) + b"\5\5\5\5" + b"\6\6\6\6" + bytes(16)
        assert encode_batch(0x06060606, 1, 2, 3, 4, 0x05050505) == batch
        assert decode_batch(batch) == 0x05050505

    def test_numbers(self) -> None:
        assert (layout.BPF_MAP_LOOKUP_ELEM, layout.BPF_MAP_GET_NEXT_KEY, layout.BPF_MAP_LOOKUP_BATCH) == (1, 4, 24)
        assert (layout.BPF_OBJ_GET, layout.BPF_OBJ_GET_INFO_BY_FD) == (7, 15)
        assert (layout.BPF_MAP_TYPE_HASH, layout.BPF_MAP_TYPE_LRU_HASH, layout.BPF_F_RDONLY) == (1, 9, 8)


def native(pointer: int) -> bytes:
    return pointer.to_bytes(8, sys.byteorder)


MAP_INFO: golden.Fields = (
    ("type", "09000000"),
    ("id", "2a000000"),
    ("key_size", "10000000"),
    ("value_size", "08000000"),
    ("max_entries", "40420f00"),
    ("map_flags", "01000000"),
    ("name", "63696c69756d5f6c62345f7265766500"),
    ("ifindex", "00000000"),
    ("btf_vmlinux_value_type_id", "00000000"),
    ("netns_dev", "0000000000000000"),
    ("netns_ino", "0000000000000000"),
    ("btf_id", "07000000"),
    ("btf_key_type_id", "03000000"),
    ("btf_value_type_id", "05000000"),
    ("padding", "00000000"),
    ("map_extra", "0000000000000000"),
)
"""An LRU hash called cilium_lb4_reverse_sk, whose name is cut to 15 bytes."""


class TestMapInfo:
    """struct bpf_map_info grows from kernel to kernel: what follows the name is ignored, and the name may be cut."""

    @golden.of_this_byte_order
    def test_what_linux_6_18_writes(self) -> None:
        info = MapInfo(layout.BPF_MAP_TYPE_LRU_HASH, 42, 16, 8, 1_000_000, 1, "cilium_lb4_reve")
        data = golden.joined(MAP_INFO)
        assert (decode_map_info(data), info.encode()) == (info, data[: layout.MAP_INFO_SIZE])

    @given(infos, st.binary(max_size=60))
    def test_it_comes_back(self, info: MapInfo, more: bytes) -> None:
        assert decode_map_info(info.encode() + more) == info

    @given(st.binary(min_size=40, max_size=100))
    def test_bytes_come_back_up_to_the_end_of_the_name(self, data: bytes) -> None:
        name = data[24:40].partition(b"\0")[0]
        assert decode_map_info(data).encode() == data[:24] + name.ljust(16, b"\0")

    @given(infos)
    def test_an_older_kernel_writes_less_of_the_name_or_none(self, info: MapInfo) -> None:
        for length in range(24, 41):
            assert decode_map_info(info.encode()[:length]) == info._replace(name=info.name[: length - 24])
        for length in range(24):
            with pytest.raises(MalformedMessage, match=f"cut bpf_map_info .*expected 24 bytes, got {length}$"):
                decode_map_info(info.encode()[:length])


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
FD = b"\xfd" + bytes(13)


class TestReverseSk:
    """Keys and values: ports and addresses big-endian, the rest native."""

    @golden.of_this_byte_order
    @pytest.mark.parametrize(
        ("key", "data"),
        [
            (ReverseSkKey(COOKIE, b"\x0a\0\1\5", 8080), golden.joined(KEY_V4)),
            (ReverseSkKey(COOKIE, FD + b"\1\5", 8080), golden.joined(KEY_V6)),
            (ReverseSkKey(COOKIE, FD + b"\1\5", 8080), golden.joined(KEY_V6, END_OF_KEY_V6)),
        ],
        ids=["v4", "v6 of old versions", "v6"],
    )
    def test_golden_keys(self, key: ReverseSkKey, data: bytes) -> None:
        assert (key.encode().ljust(len(data), b"\0"), decode_key(data)) == (data, key)

    @golden.of_this_byte_order
    @pytest.mark.parametrize(
        ("value", "data"),
        [
            (ReverseSkValue(b"\x0a\x60\0\x0a", 80, 7), golden.joined(VALUE_V4)),
            (ReverseSkValue(FD + b"\x60\x0a", 80, 7), golden.joined(VALUE_V6)),
        ],
        ids=["v4", "v6"],
    )
    def test_golden_values(self, value: ReverseSkValue, data: bytes) -> None:
        assert (value.encode(), decode_value(data)) == (data, value)

    def test_byte_orders(self) -> None:
        assert ReverseSkKey(COOKIE, b"abcd", 0x0102).encode() == native(COOKIE) + b"abcd" + b"\1\2" + bytes(2)
        index = (0x0304).to_bytes(2, sys.byteorder)
        assert ReverseSkValue(b"abcd", 0x0102, 0x0304).encode() == b"abcd" + b"\1\2" + index

    def test_the_layouts_are_those_of_the_structures(self) -> None:
        for each in LAYOUTS:
            assert len(ReverseSkKey(0, bytes(each.address_size), 0).encode()) == min(each.key_sizes)
            assert len(ReverseSkValue(bytes(each.address_size), 0, 0).encode()) == each.value_size
        assert [each.name for each in LAYOUTS] == ["cilium_lb4_reverse_sk", "cilium_lb6_reverse_sk"]

    @given(keys, values)
    def test_they_come_back(self, key: ReverseSkKey, value: ReverseSkValue) -> None:
        assert (decode_key(key.encode()), decode_value(value.encode())) == (key, value)

    @given(of_sizes(16, 28, 32), of_sizes(8, 20))
    def test_bytes_come_back_but_for_the_padding(self, key: bytes, value: bytes) -> None:
        end = 14 if len(key) == 16 else 26
        assert decode_key(key).encode().ljust(len(key), b"\0") == key[:end].ljust(len(key), b"\0")
        assert decode_value(value).encode() == value

    @given(st.binary(max_size=40))
    def test_any_other_size_is_malformed(self, data: bytes) -> None:
        for decode, sizes in ((decode_key, (16, 28, 32)), (decode_value, (8, 20))):
            if len(data) not in sizes:
                expected = f"at offset 0: expected {' or '.join(map(str, sizes))} bytes, got {len(data)}$"
                with pytest.raises(MalformedMessage, match=expected):
                    decode(data)

    @pytest.mark.parametrize(
        ("value", "word"),
        [
            (ReverseSkKey(-1, bytes(4), 1), "-1"),
            (ReverseSkKey(1 << 64, bytes(4), 1), str(1 << 64)),
            (ReverseSkKey(1, bytes(16), 65536), "65536"),
            (ReverseSkKey("x", bytes(4), 1), "'x'"),
            (ReverseSkKey(1, bytes(5), 1), "not 5"),
            (ReverseSkValue(bytes(4), 65536, 1), "65536"),
            (ReverseSkValue(bytes(16), 1, 65537), "65537"),
            (ReverseSkValue(b"", 1, 1), "not 0"),
        ],
        ids=repr,
    )
    def test_what_does_not_fit_is_a_wrong_argument(self, value: ReverseSkKey | ReverseSkValue, word: str) -> None:
        with pytest.raises(ValueError, match=word):
            value.encode()
