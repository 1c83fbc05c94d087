"""`list -p` on a host with many processes that hold many sockets, beside ss(8)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

from .. import package_under_test
from .crowd import connect, listen
from .timing import Ratio, Subject, best_times, ratios_of

PROCESSES, CONNECTIONS = 2_000, 5  # in each process, both ends
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

_SS = f"ss -tnp of {PROCESSES * CONNECTIONS * 2:,} sockets in {PROCESSES:,} processes, whole process"
_LIST = "python3 -S -m socklb list -p -t of the same, whole process"
_DETAILS = "python3 -S -m socklb list -p -e -t of the same, whole process"
_BARE = "python3 -S -m socklb list -t of the same, whole process"


def measure_held(rounds: int) -> tuple[dict[str, float], list[Ratio]]:
    command = [sys.executable, "-S", "-m", package_under_test.NAME, "list", "-t"]
    commands = {_LIST: [*command, "-p"], _BARE: command, _DETAILS: [*command, "-p", "-e"]}
    if shutil.which("ss"):
        commands[_SS] = ["ss", "-tn", "-p"]
    with _processes():
        for one in commands.values():
            shown = subprocess.run(one, check=True, capture_output=True, cwd=_ROOT, encoding="utf-8").stdout
            assert "-p" not in one or shown.count("pid=") == PROCESSES * CONNECTIONS * 2, one
        best = best_times({name: Subject(partial(_run, one)) for name, one in commands.items()}, rounds)
    return best, ratios_of(best, [(_LIST, _SS, 1.5)])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=_ROOT)


@contextmanager
def _processes() -> Iterator[None]:
    """Each holds sockets of its own, until the pipe ends."""
    reader, writer = os.pipe()
    pids = []
    with closing(listen(("127.0.0.1", 0))) as listener:
        for _ in range(PROCESSES):
            kept = [end for _ in range(CONNECTIONS) for end in connect(listener, listener.getsockname())]
            pid = os.fork()
            if not pid:
                os.close(writer)
                listener.close()
                os.read(reader, 1)
                os._exit(0)
            pids.append(pid)
            for end in kept:
                end.close()
    try:
        yield
    finally:
        os.close(writer)
        for pid in pids:
            os.waitpid(pid, 0)
        os.close(reader)
