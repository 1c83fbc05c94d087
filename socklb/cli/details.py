# SPDX-License-Identifier: MIT
"""What the kernel tells of a socket beside its addresses (`list -e`): in the words of ss(8), and as JSON has it.

The words and their order are those of `ss -tieno` (tcp_stats_print() and others in misc/ss.c of iproute2); a number
that is 0 is left out, as there.
"""

from __future__ import annotations

from functools import cache
from struct import Struct

from ..kernel.names import cgroup_paths
from ..states import TcpState
from ..wire.attributes import EXTENSION_BITS, Md5Signature
from ..wire.records import Record
from .output import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from ..wire.reply import InetSocket

EXTENSIONS = tuple(EXTENSION_BITS)
"""All attributes that come on request."""

_TIMERS = {1: "on", 2: "keepalive", 3: "timewait", 4: "persist"}
_SHUT_RECEIVE, _SHUT_SEND = 1, 2  # RCV_SHUTDOWN, SEND_SHUTDOWN

# TCPI_OPT_* of linux/tcp.h
_WINDOW_SCALE = 4
_OPTIONS = {1: "ts", 2: "sack", 8: "ecn", 16: "ecnseen", 32: "fastopen"}
# What ss takes for a value that was never measured, or is the usual one.
_NO_RTO, _NO_SSTHRESH, _NO_REORDERING = 3_000_000, 0xFFFF, 3
_NO_MIN_RTT, _NO_VEGAS_RTT, _NO_RATE = (1 << 32) - 1, 0x7FFFFFFF, (1 << 64) - 1

_SUBFLOW_FLAGS = "MmJjBbecv"  # MPTCP_SUBFLOW_FLAG_*, bit by bit
_UNIT = 1 << 8  # BBR_UNIT


def details(socket: InetSocket) -> Iterator[str]:
    """The words of ss(8) about a socket. What has another size than is known stays out, for JSON to show."""
    known = _decoded(socket.attributes)
    if socket.timer:
        name = _TIMERS.get(socket.timer, "unknown")
        yield f"timer:({name},{_duration(socket.expires_ms)},{socket.retransmits})"
    if socket.uid:
        yield f"uid:{socket.uid}"
    yield f"ino:{socket.inode}"
    yield f"sk:{socket.cookie:x}"
    if known.get("mark"):
        yield f"fwmark:{known['mark']:#x}"
    if known.get("cgroup_id"):
        yield f"cgroup:{printable(cgroup_of(socket) or str(known['cgroup_id']))}"
    if "skv6only" in known:
        yield f"v6only:{known['skv6only']}"
    if "shutdown" in known:
        shut = known["shutdown"]
        yield f"{'-' if shut & _SHUT_RECEIVE else '<'}-{'-' if shut & _SHUT_SEND else '>'}"
    if "info" in known:
        yield from _tcp_info(known, is_listening=socket.state == TcpState.LISTEN)
    yield from _upper_layer(_decoded(known.get("ulp_info", ())))


def _decoded(pairs: Any) -> dict[str | int, Any]:
    return {name: value for name, value in dict(pairs).items() if not isinstance(value, bytes)}


def _numbers(record: Record) -> dict[str, int]:
    """The fields of a record; 0 for what an older kernel did not send, as ss has it."""
    return dict(zip(record.FIELDS, _struct(record.LAYOUT).unpack(record.raw[: record.SIZE].ljust(record.SIZE, b"\0"))))


@cache
def _struct(layout: str) -> Struct:
    """All fields in one: a row may have a hundred."""
    return Struct("=" + "".join(word[0] for word in layout.split()))


def _duration(milliseconds: int) -> str:
    """As print_ms_timer() of ss writes it: 1min2sec, 1.500ms for one and a half seconds."""
    seconds, ms = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    text = ""
    if minutes:
        text, ms, seconds = f"{minutes}min", 0, seconds if minutes < 10 else 0
    if seconds:
        ms = ms if seconds < 10 else 0
        text += f"{seconds}{'.' if ms else 'sec'}"
    return f"{text}{ms:03}ms" if ms else text


