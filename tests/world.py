"""A world for the test run: new network, mount and pid namespaces, with their own /proc, /run and /dev/shm.

Nothing of the host can be seen from inside, let alone destroyed, and whatever is left behind in it ends with it. An
ordinary user gets a user namespace too; root needs none where it has CAP_SYS_ADMIN.

python -m tests.world PROGRAM [ARGUMENT ...]      run any program in one: a shell, a debugger, pytest
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_MS_BIND = 0x1000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1

_INSIDE = "SOCKLB_TEST_WORLD"
_TEMPORARY = "/dev/shm"  # a new tmpfs there needs no cleaning up, however the run ends

why_none = ""
"""Why this process is not in a world."""

_libc = ctypes.CDLL(None, use_errno=True)


def is_inside() -> bool:
    return os.environ.get(_INSIDE) == "1"


def cannot(why: str, required: str = "SOCKLB_REQUIRE_KERNEL") -> NoReturn:
    """Skip the test that is running, or fail it where the kernel is required, or what another variable is for."""
    import pytest  # not needed by the benchmarks

    if os.environ.get(required) == "1":
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


def enter() -> bool:
    """Continue in a new world: returns True in a fork of this process, which itself waits for it and exits as it does.

    Only a child can be in a new pid namespace. Returns False, in this process, if there can be no world: `why_none`.
    """
    global why_none
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            _unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID)
            _die_with_parent()
            first = os.fork()
            if first:
                os.close(writer)
                _exit_like(first)
            _die_with_parent()
            _furnish()
        except OSError as error:
            os.write(writer, str(error).encode())
            os._exit(1)
        os.close(writer)
        return True
    os.close(writer)
    with os.fdopen(reader) as pipe:
        why_none = pipe.read()
    if not why_none:
        _exit_like(child)
    os.waitpid(child, 0)
    return False


def _exit_like(child: int) -> NoReturn:
    """Wait, and exit with the same code. An interrupt from the terminal is the child's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def _die_with_parent() -> None:
    """So that nothing survives a run that is killed. New credentials (a user namespace) undo this."""
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)


def _furnish() -> None:
    """Mount what the world has of its own, and bring loopback up."""
    private_mounts()
    mount("proc", "/proc")
    mount("tmpfs", "/run")
    loopback_up()
    if not is_inside():  # in a world within a world the temporary files of the outer one are in use
        mount("tmpfs", _TEMPORARY)
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", _TEMPORARY)  # pytest's: where tmp_path is
        os.environ[_INSIDE] = "1"
    if sys.dont_write_bytecode:  # keep it out of the source tree, but do not let every process compile everything
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = f"{_TEMPORARY}/pycache"


def _unshare(flags: int) -> None:
    """Directly as root, else in a user namespace where the caller's id is root's."""
    if os.geteuid() == 0:
        try:
            unshare(flags)
        except OSError:
            pass  # root without CAP_SYS_ADMIN, in a container
        else:
            return
    become(0, flags)


def become(uid: int, flags: int = 0) -> None:
    """Enter a new user namespace, with other namespaces that it owns, as this user with every capability."""
    own_uid, own_gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {own_uid} 1"), ("gid_map", f"{uid} {own_gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def unshare(flags: int) -> None:
    _call("unshare", flags)


def private_mounts() -> None:
    """What is mounted from now on in this mount namespace shows in no other."""
    _call("mount", b"none", b"/", None, _MS_REC_PRIVATE, None)


def mount(type: str, directory: str, options: str = "") -> None:
    """A file system that needs no device, in the mount namespace of the caller."""
    _call("mount", type.encode(), os.fsencode(directory), type.encode(), 0, options.encode())


def unmount(directory: str) -> None:
    _call("umount", os.fsencode(directory))


def bind(path: str, target: str, flags: int = 0) -> None:
    """Mount what is at a path, a namespace for one, over a file; a directory over another."""
    _call("mount", os.fsencode(path), os.fsencode(target), None, _MS_BIND | flags, None)


def pivot_root(directory: str) -> None:
    """Make a mount point the root; the old one is gone from sight and from the mount namespace."""
    os.chdir(directory)
    _call("pivot_root", b".", b".")  # the old root then lies on top of the new one: pivot_root(2)
    _call("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH22x", b"lo", 0)
        _, flags = struct.unpack("16sH22x", fcntl.ioctl(any_socket, 0x8913, request))
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH22x", b"lo", flags | 1))
        # A network whose addresses mean the same everywhere, unlike 127.0.0.0/8: 10.9.0.0/16.
        for number, value in ((0x8916, "10.9.0.1"), (0x891C, "255.255.0.0")):
            packed = socket.inet_aton(value)
            fcntl.ioctl(any_socket, number, struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, packed))


def new_network() -> None:
    """Move the calling thread into a fresh network namespace, loopback up."""
    unshare(CLONE_NEWNET)
    loopback_up()


def enter_network() -> None:
    """Move this process into a network namespace of its own, as `enter` does, without pids and mounts."""
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


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    if not enter():
        sys.exit(f"no new namespaces here: {why_none}")
    os.execvp(sys.argv[1], sys.argv[1:])
