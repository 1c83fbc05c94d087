# SPDX-License-Identifier: MIT
"""The ssh session that this process runs in, whose connection must not be destroyed."""

from __future__ import annotations

import os
from collections import namedtuple
from ipaddress import ip_address

from ..kernel.processes import ancestors, command_name, environment_value, socket_inodes
from ..wire.address import unmapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..wire.address import IPAddress
    from ..wire.reply import InetSocket

    Endpoint = tuple[IPAddress, int]


class OwnSession(namedtuple("OwnSession", "tuples inodes")):
    """`tuples`: ((address, port), (address, port)), both ways round; `inodes`: the sockets that an sshd holds."""

    __slots__ = ()
    tuples: frozenset[tuple[Endpoint, Endpoint]]
    inodes: frozenset[int]

    def has(self, socket: InetSocket) -> bool:
        """Whether the socket belongs to the session, at either end."""
        if self.inodes and socket.inode in self.inodes:
            return True
        if not self.tuples:
            return False
        return ((unmapped(socket.src), socket.sport), (unmapped(socket.dst), socket.dport)) in self.tuples


def own_session() -> OwnSession:
    """SSH_CONNECTION of this process and of every ancestor, and the sockets of the sshd processes among them.

    Raises KernelError where descriptors or memory have run out: the session would be unknown, and unprotected.
    """
    values = [os.environ.get("SSH_CONNECTION", "")]
    inodes: set[int] = set()
    for pid in ancestors():
        values.append(environment_value(pid, b"SSH_CONNECTION"))
        if command_name(pid).startswith("sshd"):
            inodes.update(socket_inodes(pid))
    tuples = set()
    for client, server in filter(None, map(_parse_connection, values)):
        tuples |= {(client, server), (server, client)}
    return OwnSession(frozenset(tuples), frozenset(inodes))


def _parse_connection(text: str) -> tuple[Endpoint, Endpoint] | None:
    """ "client port server port", as sshd(8) sets SSH_CONNECTION; None for anything else."""
    words = text.split()
    if len(words) != 4:
        return None
    try:
        client, server = (unmapped(ip_address(words[i].partition("%")[0])) for i in (0, 2))
        return (client, int(words[1])), (server, int(words[3]))
    except ValueError:
        return None
