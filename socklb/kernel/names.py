# SPDX-License-Identifier: MIT
"""Names that depend on where or when they are looked up: interfaces, cgroup paths, processes."""

from __future__ import annotations

import _socket
import os
from contextlib import closing, suppress
from struct import Struct

from ..errors import KernelError
from .exhaustion import raise_if_exhausted
from .namespaces import run_in_netns
from .processes import process_start_time, socket_inode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .mounts import Mount
    from .namespaces import NetworkNamespace

_RTM_NEWLINK = 16
_RTM_GETLINK = 18
_IFLA_ALT_IFNAME = 53
_LINK_REPLY = Struct(
    "="
    "4x"
    "H"  # nlmsg_type
    "10x"  # the rest of struct nlmsghdr
    "4x"
    "i"  # ifi_index
    "8x"  # the rest of struct ifinfomsg
)
_IFINFOMSG_SIZE = 16
_IFNAMSIZ = 16  # linux/if.h, the final zero included
_INDEX_MAX = 0x7FFFFFFF

_LOCAL_PORTS = "/proc/sys/net/ipv4/ip_local_port_range"  # of the thread that opens it (net_ctl_header_lookup())
_ROOT_CGROUP = 1  # its id (kernfs_create_root())


class UnknownName(ValueError):
    """There is no such name in the namespace where it was looked up."""


def interface_index(name: str) -> int:
    """The index of an interface in the network namespace of the calling thread. Its name counts first, alternative ones
    included, the index itself, as text, second. Raises UnknownName if it is neither.
    """
    try:
        return _socket.if_nametoindex(name)
    except (OSError, AttributeError):  # PyPy lacks it
        pass
    try:
        index = _index_by_any_name(os.fsencode(name))
    except OSError as error:  # if_nametoindex(3) needs a socket too: without one each name looks unknown
        raise KernelError(error.errno or 0, f"look up interface {name!r}: {error.strerror}") from None
    if index:
        return index
    if not (name.isascii() and name.isdigit() and len(name) < _IFNAMSIZ and int(name) <= _INDEX_MAX):
        raise UnknownName(f"no interface {name!r} in this network namespace")
    return int(name)


def _index_by_any_name(name: bytes) -> int:
    """Also by an alternative name of more than 15 bytes, which only rtnetlink knows (Linux 5.5); 0 if there is none."""
    from ..wire.netlink import NLM_F_REQUEST, encode_attribute, encode_message

    request = bytes(_IFINFOMSG_SIZE) + encode_attribute(_IFLA_ALT_IFNAME, name + b"\0")
    kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
    with closing(_socket.socket(_socket.AF_NETLINK, kind, _socket.NETLINK_ROUTE)) as route:
        route.connect((0, 0))  # to the kernel: nobody else can answer
        route.send(encode_message(_RTM_GETLINK, NLM_F_REQUEST, 1, request))
        type, index = _LINK_REPLY.unpack(route.recv(_LINK_REPLY.size))
    return int(index) if type == _RTM_NEWLINK else 0


def cgroup_id(path: str) -> int:
    """The id of a cgroup v2: the inode of its directory (kernfs). A relative path starts at the cgroup2 mount.

    Raises UnknownName if the path is not a cgroup v2, ValueError if a relative path has no cgroup2 mount to start from.
    """
    directory = path if os.path.isabs(path) else os.path.join(_cgroup2_mount(), path)
    try:
        status = os.stat(directory)
        os.stat(os.path.join(directory, "cgroup.controllers"))  # what only cgroup2 has, and every directory of it
    except OSError as error:
        raise UnknownName(f"{directory!r} is not a cgroup v2: {os.strerror(error.errno or 0)}") from None
    return status.st_ino


