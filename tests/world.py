"""A world of the test run's own: new network, mount and pid namespaces, with their own /proc and /run.

Nothing of the host can be seen from inside, let alone destroyed. Rootless, in a user namespace; root makes do without
one where it may. The run moves there by executing pytest anew, for only a child is in a new pid namespace.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_MS_BIND = 0x1000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1

_TEMPORARY_ROOT = "PYTEST_DEBUG_TEMPROOT"  # of pytest: where tmp_path is
_INSIDE = "SOCKLB_TEST_WORLD"
_NO_WORLD = 97  # the exit status of a child that could not get there

_libc = ctypes.CDLL(None, use_errno=True)


def is_inside() -> bool:
    return os.environ.get(_INSIDE) == "1"


def temporary_root() -> str:
    """Of the run that is inside."""
    return os.environ[_TEMPORARY_ROOT]


def cannot(why: str) -> NoReturn:
    """Skip the test that is running, or fail it where the kernel is required."""
    import pytest  # not needed by the benchmarks

    if os.environ.get("SOCKLB_REQUIRE_KERNEL") == "1":
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


def run_inside(arguments: Sequence[str], module: str = "pytest") -> tuple[int | None, str]:
    """Run a module with these arguments in a new world: (exit status, ""), or (None, why there can be no world)."""
    with _own_temporary_root() as root:
        reader, writer = os.pipe()
        parent = os.getpid()
        child = os.fork()
        if not child:
            os.close(reader)
            _become_world([module, *arguments], root, writer, parent)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            why = pipe.read()
        code, told_to_end = _exit_code_of(child, signal.SIGTERM)
    if told_to_end:
        os.kill(os.getpid(), told_to_end)
    return (None, why) if code == _NO_WORLD else (code, "")


@contextmanager
def _own_temporary_root() -> Iterator[str]:
    """A place for tmp_path, unless somebody named one; in the end it is removed.

    Not pytest's own, which it names by the user: inside everybody is root.
    """
    if _TEMPORARY_ROOT in os.environ:
        yield temporary_root()
        return
    made = tempfile.mkdtemp(prefix="socklb-tests-")
    try:
        yield made
    finally:
        remove_tree(made)


def remove_tree(directory: str) -> None:
    """With the directories that nobody but root may enter, as who made them was, inside."""
    for parent, names, _ in os.walk(directory):
        for path in (os.path.join(parent, name) for name in names):
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(directory)


def _exit_code_of(child: int, stop: signal.Signals) -> tuple[int, int]:
    """Wait for its end: how it ended, and the signal by which this process was to end meanwhile, or 0.

    Such a signal stops the child. An interrupt from the terminal reaches the run itself, which has something to say
    about it.
    """
    came = [0]

    def pass_on(number: int, _: object) -> None:
        came.append(number)
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(child, stop)

    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            before[number] = signal.signal(number, pass_on)
    _, status = os.waitpid(child, 0)
    for number, handler in before.items():
        signal.signal(number, handler)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status), came[-1]


def _become_world(module: Sequence[str], root: str, writer: int, parent: int) -> None:
    """In the child: never returns."""
    try:
        os.environ[_TEMPORARY_ROOT] = root
        _unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID)
        _die_with_parent()  # so that a run that is killed takes its world with it
        if os.getppid() != parent:
            os._exit(_NO_WORLD)  # it was killed before
        grandchild = os.fork()
        if grandchild:
            os.close(writer)
            # The first process of a pid namespace heeds no other signal, and its end is that of all in there.
            os._exit(_exit_code_of(grandchild, signal.SIGKILL)[0])
        _die_with_parent()
        private_mounts()
        mount("proc", "/proc")
        mount("tmpfs", "/run")
        loopback_up()
        os.environ[_INSIDE] = "1"
        if sys.dont_write_bytecode:
            _keep_bytecode_in(root)
        os.set_inheritable(writer, False)
        os.execv(sys.executable, [sys.executable, "-m", *module])
    except BaseException as error:
        os.write(writer, str(error).encode())
        os._exit(_NO_WORLD)


def _keep_bytecode_in(directory: str) -> None:
    """Where none may be left beside the source: or each of many processes would compile everything anew."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or -B said so
    os.environ["PYTHONPYCACHEPREFIX"] = os.path.join(directory, "pycache")


def _unshare(flags: int) -> None:
    """As root directly, else in a user namespace in which one's own id is root's."""
    if os.geteuid() == 0:
        try:
            unshare(flags)
        except OSError:
            pass  # root without CAP_SYS_ADMIN, in a container
        else:
            return
    become(0, flags)


def become(uid: int, flags: int = 0) -> None:
    """Enter a user namespace of one's own, with others it owns, in which one is this user and has every capability."""
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


def mount(type: str, directory: str) -> None:
    """A file system that needs no device, in the mount namespace of the caller."""
    _call("mount", type.encode(), os.fsencode(directory), type.encode(), 0, None)


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


def _die_with_parent() -> None:
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)


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
