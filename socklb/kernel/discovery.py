# SPDX-License-Identifier: MIT
"""Every network namespace of the host: those of processes and their threads, and those that are pinned by a mount."""

from __future__ import annotations

import errno
import os
from collections import namedtuple

from ..errors import KernelError
from .exhaustion import raise_if_exhausted
from .mounts import Mount, mounts
from .namespaces import CURRENT_NAME, CannotEnter, NetworkNamespace, check_kind, nsfs_id, run_in_netns
from .processes import command_name, directory_of, list_directory, numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

PIN_DIRECTORIES = (
    "/run/netns",
    "/var/run/netns",
    "/run/docker/netns",
    "/var/run/docker/netns",
    "/run/cilium/netns",
    "/var/run/cilium/netns",
)
"""Where iproute2 (and most container runtimes), Docker and Cilium pin namespaces."""

_LINKS_OF_ONE_THREAD = 3  # of /proc/PID/task: the directory's own two, and one a thread (proc_task_getattr())
_MAX_PATHS = 16  # that are kept of one namespace
_ENDED = -1
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # its inode, linux/proc_ns.h
_KTHREADD = 2  # the pid there of the parent of the kernel's threads


class UnsearchedNamespace(namedtuple("UnsearchedNamespace", "path reason count")):
    """Namespaces that were seen and could not be searched, for one reason: the path of the first, and how many."""

    __slots__ = ()
    path: str
    reason: str
    count: int


class DiscoveredNamespaces(tuple):  # type: ignore[type-arg]
    """Namespaces, each once. `refused`: what could not be looked at, an entry for each process, thread or pin, which
    `unsearched` sums up; `hidden`: a sentence on the processes that /proc does not show, "" if it shows all.
    """

    refused: tuple[UnsearchedNamespace, ...] = ()
    hidden = ""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[NetworkNamespace]: ...


def discover_namespaces(*, threads: bool = True) -> DiscoveredNamespaces:
    """Every network namespace of the host that can be seen, each once: the caller's first, then those that are pinned,
    then those of processes, then (unless `threads` is false) those that only a thread is in.

    A pinned one is named after its pin, another one after the first process in it, "pid 123 (command)", or the first
    thread, "tid 124 (name)"; where the name is taken, by its path. What may not be looked at is in `.refused` of the
    result; what vanished meanwhile is not. They are for use at once: when a namespace has gone, another one may get its
    inode, and nothing else is known of a discovered one. One that is kept alive only by an open descriptor, a socket or
    a mount in another mount namespace is not found. Raises CannotEnter where /proc is not mounted, KernelError where
    descriptors or memory have run out.
    """
    current = current_namespace()
    paths = {(current.device, current.inode): [current.path]}
    names = {CURRENT_NAME: (current.device, current.inode)}
    refused = []
    processes = numbers("/proc")
    mounted = [mount for mount in mounts() if mount.type == "nsfs" and mount.root.startswith("net:")]
    are_networks = {mount.root for mount in mounted}
    for path, kind, number in _candidates(mounted, processes, threads):
        try:
            id = nsfs_id(path, current.device)
            if not (kind or id in paths or f"net:[{id[1]}]" in are_networks):
                check_kind(path)
        except ValueError:
            continue  # it has vanished, or is no network namespace
        except OSError as error:
            raise_if_exhausted(error, f"look at {path}")
            why = str(error.strerror).replace(f"open namespace {path}: ", "")
            refused.append(UnsearchedNamespace(path, why, 1))
            continue
        if id not in paths:
            name = _name(path, kind, number)
            names[path if name in names else name] = id
        paths.setdefault(id, []).append(path)
    found = DiscoveredNamespaces(
        NetworkNamespace(name, paths[id][0], *id, tuple(paths[id][1:_MAX_PATHS])) for name, id in names.items()
    )
    found.refused, found.hidden = tuple(refused), _hidden(processes)
    return found


def current_namespace() -> NetworkNamespace:
    """The caller's. Raises CannotEnter where /proc is not mounted: others cannot be found then."""
    current = NetworkNamespace.current()
    if not current.path:
        raise CannotEnter(errno.ENOENT, "look for network namespaces: /proc is not mounted; name them one by one")
    return current


def _name(path: str, kind: str, number: int) -> str:
    """A name for people. Others choose these names: what is not printable ASCII is escaped."""
    name = f"{kind} {number} ({command_name(number) or 'ended'})" if kind else os.path.basename(path)
    return name.encode("unicode_escape").decode("ascii")


