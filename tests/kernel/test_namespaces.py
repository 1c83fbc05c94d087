"""Network namespaces: which one is which, and what happens in one."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from socklb import KernelError, NetworkNamespace, NotPermitted, NotSupported, SocketFilter, find_sockets
from socklb.kernel import namespaces
from socklb.kernel.namespaces import CLONE_NEWNET, run_in_netns, unshare

from .. import this_kernel, world
from ..capabilities import with_only
from ..sockets import Sockets, in_child, no_thread_lingers, reused_pid, without_privilege

CURRENT = "/proc/thread-self/ns/net"


@contextmanager
def pinned() -> Iterator[str]:
    """A path of the current network namespace that stays its own when the thread moves on."""
    descriptor = os.open(CURRENT, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextmanager
def elsewhere() -> Iterator[NetworkNamespace]:
    """A namespace that the thread was in, and is no longer."""
    with pinned() as path:
        other = NetworkNamespace.from_path(path, name="other")
        world.new_network()
        yield other


def needs_numbers() -> None:
    this_kernel.needs(this_kernel.numbers_namespaces, "gives namespaces no numbers", since=(5, 14))


class TestIdentity:
    """(device, inode) tell namespaces apart, whatever their names and paths."""

    def test_current_is_the_thread_s_own(self) -> None:
        current, status = NetworkNamespace.current(), os.stat(CURRENT)
        assert (current.name, current.device, current.inode) == ("current", status.st_dev, status.st_ino)

    def test_one_namespace_has_many_names(self) -> None:
        names = [
            NetworkNamespace.current(),
            NetworkNamespace.from_pid(os.getpid()),
            NetworkNamespace.from_path("/proc/self/ns/net"),
            NetworkNamespace.from_path(CURRENT, name="mine"),
        ]
        assert [one.name for one in names] == ["current", f"pid {os.getpid()}", "net", "mine"]
        assert len(set(names)) == 1
        assert all(one == names[0] for one in names)

    def test_another_device_or_inode_is_another_namespace(self) -> None:
        one = NetworkNamespace("n", "/p", 4, 1000)
        assert one == NetworkNamespace("other name", "/other/path", 4, 1000)
        assert len({one, NetworkNamespace("n", "/p", 4, 1001), NetworkNamespace("n", "/p", 5, 1000)}) == 3
        assert one != (4, 1000)

    def test_another_cookie_is_another_namespace_where_both_are_known(self) -> None:
        one, other, unknown = (NetworkNamespace("n", "/p", 4, 1000, (), cookie) for cookie in (7, 8, 0))
        assert one != other
        assert one == unknown == other
        assert len({hash(one), hash(other), hash(unknown)}) == 1

    @pytest.mark.kernel
    def test_a_dead_one_is_not_the_one_that_has_its_inode_now(self, network: None) -> None:
        needs_numbers()
        with elsewhere() as dead:
            pass
        kept: list[NetworkNamespace] = []

        def is_reused() -> bool:
            world.new_network()
            kept[:] = [NetworkNamespace.current()]
            return kept[0].inode == dead.inode

        if not any(is_reused() for _ in range(500)):
            pytest.skip("the inode of a namespace that has gone was not given to another one")
        assert kept[0] != dead
        as_if = NetworkNamespace(dead.name, kept[0].path, dead.device, dead.inode, (), dead.cookie)
        with pytest.raises(KernelError, match="vanished: another one has its inode now"):
            run_in_netns(as_if, lambda: pytest.fail("entered the wrong one"))

    @pytest.mark.kernel
    def test_who_may_enter_knows_the_cookie(self, network: None) -> None:
        needs_numbers()
        here = NetworkNamespace.current().cookie
        assert here == NetworkNamespace.from_pid(os.getpid()).cookie > 0
        with elsewhere() as other:
            assert other.cookie == here != NetworkNamespace.current().cookie
            assert without_privilege(lambda: NetworkNamespace.from_path(other.path)).cookie == 0

    def test_it_is_immutable(self) -> None:
        one = NetworkNamespace("n", "/p", 4, 1000)
        for name in (*one.__slots__, "other"):
            with pytest.raises(AttributeError):
                setattr(one, name, 1)

    def test_where_proc_does_not_show_it_current_has_neither_path_nor_inode(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without /proc, or on a kernel without network namespaces; it can be searched all the same."""

        def missing(path: str, **_: object) -> str:
            raise FileNotFoundError(errno.ENOENT, path)

        for call in ("stat", "readlink"):
            with monkeypatch.context() as patched:
                patched.setattr(os, call, missing)
                current = NetworkNamespace.current()
                assert (current.name, current.path, current.device, current.inode) == ("current", "", 0, 0)
                assert run_in_netns(current, threading.get_ident) == threading.get_ident()

    @pytest.mark.kernel
    def test_a_fresh_one_is_another_one(self, network: None) -> None:
        with elsewhere() as other:
            assert other != NetworkNamespace.current()

    @pytest.mark.kernel
    def test_nothing_keeps_it_alive(self, network: None) -> None:
        before = os.listdir("/proc/self/fd")
        kept = NetworkNamespace.current()
        run_in_netns(kept, lambda: None)
        assert os.listdir("/proc/self/fd") == before


