"""struct inet_diag_sockid, in requests and replies alike."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb.wire.socket_id import ANY, NO_COOKIE, SIZE, SocketId, decode_id, encode_id

from ..strategies import families, packed_addresses, socket_ids
from . import golden

AF_INET, AF_INET6 = 2, 10


class TestPlaces:
    """Each field has the place that linux/inet_diag.h gives it: a different byte for each."""

    V6 = SocketId(0x0101, 0x0202, b"\3" * 16, b"\4" * 16, 0x05050505, 0x0707070706060606)
    V6_BYTES = b"\1\1\2\2" + b"\3" * 16 + b"\4" * 16 + b"\5\5\5\5\6\6\6\6\7\7\7\7"

    V4 = SocketId(0x0101, 0x0202, b"\3" * 4, b"\4" * 4, 0x05050505, 0x0707070706060606)
    V4_BYTES = b"\1\1\2\2" + b"\3\3\3\3" + bytes(12) + b"\4\4\4\4" + bytes(12) + V6_BYTES[36:]

    @pytest.mark.parametrize(
        ("id", "family", "data"), [(V4, AF_INET, V4_BYTES), (V6, AF_INET6, V6_BYTES)], ids=["v4", "v6"]
    )
    def test_both_ways(self, id: SocketId, family: int, data: bytes) -> None:
        assert encode_id(id) == data
        assert decode_id(b"\xff\xff" + data + b"\xff", 2, family) == id

    def test_the_size(self) -> None:
        assert SIZE == len(encode_id(ANY)) == 48

    def test_ports_are_big_endian_and_the_rest_native(self) -> None:
        data = encode_id(SocketId(0x0102, 0x0304, bytes(4), bytes(4), 0x05060708, 0x1112131415161718))
        assert data[:4] == bytes([1, 2, 3, 4])
        assert data[36:40] == (0x05060708).to_bytes(4, sys.byteorder)
        assert data[40:44] == (0x15161718).to_bytes(4, sys.byteorder)
        assert data[44:48] == (0x11121314).to_bytes(4, sys.byteorder)


class TestRoundTrip:
    """What was written is read; of the bytes, all but those behind a v4 address."""

    @given(families.flatmap(lambda family: st.tuples(st.just(family), socket_ids(family))))
    def test_an_id_comes_back(self, of_family: tuple[int, SocketId]) -> None:
        family, id = of_family
        assert decode_id(encode_id(id), 0, family) == id

    @given(st.binary(min_size=48, max_size=48))
    def test_bytes_come_back(self, data: bytes) -> None:
        assert encode_id(decode_id(data, 0, AF_INET6)) == data
        as_kernel_sends_v4 = data[:8] + bytes(12) + data[20:24] + bytes(12) + data[36:]
        assert encode_id(decode_id(data, 0, AF_INET)) == as_kernel_sends_v4

    @given(packed_addresses, st.binary(max_size=40).filter(lambda address: len(address) not in (4, 16)))
    def test_an_address_of_another_length_is_a_wrong_argument(self, address: bytes, wrong: bytes) -> None:
        for src, dst in ((address, wrong), (wrong, address)):
            with pytest.raises(ValueError, match=f"4 or 16 bytes, not {len(wrong)}"):
                encode_id(SocketId(1, 2, src, dst, 0, 0))


class TestNoSocket:
    """The cookie of all ones is the wildcard (INET_DIAG_NOCOOKIE), of zeros is not."""

    def test_any_carries_the_wildcard(self) -> None:
        assert ANY.cookie == NO_COOKIE == 2**64 - 1
        assert encode_id(ANY) == bytes(40) + b"\xff" * 8

    @golden.of_this_byte_order
    def test_the_kernel_echoes_it(self) -> None:
        assert golden.joined(golden.NOT_FOUND_UNCAPPED)[-48:] == encode_id(ANY)
