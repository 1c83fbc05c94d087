# SPDX-License-Identifier: MIT
"""The ssh session that this process runs in, whose connection must not be destroyed."""

from __future__ import annotations

import os
from collections import namedtuple

from ..kernel.processes import ancestors, environment_value, processes_on, socket_inodes, terminals
from ..wire.address import packed_v4, unmapped_packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..wire.reply import InetSocket
    from .report import Flow

    Endpoint = tuple[bytes, int]

_SERVERS = ("sshd", "sshd-session", "dropbear")
_MULTIPLEXERS = ("tmux", "screen")  # "tmux: server", too


class OwnSession(namedtuple("OwnSession", "tuples inodes")):
    """`tuples`: ((packed address, port), (packed address, port), uid of the socket), both ways round; `inodes`: the
    sockets that an ssh server holds.
    """

    __slots__ = ()
    tuples: frozenset[tuple[Endpoint, Endpoint, int]]
    inodes: frozenset[int]

    def has(self, socket: InetSocket) -> bool:
        """Whether the socket belongs to the session, at either end."""
        if self.inodes and socket.inode in self.inodes:
            return True
        if not self.tuples:
            return False
        src, dst = unmapped_packed(socket.src_packed), unmapped_packed(socket.dst_packed)
        return ((src, socket.sport), (dst, socket.dport), socket.uid) in self.tuples

    def has_flow(self, flow: Flow) -> bool:
        """Whether a connection that conntrack keeps is the session's, as either of its ends knows it."""
        said = {(one, other) for one, other, _ in self.tuples}
        backend = flow.backend
        client = (flow.src.packed, flow.sport)
        service, peer = (flow.dst.packed, flow.dport), (backend.address.packed, backend.port)
        return (client, service) in said or (client, peer) in said


def own_session() -> OwnSession:
    """SSH_CONNECTION of this process and of every ancestor, and the sockets of the ssh servers above it.

    Anyone can set a variable: it counts for sockets of root (sshd's) and of the user whose process said so. tmux and
    screen outlive the session that they were started in: the servers above them are those of the clients that are
    attached, whose terminals they hold open. Raises KernelError where descriptors or memory have run out: the session
    would be unknown, and unprotected.
    """
    said = [(os.environ.get("SSH_CONNECTION", ""), os.getuid())]
    inodes = set(_held_by_servers("self"))
    for process in ancestors():
        said.append((environment_value(process.pid, b"SSH_CONNECTION"), process.uid))
        if process.name.partition(":")[0] in _MULTIPLEXERS:
            for client in processes_on(terminals(process.pid)):
                inodes.update(_held_by_servers(client))
    tuples = set()
    for text, uid in said:
        ends = _parse_connection(text)
        if ends is not None:
            tuples |= {(*ends, 0), (*ends, uid), (*ends[::-1], 0), (*ends[::-1], uid)}
    return OwnSession(frozenset(tuples), frozenset(inodes))


def _held_by_servers(pid: int | str) -> Iterator[int]:
    """The inodes of the sockets that the ssh servers above a process hold. Anyone can name a process: one counts that
    runs as root, or is the child of such a server (what sshd leaves to the user after authentication).
    """
    below_root = False
    for process in reversed([*ancestors(pid)]):
        is_server = process.name in _SERVERS
        if is_server and (process.uid == 0 or below_root):
            yield from socket_inodes(process.pid)
        below_root = is_server and process.uid == 0


def _parse_connection(text: str) -> tuple[Endpoint, Endpoint] | None:
    """ "client port server port", as sshd(8) sets SSH_CONNECTION; None for anything else."""
    words = text.split()
    if len(words) != 4:
        return None
    try:
        return (_packed(words[0]), int(words[1])), (_packed(words[2]), int(words[3]))
    except ValueError:
        return None


def _packed(text: str) -> bytes:
    v4 = packed_v4(text)
    if v4 is not None:
        return v4
    from ipaddress import ip_address

    return unmapped_packed(ip_address(text.partition("%")[0]).packed)
