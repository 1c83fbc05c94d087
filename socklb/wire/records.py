# SPDX-License-Identifier: MIT
"""Structures inside response attributes; they grow from kernel to kernel, and old kernels send less of them.

A record keeps the bytes that came, and decodes a field when it is read. A field that was not sent is None; what
follows the last known field is `unknown`. So whatever is decoded encodes to the same bytes.
"""

from __future__ import annotations

import sys
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Record:
    """The base: a subclass lists the kernel's fields in `LAYOUT`, as `format:name` words in the kernel's order.

    Two records are equal when they are of one class with the same bytes. A record cannot be changed.
    """

    __slots__ = ("_raw",)
    LAYOUT = ""
    FIELDS: tuple[str, ...] = ()
    SIZE = 0

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __init_subclass__(cls) -> None:
        offset = 0
        names = []
        for word in cls.LAYOUT.split():
            format, name = word.split(":")
            field = _Field(Struct("=" + format), offset)
            setattr(cls, name, field)
            names.append(name)
            offset = field.end
        cls.FIELDS, cls.SIZE = tuple(names), offset

    @classmethod
    def of(cls, *values: int) -> Record:
        """From the values of the first fields, in order; the rest counts as not sent."""
        if len(values) > len(cls.FIELDS):
            raise ValueError(f"{cls.__name__} has {len(cls.FIELDS)} fields, not {len(values)}")
        fields: list[_Field] = [cls.__dict__[name] for name in cls.FIELDS[: len(values)]]
        return cls(b"".join(field.struct.pack(value) for field, value in zip(fields, values)))

    @property
    def raw(self) -> bytes:
        """The bytes that the kernel sent."""
        return self._raw

    @property
    def unknown(self) -> bytes:
        """The bytes after the last field that is known here."""
        return self._raw[self.SIZE :]

    def _asdict(self) -> dict[str, int | None]:
        """Every known field by name."""
        return {name: getattr(self, name) for name in self.FIELDS}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._raw,)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._raw == other._raw

    def __hash__(self) -> int:
        return hash((type(self), self._raw))

    def __repr__(self) -> str:
        sent = (f"{name}={value}" for name, value in self._asdict().items() if value is not None)
        return f"{type(self).__name__}({', '.join(sent)})"

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class _Field:
    """One field of a record."""

    def __init__(self, struct: Struct, offset: int) -> None:
        self.struct, self.offset, self.end = struct, offset, offset + struct.size

    def __get__(self, record: Record | None, owner: type[Record]) -> Any:
        if record is None:
            return self
        return self.struct.unpack_from(record._raw, self.offset)[0] if len(record._raw) >= self.end else None


class _Bits:
    """A C bit field of a byte field: `first` counts from the one that is declared first."""

    def __init__(self, byte: str, first: int, width: int = 1) -> None:
        self._byte, self._mask = byte, (1 << width) - 1
        self._shift = first if sys.byteorder == "little" else 8 - first - width

    def __get__(self, record: Record | None, owner: type[Record]) -> Any:
        if record is None:
            return self
        byte = getattr(record, self._byte)
        return None if byte is None else byte >> self._shift & self._mask


class MemInfo(Record):
    """struct inet_diag_meminfo, bytes."""

    __slots__ = ()
    LAYOUT = "I:rmem I:wmem I:fmem I:tmem"


class SkMemInfo(Record):
    """SK_MEMINFO_* of linux/sock_diag.h, bytes."""

    __slots__ = ()
    LAYOUT = "I:rmem_alloc I:rcvbuf I:wmem_alloc I:sndbuf I:fwd_alloc I:wmem_queued I:optmem I:backlog I:drops"


class VegasInfo(Record):
    """struct tcpvegas_info."""

    __slots__ = ()
    LAYOUT = "I:enabled I:rttcnt I:rtt I:minrtt"


class DctcpInfo(Record):
    """struct tcp_dctcp_info."""

    __slots__ = ()
    LAYOUT = "H:enabled H:ce_state I:alpha I:ab_ecn I:ab_tot"


class BbrInfo(Record):
    """struct tcp_bbr_info."""

    __slots__ = ()
    LAYOUT = "I:bw_lo I:bw_hi I:min_rtt I:pacing_gain I:cwnd_gain"


class SockOpt(Record):
    """struct inet_diag_sockopt: two bytes of bit fields."""

    __slots__ = ()
    LAYOUT = "B:flags0 B:flags1"
    recverr = _Bits("flags0", 0)
    is_icsk = _Bits("flags0", 1)
    freebind = _Bits("flags0", 2)
    hdrincl = _Bits("flags0", 3)
    mc_loop = _Bits("flags0", 4)
    transparent = _Bits("flags0", 5)
    mc_all = _Bits("flags0", 6)
    nodefrag = _Bits("flags0", 7)
    bind_address_no_port = _Bits("flags1", 0)
    recverr_rfc4884 = _Bits("flags1", 1)
    defer_connect = _Bits("flags1", 2)


class TcpInfo(Record):
    """struct tcp_info (linux/tcp.h), names without their `tcpi_`. Times are microseconds, but for last_* (ms)."""

    __slots__ = ()
    LAYOUT = (
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
        "I:received_e1_bytes I:received_e0_bytes I:received_ce_bytes"
    )
    snd_wscale = _Bits("wscales", 0, 4)
    rcv_wscale = _Bits("wscales", 4, 4)
    delivery_rate_app_limited = _Bits("delivery_flags", 0)
    fastopen_client_fail = _Bits("delivery_flags", 1, 2)
