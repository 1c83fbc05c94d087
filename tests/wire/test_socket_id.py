"""struct inet_diag_sockid, in requests and replies alike."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb.wire.socket_id import ANY, NO_COOKIE, SIZE, SocketId, decode_id, encode_id

from ..strategies import families, packed_addresses, socket_ids

AF_INET, AF_INET6 = 2, 10


class TestPlaces:
    """Each field has the place that linux/inet_diag.h gives it: ports are big-endian, the rest is native."""

    HANDLE = b"".join(n.to_bytes(4, sys.byteorder) for n in (0x05060708, 0x15161718, 0x11121314))
    V6 = SocketId(0x0102, 0x0304, b"\5" * 16, b"\6" * 16, 0x05060708, 0x1112131415161718)
    V4 = V6._replace(src=b"\5" * 4, dst=b"\6" * 4)

    @pytest.mark.parametrize(
        ("id", "family", "data"),
        [
            (V6, AF_INET6, b"\1\2\3\4" + b"\5" * 16 + b"\6" * 16 + HANDLE),
            (V4, AF_INET, b"\1\2\3\4" + b"\5" * 4 + bytes(12) + b"\6" * 4 + bytes(12) + HANDLE),
        ],
        ids=["v6", "v4"],
    )
    def test_both_ways(self, id: SocketId, family: int, data: bytes) -> None:
        assert encode_id(id) == data
        assert decode_id(b"\xff\xff" + data + b"\xff", 2, family) == id
        assert len(data) == SIZE == 48

    def test_all_ones_is_the_wildcard_of_the_cookie(self) -> None:
        assert ANY.cookie == NO_COOKIE == 2**64 - 1
        assert encode_id(ANY) == bytes(40) + b"\xff" * 8


class TestRoundTrip:
    """What was encoded is decoded; of the bytes, all but those after a v4 address."""

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
