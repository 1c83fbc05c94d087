"""What /proc says of a process: of the real one, and where it says nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from socklb.kernel import processes
from socklb.kernel.processes import ancestors, command_name, environment_value, list_directory, socket_inodes

from ..sockets import in_child

NOBODY = 4_000_000  # more than any pid can be


@pytest.mark.parametrize("call", [command_name, socket_inodes, lambda pid: environment_value(pid, b"PATH")])
def test_of_a_process_that_is_not_there_all_is_empty(call: Callable[[int], str]) -> None:
    assert "".join(call(NOBODY)) == ""


class TestAncestors:
    @pytest.mark.kernel
    def test_all_up_to_the_first_process(self) -> None:
        parent, found = in_child(lambda: in_child(lambda: (os.getppid(), list(ancestors()))))
        assert found == [parent, 1]

    @pytest.mark.parametrize("name", [b"b", b"a) S 9 (", b"\xff"])
    def test_whatever_they_are_called_and_a_circle_ends(self, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
        parents = {30: 20, 20: 10, 10: 30}
        monkeypatch.setattr(os, "getppid", lambda: 30)
        monkeypatch.setattr(processes, "_read", lambda pid, _: b"%d (%s) S %d 1 1 0 -1" % (pid, name, parents[pid]))
        assert list(ancestors()) == [30, 20, 10]


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
