# SPDX-License-Identifier: MIT
"""What /proc says of a process. What cannot be read (no /proc, another user's process) reads as empty.

Every function raises KernelError where descriptors or memory have run out, rather than seem to have found nothing.
"""

from __future__ import annotations

import os

from .exhaustion import raise_if_exhausted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def ancestors() -> Iterator[int]:
    """The pids of this process' parent, its parent, and so on, as far as /proc shows them."""
    pid = os.getppid()
    seen = {0}
    while pid not in seen:
        yield pid
        seen.add(pid)
        after_name = _read(pid, "stat").rpartition(b")")[2].split()
        pid = int(after_name[1]) if len(after_name) > 1 else 0


def command_name(pid: int) -> str:
    """The name of a process or thread (/proc/PID/comm), "" if it has ended."""
    return _read(pid, "comm").rstrip(b"\n").decode("utf-8", "replace")


def environment_value(pid: int, name: bytes) -> str:
    """The value that a variable had when the process was started, "" if it had none."""
    for entry in _read(pid, "environ").split(b"\0"):
        key, _, value = entry.partition(b"=")
        if key == name:
            return value.decode("ascii", "replace")
    return ""


def socket_inodes(pid: int) -> Iterator[int]:
    """The inode of each socket that a process holds open."""
    directory = f"/proc/{pid}/fd"
    for name in list_directory(directory):
        try:
            target = os.readlink(f"{directory}/{name}")
        except OSError as error:
            raise_if_exhausted(error, f"look at the sockets of process {pid}")
            continue
        if target.startswith("socket:["):
            yield int(target[len("socket:[") : -1])


def list_directory(directory: str) -> list[str]:
    """The sorted names in a directory; empty if it does not exist or may not be read."""
    try:
        return sorted(os.listdir(directory))
    except OSError as error:
        raise_if_exhausted(error, f"list {directory}")
        return []


def _read(pid: int, name: str) -> bytes:
    path = f"/proc/{pid}/{name}"
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise_if_exhausted(error, f"read {path}")
        return b""
