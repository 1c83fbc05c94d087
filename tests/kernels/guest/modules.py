"""A kernel whose diag modules were taken away: each command names what is missing, and ends with 3."""

from __future__ import annotations

import glob
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

_MODULES = ("mptcp_diag", "udp_diag", "tcp_diag", "inet_diag")


def checks(skipped: Counter[str]) -> Iterator[bool]:
    """Whether each of the commands does."""
    files = glob.glob("/lib/modules/*/kernel/net/*/*_diag.ko*")
    if not files:
        skipped["the kernel is not a guest's, and keeps its modules"] += 1
        return
    for name in _MODULES:
        subprocess.run(["rmmod", name], stderr=subprocess.DEVNULL)
    for path in files:
        os.unlink(path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            port = listener.getsockname()[1]
            for words in (
                ["probe"],
                ["demo"],
                ["watch", "--source", "-"],
                ["list"],
                ["destroy", f"dst 127.0.0.1:{port}"],
                ["terminate", f"127.0.0.1:{port}/TCP"],
            ):
                yield _says_so(words)


def _says_so(words: list[str]) -> bool:
    command = [sys.executable, "-m", "socklb", *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=300)
    ok = done.returncode == 3 and "_diag" in done.stdout + done.stderr
    print(
        "ok" if ok else "FAIL", "without diag modules:", json.dumps([words, done.returncode, done.stdout, done.stderr])
    )
    return ok
