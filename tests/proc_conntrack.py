"""/proc/net/nf_conntrack: what the kernel shows of its connections, read and forgotten without the package."""

from __future__ import annotations

import re
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, Union

Ends = tuple[Union[IPv4Address, IPv6Address], int, Union[IPv4Address, IPv6Address], int]

PATH = "/proc/thread-self/net/nf_conntrack"
"""Of the calling thread's network namespace: held open it shows that one for ever."""

_TUPLE = r"src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+) "
_ENTRY = re.compile(
    rf"^ipv\d +\d+ (tcp|udp) +\d+ \d+ (?:(\w+) )?{_TUPLE}(?:zone-orig=(\d+) )?(?:\[\w+\] )?{_TUPLE}", re.M
)


class Entry(NamedTuple):
    """A connection of TCP or UDP. `state`: TCP's, as conntrack sees it. `zone`: that of the client's direction."""

    protocol: str
    state: str
    original: Ends
    reply: Ends
    zone: int

    @property
    def is_translated(self) -> bool:
        """Whether somebody else answers than was asked."""
        return self.original[2:] != self.reply[:2]

    @property
    def is_closing(self) -> bool:
        return self.state in ("TIME_WAIT", "CLOSE")


def entries(text: str) -> list[Entry]:
    """Those that the file's text shows."""
    return [
        Entry(protocol, state, _ends(*ends[:4]), _ends(*ends[5:]), int(ends[4] or 0))
        for protocol, state, *ends in _ENTRY.findall(text)
    ]


def _ends(src: str, dst: str, sport: str, dport: str) -> Ends:
    return ip_address(src), int(sport), ip_address(dst), int(dport)


_FLUSH = struct.pack("=IHHIII", 20, 1 << 8 | 2, 5, 1, 0, 0)  # IPCTNL_MSG_CT_DELETE without a tuple, acknowledged


def flush() -> None:
    """Forget every connection of the calling thread's network namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:  # NETLINK_NETFILTER
        netlink.send(_FLUSH)
        assert netlink.recv(100)[16:20] == bytes(4)
