"""Structures inside response attributes; they grow from kernel to kernel, and old kernels send less of them.

A record is a named tuple of its fields and of `unknown`, the bytes behind the last field that is known here. A field
that was not sent is None.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import namedtuple
from itertools import accumulate
from struct import Struct, calcsize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Record(Protocol):
        @classmethod
        def decode(cls, payload: bytes) -> Record: ...

        def encode(self) -> bytes: ...

else:
    Record = object


def _record(name: str, layout: str) -> Any:
    """A named tuple class from a layout of `format:field` words, in the order and size of the kernel's structure."""
    words = [word.split(":") for word in layout.split()]
    formats = [format for format, _ in words]
    ends = list(accumulate(calcsize("=" + format) for format in formats))
    whole = Struct("=" + "".join(formats))
    missing = len(formats)

    class RecordBase(namedtuple(name, [field for _, field in words] + ["unknown"])):
        __slots__ = ()

        @classmethod
        def decode(cls, payload: bytes) -> Any:
            if len(payload) >= whole.size:
                return cls(*whole.unpack_from(payload), payload[whole.size :])
            sent = bisect_right(ends, len(payload))
            part = Struct("=" + "".join(formats[:sent]))
            return cls(*part.unpack_from(payload), *[None] * (missing - sent), payload[part.size :])

        def encode(self) -> bytes:
            *fields, unknown = self
            sent = fields.index(None) if None in fields else missing
            return Struct("=" + "".join(formats[:sent])).pack(*fields[:sent]) + bytes(unknown)

    RecordBase.__name__ = RecordBase.__qualname__ = name
    return RecordBase


def _bits(byte: int | None, first: int, width: int) -> int | None:
    """A C bit field of a byte: `first` counts from the field that is declared first."""
    if byte is None:
        return None
    shift = first if sys.byteorder == "little" else 8 - first - width
    return byte >> shift & (1 << width) - 1


MemInfo = _record("MemInfo", "I:rmem I:wmem I:fmem I:tmem")  # struct inet_diag_meminfo

SkMemInfo = _record(  # SK_MEMINFO_* of linux/sock_diag.h
    "SkMemInfo",
    "I:rmem_alloc I:rcvbuf I:wmem_alloc I:sndbuf I:fwd_alloc I:wmem_queued I:optmem I:backlog I:drops",
)

VegasInfo = _record("VegasInfo", "I:enabled I:rttcnt I:rtt I:minrtt")  # struct tcpvegas_info

DctcpInfo = _record("DctcpInfo", "H:enabled H:ce_state I:alpha I:ab_ecn I:ab_tot")  # struct tcp_dctcp_info

BbrInfo = _record("BbrInfo", "I:bw_lo I:bw_hi I:min_rtt I:pacing_gain I:cwnd_gain")  # struct tcp_bbr_info


class SockOpt(_record("SockOpt", "B:flags0 B:flags1")):  # type: ignore[misc]
    """struct inet_diag_sockopt: two bytes of bit fields."""

    __slots__ = ()
    recverr = property(lambda self: _bits(self.flags0, 0, 1))
    is_icsk = property(lambda self: _bits(self.flags0, 1, 1))
    freebind = property(lambda self: _bits(self.flags0, 2, 1))
    hdrincl = property(lambda self: _bits(self.flags0, 3, 1))
    mc_loop = property(lambda self: _bits(self.flags0, 4, 1))
    transparent = property(lambda self: _bits(self.flags0, 5, 1))
    mc_all = property(lambda self: _bits(self.flags0, 6, 1))
    nodefrag = property(lambda self: _bits(self.flags0, 7, 1))
    bind_address_no_port = property(lambda self: _bits(self.flags1, 0, 1))
    recverr_rfc4884 = property(lambda self: _bits(self.flags1, 1, 1))
    defer_connect = property(lambda self: _bits(self.flags1, 2, 1))


class TcpInfo(  # type: ignore[misc]
    _record(
        "TcpInfo",
        "B:state B:ca_state B:retransmits B:probes B:backoff B:options B:wscales B:delivery_flags "
        "I:rto I:ato I:snd_mss I:rcv_mss "
        "I:unacked I:sacked I:lost I:retrans I:fackets "
        "I:last_data_sent I:last_ack_sent I:last_data_recv I:last_ack_recv "
        "I:pmtu I:rcv_ssthresh I:rtt I:rttvar I:snd_ssthresh I:snd_cwnd I:advmss I:reordering "
        "I:rcv_rtt I:rcv_space I:total_retrans "
        "Q:pacing_rate Q:max_pacing_rate Q:bytes_acked Q:bytes_received I:segs_out I:segs_in "
        "I:notsent_bytes I:min_rtt I:data_segs_in I:data_segs_out Q:delivery_rate "
        "Q:busy_time Q:rwnd_limited Q:sndbuf_limited I:delivered I:delivered_ce "
        "Q:bytes_sent Q:bytes_retrans I:dsack_dups I:reord_seen I:rcv_ooopack I:snd_wnd "
        # Linux 6.2 to 6.7
        "I:rcv_wnd I:rehash H:total_rto H:total_rto_recoveries I:total_rto_time "
        # Linux 6.18. The word behind these changed its layout from one kernel to the next: it stays in `unknown`.
        "I:received_ce I:delivered_e1_bytes I:delivered_e0_bytes I:delivered_ce_bytes "
        "I:received_e1_bytes I:received_e0_bytes I:received_ce_bytes",
    )
):
    """struct tcp_info (linux/tcp.h), names without their `tcpi_`. Times are microseconds, but for last_* (ms)."""

    __slots__ = ()
    snd_wscale = property(lambda self: _bits(self.wscales, 0, 4))
    rcv_wscale = property(lambda self: _bits(self.wscales, 4, 4))
    delivery_rate_app_limited = property(lambda self: _bits(self.delivery_flags, 0, 1))
    fastopen_client_fail = property(lambda self: _bits(self.delivery_flags, 1, 2))
