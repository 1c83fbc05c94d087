"""The world of the test run shows nothing of the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from socklb import NetworkNamespace, SocketFilter, find_sockets
from socklb.kernel.mounts import mounts

pytestmark = pytest.mark.kernel


def test_this_run_is_the_first_process_of_its_pid_namespace() -> None:
    assert os.getpid() == 1


def test_no_process_of_the_host_can_be_seen() -> None:
    pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in pids}
    assert parents.pop(1) == 0
    assert all(parent in pids for parent in parents.values())


def test_no_namespace_of_the_host_is_pinned_in_sight() -> None:
    """/run is the run's own, and so is all that other tests have left there."""
    assert [mount.type for mount in mounts() if mount.point == "/run"][-1] == "tmpfs"
    assert [mount for mount in mounts() if mount.type == "nsfs"] == []


def test_no_namespace_but_this_run_s_own_can_be_discovered() -> None:
    found = NetworkNamespace.discover()
    assert list(found) == [NetworkNamespace.current()]
    assert found.skipped == []


def test_a_fresh_network_has_no_socket(network: None) -> None:
    for protocol in ("tcp", "udp"):
        assert list(find_sockets(SocketFilter(protocol, states="all"))) == []