class TestWrongPaths:
    """What is not a network namespace is ValueError, what may not be looked at KernelError."""

    def test_nothing_there(self, tmp_path: Path) -> None:
        for path in (tmp_path / "missing", tmp_path / "missing" / "deeper", Path("/proc/self/stat/net")):
            with pytest.raises(ValueError, match=f"no network namespace at {path}"):
                NetworkNamespace.from_path(str(path))

    @pytest.mark.parametrize(
        "call",
        [
            pytest.param(lambda path, _: NetworkNamespace.from_path(path), id="while it is looked at"),
            pytest.param(
                lambda path, one: run_in_netns(NetworkNamespace("n", path, one.device, one.inode + 1), lambda: None),
                id="before it is entered",
            ),
        ],
    )
    def test_a_fifo_that_takes_its_place_is_not_waited_for(
        self,
        network: None,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        call: Callable[[str, NetworkNamespace], object],
    ) -> None:
        here = NetworkNamespace.current()
        fifo = str(tmp_path / "fifo")
        os.mkfifo(fifo)

        def look() -> str:
            signal.alarm(10)
            with pytest.raises((KernelError, ValueError)) as caught:
                call(fifo, here)
            return str(caught.value)

        monkeypatch.setattr(namespaces, "nsfs_id", lambda *_: (here.device, here.inode + 1))

        assert "fifo" in in_child(look)

    @pytest.mark.parametrize(
        "call",
        [
            pytest.param(lambda: NetworkNamespace.from_path(10**30), id="number"),  # type: ignore[arg-type]
            pytest.param(lambda: NetworkNamespace.from_path(b"/proc/self/ns/net"), id="bytes"),  # type: ignore[arg-type]
            pytest.param(lambda: NetworkNamespace.from_pid("self"), id="word"),  # type: ignore[arg-type]
            pytest.param(lambda: NetworkNamespace.from_pid(True), id="bool"),
            pytest.param(lambda: NetworkNamespace("n", None, 4, 1000), id="no-path"),  # type: ignore[arg-type]
            pytest.param(lambda: NetworkNamespace("n", "/p", 4, "1000"), id="inode"),  # type: ignore[arg-type]
            pytest.param(lambda: NetworkNamespace("n", "/p", 4, 1000, "/q"), id="paths"),  # type: ignore[arg-type]
            pytest.param(lambda: run_in_netns("all", lambda: None), id="name"),  # type: ignore[arg-type]
        ],
    )
    def test_a_wrong_type(self, call: Callable[[], object]) -> None:
        with pytest.raises(TypeError, match=r" is (a )?(str|int|tuple|NetworkNamespace), not "):
            call()

    @pytest.mark.parametrize("pid", [-1, 10**30, 10**300], ids=["negative", "large", "longer than a name"])
    def test_a_number_that_no_process_has(self, pid: int) -> None:
        with pytest.raises(ValueError, match="no network namespace at /proc/"):
            NetworkNamespace.from_pid(pid)

    def test_no_such_process(self) -> None:
        with pytest.raises(ValueError, match="no network namespace at /proc/0/ns/net"):
            NetworkNamespace.from_pid(0)

    def test_an_ordinary_file_such_as_an_unmounted_one_in_run_netns(self, tmp_path: Path) -> None:
        (tmp_path / "stale").touch()
        for path in (tmp_path / "stale", tmp_path):
            with pytest.raises(ValueError, match="is not a network namespace"):
                NetworkNamespace.from_path(str(path))

    @pytest.mark.kernel
    def test_a_namespace_of_another_kind(self) -> None:
        with pytest.raises(ValueError, match="/proc/self/ns/mnt is not a network namespace"):
            NetworkNamespace.from_path("/proc/self/ns/mnt")

    @pytest.mark.kernel
    def test_a_kernel_that_knows_no_kinds_refuses_when_it_is_entered(self) -> None:
        """Before Linux 4.11."""
        status = os.stat("/proc/self/ns/mnt")
        mounts = NetworkNamespace("mnt", "/proc/self/ns/mnt", status.st_dev, status.st_ino)
        with pytest.raises(ValueError, match="/proc/self/ns/mnt is not a network namespace"):
            run_in_netns(mounts, lambda: None)

    def test_a_loop_of_links(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(KernelError) as caught:
            NetworkNamespace.from_path(str(tmp_path / "loop"))
        assert caught.value.errno == errno.ELOOP

    @pytest.mark.kernel
    @pytest.mark.parametrize(
        ("drop", "why"),
        [
            (with_only(), "CAP_SYS_PTRACE is missing"),
            (
                world.drop_privilege,  # it has every capability, and is root of another user namespace
                "its process has more capabilities, is in another user namespace, or a security module forbids it",
            ),
        ],
        ids=["no-capability", "those-of-another-user-namespace"],
    )
    def test_another_s_process(self, drop: Callable[[], None], why: str) -> None:
        def look() -> tuple[int | None, str]:
            with pytest.raises(NotPermitted) as caught:
                NetworkNamespace.from_pid(1)
            return caught.value.errno, str(caught.value.strerror)

        assert in_child(look, drop) == (errno.EACCES, f"open namespace /proc/1/ns/net: Permission denied; {why}")


@pytest.mark.kernel
class TestRunInNetns:
    """A function is called in the namespace, in a thread made for it; the caller stays where it was."""

    def test_a_thread_made_for_it_is_there_and_the_caller_is_not(self, network: None) -> None:
        with elsewhere() as other:
            here = NetworkNamespace.current()
            there, thread = run_in_netns(other, lambda: (NetworkNamespace.current(), threading.get_ident()))
            assert (there, NetworkNamespace.current()) == (other, here)
            assert thread != threading.get_ident()
            no_thread_lingers()
            assert there.path != NetworkNamespace.current().path, "a path is the same for every thread"

    def test_what_was_opened_there_stays_there(self, sockets: Sockets) -> None:
        there = sockets.udp("127.0.0.1", 4000)
        with elsewhere() as other:
            here = sockets.udp("127.0.0.1", 5000)
            filter = SocketFilter("udp", family=socket.AF_INET)
            streamed = find_sockets(filter, namespace=other)
            assert [one.sport for one in streamed] == [there.getsockname()[1]]
            assert [one.sport for one in find_sockets(filter)] == [here.getsockname()[1]]

    @pytest.mark.parametrize("error", [KeyError("x"), KernelError(errno.EIO, "x"), KeyboardInterrupt()], ids=repr)
    def test_exceptions_travel(self, network: None, error: BaseException) -> None:
        def fail() -> None:
            raise error

        with elsewhere() as other, pytest.raises(type(error)) as caught:
            run_in_netns(other, fail)
        assert caught.value is error

    def test_the_current_one_needs_no_thread_and_no_privilege(self) -> None:
        here = NetworkNamespace.current()
        assert {run_in_netns(one, threading.get_ident) for one in (None, here)} == {threading.get_ident()}
        assert without_privilege(lambda: len(list(find_sockets(SocketFilter("tcp"), namespace=here)))) >= 0

    def test_entering_one_without_privilege_names_the_capability(self, network: None) -> None:
        def enter() -> tuple[str, list[str]]:
            called: list[str] = []
            with pytest.raises(NotPermitted) as caught:
                run_in_netns(other, lambda: called.append("called"))
            return str(caught.value), called

        with elsewhere() as other:
            text, called = without_privilege(enter)
        assert f"enter namespace {other.name}" in text
        assert "CAP_SYS_ADMIN" in text
        assert called == []


@pytest.mark.kernel
class TestVanished:
    """After opening one, fstat must agree with the (device, inode) that was seen before, else it is vanished."""

    def vanished(self, namespace: NetworkNamespace) -> str:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(KernelError, match=f"namespace {namespace.name} vanished") as caught:
            run_in_netns(namespace, lambda: pytest.fail("entered the wrong one"))
        assert caught.value.errno == errno.ESTALE
        assert os.listdir("/proc/self/fd") == before
        return str(caught.value)

    @pytest.mark.parametrize("here", [True, False], ids=["current", "elsewhere"])
    def test_another_cookie(self, network: None, here: bool) -> None:
        needs_numbers()
        with elsewhere() as other:
            real = NetworkNamespace.current() if here else other
            stale = NetworkNamespace("n", real.path, real.device, real.inode, (), real.cookie + 1)
            assert "another one has its inode now" in self.vanished(stale)

    def test_a_pid_that_another_process_has_now(self, network: None) -> None:
        """Even if that one is in the same namespace, for whoever was named is gone."""
        with pinned() as here:
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as named:
                namespace = NetworkNamespace.from_pid(named.pid)
            with reused_pid(named.pid):
                assert NetworkNamespace.from_pid(named.pid) == NetworkNamespace.from_path(here)
                assert "of another process now" in self.vanished(namespace)
                world.new_network()
                assert "of another process now" in self.vanished(namespace)

    @pytest.mark.parametrize(
        "fields",
        [("other", "", 0, 0), ("current", "", 4, 1000), ("current", "", 0, 0, (), 1)],
        ids=["name", "inode", "cookie"],
    )
    def test_one_without_a_path_is_not_the_current_one(self, network: None, fields: tuple[Any, ...]) -> None:
        if fields[5:]:
            needs_numbers()
        self.vanished(NetworkNamespace(*fields))

    def test_a_path_that_leads_to_another_one_now(self, network: None, tmp_path: Path) -> None:
        link = tmp_path / "link"
        with pinned() as old:
            link.symlink_to(old)
            namespace = NetworkNamespace.from_path(str(link))
            world.new_network()
            link.unlink()
            link.symlink_to("/proc/thread-self/ns/net")
            assert "is another namespace now" in self.vanished(namespace)

    def test_a_path_where_nothing_is_any_more(self, network: None) -> None:
        with pinned() as path:
            namespace = NetworkNamespace.from_path(path)
        world.new_network()
        assert "nothing is at" in self.vanished(namespace)

    def test_a_path_that_may_no_longer_be_opened_did_not_vanish(
        self, network: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> int:
            raise PermissionError(errno.EACCES, "open")

        with elsewhere() as other:
            monkeypatch.setattr(os, "open", refuse)
            with pytest.raises(NotPermitted, match="open namespace") as caught:
                run_in_netns(other, lambda: None)
        assert caught.value.errno == errno.EACCES


@pytest.fixture(params=["os", "ctypes"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 and newer can by themselves; before, the C library is asked. Either way on every Python."""
    if request.param == "ctypes":
        monkeypatch.delattr(os, "setns", raising=False)
        monkeypatch.delattr(os, "unshare", raising=False)
        return
    if not hasattr(os, "setns"):
        for name in ("setns", "unshare"):
            monkeypatch.setattr(os, name, system_call(name), raising=False)
    monkeypatch.setitem(sys.modules, "ctypes", None)


def system_call(name: str) -> Callable[..., None]:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)

    def call(*arguments: int) -> None:
        if function(*arguments):
            raise OSError(ctypes.get_errno(), name)

    return call


@pytest.mark.kernel
@pytest.mark.usefixtures("way", "network")
class TestTheTwoWays:
    def test_entering(self) -> None:
        with elsewhere() as other:
            assert run_in_netns(other, NetworkNamespace.current) == other

    def test_refusals(self) -> None:
        def enter() -> None:
            with pytest.raises(NotPermitted):
                run_in_netns(other, lambda: None)

        with elsewhere() as other:
            without_privilege(enter)
        with pytest.raises(ValueError, match="is not a network namespace"):
            run_in_netns(NetworkNamespace.from_path("/proc/self/ns/uts"), lambda: None)

    def test_a_security_module_that_refuses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(errno.EACCES, "setns")

        with elsewhere() as other:
            monkeypatch.setattr(os, "setns", refuse, raising=False)
            with pytest.raises(NotPermitted, match="a security module") as caught:
                run_in_netns(other, lambda: None)
        assert caught.value.errno == errno.EACCES

    def test_leaving_for_a_new_one(self) -> None:
        before = NetworkNamespace.current()
        unshare(CLONE_NEWNET)
        assert NetworkNamespace.current() != before

    def test_a_refused_unshare_has_the_errno(self) -> None:
        with pytest.raises(OSError, match=r"\[Errno 22\]") as caught:
            unshare(1)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.kernel
class TestWithoutCtypes:
    """Then other namespaces are an error that says so, and the current one still works."""

    @pytest.fixture(autouse=True, params=["no ctypes", "no C library", "no such function"])
    def _without(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "setns", raising=False)
        monkeypatch.delattr(os, "unshare", raising=False)
        if request.param == "no ctypes":
            monkeypatch.setitem(sys.modules, "ctypes", None)
        elif request.param == "no C library":
            monkeypatch.setattr(ctypes, "CDLL", self.no_library)
        else:
            monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())

    def no_library(self, *_: object, **__: object) -> None:
        raise OSError("dynamic loading not supported")

    def test_another_namespace_is_not_supported(self, network: None) -> None:
        with elsewhere() as other, pytest.raises(NotSupported, match=r"os\.setns .*ctypes"):
            run_in_netns(other, lambda: None)
        with pytest.raises(NotSupported, match=r"os\.unshare .*ctypes"):
            unshare(CLONE_NEWNET)

    def test_the_current_one_still_works(self) -> None:
        for here in (None, NetworkNamespace.current()):
            assert run_in_netns(here, lambda: "here") == "here"
        assert isinstance(list(find_sockets(SocketFilter("tcp"))), list)


def test_a_child_is_where_its_parent_was() -> None:
    assert in_child(lambda: NetworkNamespace.current().inode) == NetworkNamespace.current().inode
