"""struct inet_diag_msg, and the socket that a row describes."""

from __future__ import annotations

import copy
import pickle
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import InetSocket, MalformedMessage, TcpState
from socklb.wire.attributes import decode_attribute, encode_value
from socklb.wire.netlink import encode_attribute
from socklb.wire.records import BbrInfo, SockOpt
from socklb.wire.reply import MSG_SIZE, InetDiagMsg, decode_msg
from socklb.wire.socket_id import SocketId, encode_id

from ..strategies import attribute_runs, damaged, make_socket, messages, sockets, u8
from . import golden

AF_INET, AF_INET6 = 2, 10
IPPROTO_TCP, IPPROTO_UDP = 6, 17

rows = st.builds(InetDiagMsg.encode, messages(), attribute_runs)
both = pytest.mark.parametrize("make", [decode_msg, lambda row: InetSocket(row, IPPROTO_TCP)], ids=["msg", "socket"])

PROPERTIES = [name for name, member in vars(InetSocket).items() if isinstance(member, property)]


class TestPlaces:
    """Each field has the place that linux/inet_diag.h gives it: a different byte for each."""

    ID = SocketId(0xF1F1, 0xF2F2, b"\xf3" * 16, b"\xf4" * 16, 0xF5F5F5F5, 0xF7F7F7F7F6F6F6F6)
    VALUE = InetDiagMsg(AF_INET6, 1, 2, 3, ID, 0x04040404, 0x05050505, 0x06060606, 0x07070707, 0x08080808)
    BYTES = b"\x0a\x01\x02\x03" + encode_id(ID) + b"\4\4\4\4\5\5\5\5\6\6\6\6\7\7\7\7\x08\x08\x08\x08"

    def test_the_structure_both_ways(self) -> None:
        assert self.VALUE.encode() == self.BYTES
        assert decode_msg(self.BYTES) == self.VALUE
        assert len(self.BYTES) == MSG_SIZE == 72


class TestRoundTrip:
    """What was encoded is decoded: the structure, and the attributes after it."""

    @given(messages(), attribute_runs)
    def test_a_message_comes_back(self, message: InetDiagMsg, attributes: tuple[tuple[int, bytes], ...]) -> None:
        row = message.encode(attributes)
        assert decode_msg(row) == message
        assert InetSocket(row, IPPROTO_TCP).attributes == dict(decode_attribute(*pair) for pair in attributes)

    @given(st.binary(min_size=71, max_size=71))
    def test_the_bytes_of_a_v6_row_come_back(self, rest: bytes) -> None:
        assert decode_msg(b"\x0a" + rest).encode() == b"\x0a" + rest

    @given(messages())
    def test_a_socket_has_the_fields_of_the_structure(self, message: InetDiagMsg) -> None:
        socket = InetSocket(message.encode(), IPPROTO_UDP)
        for name in message._fields:
            assert name == "id" or getattr(socket, name) == getattr(message, name)
        for name in ("sport", "dport", "interface", "cookie"):
            assert getattr(socket, name) == getattr(message.id, name)
        assert (socket.src_packed, socket.dst_packed) == (message.id.src, message.id.dst)
        assert (socket.src, socket.dst) == (ip_address(message.id.src), ip_address(message.id.dst))
        assert socket.id_bytes == encode_id(message.id)