def _tcp_info(known: Mapping[str | int, Any], *, is_listening: bool) -> Iterator[str]:
    info = known["info"]
    sent = _numbers(info)

    def counts(*words: str) -> Iterator[str]:
        """Of "word" or "word=field": those that are not 0."""
        for word in words:
            name, _, field = word.partition("=")
            if value := sent[field or name]:
                yield f"{name}:{value}"

    def milliseconds(word: str, field: str) -> Iterator[str]:
        if sent[field]:
            yield f"{word}:{sent[field] / 1000:g}"

    yield from (word for bit, word in _OPTIONS.items() if sent["options"] & bit)
    if known.get("cong"):
        yield printable(known["cong"])
    if sent["options"] & _WINDOW_SCALE:
        yield f"wscale:{info.snd_wscale or 0},{info.rcv_wscale or 0}"
    if sent["rto"] != _NO_RTO:
        yield from milliseconds("rto", "rto")
    yield from counts("backoff")
    if sent["rtt"]:
        yield f"rtt:{sent['rtt'] / 1000:g}/{sent['rttvar'] / 1000:g}"
    yield from milliseconds("ato", "ato")
    yield from counts("mss=snd_mss", "pmtu", "rcvmss=rcv_mss", "advmss", "cwnd=snd_cwnd")
    if sent["snd_ssthresh"] < _NO_SSTHRESH:
        yield from counts("ssthresh=snd_ssthresh")
    yield from counts("bytes_sent", "bytes_retrans", "bytes_acked", "bytes_received")
    yield from counts("segs_out", "segs_in", "data_segs_out", "data_segs_in")
    yield from _congestion(known)
    rtt = sent["rtt"]
    if "vegasinfo" in known:
        vegas = _numbers(known["vegasinfo"])
        if vegas["enabled"] and vegas["rtt"] not in (0, _NO_VEGAS_RTT):
            rtt = vegas["rtt"]
    if rtt and sent["snd_mss"] and sent["snd_cwnd"]:
        yield f"send {sent['snd_cwnd'] * sent['snd_mss'] * 8_000_000 / rtt:.0f}bps"
    yield from counts("lastsnd=last_data_sent", "lastrcv=last_data_recv", "lastack=last_ack_recv")
    if sent["pacing_rate"] not in (0, _NO_RATE):
        most = f"/{sent['max_pacing_rate'] * 8}bps" if sent["max_pacing_rate"] not in (0, _NO_RATE) else ""
        yield f"pacing_rate {sent['pacing_rate'] * 8}bps{most}"
    if sent["delivery_rate"]:
        yield f"delivery_rate {sent['delivery_rate'] * 8}bps"
    yield from counts("delivered", "delivered_ce")
    if info.delivery_rate_app_limited:
        yield "app_limited"
    yield from _limits(sent)
    yield from counts("unacked")
    if sent["retrans"] or sent["total_retrans"]:
        yield f"retrans:{sent['retrans']}/{sent['total_retrans']}"
    yield from counts("lost", *([] if is_listening else ["sacked"]), "dsack_dups", "fackets")
    if sent["reordering"] != _NO_REORDERING:
        yield from counts("reordering")
    yield from counts("reord_seen")
    yield from milliseconds("rcv_rtt", "rcv_rtt")
    yield from counts("rcv_space", "rcv_ssthresh", "notsent=notsent_bytes")
    if sent["min_rtt"] != _NO_MIN_RTT:
        yield from milliseconds("minrtt", "min_rtt")
    yield from counts("rcv_ooopack", "snd_wnd", "rcv_wnd", "rehash")


def _limits(sent: Mapping[str, int]) -> Iterator[str]:
    """How long it was sending, and what held it up meanwhile."""
    busy = sent["busy_time"]
    if busy:
        yield f"busy:{busy // 1000}ms"
        for name in ("rwnd_limited", "sndbuf_limited"):
            if sent[name]:
                yield f"{name}:{sent[name] // 1000}ms({100 * sent[name] / busy:.1f}%)"


