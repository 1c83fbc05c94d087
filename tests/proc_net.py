"""/proc/net/tcp, tcp6, udp and udp6: what the kernel shows of its sockets to everybody, as rows.

Time-wait mini-sockets and request sockets are there, TCP sockets that are only bound are not.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, TextIO, Union

IPAddress = Union[IPv4Address, IPv6Address]

FILES = {"tcp": ("tcp", 4), "tcp6": ("tcp", 6), "udp": ("udp", 4), "udp6": ("udp", 6)}
"""By name, (protocol, version of the family)."""

_TIMER_OF_TIME_WAIT = 3


class ProcRow(NamedTuple):
    """One line; a mini-socket reports its substate, FIN_WAIT2 or TIME_WAIT, as its state."""

    protocol: str
    version: int
    local: IPAddress
    local_port: int
    peer: IPAddress
    peer_port: int
    state: int
    is_time_wait: bool
    uid: int
    inode: int


class ProcNet:
    """The files of the calling thread's network namespace: held open they show that one to everybody, for ever."""

    def __init__(self) -> None:
        # /proc/net would be the main thread's.
        self._files: dict[str, TextIO] = {
            name: open(f"/proc/thread-self/net/{name}", encoding="ascii")  # noqa: SIM115 - closed by close()
            for name in FILES
        }

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def rows(self) -> list[ProcRow]:
        """What is there now."""
        found = []
        for name, file in self._files.items():
            file.seek(0)
            protocol, version = FILES[name]
            found += [_row(protocol, version, line) for line in file.read().splitlines()[1:]]
        return found


def _row(protocol: str, version: int, line: str) -> ProcRow:
    """sl, local, peer, state, tx:rx, timer:when, retransmits, uid, timeout, inode, ... (get_tcp4_sock(), ...)."""
    _, local, peer, state, _, timer, _, uid, _, inode, *_ = line.split()
    is_time_wait = protocol == "tcp" and int(timer[:2], 16) == _TIMER_OF_TIME_WAIT
    ends = (*_endpoint(local), *_endpoint(peer))
    return ProcRow(protocol, version, *ends, int(state, 16), is_time_wait, int(uid), int(inode))


def _endpoint(text: str) -> tuple[IPAddress, int]:
    address, _, port = text.partition(":")
    return _address(address), int(port, 16)


@lru_cache(maxsize=1024)
def _address(digits: str) -> IPAddress:
    """Each 32 bits are printed as one number, in the byte order of the machine."""
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
