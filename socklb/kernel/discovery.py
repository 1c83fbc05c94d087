# SPDX-License-Identifier: MIT
"""Every network namespace of the host: those of processes and their threads, and those that were pinned by a mount."""

from __future__ import annotations

import errno
import os
from collections import namedtuple

from ..errors import KernelError, NotPermitted
from .mounts import mounts
from .namespaces import HOST_NAME, NetworkNamespace, NoSuchNamespace, identity
from .resources import check_resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import NamedTuple

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
NOT_ONE = "no network namespace"

_LINKS_OF_ONE_THREAD = 3  # of /proc/PID/task: the directory's own two, and one a thread (proc_task_getattr())
_WAYS_IN = 16  # so many paths of one namespace are kept

if TYPE_CHECKING:

    class SkippedNamespace(NamedTuple):
        """One that was seen and could not be looked at: the path, and why not."""

        path: str
        reason: str

else:
    SkippedNamespace = namedtuple("SkippedNamespace", "path reason")


class Namespaces(tuple):  # type: ignore[type-arg]
    """Namespaces, each once; `skipped` are those that could not be looked at."""

    skipped: list[SkippedNamespace]

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[NetworkNamespace]: ...


def discover() -> Namespaces:
    """The namespaces that can be seen: the caller's own ("host") first, then the pinned, then those of processes, then
    those that only a thread is in.

    A pinned one has its pin's name, another that of the first process in it, "pid 123 (command)", or of the first
    thread, "tid 124 (its name)"; where the name is another's already, its path. What vanished meanwhile, or may not be
    looked at, is in `.skipped`. Not found, nor told, is one that nothing but an open descriptor, a socket or a mount in
    another mount namespace keeps alive. Raises KernelError where descriptors or memory have run out.
    """
    paths: dict[tuple[int, int], list[str]] = {}  # by identity
    names: dict[str, tuple[int, int]] = {}
    skipped = []
    refused: set[int] = set()
    for path, kind, number, process in _candidates():
        try:
            who = identity(path)
        except NoSuchNamespace:
            skipped.append(SkippedNamespace(path, VANISHED))
        except ValueError:
            skipped.append(SkippedNamespace(path, NOT_ONE))
        except OSError as error:
            check_resources(error, f"look at {path}")
            lacks = ""
            if kind and isinstance(error, NotPermitted):
                if process in refused:
                    continue  # told once, though each thread may differ
                lacks = "; CAP_SYS_PTRACE is missing"
                refused.add(process)
            skipped.append(SkippedNamespace(path, os.strerror(error.errno or 0) + lacks))
        else:
            if who not in paths:
                name = HOST_NAME if not paths else _name(path, kind, number)  # the first candidate is the caller's own
                names[path if name in names else name] = who
            paths.setdefault(who, []).append(path)
    found = Namespaces(
        NetworkNamespace(name, paths[who][0], *who, tuple(paths[who][1:_WAYS_IN])) for name, who in names.items()
    )
    found.skipped = skipped
    return found


def _name(path: str, kind: str, number: int) -> str:
    """What people call it. Names are others' to choose: what is not printable ASCII is escaped."""
    name = f"{kind} {number} ({_command(number)})" if kind else os.path.basename(path)
    return name.encode("unicode_escape").decode("ascii")


def unreadable(skipped: Iterable[SkippedNamespace]) -> list[SkippedNamespace]:
    """Those that are there and may not be looked at; what vanished meanwhile, or is no namespace, is not missed."""
    return [one for one in skipped if one.reason not in (VANISHED, NOT_ONE)]


def pinned(name: str) -> NetworkNamespace:
    """The namespace that is pinned under a name, as `ip netns` has them. Raises ValueError if there is none."""
    for directory in PIN_DIRECTORIES:
        path = os.path.join(directory, name)
        if os.path.lexists(path):
            return NetworkNamespace.from_path(path)
    known = sorted({name for directory in PIN_DIRECTORIES for name in _entries(directory)})
    raise NoSuchNamespace(
        f"no network namespace is pinned as {name!r} (known: {', '.join(known) or 'none'}); host, all, or a path such "
        "as /proc/PID/ns/net can be given too"
    )


class _Candidate(namedtuple("_Candidate", "path kind number process", defaults=("", 0, 0))):
    """What may be a network namespace: that of a process ("pid") or of a thread ("tid") with its number, or a mount."""

    __slots__ = ()


def _candidates() -> Iterator[_Candidate]:
    """Many are the same one."""
    yield _Candidate(_own_path())
    of_nsfs = [mount for mount in mounts() if mount.type == "nsfs"]
    others = {mount.point for mount in of_nsfs if not mount.root.startswith("net:")}
    paths = [os.path.join(directory, name) for directory in _distinct(PIN_DIRECTORIES) for name in _entries(directory)]
    paths += [mount.point for mount in of_nsfs]
    for path in dict.fromkeys(paths):
        if path not in others:
            yield _Candidate(path)
    processes = _numbers("/proc")
    for pid in processes:
        yield _Candidate(f"/proc/{pid}/ns/net", "pid", pid, pid)
    for pid in processes:
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
    return sorted(map(int, filter(str.isdigit, _entries(directory))))


def _has_threads(pid: int) -> bool:
    """Beside the first one, by the number of links: to look costs less than to list."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink > _LINKS_OF_ONE_THREAD
    except OSError as error:
        check_resources(error, f"look for network namespaces in /proc/{pid}/task")
        return False


def _entries(directory: str) -> list[str]:
    """What is in it; nothing if it is not there or may not be read."""
    try:
        return sorted(os.listdir(directory))
    except OSError as error:
        check_resources(error, f"look for network namespaces in {directory}")
        return []


def _command(number: int) -> str:
    """Of a process, or the name of a thread: /proc lists the one alone, and has both."""
    try:
        with open(f"/proc/{number}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError as error:
        check_resources(error, f"look up the command of process {number}")
        return "ended"
