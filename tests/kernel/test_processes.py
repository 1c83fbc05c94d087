"""What /proc says of a process: of the real one, and where it says nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from socklb.kernel import processes
from socklb.kernel.processes import (
    Process,
    ancestors,
    command_name,
    environment_value,
    holders,
    list_directory,
    socket_inodes,
    start_time,
)

from .. import world
from ..sockets import eventually, in_child
from .test_discovery_threads import waiting_threads

NOBODY = 4_000_000  # more than any pid can be


@pytest.mark.parametrize("call", [command_name, socket_inodes, lambda pid: environment_value(pid, b"PATH")])
def test_of_a_process_that_is_not_there_all_is_empty(call: Callable[[int], str]) -> None:
    assert "".join(call(NOBODY)) == ""


class TestAncestors:
    @pytest.mark.kernel
    def test_all_up_to_the_first_process(self) -> None:
        parent, found = in_child(lambda: in_child(lambda: (os.getppid(), list(ancestors()))))
        assert found == [Process(pid, command_name(1), os.getuid()) for pid in (parent, 1)]
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
            assert list(ancestors(child.pid)) == found[1:]

    @pytest.mark.parametrize("name", [b"", b"b", b"a:\tb", b"a\\nPPid:\\t7", b"\xff"])
    def test_whatever_they_are_called_and_a_circle_ends(self, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
        parents = {"self": 30, "30": 20, "20": 10, "10": 30}
        text = b"Name:\t%s\nPPid:\t%d\nUid:\t5\t6\t7\t8\n"
        comm = name.replace(b"\\n", b"\n")  # a file has it as it is, another escaped

        def read(path: str) -> bytes:
            return comm if path.endswith("/comm") else text % (name, parents[path.split("/")[2]])

        monkeypatch.setattr(processes, "_read", read)
        assert list(ancestors()) == [Process(pid, comm.decode("utf-8", "replace"), 5) for pid in (30, 20, 10)]


@pytest.mark.kernel
class TestStart:
    """Which process a path leads through, and when that one began."""

    def test_it_tells_processes_and_threads_apart(self) -> None:
        began = start_time("/proc/1/ns/net")
        assert began == start_time("/proc/1/root/run/netns/x") == start_time("/proc/1/task/1/ns/net") > 0
        time.sleep(2 / os.sysconf("SC_CLK_TCK"))
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as later, waiting_threads(1):
            tid = max(map(int, os.listdir("/proc/self/task")))
            assert start_time(f"/proc/{later.pid}/ns/net") > began
            assert start_time(f"/proc/1/task/{tid}/ns/net") > began

    @pytest.mark.parametrize(
        "path", ["/run/netns/web", "/proc/self/ns/net", "/proc/1", f"/proc/{NOBODY}/ns/net", "/proc/\u0661/ns/net", ""]
    )
    def test_of_none(self, path: str) -> None:
        assert start_time(path) == 0

    def test_wherever_proc_is_mounted(self, tmp_path: Path) -> None:
        def look() -> tuple[int, int]:
            return start_time(f"{tmp_path}/proc/1/ns/net"), start_time("/proc/1/ns/net")

        def mount() -> None:
            world.unshare(world.CLONE_NEWNS)
            world.mount("proc", str(tmp_path / "proc"))

        (tmp_path / "proc").mkdir()
        elsewhere, here = in_child(look, mount)
        assert elsewhere == here > 0


@pytest.mark.kernel
def test_an_environment_is_the_one_that_a_process_started_with() -> None:
    change = "import os, sys; os.environ['NAME'] = 'b'; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", change], env={"A": "1", "NAME": "a=b"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert environment_value(process.pid, b"NAME") == "a=b"
        assert environment_value(process.pid, b"NAM") == environment_value(process.pid, b"b") == ""


@pytest.mark.kernel
class TestSockets:
    def test_those_that_are_held_open_and_nothing_else(self) -> None:
        before = set(socket_inodes(os.getpid()))
        with socket.socket() as one, socket.socket() as two, open(os.devnull, "rb"):
            inodes = {os.fstat(held.fileno()).st_ino for held in (one, two)}
            assert set(socket_inodes(os.getpid())) - before == inodes
        assert set(socket_inodes(os.getpid())) == before

    def test_who_holds_them(self) -> None:
        """All processes that do, by which descriptors, and of the sockets those that are asked about, or all."""
        with socket.socket() as one, socket.socket() as two, one.dup() as copy:
            first, second = (os.fstat(held.fileno()).st_ino for held in (one, two))
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[one.fileno()]) as other:
                eventually(lambda: command_name(other.pid) == "cat", "it has its name")  # after what exec() closes
                here, there = (Process(pid, command_name(pid), os.getuid()) for pid in (os.getpid(), other.pid))
                of_first = [
                    here._replace(fds=tuple(sorted((one.fileno(), copy.fileno())))),
                    there._replace(fds=(one.fileno(),)),
                ]
                of_second = [here._replace(fds=(two.fileno(),))]
                assert holders({first, second}) == {first: of_first, second: of_second}
                assert holders({second}) == {second: of_second}
                everything = holders(None)
                assert (everything[first], everything[second]) == (of_first, of_second)

    def test_one_that_is_closed_between_listing_and_looking(self, monkeypatch: pytest.MonkeyPatch) -> None:
        usual = os.listdir
        monkeypatch.setattr(os, "listdir", lambda directory: [*usual(directory), "9999999"])
        with socket.socket() as held:
            assert os.fstat(held.fileno()).st_ino in set(socket_inodes(os.getpid()))


def test_a_directory_is_listed_in_order_or_empty(tmp_path: object) -> None:
    for name in ("b", "a", "c"):
        os.mkdir(f"{tmp_path}/{name}")
    assert list_directory(str(tmp_path)) == ["a", "b", "c"]
    assert list_directory(f"{tmp_path}/missing") == []
