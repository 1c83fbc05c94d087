"""`CALLS`: every public call, by name; `DRIVEN_BY` and `NO_NETLINK`: what becomes of each public name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from socklb import NotPermitted, NotSupported

from .calls import (
    KILL,
    LIST,
    PROBE,
    SET,
    TCP,
    UDP,
    Call,
    End,
    Throwaways,
    Told,
    command,
    destroy,
    few,
    find,
    live,
    many,
    run_probe,
    twins,
    two_protocols,
)
from .terminations import BACKENDS, run_loop, terminate


def as_exit_code(end: End, told: Told) -> int:
    if end.kind is None:
        return 1 if "failed" in told.values() else 0
    return 4 if end.kind is NotPermitted else 3 if end.kind is NotSupported else 1


def as_exit_code_of_probe(end: End, told: Told) -> int:
    if end.kind is not None:
        return as_exit_code(end, told)
    statuses = set(told.values()) - {"supported"}
    return 3 if statuses - {"not_permitted"} else 4 if statuses else 0


def each(cookies: Iterable[int], what: str) -> Told:
    return dict.fromkeys(cookies, what)


def of_one_filter(all_of_them: Sequence[int]) -> dict[tuple[str, int], Told]:
    return {("dump", 1): {}, ("destroy", 1): each(all_of_them, "failed")}


_TCP, _UDP, _BOTH = (1, 2, 3, 4), (21, 22, 24), (1, 2, 3, 4, 21, 22, 24)
_FIRST_ROUND = {**each((1, 7), "destroyed"), **each((5, 6), "failed")}
_MANY = range(100, 230)
_ALIVE = (*_TCP, 9, *_UDP, 29)
_LISTED = each(_TCP, "ESTABLISHED")
_AFTER_TCP = each(_TCP, "destroyed")
_SUPPORTED = dict.fromkeys(("tcp4", "tcp6", "udp4", "udp6"), "supported")
_NOTHING: dict[tuple[str, int], Told] = {(on, which): {} for on in ("dump", "destroy") for which in (1, 2)}
_OF_BOTH = {**of_one_filter(_TCP), ("dump", 2): _AFTER_TCP, ("destroy", 2): {**_AFTER_TCP, **each(_UDP, "failed")}}

CALLS: dict[str, Call] = {
    "find": Call(LIST, lambda: find(TCP), few, _LISTED, {("dump", 1): {}}),
    "find-in-two-dumps": Call(
        LIST, lambda: find(UDP), few, _LISTED, {("dump", 1): {}, ("dump", 2): each((1, 2, 3), "ESTABLISHED")}
    ),
    "list-command": Call(
        LIST,
        lambda: command("list", "dport = 80"),
        two_protocols,
        each(_BOTH, "ESTABLISHED"),
        {("dump", 1): {}, ("dump", 2): _LISTED},
        as_exit_code,
    ),
    "live-cookies": Call(SET, live, two_protocols, each(_ALIVE, "alive"), {("dump", 1): {}, ("dump", 2): {}}),
    "destroy": Call(KILL, lambda: destroy(TCP), few, each(_TCP, "destroyed"), of_one_filter(_TCP)),
    "destroy-in-rounds": Call(
        KILL,
        lambda: destroy(TCP),
        twins,
        each((1, 5, 6, 7), "destroyed"),
        {**of_one_filter((1, 5, 6, 7)), ("dump", 2): _FIRST_ROUND, ("destroy", 2): _FIRST_ROUND},
    ),
    "destroy-in-batches": Call(
        KILL,
        lambda: destroy(TCP),
        many,
        each(_MANY, "destroyed"),
        {**of_one_filter(_MANY), ("destroy", 2): {**each(_MANY, "failed"), **each(_MANY[:64], "destroyed")}},
    ),
    "destroy-command": Call(
        KILL, lambda: command("destroy", "dport = 80"), two_protocols, each(_BOTH, "destroyed"), _OF_BOTH, as_exit_code
    ),
    "terminate": Call(KILL, terminate, two_protocols, each(_BOTH, "destroyed"), _OF_BOTH),
    "loop": Call(KILL, run_loop, two_protocols, each(_BOTH, "destroyed"), _OF_BOTH),
    "terminate-command": Call(
        KILL,
        lambda: command("terminate", "--netns", "host", *map(str, BACKENDS)),
        two_protocols,
        each(_BOTH, "destroyed"),
        _OF_BOTH,
        as_exit_code,
    ),
    "probe": Call(PROBE, run_probe, Throwaways, _SUPPORTED, _NOTHING),
    "probe-command": Call(PROBE, lambda: command("probe"), Throwaways, _SUPPORTED, _NOTHING, as_exit_code_of_probe),
}

DRIVEN_BY = {
    "find_sockets": "find",
    "live_cookies": "live-cookies",
    "destroy_sockets": "destroy",
    "terminate_connections": "terminate",
    "TerminationLoop": "loop",
    "probe": "probe",
}
"""The public names that open a netlink socket, and a call that does so through each."""

NO_NETLINK = {
    **dict.fromkeys(
        (
            *("AuditError", "KernelError", "MalformedMessage", "NotPermitted", "NotSupported", "RunStopped"),
            *("SocklbError", "UnboundedFilter"),
        ),
        "an exception",
    ),
    **dict.fromkeys(
        (
            *("Backend", "BackendState", "DestroyReport", "InetSocket", "Outcome", "Support", "TcpState"),
            "TerminationReport",
        ),
        "a value: nobody is asked for it",
    ),
    **dict.fromkeys(
        ("SocketFilter", "autobound", "cgroup", "device", "dport", "dst", "mark", "sport", "src"),
        "says who is meant: the call that is given it asks",
    ),
    **dict.fromkeys(("state_mask", "states_in"), "arithmetic"),
    "BackendTable": "in memory alone",
    "NetworkNamespace": "reads /proc and enters namespaces: `test_real_namespaces` has its faults",
    "RevNatMaps": "asks bpf(2)",
}
"""The public names that open none, and why."""
