# SPDX-License-Identifier: MIT
"""What /proc says of a process. What cannot be read (no /proc, another user's process) reads as empty.

Every function raises KernelError where descriptors or memory have run out, rather than seem to have found nothing.
"""

from __future__ import annotations

import os
from collections import namedtuple

from .exhaustion import raise_if_exhausted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE = 1, 2, 19  # linux/capability.h
_TERMINAL, _START = 4, 19  # words of /proc/PID/stat behind the name: proc_pid_stat(5) counts three more
_PTS_MAJOR = 136  # UNIX98_PTY_SLAVE_MAJOR, linux/major.h


class Process(namedtuple("Process", "pid name uid fds", defaults=((),))):
    """`name`: of its command, as /proc/PID/comm has it; `uid`: the real one, of who started it; `fds`: the descriptors
    by which it holds the socket that was asked about.
    """

    __slots__ = ()
    pid: int
    name: str
    uid: int
    fds: tuple[int, ...]


def ancestors(pid: int | str = "self") -> Iterator[Process]:
    """A process' parent (the caller's unless given), its parent, and so on, as far as /proc shows them."""
    seen = {0}
    status = _status(pid)
    while (parent := int(status.get(b"PPid", 0))) not in seen:
        seen.add(parent)
        status = _status(parent)
        if status:
            yield _process(parent, status)


def _process(pid: int, status: Mapping[bytes, bytes]) -> Process:
    name = status[b"Name"].decode("utf-8", "replace")
    return Process(pid, command_name(pid) if "\\" in name else name, int(status[b"Uid"].split()[0]))  # it is escaped


def has_capability(number: int) -> bool:
    """Whether the calling thread has a capability, in its own user namespace."""
    return bool(int(_status("thread-self").get(b"CapEff", b"0"), 16) >> number & 1)


def command_name(pid: int) -> str:
    """The name of a process or thread (/proc/PID/comm), "" if it has ended."""
    return _read(f"/proc/{pid}/comm").rstrip(b"\n").decode("utf-8", "replace")


def environment_value(pid: int, name: bytes) -> str:
    """The value that a variable had when the process was started, "" if it had none."""
    for entry in _read(f"/proc/{pid}/environ").split(b"\0"):
        key, _, value = entry.partition(b"=")
        if key == name:
            return value.decode("ascii", "replace")
    return ""


def directory_of(path: str) -> str:
    """The directory of the process or thread that a path leads through, "/proc/PID" or "/proc/PID/task/TID"; "" if
    it leads through none. /proc may be mounted elsewhere, as /host/proc for one.
    """
    before, proc, after = path.partition("/proc/")
    words = after.split("/")
    if len(words) < 2 or not (words[0].isascii() and words[0].isdigit()):
        return ""
    return before + proc + "/".join(words[: 3 if words[1] == "task" else 1])


def start_time(path: str) -> int:
    """When the process or thread began that a path leads through, in clock ticks since the boot; 0 for none."""
    directory = directory_of(path)
    return _stat(directory, _START) if directory else 0


def process_start_time(pid: int) -> int:
    """The same of a process by its number."""
    return _stat(f"/proc/{pid}", _START)


def socket_inodes(pid: int) -> Iterator[int]:
    """The inode of each socket that a process holds open."""
    return filter(None, (socket_inode(target) for _, target in _open_files(pid)))


def socket_inode(target: str) -> int:
    """That of the socket that a descriptor leads to, 0 if it leads to something else."""
    return int(target[8:-1]) if target.startswith("socket:[") else 0


def holders(inodes: Container[int] | None) -> dict[int, list[Process]]:
    """The processes that hold the sockets with these inodes open, or (None) any, as far as one may look at them."""
    found: dict[int, list[Process]] = {}
    for pid in numbers("/proc"):
        held: dict[int, list[int]] = {}
        for fd, target in _open_files(pid):
            inode = socket_inode(target)
            if inode and (inodes is None or inode in inodes):
                held.setdefault(inode, []).append(int(fd))
        if held and (status := _status(pid, 16)):  # its name and uid stand in the first lines; it may have ended
            _, name, uid, _ = _process(pid, status)
            for inode, fds in held.items():
                found.setdefault(inode, []).append(Process(pid, name, uid, tuple(sorted(fds))))
    return found


def terminals(pid: int) -> set[int]:
    """The device numbers of the pseudo-terminals (/dev/pts/N) that a process holds open."""
    numbers = (target.partition("/dev/pts/")[2] for _, target in _open_files(pid))
    return {os.makedev(_PTS_MAJOR, int(number)) for number in numbers if number.isdigit()}


def processes_on(terminals: set[int]) -> Iterator[int]:
    """The pids of the processes that have one of these as their controlling terminal."""
    for pid in numbers("/proc") if terminals else ():
        if _stat(f"/proc/{pid}", _TERMINAL) in terminals:
            yield pid


def list_directory(directory: str) -> list[str]:
    """The sorted names in a directory; empty if it does not exist or may not be read."""
    try:
        return sorted(os.listdir(directory))
    except OSError as error:
        raise_if_exhausted(error, f"list {directory}")
        return []


def numbers(directory: str) -> list[int]:
    """The numbers among the names in a directory, in order: the processes in /proc, the threads in /proc/PID/task."""
    return sorted(map(int, filter(str.isdigit, list_directory(directory))))


def _open_files(pid: int) -> Iterator[tuple[str, str]]:
    """Each descriptor of a process, and what it leads to: "socket:[INODE]", "/dev/pts/0"."""
    directory = f"/proc/{pid}/fd"
    for fd in list_directory(directory):
        try:
            yield fd, os.readlink(f"{directory}/{fd}")
        except OSError as error:
            raise_if_exhausted(error, f"look at what process {pid} holds open")


def _status(pid: int | str, most: int = -1) -> dict[bytes, bytes]:
    """/proc/PID/status, or the first lines of it; a name with a line feed comes escaped."""
    lines = (line.partition(b":") for line in _read(f"/proc/{pid}/status").split(b"\n", most))
    return {name: value[1:] for name, colon, value in lines if colon}


def _stat(directory: str, word: int) -> int:
    words = _read(f"{directory}/stat").rpartition(b")")[2].split()
    return int(words[word]) if len(words) > word else 0


def _read(path: str) -> bytes:
    """The content of a file in /proc."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise_if_exhausted(error, f"read {path}")
        return b""