def unsearched(
    refused: Iterable[UnsearchedNamespace], searched: Iterable[NetworkNamespace]
) -> list[UnsearchedNamespace]:
    """Those of the refused that are in none of the searched namespaces, one entry for each reason.

    A process that may not be looked at shows which namespace it is in all the same: each namespace has files of its own
    in /proc/PID/net, and anyone may see their inodes. What has ended meanwhile is left out.
    """
    known = {_net_inode_in(namespace) for namespace in searched} - {0, _ENDED} if refused else set()
    left: dict[str, dict[object, str]] = {}  # by reason, the first path of each namespace
    for path, reason, _ in refused:
        process = directory_of(path)
        inode = _net_inode(process) if process else 0
        if not (inode in known or (inode == _ENDED and known)):
            where = process.partition("/task/")[0] or path  # threads are taken to be where their process is
            left.setdefault(reason, {}).setdefault(inode if inode > 0 else where, path)
    return [UnsearchedNamespace(next(iter(paths.values())), reason, len(paths)) for reason, paths in left.items()]


def _net_inode_in(namespace: NetworkNamespace) -> int:
    """What `_net_inode` sees there: through a process in it, else in a thread that enters it; 0 if neither works."""
    for path in (namespace.path, *namespace.alternate_paths):
        process = directory_of(path)
        if process and _leads_to(path, namespace):
            inode = _net_inode(process)
            if inode > 0 and _leads_to(path, namespace):  # still: it may have moved on
                return inode
    try:
        return run_in_netns(namespace, lambda: _net_inode("/proc/thread-self"))
    except (KernelError, ValueError):
        return 0


def _leads_to(path: str, namespace: NetworkNamespace) -> bool:
    try:
        return nsfs_id(path, None) == (namespace.device, namespace.inode)
    except (KernelError, ValueError):
        return False


def _net_inode(process: str) -> int:
    """The inode of a file in /proc/PID/net, which no two network namespaces have at a time: their files come from one
    pool (proc_alloc_inum()). 0 where it cannot be seen, _ENDED for a process that is in none any more.
    """
    path = f"{process}/net/netlink"
    try:
        return os.stat(path).st_ino
    except OSError as error:
        raise_if_exhausted(error, f"look at {path}")
        return _ENDED if isinstance(error, (FileNotFoundError, ProcessLookupError)) else 0


def _hidden(processes: Collection[int]) -> str:
    """A sentence on what /proc does not list, "" if it lists every process."""
    if (_inode("/proc/1/ns/pid") or _inode("/proc/self/ns/pid")) not in (0, _INITIAL_PID_NAMESPACE):
        why = "it shows those of one pid namespace, not of the host"
    elif _KTHREADD not in processes:
        why = "it is mounted with hidepid"
    else:
        return ""
    count = _processes() - len(processes)
    how_many = f" ({count}, kernel threads counted)" if count > 0 else ""
    return f"namespaces of processes that /proc does not show are not searched{how_many}: {why}"


def _processes() -> int:
    """How many processes there are, whoever may see them: /proc counts each as a link to it (proc_root_getattr())."""
    with os.scandir("/proc") as entries:
        others = sum(not entry.name.isdigit() and entry.is_dir(follow_symlinks=False) for entry in entries)
    return os.stat("/proc").st_nlink - 2 - others


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


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


class _Candidate(namedtuple("_Candidate", "path kind number", defaults=("", 0))):
    """A path that may lead to a network namespace: of a process ("pid") or thread ("tid"), or a mount ("")."""

    __slots__ = ()


def _candidates(mounted: Iterable[Mount], processes: Iterable[int], threads: bool) -> Iterator[_Candidate]:
    """Many of them lead to the same namespace."""
    paths = [
        os.path.join(directory, name) for directory in _distinct(PIN_DIRECTORIES) for name in list_directory(directory)
    ]
    paths += [mount.point for mount in mounted]
    for path in dict.fromkeys(paths):
        yield _Candidate(path)
    for pid in processes:
        yield _Candidate(f"/proc/{pid}/ns/net", "pid", pid)
    for pid in processes if threads else ():
        if _has_threads(pid):
            for tid in numbers(f"/proc/{pid}/task"):
                if tid != pid:
                    yield _Candidate(f"/proc/{pid}/task/{tid}/ns/net", "tid", tid)


def _distinct(directories: Iterable[str]) -> Iterator[str]:
    """Each directory once: /var/run is /run on most hosts."""
    return iter({os.path.realpath(directory): directory for directory in reversed(tuple(directories))}.values())


def _has_threads(pid: int) -> bool:
    """More than one, by the number of links, which costs less than a listing."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink > _LINKS_OF_ONE_THREAD
    except OSError as error:
        raise_if_exhausted(error, f"look for network namespaces in /proc/{pid}/task")
        return False
