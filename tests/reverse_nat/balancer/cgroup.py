"""Cgroups v2: the one that this process is in, and a new one below it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from socklb.kernel.mounts import mounts

from ...sockets import error_of, eventually


def own_cgroup() -> str:
    """The directory of the cgroup that this process is in. Raises OSError if it cannot be seen from here."""
    mount = next((mount for mount in mounts() if mount.type == "cgroup2"), None)
    if mount is None:
        raise OSError(errno.ENODEV, "no cgroup2 is mounted")
    with open("/proc/self/cgroup", encoding="utf-8") as lines:
        path = next((line[3:].rstrip("\n") for line in lines if line.startswith("0::")), None)
    if path is None:
        raise OSError(errno.ENODEV, "this process is in no cgroup of version 2")
    relative = os.path.relpath(path, mount.root)
    if relative.startswith(".."):
        raise OSError(errno.ENOENT, f"{path} is not below {mount.root}, which is what is mounted of cgroup2")
    return os.path.normpath(os.path.join(mount.point, relative))


@contextmanager
def new_cgroup() -> Iterator[str]:
    """The directory of a cgroup below one's own. In the end it is removed; processes still in it move up."""
    home = own_cgroup()
    directory = tempfile.mkdtemp(prefix="socklb-tests-", dir=home)
    try:
        yield directory
    finally:
        for pid in _processes(directory):
            with suppress(ProcessLookupError):  # it ended meanwhile
                _move(pid, home)
        # A process that ended is in its cgroup until it is gone for good.
        eventually(lambda: error_of(lambda: os.rmdir(directory)) != "EBUSY", f"{directory} can be removed")


@contextmanager
def inside(directory: str) -> Iterator[None]:
    """Meanwhile this process, with all its threads, is in the cgroup; processes that it starts stay there."""
    home = own_cgroup()
    _move(os.getpid(), directory)
    try:
        yield
    finally:
        _move(os.getpid(), home)


def _processes(directory: str) -> list[int]:
    with open(os.path.join(directory, "cgroup.procs"), encoding="ascii") as lines:
        return [int(line) for line in lines]


def _move(pid: int, directory: str) -> None:
    with open(os.path.join(directory, "cgroup.procs"), "w", encoding="ascii") as file:
        file.write(str(pid))
