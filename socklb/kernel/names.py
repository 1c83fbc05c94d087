# SPDX-License-Identifier: MIT
"""Names that depend on where they are looked up: interfaces and cgroup paths."""

from __future__ import annotations

import os
import socket

from ..errors import KernelError


class UnknownName(ValueError):
    """There is no such name in the namespace where it was looked up."""


def interface_index(name: str) -> int:
    """The index of an interface in the network namespace of the calling thread. Raises UnknownName if there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        _raise_if_no_socket_can_be_made(name)
        raise UnknownName(f"no interface {name!r} in this network namespace") from None


def _raise_if_no_socket_can_be_made(name: str) -> None:
    """if_nametoindex(3) needs a socket; that it could not have one looks like an unknown name."""
    try:
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close()
    except OSError as error:
        raise KernelError(error.errno or 0, f"look up interface {name!r}: {error.strerror}") from None


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


def _cgroup2_mount() -> str:
    from .mounts import mounts  # few conditions name a cgroup

    for mount in mounts():
        if mount.type == "cgroup2":
            return mount.point
    raise ValueError("no cgroup2 file system is mounted; give an absolute path")


def interface_names() -> dict[int, str]:
    """The name of each interface of the calling thread's network namespace, by its index; {} where it has run out of
    descriptors.
    """
    try:
        return dict(socket.if_nameindex())
    except OSError:
        return {}