def _congestion(known: Mapping[str | int, Any]) -> Iterator[str]:
    """What only some congestion controls tell."""
    if "dctcpinfo" in known:
        dctcp = _numbers(known["dctcpinfo"])
        fields = ",".join(f"{name}:{dctcp[name]}" for name in ("ce_state", "alpha", "ab_ecn", "ab_tot"))
        yield f"dctcp:({fields})" if dctcp["enabled"] else "dctcp:fallback_mode"
    if "bbrinfo" in known:
        bbr = _numbers(known["bbrinfo"])
        gains = "".join(f",{name}:{bbr[name] / _UNIT:g}" for name in ("pacing_gain", "cwnd_gain") if bbr[name])
        yield f"bbr:(bw:{(bbr['bw_hi'] << 32 | bbr['bw_lo']) * 8}bps,mrtt:{bbr['min_rtt'] / 1000:g}{gains})"


def _upper_layer(ulp: Mapping[str | int, Any]) -> Iterator[str]:
    """What runs over TCP within the kernel: "mptcp" makes it a subflow."""
    if "name" in ulp:
        yield f"tcp-ulp-{printable(ulp['name'])}"
    subflow = _decoded(ulp.get("mptcp", ()))
    if subflow.get("flags"):
        yield "flags:" + "".join(letter for bit, letter in enumerate(_SUBFLOW_FLAGS) if subflow["flags"] >> bit & 1)
    if {"token_rem", "token_loc", "id_rem", "id_loc"} <= subflow.keys():
        ends = (f"{subflow['token_' + end]:04x}(id:{subflow['id_' + end]})" for end in ("rem", "loc"))
        yield f"token:{'/'.join(ends)}"
    for word, name in (("seq", "map_seq"), ("sfseq", "map_sfseq"), ("ssnoff", "ssn_offset"), ("maplen", "map_datalen")):
        if name in subflow:
            yield f"{word}:{subflow[name]:x}"


def cgroup_of(socket: InetSocket) -> str | None:
    """The path of its cgroup v2, None if it has none or cannot be seen."""
    cgroup = socket.attributes.get("cgroup_id")
    return _cgroup_paths().get(cgroup) if cgroup else None


_cgroup_paths = cache(cgroup_paths)


# ------------------------------------------------------------------------------------------------- JSON

_NAMES = {"info": "tcp_info", "cong": "congestion", "protocol": "inet_protocol"}
"""Where JSON has another name than `InetSocket.attributes`: "protocol" is the socket's."""


def details_record(socket: InetSocket) -> dict[str, Any]:
    """Every attribute that the kernel sent, those that are unknown by number."""
    known, unknown = {}, {}
    for key, value in socket.attributes.items():
        if isinstance(key, int):
            unknown[str(key)] = value.hex()
        else:
            known[_NAMES.get(key, key)] = _plain(value)
    more = {"unknown_attributes": unknown} if unknown else {}
    return {"cgroup": cgroup_of(socket), "is_mptcp_subflow": socket.is_mptcp_subflow, **known, **more}


def _plain(value: Any) -> Any:
    """A decoded attribute as JSON can have it; bytes in hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Record):
        # Those of whole bytes, and those of some bits.
        names = (name for name in vars(type(value)) if name.islower() and not name.startswith("_"))
        sent = {name: number for name in names if (number := getattr(value, name)) is not None}
        return {**sent, "unknown": value.unknown.hex()} if value.unknown else sent
    if isinstance(value, Md5Signature):
        return {name: _plain(field) for name, field in value._asdict().items()}
    if isinstance(value, tuple):  # a nest, or several signatures
        if all(isinstance(one, Md5Signature) for one in value):
            return [_plain(one) for one in value]
        return {str(key): _plain(inner) for key, inner in value}
    return value