class TestRefused:
    """A row that is cut, or of a family whose addresses are unknown, is MalformedMessage; nothing else is."""

    @both
    def test_a_cut_row_at_every_length(self, make: Any) -> None:
        for size in range(72):
            with pytest.raises(MalformedMessage) as caught:
                make(TestPlaces.BYTES[:size])
            assert (caught.value.offset, caught.value.expected, caught.value.got) == (0, "72 bytes", f"{size}")

    @both
    @given(u8.filter(lambda family: family not in (AF_INET, AF_INET6)), st.sampled_from((1, AF_INET, AF_INET6)))
    def test_another_family_whatever_other_bytes_are(self, make: Any, family: int, other: int) -> None:
        with pytest.raises(MalformedMessage) as caught:
            make(bytes([family]) + bytes([other]) * (MSG_SIZE - 1))
        assert (caught.value.offset, caught.value.expected, caught.value.got) == (0, "2 or 10", family)

    @given(damaged(rows))
    def test_any_bytes_are_a_socket_or_malformed(self, row: bytes) -> None:
        try:
            socket = InetSocket(row, IPPROTO_TCP)
        except MalformedMessage:
            assert len(row) < 72 or row[0] not in (AF_INET, AF_INET6)
            return
        repr(socket)
        for name in PROPERTIES:
            assert name in ("attributes", "is_mptcp_subflow") or getattr(socket, name) is not None
        try:
            assert isinstance(socket.attributes, dict)
            assert socket.is_mptcp_subflow in (False, True)
        except MalformedMessage as error:
            assert 72 <= error.offset < len(row)  # noqa: PT017 - both ways of it are fine

    @given(messages(), st.binary(min_size=1, max_size=12))
    def test_attributes_that_are_cut(self, message: InetDiagMsg, payload: bytes) -> None:
        row = message.encode([(8, b"\0"), (99, payload)])
        for size in range(81, 84 + len(payload)):
            with pytest.raises(MalformedMessage) as caught:
                _ = InetSocket(row[:size], IPPROTO_TCP).attributes
            assert caught.value.offset == 80


class TestMeaning:
    """A time-wait row has state 6 or timer 3; equal sockets have equal bytes; a socket cannot be changed."""

    @given(messages())
    def test_a_state_has_its_name_and_an_unknown_one_stays_a_number(self, message: InetDiagMsg) -> None:
        state = InetSocket(message.encode(), IPPROTO_TCP).state
        assert state == message.state
        assert isinstance(state, TcpState) == (1 <= message.state <= 13)

    @given(messages())
    def test_time_wait_is_state_6_or_timer_3(self, message: InetDiagMsg) -> None:
        for state, timer in ((6, message.timer), (message.state, 3), (5, 3)):
            assert InetSocket(message._replace(state=state, timer=timer).encode(), IPPROTO_TCP).is_time_wait
        if message.state != 6 and message.timer != 3:
            assert not InetSocket(message.encode(), IPPROTO_TCP).is_time_wait

    @given(sockets(), sockets())
    def test_equal_is_the_same_row_of_the_same_protocol(self, one: InetSocket, other: InetSocket) -> None:
        for twin in (
            InetSocket(bytes(bytearray(one.row)), one.protocol),
            copy.copy(one),
            pickle.loads(pickle.dumps(one)),
        ):
            assert (one == twin, one != twin, hash(one) == hash(twin)) == (True, False, True)
        assert (one == other) == (one.row == other.row and one.protocol == other.protocol)
        assert one != InetSocket(one.row, IPPROTO_TCP + IPPROTO_UDP - one.protocol)
        assert one != InetSocket(one.row + encode_attribute(99, b""), one.protocol)
        assert one != one.row

    @given(sockets())
    def test_it_cannot_be_changed(self, socket: InetSocket) -> None:
        before = socket.row, socket.protocol
        for name in (*PROPERTIES, "new"):
            with pytest.raises(AttributeError):
                setattr(socket, name, b"")
            with pytest.raises(AttributeError):
                delattr(socket, name)
        assert (socket.row, socket.protocol) == before

    def test_the_last_of_an_attribute_that_comes_twice_counts(self) -> None:
        row = TestPlaces.VALUE.encode([encode_value("mark", 1), (99, b"x"), encode_value("mark", 2)])
        assert InetSocket(row, IPPROTO_TCP).attributes == {"mark": 2, 99: b"x"}

    def test_repr_has_addresses_state_and_cookie(self) -> None:
        id = SocketId(1024, 80, IPv4Address("10.0.0.1").packed, IPv4Address("10.0.0.2").packed, 0, 77)
        message = InetDiagMsg(AF_INET, 1, 0, 0, id, 0, 0, 0, 0, 0)
        socket = make_socket(message, IPPROTO_TCP, {})
        assert repr(socket) == "<InetSocket 6 ESTABLISHED 10.0.0.1:1024 -> 10.0.0.2:80 cookie=77>"
        assert " 200 " in repr(make_socket(message._replace(state=200), IPPROTO_TCP, {}))


