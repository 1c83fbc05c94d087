"""The things that are measured side by side among a crowd of sockets."""

from __future__ import annotations

import importlib
import importlib.util
import ipaddress
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from itertools import cycle

from socklb import InetSocket, SocketFilter, destroy_sockets, dport, dst, find_sockets, idle
from socklb.filters.compiler import _MOST_PROGRAMS, _recent
from socklb.kernel.diag import NETLINK_SOCK_DIAG
from socklb.termination.loop import GATHER_SECONDS
from socklb.wire.netlink import NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, encode_message
from socklb.wire.request import TCPDIAG_GETSOCK, InetDiagReq

from .. import package_under_test
from .crowd import BACKEND, VICTIMS, Crowd
from .timing import Ratio, Subject, best_times, ratios_of
from .walk import LISTED_STATES, walk_once
from .watched import Watched

NAME = package_under_test.NAME
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_DERIVED = {"answers_to", "protocol", "row"}  # are not decoded
_FIELDS = [name for name, value in vars(InetSocket).items() if isinstance(value, property) and name not in _DERIVED]


def measure(crowd: Crowd, rounds: int) -> tuple[dict[str, float], list[Ratio]]:
    with Watched(_ROOT) as watched:
        subjects = _subjects(crowd, watched, rounds)
        crowd.renew_victims()
        best = best_times(subjects, rounds)
        watched.close_client()
        growth = _memory_growth(crowd)
    imports = {module: _import_time(module, rounds * 3) for module in ("socket", NAME)}
    best.update({f"import {module}, cold": value for module, value in imports.items()})
    best[_GATHER_AND_WALK] = best[_WALK] + GATHER_SECONDS * 1000
    return best, _ratios(best, growth)


_WALK = "one kernel walk"
_FIND = "find one backend's sockets"
_SS = "ss with the same filter, whole process"
_DESTROY = f"destroy one backend's {VICTIMS} connections"
_IDLE = "destroy the same, and idle for 0 s"
_SS_K = "ss -K with the same filter, whole process"
_COMMAND = "python3 -S -m socklb destroy, whole process"
_LIST_COMMAND = "python3 -S -m socklb list with the same filter, whole process"
_SCATTERED = "find among 1,000 backends, scattered"
_CROWDED = "find among 1,000 backends, scattered, on the crowd's own ports"
_CONSECUTIVE = "find among 1,000 backends, consecutive"
_FIRST = "find among 50,000 backends of all ports, first use"
_AGAIN = "find among 50,000 backends of all ports, again"
_HASHED = "one dump matched by hash in Python"
_PROGRAM = "make a program that is full, and walk with it"
_LIST = "list all"
_RECEIVE = "receive all, without looking at what comes"
_DECODE = "list all, every field decoded"
_PYROUTE2 = "pyroute2: list all, every field decoded"
_WATCH = "watch: from the line that deletes a backend to the client's error"
_GATHER_AND_WALK = "one kernel walk + 50 ms"
_IN_PYTHON = "find one backend's sockets, matched in Python"


def _ratios(best: dict[str, float], growth: float) -> list[Ratio]:
    wanted = [
        (_FIND, _WALK, 1.3),
        (_FIND, _SS, 0.7),
        (_DESTROY, _SS_K, 0.6),
        (_IDLE, _DESTROY, 1.5),
        (_COMMAND, _SS_K, 2.0),
        (_LIST_COMMAND, _SS, 2.0),
        (_SCATTERED, _FIND, 1.3),
        (_CROWDED, _FIND, 1.5),
        (_CONSECUTIVE, _FIND, 2.0),
        (_FIRST, _HASHED, 4.0),
        (_AGAIN, _HASHED, 1.1),
        (_DECODE, _PYROUTE2, 0.05),
        (_LIST, _RECEIVE, 2.0),
        (f"import {NAME}, cold", "import socket, cold", 3.0),
        (_WATCH, _GATHER_AND_WALK, 2.0),
    ]
    programs = best[_HASHED] / best[_PROGRAM]
    return [
        *ratios_of(best, wanted),
        Ratio(f"{_MOST_PROGRAMS} programs / those that take as long as {_HASHED}", _MOST_PROGRAMS / programs, 1.5),
        Ratio(f"growth of peak memory while destroying {VICTIMS}, MiB", growth, 1.0),
    ]


