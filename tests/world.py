"""A world of the test run's own: new network, mount and pid namespaces, with their own /proc and /run.

Nothing of the host can be seen from inside, let alone destroyed. Rootless, in a user namespace; root makes do without
one where it may. The run moves there by executing pytest anew, for only a child is in a new pid namespace.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_MS_BIND = 0x1000

_INSIDE = "SOCKLB_TEST_WORLD"
_NO_WORLD = 97  # the exit status of a child that could not get there

_libc = ctypes.CDLL(None, use_errno=True)


def is_inside() -> bool:
    return os.environ.get(_INSIDE) == "1"


def run_inside(arguments: Sequence[str]) -> tuple[int | None, str]:
    """Run pytest with these arguments in a new world: (exit status, ""), or (None, why there can be no world)."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _become_world(arguments, writer)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        why = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    return (None, why) if code == _NO_WORLD else (code, "")


def _become_world(arguments: Sequence[str], writer: int) -> None:
    """In the child: never returns."""
    try:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", _temporary_root())
        _unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID)
        grandchild = os.fork()
        if grandchild:
            os.close(writer)
            _, status = os.waitpid(grandchild, 0)
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
        _call("mount", b"none", b"/", None, _MS_REC_PRIVATE, None)
        mount("proc", "/proc")
        mount("tmpfs", "/run")
        loopback_up()
        os.environ[_INSIDE] = "1"
        os.set_inheritable(writer, False)
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])
    except BaseException as error:
        os.write(writer, str(error).encode())
        os._exit(_NO_WORLD)


def _temporary_root() -> str:
    """A place for tmp_path by the uid outside: inside everybody is root, and pytest names its own place by that."""
    path = os.path.join(tempfile.gettempdir(), f"socklb-tests-of-{os.geteuid()}")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def _unshare(flags: int) -> None:
    """As root directly, else in a user namespace in which one's own id is root's."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        try:
            unshare(flags)
        except OSError:
            pass  # root without CAP_SYS_ADMIN, in a container
        else:
            return
    unshare(flags | CLONE_NEWUSER)
    _map_ids(uid, gid)


def _map_ids(uid: int, gid: int) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def unshare(flags: int) -> None:
    _call("unshare", flags)


def mount(type: str, directory: str) -> None:
    """A file system that needs no device, in the mount namespace of the caller."""
    _call("mount", type.encode(), os.fsencode(directory), type.encode(), 0, None)


def bind(path: str, target: str) -> None:
    """Mount what is at a path, a namespace for one, over a file."""
    _call("mount", os.fsencode(path), os.fsencode(target), None, _MS_BIND, None)


def unmount(directory: str) -> None:
    _call("umount", os.fsencode(directory))


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def loopback_up() -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH22x", b"lo", 0)
        _, flags = struct.unpack("16sH22x", fcntl.ioctl(any_socket, 0x8913, request))
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH22x", b"lo", flags | 1))


def new_network() -> None:
    """Move the calling thread into a fresh network namespace, loopback up."""
    unshare(CLONE_NEWNET)
    loopback_up()


def enter_network() -> None:
    """Move this process into a network namespace of its own, as `run_inside` does, without pids and mounts."""
    _unshare(CLONE_NEWNET)
    loopback_up()


@contextmanager
def small_disk(path: str, size: int) -> Iterator[None]:
    """Meanwhile a file system of so many bytes (of whole pages) is mounted there."""
    _call("mount", b"none", path.encode(), b"tmpfs", 0, f"size={size}".encode())
    try:
        yield
    finally:
        _call("umount2", path.encode(), 0)


def drop_privilege() -> None:
    """For `preexec_fn`: a user namespace of its own, which owns nothing, above all not the network namespace."""
    unshare(CLONE_NEWUSER)