@golden.of_this_byte_order
class TestGolden:
    """The kernel's own rows decode to the sockets that were made, and encode to the same bytes."""

    SOCKOPT_OF_V6 = SockOpt(b"\x12\0")
    TABLE: tuple[tuple[str, golden.Fields, int, dict[str, Any], dict[str, Any]], ...] = (
        (
            "v4", golden.ESTABLISHED_V4, IPPROTO_TCP,
            {
                "family": AF_INET, "state": TcpState.ESTABLISHED, "timer": 2, "retransmits": 0, "expires_ms": 7199896,
                "src": IPv4Address("127.0.0.1"), "sport": 48578, "dst": IPv4Address("127.0.0.2"), "dport": 9000,
                "interface": 1, "cookie": 0x506, "rqueue": 7, "wqueue": 0, "uid": 0, "inode": 22353,
            },
            {
                "tos": 16, "mark": 42, "class_id": 5, "cgroup_id": 1, "shutdown": 0, "cong": "bbr",
                "sockopt": SockOpt(b"\x52\0"),
            },
        ),
        (
            "v6", golden.ESTABLISHED_V6, IPPROTO_TCP,
            {"family": AF_INET6, "src": IPv6Address("fd00::1"), "dst": IPv6Address("fd00::1"), "dport": 9001},
            {"shutdown": 0, "mark": 0, "cgroup_id": 1, "sockopt": SOCKOPT_OF_V6},
        ),
        (
            "mapped", golden.ESTABLISHED_MAPPED, IPPROTO_TCP,
            {"family": AF_INET6, "src": IPv6Address("::ffff:127.0.0.1"), "dst": IPv6Address("::ffff:127.0.0.3")},
            {"shutdown": 0, "mark": 0, "cgroup_id": 1, "sockopt": SOCKOPT_OF_V6},
        ),
        (
            "udp", golden.CONNECTED_UDP, IPPROTO_UDP,
            {"state": TcpState.ESTABLISHED, "dst": IPv4Address("127.0.0.4"), "dport": 53, "is_time_wait": False},
            {"shutdown": 0, "mark": 0, "cgroup_id": 1, "sockopt": SockOpt(b"\x50\0")},
        ),
        (
            "listening", golden.LISTENING, IPPROTO_TCP,
            {"state": TcpState.LISTEN, "sport": 9001, "dst": IPv6Address("::"), "dport": 0, "rqueue": 0, "wqueue": 128},
            {"shutdown": 0, "skv6only": 1, "mark": 0, "cgroup_id": 1, "sockopt": SOCKOPT_OF_V6},
        ),
        (
            "time-wait", golden.TIME_WAIT, IPPROTO_TCP,
            {"state": TcpState.TIME_WAIT, "timer": 3, "is_time_wait": True, "inode": 0, "expires_ms": 60000},
            {"mark": 0},
        ),
    )  # fmt: skip

    @pytest.mark.parametrize(
        ("fields", "protocol", "values", "attributes"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
    )
    def test_a_row(
        self, fields: golden.Fields, protocol: int, values: dict[str, Any], attributes: dict[str, Any]
    ) -> None:
        socket = InetSocket(golden.joined(fields), protocol)
        assert {name: getattr(socket, name) for name in values} == values
        assert {name: value for name, value in socket.attributes.items() if "info" not in str(name)} == attributes
        encoded = [encode_value(name, value) for name, value in socket.attributes.items()]
        assert decode_msg(socket.row).encode(encoded) == socket.row

    def test_every_extension_came(self) -> None:
        attributes = InetSocket(golden.joined(golden.ESTABLISHED_V4), IPPROTO_TCP).attributes
        assert {"meminfo", "info", "skmeminfo", "bbrinfo"} <= set(attributes)
        assert attributes["skmeminfo"].rcvbuf == 131072
        assert (attributes["info"].state, attributes["info"].snd_wscale, attributes["info"].advmss) == (1, 10, 65483)
        assert isinstance(attributes["bbrinfo"], BbrInfo)