def _subjects(crowd: Crowd, watched: Watched, rounds: int) -> dict[str, Subject]:
    address, port = BACKEND
    one = SocketFilter.to_backend(address, port, "tcp")
    everything = SocketFilter("tcp", states=LISTED_STATES)
    in_python = SocketFilter("tcp", predicate=lambda s: s.dport == port and (dst(address) & dport(port)).matches(s))
    idle_too = SocketFilter("tcp", dst(address) & dport(port) & idle(0))  # tcp_info is asked for and read
    many = [(str(ipaddress.IPv4Address(n)), n % 65535 + 1, "tcp") for n in _scattered(49_999)] + [(*BACKEND, "tcp")]
    again, hashed = SocketFilter.to_backends(many), _hashed(many)
    scattered, consecutive = _backends(_scattered(999)), _backends(range(0x7F0A0000, 0x7F0A03E7))
    crowded = _backends(_scattered(999), crowd.ports)
    full = [*many[:1776], (*BACKEND, "tcp")]
    text = f"dst {address}:{port}"
    seldom = max(1, rounds // 2)
    subjects = {
        _WALK: Subject(walk_once),
        _FIND: Subject(lambda: _expect(VICTIMS, find_sockets(one)), crowd.renew_victims),
        _SCATTERED: Subject(lambda: _expect(VICTIMS, find_sockets(scattered))),
        _CONSECUTIVE: Subject(lambda: _expect(VICTIMS, find_sockets(consecutive))),
        _CROWDED: Subject(lambda: _expect(VICTIMS, find_sockets(crowded))),
        _IN_PYTHON: Subject(lambda: _expect(VICTIMS, find_sockets(in_python))),
        _FIRST: Subject(lambda: _expect(VICTIMS, find_sockets(SocketFilter.to_backends(many))), every=seldom),
        _AGAIN: Subject(lambda: _expect(VICTIMS, find_sockets(again)), every=seldom),
        _HASHED: Subject(lambda: _expect(VICTIMS, find_sockets(hashed)), every=seldom),
        _PROGRAM: Subject(lambda: _expect(VICTIMS, find_sockets(SocketFilter.to_backends(full))), _recent.clear),
        _RECEIVE: Subject(_receive),
        _LIST: Subject(lambda: sum(1 for _ in find_sockets(everything))),
        _DECODE: Subject(lambda: _decode_all(everything), every=max(1, rounds // 5)),
        _DESTROY: Subject(lambda: _expect_destroyed(one), crowd.renew_victims),
        _IDLE: Subject(lambda: _expect_destroyed(idle_too), crowd.renew_victims),
        _COMMAND: Subject(lambda: _run_command("destroy", text), crowd.renew_victims),
        _LIST_COMMAND: Subject(lambda: _run_command("list", text), crowd.renew_victims),
        "bare interpreter start: python3 -S -c pass": Subject(lambda: _process([sys.executable, "-S", "-c", "pass"])),
        _WATCH: Subject(watched.go_down, watched.come_up),
    }
    if shutil.which("ss"):
        subjects[_SS] = Subject(lambda: _process(["ss", "-Htan", text]), crowd.renew_victims)
        subjects[_SS_K] = Subject(lambda: _process(["ss", "-HtKn", text]), crowd.renew_victims)
    if importlib.util.find_spec("pyroute2"):
        subjects[_PYROUTE2] = Subject(_pyroute2, every=rounds)
    return subjects


def _backends(numbers: Sequence[int], ports: Sequence[int] = (8080,)) -> SocketFilter:
    triples = [(str(ipaddress.IPv4Address(n)), port, "tcp") for n, port in zip(numbers, cycle(ports))]
    return SocketFilter.to_backends([*triples, (*BACKEND, "tcp")])


def _scattered(count: int) -> list[int]:
    return random.Random(1).sample(range(0x0A000000, 0x7F000000), count)


def _hashed(backends: list[tuple[str, int, str]]) -> SocketFilter:
    """By a plain predicate, made beforehand."""
    wanted = {(ipaddress.ip_address(address).packed, port) for address, port, _ in backends}
    return SocketFilter("tcp", predicate=lambda s: (s.dst_packed[-4:], s.dport) in wanted)


def _expect(count: int, found: object) -> None:
    assert len(list(found)) == count  # type: ignore[call-overload]


def _expect_destroyed(filter: SocketFilter) -> None:
    report = destroy_sockets(filter)
    assert report.destroyed == VICTIMS, report


def _receive() -> None:
    request = InetDiagReq(states=LISTED_STATES).encode()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as diag:
        diag.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        diag.send(encode_message(TCPDIAG_GETSOCK, NLM_F_REQUEST | NLM_F_DUMP, 1, request))
        buffer, done = bytearray(1 << 16), NLMSG_DONE.to_bytes(2, sys.byteorder)
        while diag.recv_into(buffer) and buffer[4:6] != done:
            pass


def _decode_all(filter: SocketFilter) -> None:
    for found in find_sockets(filter):
        for field in _FIELDS:
            getattr(found, field)


def _pyroute2() -> None:
    with importlib.import_module("pyroute2").DiagSocket() as diag:
        diag.bind()
        for family in (socket.AF_INET, socket.AF_INET6):
            diag.get_sock_stats(family=family, protocol=socket.IPPROTO_TCP, states=LISTED_STATES)


def _process(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=_ROOT)


def _run_command(command: str, text: str) -> None:
    _process([sys.executable, "-S", "-m", NAME, command, "--tcp", text])


_GROWTH = """
import re, sys
sys.path.insert(0, {root!r})
from {name} import SocketFilter, destroy_sockets
filter = SocketFilter.to_backend({address!r}, {port}, "tcp")
for _ in range(2):
    destroy_sockets(filter, dry_run=True)
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])  # ru_maxrss is the parent's
before = peak()
assert destroy_sockets(filter).destroyed == {victims}
print(peak() - before)
"""


def _memory_growth(crowd: Crowd) -> float:
    """MiB by which the peak of a fresh process grows while it destroys; dry runs before have filled its heap."""
    crowd.renew_victims()
    script = _GROWTH.format(root=_ROOT, name=NAME, address=BACKEND[0], port=BACKEND[1], victims=VICTIMS)
    return int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout) / 1024


def _import_time(module: str, rounds: int) -> float:
    """Milliseconds of the import alone: the best of some fresh interpreters."""
    script = (
        f"import sys, time; sys.path.insert(0, {_ROOT!r}); start = time.perf_counter(); import {module}; "
        "print(time.perf_counter() - start)"
    )
    times = [
        float(subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True, capture_output=True).stdout)
        for _ in range(rounds)
    ]
    return min(times) * 1000
