"""The requests: inet_diag_req_v2 and the older inet_diag_req."""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import MalformedMessage
from socklb.wire import request
from socklb.wire.request import InetDiagReq, InetDiagReqV2, decode_request, decode_request_v2, destroy_request
from socklb.wire.socket_id import ANY, SocketId, encode_id

from ..strategies import requests, requests_v2, socket_ids
from . import golden

AF_INET, AF_INET6 = 2, 10

Request = Union[InetDiagReq, InetDiagReqV2]
Decode = Callable[[bytes], Request]
both = pytest.mark.parametrize(
    ("decode", "size", "values"),
    [(decode_request_v2, 56, requests_v2()), (decode_request, 60, requests())],
    ids=["inet_diag_req_v2", "inet_diag_req"],
)


class TestPlaces:
    """Each field has the place that linux/inet_diag.h gives it: a different byte for each."""

    ID = SocketId(0xF1F1, 0xF2F2, b"\xf3" * 16, b"\xf4" * 16, 0xF5F5F5F5, 0xF7F7F7F7F6F6F6F6)

    def test_inet_diag_req_v2(self) -> None:
        data = bytes([AF_INET6]) + b"\1\2\0\3\3\3\3" + encode_id(self.ID)
        value = InetDiagReqV2(AF_INET6, 0x01, 0x02, 0x03030303, self.ID)
        assert (value.encode(), decode_request_v2(data), len(data)) == (data, value, 56)

    def test_inet_diag_req(self) -> None:
        data = bytes([AF_INET6]) + b"\1\2\3" + encode_id(self.ID) + b"\4\4\4\4\5\5\5\5"
        value = InetDiagReq(AF_INET6, 0x01, 0x02, 0x03, self.ID, 0x04040404, 0x05050505)
        assert (value.encode(), decode_request(data), len(data)) == (data, value, 60)

    def test_the_numbers_of_linux_sock_diag_h(self) -> None:
        assert (request.TCPDIAG_GETSOCK, request.SOCK_DIAG_BY_FAMILY, request.SOCK_DESTROY) == (18, 20, 21)
        assert request.PROTOCOLS == {"tcp": 6, "udp": 17}
        assert request.PROTOCOL_NAMES == {6: "tcp", 17: "udp"}


class TestRoundTrip:
    """What was encoded is decoded, also with a program after it; what is too short is MalformedMessage."""

    @both
    @given(st.data(), st.binary(max_size=20))
    def test_a_request_comes_back(
        self, decode: Decode, size: int, values: st.SearchStrategy[Request], data: st.DataObject, program: bytes
    ) -> None:
        value = data.draw(values)
        assert decode(value.encode() + program) == value

    @both
    def test_a_cut_request_is_refused_at_every_length(self, decode: Decode, size: int, values: object) -> None:
        for length in range(size):
            with pytest.raises(MalformedMessage, match="cut inet_diag_req") as caught:
                decode(bytes(length))
            assert (caught.value.offset, caught.value.got) == (0, f"{length}")
            assert caught.value.expected == f"{size} bytes"
        assert len(decode(b"\xff" * size).encode()) == size, "any bytes that are long enough are a request"

    def test_without_an_id_a_request_names_no_socket(self) -> None:
        assert InetDiagReqV2(AF_INET, 6, 0, 0x1F3E).id == InetDiagReq().id == ANY

    def test_the_defaults_request_nothing(self) -> None:
        assert InetDiagReq() == (0, 0, 0, 0, ANY, 0, 0)


class TestDestroy:
    """A destroy carries the very id of a row; the kernel ignores its states."""

    @given(socket_ids(AF_INET6))
    def test_it_is_a_request_with_the_id(self, id: SocketId) -> None:
        data = destroy_request(17, AF_INET6, encode_id(id))
        assert decode_request_v2(data) == InetDiagReqV2(AF_INET6, 17, 0, 0, id)

    @golden.of_this_byte_order
    def test_the_kernel_echoes_it(self) -> None:
        assert golden.joined(golden.NOT_FOUND_UNCAPPED)[-56:] == destroy_request(6, AF_INET, encode_id(ANY))
