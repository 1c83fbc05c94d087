# SPDX-License-Identifier: MIT
"""Network namespaces: which one is which, and how to call a function in one."""

from __future__ import annotations

import errno
import os

from ..errors import KernelError, NotPermitted, NotSupported
from ..values import Value
from .threads import call_in_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h

_CURRENT = "/proc/thread-self/ns/net"  # /proc/self would be the main thread's
CURRENT_NAME = "current"

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ESRCH)  # ESRCH: a process that ended while its /proc was looked at


class NoSuchNamespace(ValueError):
    """Nothing is at the path that was given."""


class CannotEnter(NotSupported):
    """This Python cannot enter another namespace; the current one can be searched all the same."""


class NamespaceVanished(KernelError):
    """A namespace that was found has gone by the time it was to be entered."""


class NetworkNamespace(Value):
    """A network namespace: a name for people, a path to enter it by, and the (device, inode) of its nsfs file.

    Two are equal if device and inode are. It holds no descriptor, so it does not keep the namespace alive.
    `alternate_paths` are tried if `path` no longer leads there, because its process has ended for example.
    """

    __slots__ = ("alternate_paths", "device", "inode", "name", "path")

    name: str
    path: str
    device: int
    inode: int
    alternate_paths: tuple[str, ...]

    def __init__(self, name: str, path: str, device: int, inode: int, alternate_paths: tuple[str, ...] = ()) -> None:
        self._set(name=name, path=path, device=device, inode=inode, alternate_paths=alternate_paths)

    @classmethod
    def current(cls) -> NetworkNamespace:
        """The calling thread's; its name is "current". It has neither path nor inode where /proc does not show them."""
        try:
            path = f"/proc/{os.readlink('/proc/thread-self')}/ns/net"  # the same in any thread
            return cls(CURRENT_NAME, path, *nsfs_id(path, None))
        except (OSError, NoSuchNamespace):  # NoSuchNamespace: a kernel without network namespaces
            return cls(CURRENT_NAME, "", 0, 0)

    @classmethod
    def from_path(cls, path: str, *, name: str | None = None) -> NetworkNamespace:
        """The one at a path such as /run/netns/NAME; its name is the last part of the path unless given.

        Raises ValueError if no network namespace is there, KernelError if it cannot be looked at.
        """
        device, inode = nsfs_id(path, nsfs_device())
        _check_kind(path)
        return cls(name or os.path.basename(path), path, device, inode)

    @classmethod
    def from_pid(cls, pid: int) -> NetworkNamespace:
        """The one that a process is in. Raises as `from_path` does."""
        return cls.from_path(f"/proc/{pid}/ns/net", name=f"pid {pid}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NetworkNamespace):
            return NotImplemented
        return (self.device, self.inode) == (other.device, other.inode)

    def __hash__(self) -> int:
        return hash((self.device, self.inode))

    def __repr__(self) -> str:
        return f"<NetworkNamespace {self.name} {self.path} inode={self.inode}>"


def run_in_netns(namespace: NetworkNamespace | None, function: Callable[[], T], *, thread_may_move: bool = False) -> T:
    """Call a function in a network namespace (None: the caller's), in a thread made for it.

    What the function opened stays in that namespace and can be used from any thread. The calling thread stays in its
    own, for it might not be allowed back, unless `thread_may_move`: then it enters the namespace and remains there.
    Raises KernelError if the namespace has vanished or cannot be entered, and what the function raises.
    """
    if namespace is None or _is_current(namespace):
        return function()
    if thread_may_move:
        _enter(namespace)
        return function()
    other = namespace

    def enter_and_call() -> T:
        _enter(other)
        return function()

    return call_in_thread(enter_and_call)


def current_first(namespaces: Iterable[NetworkNamespace]) -> list[NetworkNamespace]:
    """Each namespace once, the caller's first: a thread that has left it may not be allowed back."""
    current = NetworkNamespace.current()
    return sorted(dict.fromkeys(namespaces), key=lambda namespace: namespace != current)


def _is_current(namespace: NetworkNamespace) -> bool:
    """Whether the calling thread is in it already, which takes no privilege."""
    if not namespace.path:
        return True
    try:
        status = os.stat(_CURRENT)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (namespace.device, namespace.inode)


def _enter(namespace: NetworkNamespace) -> None:
    descriptor = _open(namespace)
    try:
        _setns(descriptor, namespace)
    finally:
        os.close(descriptor)


def _open(namespace: NetworkNamespace) -> int:
    """A descriptor of it, by the first of its paths that still leads there and may be opened."""
    vanished = []
    refused: Exception | None = None
    for path in (namespace.path, *namespace.alternate_paths):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            problem = _path_error(error, path)
            if isinstance(problem, NoSuchNamespace):
                vanished.append(f"nothing is at {path}")
            else:
                refused = refused or problem
            continue
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) == (namespace.device, namespace.inode):
            return descriptor
        os.close(descriptor)
        vanished.append(f"{path} is another namespace now")
    if refused is not None:
        raise refused
    raise NamespaceVanished(errno.ESTALE, f"namespace {namespace.name} vanished: {vanished[0]}")


def _setns(descriptor: int, namespace: NetworkNamespace) -> None:
    try:
        if hasattr(os, "setns"):
            os.setns(descriptor, CLONE_NEWNET)
        else:
            _call_libc("setns", descriptor, CLONE_NEWNET)
    except NotSupported:
        raise
    except OSError as error:
        if error.errno == errno.EPERM:
            raise NotPermitted(
                error.errno,
                f"enter namespace {namespace.name}: it needs CAP_SYS_ADMIN in the user namespace that owns it and in "
                "the caller's own",
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
    except (ImportError, OSError, AttributeError):
        raise CannotEnter(
            errno.ENOSYS, f"{name}: this Python has neither os.{name} (3.12 and newer) nor a working ctypes"
        ) from None
    if function(*map(ctypes.c_int, arguments)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


def nsfs_device() -> int | None:
    """The device that every namespace file is on (nsfs); None without /proc, where it cannot be known."""
    try:
        return os.stat(_CURRENT).st_dev
    except OSError:
        return None


def nsfs_id(path: str, device: int | None) -> tuple[int, int]:
    """(device, inode) of the namespace at a path, `device` being that of nsfs. Its kind is not looked at.

    Raises ValueError if no namespace is there, KernelError if it cannot be looked at.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise _path_error(error, path) from None
    if device not in (None, status.st_dev):
        raise ValueError(f"{path} is not a network namespace")  # a pin that a restart has left behind, for example
    return status.st_dev, status.st_ino


def _check_kind(path: str) -> None:
    """Raise ValueError for a namespace of another kind, where the kernel (4.11 and newer) can be asked."""
    from fcntl import ioctl  # discovery does without

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
    if error.errno in _NOT_THERE or (error.errno == errno.EACCES and _has_ended(path)):
        return NoSuchNamespace(f"no network namespace at {path}")
    if error.errno in (errno.EACCES, errno.EPERM):
        need = "CAP_SYS_PTRACE, for a process of another user"
        if not path.startswith("/proc/"):
            need = "search permission to the directories above it (or a security module forbids it)"
        return NotPermitted(error.errno, f"open namespace {path}: not permitted: it needs {need}")
    return KernelError(error.errno or 0, f"open namespace {path}: {os.strerror(error.errno or 0)}")


def _has_ended(path: str) -> bool:
    """Whether a process is gone whose namespace could not be looked at. proc_ns_get_link() answers EACCES both for one
    that ends while its link is followed, and for one that may not be looked at.
    """
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno in _NOT_THERE
    return False
