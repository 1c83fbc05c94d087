# SPDX-License-Identifier: MIT
"""Every network namespace of the host: those of processes and their threads, and those that are pinned by a mount."""

from __future__ import annotations

import errno
import os
from collections import namedtuple

from ..errors import KernelError, NotPermitted
from .exhaustion import raise_if_exhausted
from .mounts import mounts
from .namespaces import CURRENT_NAME, NetworkNamespace, NoSuchNamespace, nsfs_device, nsfs_id
from .processes import command_name, list_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PIN_DIRECTORIES = (
    "/run/netns",
    "/var/run/netns",
    "/run/docker/netns",
    "/var/run/docker/netns",
    "/run/cilium/netns",
    "/var/run/cilium/netns",
)
"""Where iproute2 (and most container runtimes), Docker and Cilium pin namespaces."""

VANISHED = "vanished"
NOT_A_NAMESPACE = "not a network namespace"

_LINKS_OF_ONE_THREAD = 3  # of /proc/PID/task: the directory's own two, and one a thread (proc_task_getattr())
_MAX_PATHS = 16  # that are kept of one namespace


class SkippedNamespace(namedtuple("SkippedNamespace", "path reason")):
    """A namespace that was seen and could not be looked at: its path, and the reason."""

    __slots__ = ()
    path: str
    reason: str


class UnsearchedNamespace(namedtuple("UnsearchedNamespace", "path reason count")):
    __slots__ = ()
    path: str
    reason: str
    count: int


def unsearched(refused: Iterable[SkippedNamespace], searched: Iterable[NetworkNamespace]) -> list[UnsearchedNamespace]:
    return [UnsearchedNamespace(*one, 1) for one in refused]


class DiscoveredNamespaces(tuple):  # type: ignore[type-arg]
    """Namespaces, each once. `skipped`: those that could not be looked at, as SkippedNamespace."""

    skipped: list[SkippedNamespace]

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[NetworkNamespace]: ...


def discover_namespaces(*, threads: bool = True) -> DiscoveredNamespaces:
    """Every network namespace of the host that can be seen, each once: the caller's first, then those that are pinned,
    then those of processes, then (unless `threads` is false) those that only a thread is in.

    A pinned one is named after its pin, another one after the first process in it, "pid 123 (command)", or the first
    thread, "tid 124 (name)"; where the name is taken, by its path. A namespace that vanished meanwhile or may not be
    looked at is in `.skipped` of the result. One that is kept alive only by an open descriptor, a socket or a mount in
    another mount namespace is not found. Raises KernelError where /proc is not mounted, or where descriptors or memory
    have run out.
    """
    paths: dict[tuple[int, int], list[str]] = {}  # by (device, inode)
    names: dict[str, tuple[int, int]] = {}
    skipped = []
    refused: set[int] = set()
    device = nsfs_device()
    for path, kind, number, process in _candidates(threads):
        try:
            id = nsfs_id(path, device)
        except NoSuchNamespace:
            skipped.append(SkippedNamespace(path, VANISHED))
        except ValueError:
            skipped.append(SkippedNamespace(path, NOT_A_NAMESPACE))
        except OSError as error:
            raise_if_exhausted(error, f"look at {path}")
            missing = ""
            if kind and isinstance(error, NotPermitted):
                if process in refused:
                    continue  # once for a process and all its threads
                missing = "; CAP_SYS_PTRACE is missing"
                refused.add(process)
            skipped.append(SkippedNamespace(path, os.strerror(error.errno or 0) + missing))
        else:
            if id not in paths:
                name = CURRENT_NAME if not paths else _name(path, kind, number)  # the first candidate is the caller's
                names[path if name in names else name] = id
            paths.setdefault(id, []).append(path)
    found = DiscoveredNamespaces(
        NetworkNamespace(name, paths[id][0], *id, tuple(paths[id][1:_MAX_PATHS])) for name, id in names.items()
    )
    found.skipped = skipped
    found.refused = unreadable(skipped)
    return found


def _name(path: str, kind: str, number: int) -> str:
    """A name for people. Others choose these names: what is not printable ASCII is escaped."""
    name = f"{kind} {number} ({command_name(number) or 'ended'})" if kind else os.path.basename(path)
    return name.encode("unicode_escape").decode("ascii")


def unreadable(skipped: Iterable[SkippedNamespace]) -> list[SkippedNamespace]:
    """Those that exist and may not be looked at; what vanished, or is not a namespace, is not missed."""
    return [one for one in skipped if one.reason not in (VANISHED, NOT_A_NAMESPACE)]


def pinned(name: str) -> NetworkNamespace | None:
    """The namespace that is pinned under a name, as `ip netns` has them; None if there is none."""
    for directory in PIN_DIRECTORIES:
        path = os.path.join(directory, name)
        if os.path.lexists(path):
            return NetworkNamespace.from_path(path)
    return None


def pin_names() -> list[str]:
    """The names under which namespaces are pinned, sorted."""
    return sorted({name for directory in PIN_DIRECTORIES for name in list_directory(directory)})


class _Candidate(namedtuple("_Candidate", "path kind number process", defaults=("", 0, 0))):
    """A path that may lead to a network namespace: of a process ("pid") or thread ("tid"), or a mount ("")."""

    __slots__ = ()


def _candidates(threads: bool) -> Iterator[_Candidate]:
    """Many of them lead to the same namespace."""
    yield _Candidate(_own_path())
    of_nsfs = [mount for mount in mounts() if mount.type == "nsfs"]
    others = {mount.point for mount in of_nsfs if not mount.root.startswith("net:")}
    paths = [
        os.path.join(directory, name) for directory in _distinct(PIN_DIRECTORIES) for name in list_directory(directory)
    ]
    paths += [mount.point for mount in of_nsfs]
    for path in dict.fromkeys(paths):
        if path not in others:
            yield _Candidate(path)
    processes = _numbers("/proc")
    for pid in processes:
        yield _Candidate(f"/proc/{pid}/ns/net", "pid", pid, pid)
    for pid in processes if threads else ():
        if _has_threads(pid):
            for tid in _numbers(f"/proc/{pid}/task"):
                if tid != pid:
                    yield _Candidate(f"/proc/{pid}/task/{tid}/ns/net", "tid", tid, pid)


def _own_path() -> str:
    path = NetworkNamespace.current().path
    if not path:
        raise KernelError(errno.ENOENT, "look for network namespaces: /proc is not mounted; name them one by one")
    return path


def _distinct(directories: Iterable[str]) -> Iterator[str]:
    """Each directory once: /var/run is /run on most hosts."""
    return iter({os.path.realpath(directory): directory for directory in reversed(tuple(directories))}.values())


def _numbers(directory: str) -> list[int]:
    return sorted(map(int, filter(str.isdigit, list_directory(directory))))


def _has_threads(pid: int) -> bool:
    """More than one, by the number of links, which costs less than a listing."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink > _LINKS_OF_ONE_THREAD
    except OSError as error:
        raise_if_exhausted(error, f"look for network namespaces in /proc/{pid}/task")
        return False
