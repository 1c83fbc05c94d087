"""Names that mean something only where they are looked up: interfaces and cgroup paths."""

from __future__ import annotations

import os
import socket

_MOUNTINFO = "/proc/self/mountinfo"


def interface_index(name: str) -> int:
    """The index of an interface in the network namespace of the calling thread. Raises ValueError if there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise ValueError(f"no interface {name!r} in this network namespace") from None


def cgroup_id(path: str) -> int:
    """The id of a cgroup v2: the inode of its directory (kernfs). A relative path is taken below the cgroup2 mount.

    Raises ValueError for a path that is no cgroup v2.
    """
    directory = path if os.path.isabs(path) else os.path.join(_cgroup2_mount(), path)
    try:
        status = os.stat(directory)
        os.stat(os.path.join(directory, "cgroup.controllers"))  # what only cgroup2 has, and every directory of it
    except OSError as error:
        raise ValueError(f"{directory!r} is no cgroup v2: {os.strerror(error.errno or 0)}") from None
    return status.st_ino


def _cgroup2_mount() -> str:
    try:
        with open(_MOUNTINFO, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                if after.startswith("cgroup2 "):
                    return _unescaped(before.split()[4])
    except OSError:
        pass
    raise ValueError("no cgroup2 file system is mounted; give an absolute path")


def _unescaped(field: str) -> str:
    """A path as mountinfo has it, white space and backslashes in octal: show_mountinfo() of the kernel."""
    for character in " \t\n\\":
        field = field.replace(f"\\{ord(character):03o}", character)
    return field
