"""The programs of docs/examples do what they say."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .project import ROOT, only_in_checkout
from .sockets import Sockets, pending_error

EXAMPLES = ROOT / "docs" / "examples"

pytestmark = [only_in_checkout, pytest.mark.kernel]


def run(name: str, *words: str, given: str = "") -> str:
    """What an example prints, run as its reader would."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words],
        input=given,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_cut_backend(sockets: Sockets) -> None:
    client, _ = sockets.tcp("127.0.0.2", 9000)
    other, _ = sockets.tcp("127.0.0.3", 9000)
    assert run("cut_backend.py", "127.0.0.2:9000/TCP").endswith(" destroyed\n")
    assert (pending_error(client), pending_error(other)) == ("ECONNABORTED", "")


def test_slow_peers(sockets: Sockets) -> None:
    sockets.tcp("127.0.0.2", 9000)
    assert run("slow_peers.py", "9000", "0").startswith("127.0.0.2:9000 ")
    assert run("slow_peers.py", "9000", "1000") == ""


def test_follow_backends(sockets: Sockets) -> None:
    client, _ = sockets.tcp("127.0.0.2", 9000)
    stays, _ = sockets.tcp("127.0.0.3", 9000)
    printed = run("follow_backends.py", given="127.0.0.2:9000/TCP 127.0.0.3:9000/TCP\n127.0.0.3:9000/TCP\n")
    assert printed.startswith("127.0.0.2:9000/TCP <Report matched=1 destroyed=1 ")
    assert (pending_error(client), pending_error(stays)) == ("ECONNABORTED", "")


def test_reset_in_a_test(network: None) -> None:
    assert run("reset_in_a_test.py") == "the client got ECONNABORTED, and can reconnect\n"
