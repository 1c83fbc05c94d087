# SPDX-License-Identifier: MIT
"""The ssh session that this process runs under: its own connection must not be among the dead."""

from __future__ import annotations

import os
from collections import namedtuple
from ipaddress import ip_address

from ..kernel.resources import check_resources
from ..wire.address import unmapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..wire.address import IPAddress

    Endpoint = tuple[IPAddress, int]


_DOING = "look for one's own ssh session, which is spared"


class OwnSession(namedtuple("OwnSession", "tuples inodes")):
    """`tuples` are ((address, port), (address, port)) pairs, both ways round; `inodes` those of an sshd's sockets."""

    __slots__ = ()
    tuples: frozenset[tuple[Endpoint, Endpoint]]
    inodes: frozenset[int]


def own_session() -> OwnSession:
    """What SSH_CONNECTION says, here and in every ancestor's environment, and what an sshd among them holds open.

    What cannot be read (no /proc, another user's process) says nothing; but where descriptors or memory have run out
    nobody can tell, and KernelError is raised.
    """
    said = [os.environ.get("SSH_CONNECTION", "")]
    inodes: set[int] = set()
    for pid in _ancestors():
        said.append(_environment_value(pid, b"SSH_CONNECTION"))
        if _read(f"/proc/{pid}/comm").startswith(b"sshd"):
            inodes.update(_socket_inodes(pid))
    tuples = set()
    for client, server in filter(None, map(_parse_connection, said)):
        tuples |= {(client, server), (server, client)}
    return OwnSession(frozenset(tuples), frozenset(inodes))


def _parse_connection(text: str) -> tuple[Endpoint, Endpoint] | None:
    """ "client port server port", sshd(8)."""
    words = text.split()
    if len(words) != 4:
        return None
    try:
        client, server = (unmapped(ip_address(words[i].partition("%")[0])) for i in (0, 2))
        return (client, int(words[1])), (server, int(words[3]))
    except ValueError:
        return None


def _ancestors() -> Iterator[int]:
    """The parent, its parent, and so on, as far as /proc tells."""
    pid = os.getppid()
    seen = {0}
    while pid not in seen:
        yield pid
        seen.add(pid)
        after_name = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        pid = int(after_name[1]) if len(after_name) > 1 else 0


def _environment_value(pid: int, name: bytes) -> str:
    for entry in _read(f"/proc/{pid}/environ").split(b"\0"):
        key, _, value = entry.partition(b"=")
        if key == name:
            return value.decode("ascii", "replace")
    return ""


def _socket_inodes(pid: int) -> Iterator[int]:
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError as error:
        check_resources(error, _DOING)
        return
    for name in names:
        try:
            target = os.readlink(f"{directory}/{name}")
        except OSError as error:
            check_resources(error, _DOING)
            continue
        if target.startswith("socket:["):
            yield int(target[len("socket:[") : -1])


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        check_resources(error, _DOING)
        return b""
