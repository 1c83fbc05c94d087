# SPDX-License-Identifier: MIT
"""Network namespaces: which one is which, and how to call a function in one."""

from __future__ import annotations

import _socket
import errno
import os
import sys
from contextlib import closing

from ..errors import KernelError, NotPermitted, NotSupported
from ..features import INSTALL
from ..values import Value
from .exhaustion import raise_if_exhausted
from .processes import CAP_SYS_PTRACE, directory_of, has_capability, start_time
from .threads import call_in_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14 and newer
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # whatever is at a path by now, opening does not wait

_CURRENT = "/proc/thread-self/ns/net"  # /proc/self would be the main thread's
CURRENT_NAME = "current"

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ESRCH)
"""ESRCH: a process that ended while its /proc was looked at."""


class NoSuchNamespace(ValueError):
    """Nothing is at the path that was given."""


class CannotEnter(NotSupported):
    """This Python cannot enter another namespace; the current one can be searched all the same."""


class NamespaceVanished(KernelError):
    """A namespace that was found has gone by the time it was to be entered."""


class NetworkNamespace(Value):
    """A network namespace: a name for people, a path to enter it by, and the (device, inode) of its nsfs file.

    It holds no descriptor, so it does not keep the namespace alive; device and inode are used again once it has gone.
    `cookie` is its own number (SO_NETNS_COOKIE, Linux 5.14), 0 where it is not known: `current` knows it, `from_path`
    and `from_pid` where the caller may enter, a discovered one does not. Two are equal if device and inode are, and the
    cookies where both are known. `started` tells which process a path below /proc/PID means: when it began, in clock
    ticks since the boot, 0 for another path. `alternate_paths` are tried if `path` no longer leads there, because its
    process has ended for example.
    """

    __slots__ = ("alternate_paths", "cookie", "device", "inode", "name", "path", "started")

    name: str
    path: str
    device: int
    inode: int
    alternate_paths: tuple[str, ...]
    cookie: int
    started: int

    def __init__(
        self,
        name: str,
        path: str,
        device: int,
        inode: int,
        alternate_paths: tuple[str, ...] = (),
        cookie: int = 0,
        started: int = 0,
    ) -> None:
        _check_type(str, name=name, path=path)
        _check_type(int, device=device, inode=inode, cookie=cookie, started=started)
        _check_type(tuple, alternate_paths=alternate_paths)
        self._set(name=name, path=path, device=device, inode=inode, alternate_paths=alternate_paths)
        self._set(cookie=cookie, started=started)

    @classmethod
    def current(cls) -> NetworkNamespace:
        """The calling thread's; its name is "current". It has neither path nor inode where /proc does not show them."""
        try:
            path = f"/proc/{os.readlink('/proc/thread-self')}/ns/net"  # the same in any thread
            device, inode = nsfs_id(path, None)
        except (OSError, NoSuchNamespace) as error:  # NoSuchNamespace: a kernel without network namespaces
            raise_if_exhausted(error, "look at the current network namespace")
            path, device, inode = "", 0, 0
        return cls(CURRENT_NAME, path, device, inode, cookie=_current_cookie(or_fail=False))

    @classmethod
    def from_path(cls, path: str, *, name: str | None = None) -> NetworkNamespace:
        """The one at a path such as /run/netns/NAME; its name is the last part of the path unless given.

        A path below /proc/PID means the process that has this pid now. Raises ValueError if no network namespace is
        there, KernelError if it cannot be looked at.
        """
        _check_type(str, path=path)
        device, inode = nsfs_id(path, cls.current().device or None)
        check_kind(path)
        found = cls(name or os.path.basename(path), path, device, inode, (), 0, start_time(path))
        try:
            cookie = run_in_netns(found, _current_cookie)
        except (NotPermitted, NotSupported):
            return found
        except NamespaceVanished:
            raise NoSuchNamespace(f"no network namespace at {path}") from None
        return cls(found.name, path, device, inode, (), cookie, found.started)

    @classmethod
    def from_pid(cls, pid: int) -> NetworkNamespace:
        """The one that a process is in. Raises as `from_path` does."""
        _check_type(int, pid=pid)
        return cls.from_path(f"/proc/{pid}/ns/net", name=f"pid {pid}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NetworkNamespace):
            return NotImplemented
        same_cookie = self.cookie == other.cookie or not (self.cookie and other.cookie)
        return (self.device, self.inode) == (other.device, other.inode) and same_cookie

    def __hash__(self) -> int:
        return hash((self.device, self.inode))

    def __repr__(self) -> str:
        return f"<NetworkNamespace {self.name} {self.path} inode={self.inode}>"


def _check_type(kind: type, **arguments: object) -> None:
    for name, value in arguments.items():
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{name} is {kind.__name__}, not {value!r}")


def run_in_netns(namespace: NetworkNamespace | None, function: Callable[[], T], *, thread_may_move: bool = False) -> T:
    """Call a function in a network namespace (None: the caller's), in a thread made for it.

    What the function opened stays in that namespace and can be used from any thread. The calling thread stays in its
    own, for it might not be allowed back, unless `thread_may_move`: then it enters the namespace and remains there.
    Raises KernelError if the namespace has vanished or cannot be entered, and what the function raises.
    """
    if namespace is None:
        return function()
    _check_namespace(namespace)
    if _is_current(namespace):
        return function()
    if thread_may_move:
        _enter(namespace)
        return function()
    other = namespace

    def enter_and_call() -> T:
        _enter(other)
        return function()

    return call_in_thread(enter_and_call)


def _check_namespace(namespace: object) -> None:
    if not isinstance(namespace, NetworkNamespace):
        raise TypeError(f"a namespace is a NetworkNamespace, not {namespace!r}")


def current_first(namespaces: Iterable[NetworkNamespace]) -> list[NetworkNamespace]:
    """Each namespace once, the caller's first: a thread that has left it may not be allowed back. Raises TypeError."""
    namespaces = list(namespaces)
    for namespace in namespaces:
        _check_namespace(namespace)
    current = NetworkNamespace.current()
    return sorted(dict.fromkeys(namespaces), key=lambda namespace: namespace != current)


def _is_current(namespace: NetworkNamespace) -> bool:
    """Whether the calling thread is in it already, which takes no privilege."""
    if not namespace.path:  # without /proc only the current one can be named
        return (namespace.name, namespace.inode) == (CURRENT_NAME, 0) and _has_current_cookie(namespace)
    try:
        status = os.stat(_CURRENT)
    except OSError:
        return False
    is_current = (status.st_dev, status.st_ino) == (namespace.device, namespace.inode)
    return is_current and _is_same_process(namespace) and _has_current_cookie(namespace)


def _is_same_process(namespace: NetworkNamespace) -> bool:
    return not namespace.started or start_time(namespace.path) == namespace.started


def _has_current_cookie(namespace: NetworkNamespace) -> bool:
    return not namespace.cookie or _current_cookie() in (0, namespace.cookie)


def _current_cookie(*, or_fail: bool = True) -> int:
    """The cookie of the calling thread's namespace; 0 where the kernel does not tell."""
    try:
        with closing(_socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)) as any_socket:
            return int.from_bytes(any_socket.getsockopt(_socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError as error:
        if or_fail:
            raise_if_exhausted(error, "ask for the cookie of a network namespace")
        return 0


def _enter(namespace: NetworkNamespace) -> None:
    descriptor = _open(namespace)
    try:
        _setns(descriptor, namespace)
    finally:
        os.close(descriptor)
    if not _has_current_cookie(namespace):
        raise _vanished(namespace, "another one has its inode now")


def _open(namespace: NetworkNamespace) -> int:
    """A descriptor of it, by the first of its paths that still leads there and may be opened."""
    vanished = []
    refused: Exception | None = None
    for path in (namespace.path, *namespace.alternate_paths):
        try:
            descriptor = os.open(path, _OPEN)
        except OSError as error:
            problem = _path_error(error, path)
            if isinstance(problem, NoSuchNamespace):
                vanished.append(f"nothing is at {path}")
            else:
                refused = refused or problem
            continue
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != (namespace.device, namespace.inode):
            vanished.append(f"{path} is another namespace now")
        elif path == namespace.path and not _is_same_process(namespace):  # asked after opening it
            vanished.append(f"{path} is of another process now")
        else:
            return descriptor
        os.close(descriptor)
    raise refused or _vanished(namespace, vanished[0])


def _vanished(namespace: NetworkNamespace, why: str) -> NamespaceVanished:
    return NamespaceVanished(errno.ESTALE, f"namespace {namespace.name} vanished: {why}")


def _setns(descriptor: int, namespace: NetworkNamespace) -> None:
    try:
        if hasattr(os, "setns"):
            os.setns(descriptor, CLONE_NEWNET)
        else:
            _call_libc("setns", descriptor, CLONE_NEWNET)
    except KernelError:
        raise
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise NotPermitted(
                error.errno,
                f"enter namespace {namespace.name}: it needs CAP_SYS_ADMIN in the user namespace that owns it and in "
                "the caller's own" + (" (or a security module forbids it)" if error.errno == errno.EACCES else ""),
            ) from None
        if error.errno == errno.EINVAL:
            raise ValueError(f"{namespace.path} is not a network namespace") from None
        raise KernelError(
            error.errno or 0, f"enter namespace {namespace.name}: {os.strerror(error.errno or 0)}"
        ) from None


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces (unshare(2)). Raises OSError, or NotSupported without ctypes."""
    if hasattr(os, "unshare"):
        os.unshare(flags)
    else:
        _call_libc("unshare", flags)


def _call_libc(name: str, *arguments: int) -> None:
    """os.setns and os.unshare came with Python 3.12; before, the C library is called."""
    try:
        import ctypes

        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (ImportError, OSError, AttributeError) as error:
        raise_if_exhausted(error, "import ctypes")
        raise CannotEnter(
            errno.ENOSYS, f"{name}: this Python has neither os.{name} (3.12 and newer) nor a working ctypes: {INSTALL}"
        ) from None
    if function(*map(ctypes.c_int, arguments)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


def nsfs_id(path: str, device: int | None) -> tuple[int, int]:
    """(device, inode) of the namespace at a path; `device`: that of nsfs, None if unknown. Its kind is not looked at.

    Raises ValueError if no namespace is there, KernelError if it cannot be looked at.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise _path_error(error, path) from None
    if device not in (None, status.st_dev):
        raise ValueError(f"{path} is not a network namespace")  # a pin that a restart has left behind, for example
    return status.st_dev, status.st_ino


def check_kind(path: str) -> None:
    """Raise ValueError for a namespace of another kind, where the kernel (4.11 and newer) can be asked."""
    from fcntl import ioctl  # few need it

    try:
        descriptor = os.open(path, _OPEN)
    except OSError as error:
        raise _path_error(error, path) from None
    try:
        kind = ioctl(descriptor, _NS_GET_NSTYPE)
    except OSError:
        return
    finally:
        os.close(descriptor)
    if kind != CLONE_NEWNET:
        raise ValueError(f"{path} is not a network namespace")


def _path_error(error: OSError, path: str) -> Exception:
    if error.errno in _NOT_THERE or (error.errno in (errno.EACCES, errno.EPERM) and _has_ended(path)):
        return NoSuchNamespace(f"no network namespace at {path}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(error.errno, f"open namespace {path}: {os.strerror(error.errno)}; {_why_refused(path)}")
    raise_if_exhausted(error, f"open namespace {path}")
    return KernelError(error.errno or 0, f"open namespace {path}: {os.strerror(error.errno or 0)}")


def _why_refused(path: str) -> str:
    """What is missing to look at a namespace that there is no permission to look at."""
    if not directory_of(path):
        return "search permission to the directories above it is missing, or a security module forbids it"
    if not has_capability(CAP_SYS_PTRACE):
        return "CAP_SYS_PTRACE is missing"
    return "its process has more capabilities, is in another user namespace, or a security module forbids it"


def _has_ended(path: str) -> bool:
    """Whether a process is gone whose namespace could not be looked at. proc_ns_get_link() answers EACCES both for one
    that ends while its link is followed, and for one that may not be looked at.
    """
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno in _NOT_THERE
    return False
