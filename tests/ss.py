"""What ss(8) shows of the current network namespace, and what socklb finds there, as rows that can be compared.

Left out on both sides: bound-only TCP sockets, which ss asks for since iproute2 6.8.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from ipaddress import ip_address
from typing import NamedTuple, Optional

from socklb import InetSocket, SocketFilter, TcpState, find_sockets
from socklb.wire.socket_id import AF_INET

from . import world

SS_STATES = {
    TcpState.ESTABLISHED: "ESTAB",
    TcpState.SYN_SENT: "SYN-SENT",
    TcpState.SYN_RECV: "SYN-RECV",
    TcpState.FIN_WAIT1: "FIN-WAIT-1",
    TcpState.FIN_WAIT2: "FIN-WAIT-2",
    TcpState.TIME_WAIT: "TIME-WAIT",
    TcpState.CLOSE: "UNCONN",
    TcpState.CLOSE_WAIT: "CLOSE-WAIT",
    TcpState.LAST_ACK: "LAST-ACK",
    TcpState.LISTEN: "LISTEN",
    TcpState.CLOSING: "CLOSING",
}


def require_ss() -> None:
    """Skip, or fail where the kernel is required, if there is no ss."""
    if shutil.which("ss") is None:
        world.cannot("ss (iproute2) is not installed")


class Row(NamedTuple):
    state: Optional[str]  # ss leaves it out when it was asked for one state alone
    rqueue: int
    wqueue: int
    local: str
    peer: str


def shown(protocol: str, *words: str) -> list[Row]:
    """What ss shows, each address as ipaddress writes it."""
    command = ["ss", "--no-header", "--numeric", "--all", f"--{protocol}", *words]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = []
    for line in output.splitlines():
        *state, rqueue, wqueue, local, peer = line.split()
        rows.append(Row(state[0] if state else None, int(rqueue), int(wqueue), *map(plain_endpoint, (local, peer))))
    return sorted(row for row in rows if protocol != "tcp" or row.state != "UNCONN")


def plain_endpoint(text: str) -> str:
    """`*` is the wildcard of a v6 socket that takes v4 too, as an address, and 0 as a port."""
    host, _, port = text.rpartition(":")
    host, _, device = host.replace("[", "").replace("]", "").partition("%")
    return _endpoint("::" if host == "*" else host, 0 if port == "*" else int(port), device)


def _endpoint(host: object, port: int, device: str) -> str:
    return f"{ip_address(str(host))} {port} {device}"


def found(protocol: str, text: str = "", *, states: str = "all", family: int | None = None) -> list[Row]:
    filter = SocketFilter.parse(text, protocol, states=states, family=family)
    return sorted(row_of(each) for each in find_sockets(filter) if protocol != "tcp" or each.state != TcpState.CLOSE)


def row_of(each: InetSocket) -> Row:
    device = socket.if_indextoname(each.interface) if each.interface else ""
    local, peer = _endpoint(each.src, each.sport, device), _endpoint(each.dst, each.dport, "")
    return Row(SS_STATES[TcpState(each.state)], each.rqueue, each.wqueue, local, peer)


def both(
    protocol: str, text: str = "", *, states: str = "all", family: int | None = None
) -> tuple[list[Row], list[Row]]:
    """What is found, and what ss shows, while nothing moved: a full queue may take a little more yet."""
    words = [*(["-4" if family == AF_INET else "-6"] if family else []), "state", states, *([text] if text else [])]
    for _ in range(100):
        here, there = found(protocol, text, states=states, family=family), shown(protocol, *words)
        if here == found(protocol, text, states=states, family=family):
            return here, there
    raise AssertionError("the sockets of the test never came to rest")