def cgroup_ids_below(path: str) -> frozenset[int]:
    """The ids of a cgroup v2 and of all below it that are there now. Raises as `cgroup_id` does."""
    top = path if os.path.isabs(path) else os.path.join(_cgroup2_mount(), path)
    ids = {cgroup_id(top)}
    for directory, names, _ in os.walk(top, onerror=lambda error: raise_if_exhausted(error, f"list {top}")):
        for name in names:
            with suppress(FileNotFoundError):  # it has gone meanwhile
                ids.add(os.stat(os.path.join(directory, name)).st_ino)
    return frozenset(ids)


def process_sockets(pid: int, start: int) -> frozenset[int] | None:
    """The inodes of the sockets that a process holds open; None where one may not look. Raises UnknownName if there is
    no such process, or it began at another time (clock ticks since the boot).
    """
    directory = f"/proc/{pid}/fd"
    targets = []
    try:
        for fd in os.listdir(directory):
            with suppress(FileNotFoundError):  # it has been closed meanwhile
                targets.append(os.readlink(f"{directory}/{fd}"))
    except PermissionError:
        return None
    except OSError as error:
        raise_if_exhausted(error, f"list {directory}")
        start = -1
    if process_start_time(pid) != start:
        raise UnknownName(f"there is no process {pid} in /proc, or no longer")
    return frozenset(map(socket_inode, targets)) - {0}


def is_root_cgroup(cgroup: int | str) -> bool:
    """Whether an id or a path is that of the root, or of what is mounted here as the root; 0 is no cgroup at all."""
    if isinstance(cgroup, int):
        roots = (mount.point for mount in _cgroup2_mounts() if mount.root == "/")
        return cgroup <= _ROOT_CGROUP or any(
            os.path.exists(point) and os.stat(point).st_ino == cgroup for point in roots
        )
    try:
        return not os.path.normpath(cgroup).strip("/") or is_root_cgroup(cgroup_id(cgroup))
    except ValueError:
        return False


def _cgroup2_mounts() -> Iterator[Mount]:
    from .mounts import mounts  # few conditions name a cgroup

    return (mount for mount in mounts() if mount.type == "cgroup2")


def _cgroup2_mount() -> str:
    for mount in _cgroup2_mounts():
        return mount.point
    raise ValueError("no cgroup2 file system is mounted; give an absolute path")


def cgroup_paths() -> dict[int, str]:
    """The path of each cgroup v2 that can be seen, below the mount of cgroup2, by its id."""
    paths = {}
    with suppress(ValueError):  # there is no mount
        mount = _cgroup2_mount()
        for directory, _, _ in os.walk(mount):
            with suppress(FileNotFoundError):
                paths[os.stat(directory).st_ino] = directory[len(mount) :] or "/"
    return paths


def local_ports() -> tuple[int, int]:
    """The range that the kernel chooses local ports from (v6 too), in the network namespace of the calling thread.

    Raises KernelError where it cannot be read: /proc/sys is not mounted, perhaps.
    """
    try:
        with open(_LOCAL_PORTS, encoding="ascii") as range:
            low, high = map(int, range.read().split())
    except OSError as error:
        raise KernelError(error.errno or 0, f"read {_LOCAL_PORTS}: {error.strerror}") from None
    return low, high


def interface_names(namespace: NetworkNamespace) -> dict[int, str]:
    """The name of each interface of a namespace, by its index; {} where it cannot be entered any more, descriptors have
    run out, or Python cannot ask.
    """
    try:
        return run_in_netns(namespace, lambda: dict(_socket.if_nameindex()))
    except (OSError, ValueError, AttributeError):  # PyPy lacks it
        return {}


def interface_indexes(namespace: NetworkNamespace, links: Iterable[str]) -> dict[str, int]:
    """The index of each of these interfaces that a namespace has, by what it is called: a name, or the index itself."""

    def look_up() -> dict[str, int]:
        indexes = {}
        for link in links:
            with suppress(OSError, ValueError):
                indexes[link] = int(link) if link.isascii() and link.isdigit() else interface_index(link)
        return indexes

    with suppress(OSError, ValueError):
        return run_in_netns(namespace, look_up)
    return {}
