"""What bpf(2) is asked, and struct bpf_map_info."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import MalformedMessage
from socklb.reverse_nat import layout as bpf
from socklb.reverse_nat.layout import (
    MapInfo,
    decode_info_len,
    decode_map_info,
    encode_element,
    encode_info,
    encode_object,
)

from ..strategies import u32
from ..wire import golden

names = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=15)
infos = st.builds(MapInfo, u32, u32, u32, u32, u32, u32, names)

MAP_INFO: golden.Fields = (
    ("type", "09000000"),
    ("id", "2a000000"),
    ("key_size", "10000000"),
    ("value_size", "08000000"),
    ("max_entries", "40420f00"),
    ("map_flags", "00000000"),
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
"""An LRU hash called cilium_lb4_reverse_sk, as far as a name goes: 15 bytes."""


class TestPlaces:
    """Each field has the place that linux/bpf.h gives it: a different byte for each."""

    def test_an_element(self) -> None:
        data = b"\1\1\1\1" + bytes(4) + b"\2" * 8 + b"\3" * 8 + bytes(8)
        assert encode_element(0x01010101, 0x0202020202020202, 0x0303030303030303) == data

    def test_an_object(self) -> None:
        assert encode_object(0x0101010101010101, 0x02020202) == b"\1" * 8 + bytes(4) + b"\2" * 4

    def test_a_question_what_it_is(self) -> None:
        assert encode_info(0x01010101, 0x02020202, 0x0303030303030303) == b"\1" * 4 + b"\2" * 4 + b"\3" * 8

    def test_bpf_map_info(self) -> None:
        data = b"".join(bytes([number]) * 4 for number in range(1, 7)) + b"a" * 15 + b"\0"
        value = MapInfo(0x01010101, 0x02020202, 0x03030303, 0x04040404, 0x05050505, 0x06060606, "a" * 15)
        assert (value.encode(), decode_map_info(data), len(data)) == (data, value, 40)

    @golden.of_this_byte_order
    def test_what_the_kernel_tells(self) -> None:
        info = MapInfo(bpf.BPF_MAP_TYPE_LRU_HASH, 42, 16, 8, 1_000_000, 0, "cilium_lb4_reve")
        assert decode_map_info(golden.joined(MAP_INFO)) == info
        assert len(golden.joined(MAP_INFO)) == 88 < bpf.MAP_INFO_ROOM

    def test_the_numbers_of_linux_bpf_h(self) -> None:
        assert (bpf.BPF_MAP_LOOKUP_ELEM, bpf.BPF_MAP_GET_NEXT_KEY) == (1, 4)
        assert (bpf.BPF_OBJ_GET, bpf.BPF_OBJ_GET_INFO_BY_FD) == (7, 15)
        assert (bpf.BPF_MAP_TYPE_HASH, bpf.BPF_MAP_TYPE_LRU_HASH, bpf.BPF_F_RDONLY) == (1, 9, 8)


class TestRoundTrip:
    """What was written is read; more behind it does not matter, and what is too short is MalformedMessage."""

    @given(infos, st.binary(max_size=60))
    def test_an_info_comes_back(self, info: MapInfo, more: bytes) -> None:
        assert decode_map_info(info.encode() + more) == info

    @given(st.binary(min_size=40, max_size=100))
    def test_bytes_come_back_but_for_what_is_behind_the_end_of_the_name(self, data: bytes) -> None:
        name = data[24:40].partition(b"\0")[0]
        assert decode_map_info(data).encode() == data[:24] + name.ljust(16, b"\0")

    @given(infos, st.integers(24, 40))
    def test_an_older_kernel_tells_less_of_the_name(self, info: MapInfo, length: int) -> None:
        assert decode_map_info(info.encode()[:length]) == info._replace(name=info.name[: length - 24])

    def test_a_cut_info_is_refused_at_every_length(self) -> None:
        for length in range(24):
            with pytest.raises(MalformedMessage, match=f"cut bpf_map_info .*expected 24 bytes, got {length}$"):
                decode_map_info(bytes(length))
        assert decode_map_info(bytes(24)) == MapInfo(0, 0, 0, 0, 0, 0, "")

    @given(u32, u32, st.binary(max_size=20))
    def test_the_length_that_the_kernel_wrote(self, descriptor: int, length: int, more: bytes) -> None:
        assert decode_info_len(encode_info(descriptor, length, 0) + more) == length

    def test_cut_attributes_are_refused_at_every_length(self) -> None:
        for length in range(16):
            with pytest.raises(MalformedMessage, match=f"cut bpf_attr at offset 0: expected 16 bytes, got {length}$"):
                decode_info_len(bytes(length))
