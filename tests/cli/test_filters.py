"""What FILTER means that depends on more than the words: protocols, processes."""

from __future__ import annotations

import os
import subprocess

import pytest

from ..sockets import Sockets
from .runner import drop_privilege, run

pytestmark = pytest.mark.kernel


def test_what_only_tcp_knows_leaves_udp_out(sockets: Sockets) -> None:
    """Unless UDP alone was asked for."""
    sockets.tcp("127.0.0.2", 9000)
    sockets.udp("127.0.0.2", 9000)
    found = run("list", "--json", "idle", "0s", "and", "dport", "9000")
    assert (found.code, [row["protocol"] for row in found.json["sockets"]]) == (0, ["tcp"])
    either = run("list", "--json", "idle 0s or dport 9000")
    assert {row["protocol"] for row in either.json["sockets"]} == {"tcp", "udp"}
    refused = run("list", "-u", "idle 0s")
    assert (refused.code, refused.err) == (
        3,
        "socklb: 'idle 0s': 'stalled' and 'idle' are for TCP, UDP sockets have no acknowledgements\n",
    )


def test_a_process_and_what_may_not_be_seen_of_it(sockets: Sockets) -> None:
    sockets.udp("127.0.0.2", 9000)
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            for pid, count in ((os.getpid(), 1), (other.pid, 0)):
                listed = run("list", "-u", "--json", f"pid {pid} and dport 9000")
                assert (listed.code, listed.err, len(listed.json["sockets"])) == (0, "", count)
            why = "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are missing"
            unseen = f"socklb: what process {other.pid} holds may not be looked at: {why}"
            blind = run("destroy", "-u", f"not pid {other.pid} and dport 9000", preexec=drop_privilege)
            assert (blind.code, blind.out, blind.err) == (4, "", f"{unseen}\n")
            in_part = run("list", "-u", f"pid {other.pid} or dport 9000", preexec=drop_privilege)
            assert (in_part.code, in_part.out.count("\n")) == (0, 2)
            assert in_part.err == f"{unseen}; neither 'pid = {other.pid}' nor its negation matches\n"
        finally:
            other.kill()
    gone = run("destroy", f"pid {other.pid}")
    assert (gone.code, gone.err) == (2, f"socklb: there is no process {other.pid} in /proc, or no longer\n")


def test_a_user(sockets: Sockets) -> None:
    sockets.udp("127.0.0.2", 9000)
    for words, count in ((f"uid {os.getuid()}", 1), (f"uid != {os.getuid()}", 0)):
        assert len(run("list", "-u", "--json", f"{words} and dport 9000").json["sockets"]) == count
