# SPDX-License-Identifier: MIT
"""Network namespaces: what they are, and how to do something inside one."""

from __future__ import annotations

import errno
import os
from _thread import _local  # threading.local, without importing that

from ..errors import KernelError, NotPermitted, NotSupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from .discovery import Namespaces

    T = TypeVar("T")

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h

_CURRENT = "/proc/thread-self/ns/net"  # /proc/self would be the main thread's
HOST_NAME = "host"

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ESRCH)  # ESRCH: a process that ended while its /proc was looked at


class NoSuchNamespace(ValueError):
    """Nothing is at the path that was given."""


class CannotEnter(NotSupported):
    """This Python can enter no other namespace; the current one can be searched all the same."""


class NamespaceVanished(KernelError):
    """A namespace that was there when it was looked for, and is not when it is to be entered."""


class NetworkNamespace:
    """A network namespace: a name for people, a path it can be entered by, and (device, inode), which say who it is.

    Two are equal when device and inode are. It holds no descriptor, so that it keeps nothing alive.
    """

    __slots__ = ("device", "inode", "name", "path", "ways_in")

    def __init__(self, name: str, path: str, device: int, inode: int, ways_in: tuple[str, ...] = ()) -> None:
        """`ways_in` are further paths, for the case that `path` is gone when it is needed: a process ended, for one."""
        self.name, self.path, self.device, self.inode = name, path, device, inode
        self.ways_in = ways_in

    @classmethod
    def current(cls) -> NetworkNamespace:
        """The one of the calling thread; its name is "host". Without /proc it has neither path nor inode."""
        try:
            path = f"/proc/{os.readlink('/proc/thread-self')}/ns/net"  # means the same to every thread
        except OSError:
            return cls(HOST_NAME, "", 0, 0)
        return cls.from_path(path, name=HOST_NAME)

    @classmethod
    def from_path(cls, path: str, *, name: str | None = None) -> NetworkNamespace:
        """The one that a file such as /run/netns/NAME stands for.

        Raises ValueError if there is none, KernelError if it cannot be looked at.
        """
        device, inode = identity(path)
        _check_kind(path)
        return cls(name or os.path.basename(path), path, device, inode)

    @classmethod
    def from_pid(cls, pid: int) -> NetworkNamespace:
        """The one that a process is in."""
        return cls.from_path(f"/proc/{pid}/ns/net", name=f"pid {pid}")

    @staticmethod
    def discover() -> Namespaces:
        """Every namespace of the host that can be seen, each once, one's own first.

        From the processes in /proc and their threads, the directories where namespaces are pinned, and the mounts.
        What vanished meanwhile or may not be looked at is in `.skipped` of the result, as (path, reason). One that
        nothing but an open descriptor, a socket or a mount in another mount namespace keeps alive cannot be seen.
        """
        from .discovery import discover  # which makes namespaces itself

        return discover()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NetworkNamespace):
            return NotImplemented
        return (self.device, self.inode) == (other.device, other.inode)

    def __hash__(self) -> int:
        return hash((self.device, self.inode))

    def __repr__(self) -> str:
        return f"<NetworkNamespace {self.name} {self.path} inode={self.inode}>"


_this_thread = _local()


def let_this_thread_move() -> None:
    """This thread was made to go from namespace to namespace: `inside` need not make another one for each."""
    _this_thread.may_move = True


def inside(namespace: NetworkNamespace | None, function: Callable[[], T]) -> T:
    """Call a function in a network namespace (None: where the caller is), in a thread made for it.

    What the function opened stays in that namespace and can be used from anywhere. Raises KernelError if the
    namespace vanished or cannot be entered, and what the function raises.
    """
    if namespace is None or _is_current(namespace):
        return function()
    if getattr(_this_thread, "may_move", False):
        _enter(namespace)
        return function()
    from threading import Thread  # only other namespaces need one

    from ..engine.parallel import start

    results: list[T] = []
    errors: list[BaseException] = []

    def enter_and_call() -> None:
        try:
            _enter(namespace)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=enter_and_call, name=f"socklb in {namespace.name}")
    start(thread)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _is_current(namespace: NetworkNamespace) -> bool:
    """Whether the calling thread is there already, and needs no privilege to be."""
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
    for path in (namespace.path, *namespace.ways_in):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _NOT_THERE:
                vanished.append(f"nothing is at {path}")
            else:
                refused = refused or _path_error(error, path)
            continue
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) == (namespace.device, namespace.inode):
            return descriptor
        os.close(descriptor)
        vanished.append(f"{path} is another one now")
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
                "one's own",
            ) from None
        if error.errno == errno.EINVAL:
            raise ValueError(f"{namespace.path} is no network namespace") from None
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
    """os.setns and os.unshare came with Python 3.12; before, the C library has to be asked."""
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


def identity(path: str) -> tuple[int, int]:
    """The (device, inode) of what is at a path. Raises as `NetworkNamespace.from_path` does, kinds left aside."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise _path_error(error, path) from None
    if not _is_of_nsfs(status):
        raise ValueError(f"{path} is no network namespace")  # what is left of one after a restart, for one
    return status.st_dev, status.st_ino


def _check_kind(path: str) -> None:
    """Raises ValueError for a namespace of another kind, where the kernel (4.11 and newer) can be asked."""
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
        raise ValueError(f"{path} is no network namespace")


def _is_of_nsfs(status: os.stat_result) -> bool:
    """Every namespace is on the same device as one's own; without /proc nobody can tell."""
    try:
        return status.st_dev == os.stat(_CURRENT).st_dev
    except OSError:
        return True


def _path_error(error: OSError, path: str) -> Exception:
    if error.errno in _NOT_THERE:
        return NoSuchNamespace(f"no network namespace at {path}")
    if error.errno in (errno.EACCES, errno.EPERM):
        need = "CAP_SYS_PTRACE, for a process of another user" if path.startswith("/proc/") else "another permission"
        return NotPermitted(error.errno, f"open namespace {path}: not permitted: it needs {need}")
    return KernelError(error.errno or 0, f"open namespace {path}: {os.strerror(error.errno or 0)}")
