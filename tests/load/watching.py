"""`socklb watch` as a process that is told changes, and looked at while it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from ..cli.runner import ROOT, SECONDS, command, environment


class Size(NamedTuple):
    resident: int  # bytes
    descriptors: int
    threads: int


class Watching:
    """The real command, in the namespaces that `words` name. What it says and audits goes to files in a directory."""

    def __init__(self, directory: Path, words: Sequence[str]) -> None:
        self._audit, self._errors = directory / "audit.jsonl", directory / "stderr"
        with open(directory / "stdout", "wb") as out, open(self._errors, "wb") as errors:
            self._process = subprocess.Popen(
                command(["watch", "--source", "-", "--audit", str(self._audit), *words]),
                cwd=ROOT,
                # One arena for all threads: in which of several something is allocated is left to chance.
                env=environment({"MALLOC_ARENA_MAX": "1"}),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=errors,
            )

    def say(self, change: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(change).encode() + b"\n")
        self._process.stdin.flush()

    def size(self) -> Size:
        process = Path("/proc", str(self._process.pid))
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        resident = int(status["VmRSS"].split()[0]) << 10
        return Size(resident, len(os.listdir(process / "fd")), int(status["Threads"]))

    def audited(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._audit.read_text().splitlines()]

    def errors(self) -> str:
        return self._errors.read_text()

    def terminate(self) -> int:
        """Its exit code, on SIGTERM."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(SECONDS)

    def __enter__(self) -> Watching:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
