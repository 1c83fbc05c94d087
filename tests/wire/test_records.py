"""Structures that grow from kernel to kernel: decoded as far as they go, and no byte is lost."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb.wire.records import BbrInfo, DctcpInfo, MemInfo, Record, SkMemInfo, SockOpt, TcpInfo, VegasInfo, _Bits

from ..strategies import RECORDS, records
from . import golden

each = pytest.mark.parametrize("kind", RECORDS, ids=[kind.__name__ for kind in RECORDS])

# Where each field starts, by linux/inet_diag.h, linux/sock_diag.h and linux/tcp.h, and where the last one ends.
PLACES: dict[type[Record], str] = {
    MemInfo: "rmem 0 wmem 4 fmem 8 tmem 12 end 16",
    SkMemInfo: (
        "rmem_alloc 0 rcvbuf 4 wmem_alloc 8 sndbuf 12 fwd_alloc 16 wmem_queued 20 optmem 24 backlog 28 drops 32 end 36"
    ),
    VegasInfo: "enabled 0 rttcnt 4 rtt 8 minrtt 12 end 16",
    DctcpInfo: "enabled 0 ce_state 2 alpha 4 ab_ecn 8 ab_tot 12 end 16",
    BbrInfo: "bw_lo 0 bw_hi 4 min_rtt 8 pacing_gain 12 cwnd_gain 16 end 20",
    SockOpt: "flags0 0 flags1 1 end 2",
    TcpInfo: (
        "state 0 ca_state 1 retransmits 2 probes 3 backoff 4 options 5 wscales 6 delivery_flags 7 "
        "rto 8 ato 12 snd_mss 16 rcv_mss 20 unacked 24 sacked 28 lost 32 retrans 36 fackets 40 "
        "last_data_sent 44 last_ack_sent 48 last_data_recv 52 last_ack_recv 56 "
        "pmtu 60 rcv_ssthresh 64 rtt 68 rttvar 72 snd_ssthresh 76 snd_cwnd 80 advmss 84 reordering 88 "
        "rcv_rtt 92 rcv_space 96 total_retrans 100 "
        "pacing_rate 104 max_pacing_rate 112 bytes_acked 120 bytes_received 128 segs_out 136 segs_in 140 "
        "notsent_bytes 144 min_rtt 148 data_segs_in 152 data_segs_out 156 delivery_rate 160 "
        "busy_time 168 rwnd_limited 176 sndbuf_limited 184 delivered 192 delivered_ce 196 "
        "bytes_sent 200 bytes_retrans 208 dsack_dups 216 reord_seen 220 rcv_ooopack 224 snd_wnd 228 "
        "rcv_wnd 232 rehash 236 total_rto 240 total_rto_recoveries 242 total_rto_time 244 "
        "received_ce 248 delivered_e1_bytes 252 delivered_e0_bytes 256 delivered_ce_bytes 260 "
        "received_e1_bytes 264 received_e0_bytes 268 received_ce_bytes 272 end 276"
    ),
}


def places(kind: type[Record]) -> list[tuple[str, int, int]]:
    """(name, start, end) of each field."""
    words = PLACES[kind].split()
    starts = list(map(int, words[1::2]))
    return list(zip(words[0::2], starts, starts[1:]))


class TestPlaces:
    """Each field has the place that the kernel's headers give it, in the machine's byte order."""

    @each
    def test_each_field_reads_its_own_bytes(self, kind: type[Record]) -> None:
        raw = bytes(number & 0xFF for number in range(kind.SIZE))  # a different byte for each
        read = {name: int.from_bytes(raw[start:end], sys.byteorder) for name, start, end in places(kind)}
        assert kind(raw)._asdict() == read
        assert kind.of(*read.values()) == kind(raw)
        assert places(kind)[-1][2] == kind.SIZE

    @pytest.mark.skipif(sys.byteorder != "little", reason="a compiler lays out bit fields in the order of the bytes")
    @pytest.mark.parametrize(
        ("record", "name", "value"),
        [
            (TcpInfo(b"\0\0\0\0\0\0\xa7\0"), "snd_wscale", 7),
            (TcpInfo(b"\0\0\0\0\0\0\xa7\0"), "rcv_wscale", 10),
            (TcpInfo(b"\0\0\0\0\0\0\0\xfd"), "delivery_rate_app_limited", 1),
            (TcpInfo(b"\0\0\0\0\0\0\0\xfd"), "fastopen_client_fail", 2),
            *[
                (SockOpt(bytes([1 << bit, 0])), name, 1)
                for bit, name in enumerate(
                    ("recverr", "is_icsk", "freebind", "hdrincl", "mc_loop", "transparent", "mc_all", "nodefrag")
                )
            ],
            (SockOpt(b"\0\1"), "bind_address_no_port", 1),
            (SockOpt(b"\0\2"), "recverr_rfc4884", 1),
            (SockOpt(b"\0\4"), "defer_connect", 1),
        ],
    )
    def test_bit_fields(self, record: Record, name: str, value: int) -> None:
        assert getattr(record, name) == value
        inverted = type(record)(bytes(byte ^ 0xFF for byte in record.raw))
        every_bit = {"snd_wscale": 15, "rcv_wscale": 15, "fastopen_client_fail": 3}.get(name, 1)
        assert getattr(inverted, name) == value ^ every_bit
        assert getattr(type(record)(b""), name) is None

    @pytest.mark.parametrize(("order", "byte"), [("little", 0b1_010_1001), ("big", 0b1001_010_1)])
    def test_the_bit_field_declared_first_is_the_lowest_or_the_highest_of_its_byte(
        self, monkeypatch: pytest.MonkeyPatch, order: str, byte: int
    ) -> None:
        monkeypatch.setattr(sys, "byteorder", order)

        class Declared(Record):
            LAYOUT = "B:byte"
            four, three, one = _Bits("byte", 0, 4), _Bits("byte", 4, 3), _Bits("byte", 7)

        record = Declared(bytes([byte]))
        assert (record.four, record.three, record.one) == (0b1001, 0b010, 1)


class TestAnyLength:
    """A field that was not sent is None, what follows the last known one is `unknown`, and every byte is kept."""

    @each
    def test_at_every_length_up_to_more_than_is_known(self, kind: type[Record]) -> None:
        raw = bytes(range(1, 256)) * 2
        whole = kind(raw)._asdict()
        for size in range(kind.SIZE + 9):
            record = kind(raw[:size])
            assert record._asdict() == {name: whole[name] if end <= size else None for name, _, end in places(kind)}
            assert record.unknown == raw[kind.SIZE : size]
            assert record.raw == raw[:size]

    @each
    @given(st.data())
    def test_equal_is_the_same_class_with_the_same_bytes(self, kind: type[Record], data: st.DataObject) -> None:
        one, other = data.draw(records(kind)), data.draw(records(kind))
        for twin in (kind(bytes(bytearray(one.raw))), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert (one == twin, one != twin, hash(one) == hash(twin)) == (True, False, True)
        assert (one == other) == (one.raw == other.raw)
        assert all(one != stranger(one.raw) for stranger in RECORDS if stranger is not kind)
        assert (one == one.raw) is False

    @each
    def test_it_cannot_be_changed(self, kind: type[Record]) -> None:
        for name in ("raw", "new", *kind.FIELDS):
            with pytest.raises(AttributeError):
                setattr(kind(b""), name, b"x")

    def test_repr_shows_what_was_sent(self) -> None:
        assert repr(MemInfo.of(1, 2)) == "MemInfo(rmem=1, wmem=2)"
        assert repr(MemInfo(b"")) == "MemInfo()"

    def test_more_values_than_fields_is_a_wrong_argument(self) -> None:
        with pytest.raises(ValueError, match="MemInfo has 4 fields, not 5"):
            MemInfo.of(1, 2, 3, 4, 5)


@golden.of_this_byte_order
class TestGolden:
    """The field of a name has the value that the kernel sent under that name."""

    @pytest.mark.parametrize(
        ("kind", "first", "prefix"),
        [
            (TcpInfo, "tcpi_state", "tcpi_"),
            (SkMemInfo, "rmem_alloc", ""),
            (MemInfo, "idiag_rmem", "idiag_"),
            (BbrInfo, "bbr_bw_lo", "bbr_"),
        ],
        ids=["tcp_info", "skmeminfo", "meminfo", "tcp_bbr_info"],
    )
    def test_each_field(self, kind: type[Record], first: str, prefix: str) -> None:
        start = [name for name, _ in golden.ESTABLISHED_V4].index(first)
        sent: dict[str, Any] = {}
        for name, value in golden.ESTABLISHED_V4[start:]:
            if name.startswith(("nlattr", "unknown")):
                break
            sent[name[len(prefix) :]] = int.from_bytes(bytes.fromhex(value), "little")
        fields = golden.ESTABLISHED_V4[start : start + len(sent)]
        assert kind(golden.joined(fields))._asdict() == sent
