"""`socklb watch` as a process that is told what changes, and looked at while it runs.

with watching() as agent:                        # --source - : lines on its standard input
    agent.tell(upsert(BACKEND), delete(BACKEND))
    result = agent.end()                         # or agent.stop(signal.SIGTERM)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..sockets import eventually
from .runner import ROOT, SECONDS, Preexec, Result, bytes_waiting, command, environment, run

Change = dict[str, Any]


def upsert(backend: object, **more: object) -> Change:
    return {"op": "upsert", "backend": str(backend), **more}


def delete(backend: object, **more: object) -> Change:
    return {"op": "delete", "backend": str(backend), **more}


def replace(*backends: object) -> Change:
    return {"op": "replace", "backends": [{"backend": str(backend)} for backend in backends]}


class Agent:
    """The process, its standard input, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[str], out: IO[str], err: IO[str]) -> None:
        self.process, self._out, self._err = process, out, err

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return Path(self._out.name).read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return Path(self._err.name).read_text(encoding="utf-8")

    def tell(self, *changes: Change | str) -> None:
        """Write the changes (or lines, as they are), and wait until they are read."""
        assert self.process.stdin is not None
        lines = (change if isinstance(change, str) else json.dumps(change) for change in changes)
        self.process.stdin.write("".join(line + "\n" for line in lines))
        self.process.stdin.flush()
        pipe = self.process.stdin.fileno()
        eventually(lambda: bytes_waiting(pipe) == 0, "the lines are read")

    def said(self, text: str) -> None:
        """Wait until it has said so, on standard output or on standard error."""
        eventually(lambda: text in self.out + self.err, f"it says {text!r}")

    def end(self) -> Result:
        """Its input ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.result()

    def stop(self, number: int = signal.SIGTERM) -> Result:
        self.process.send_signal(number)
        return self.result()

    def result(self) -> Result:
        """How it ended."""
        return Result(self.process.wait(SECONDS), self.out, self.err)

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def children(self) -> list[int]:
        """The processes whose parent it is."""
        found = []
        for word in filter(str.isdigit, os.listdir("/proc")):
            try:
                after_name = Path("/proc", word, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if int(after_name[1]) == self.pid:
                found.append(int(word))
        return found

    def _listens_to(self, number: int) -> bool:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught & 1 << (number - 1)) or self.process.poll() is not None


def second_look_after(seconds: float) -> str:
    """A patch of the command, that would take a second's time for it."""
    return f'module(".termination.loop").TerminationLoop.__init__.__kwdefaults__["second_look"] = {seconds}\n'


def watch(*words: str, stdin: str, patch: str = "") -> Result:
    """`socklb watch` on lines that are all there, to its end. Nobody waits a second for the second look."""
    return run("watch", "--source", "-", *words, stdin=stdin, patch=second_look_after(0.05) + patch)


@contextmanager
def watching(
    *words: str,
    source: str = "-",
    patch: str = "",
    second_look: float = 0.05,
    preexec: Preexec = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Iterator[Agent]:
    """`socklb watch`, from when it would end properly on a signal; it is ended in any case."""
    with ExitStack() as stack:
        out, err = (stack.enter_context(tempfile.NamedTemporaryFile("w", encoding="utf-8")) for _ in range(2))
        process = stack.enter_context(
            subprocess.Popen(
                command(("watch", "--source", source, *words), patch=second_look_after(second_look) + patch),
                cwd=ROOT,
                env=environment(),
                preexec_fn=preexec,
                stdin=subprocess.PIPE,
                stdout=out if stdout is None else stdout,
                stderr=err if stderr is None else stderr,
                encoding="utf-8",
            )
        )
        agent = Agent(process, out, err)
        try:
            eventually(lambda: agent._listens_to(signal.SIGTERM), "it runs")
            yield agent
        finally:
            process.kill()
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # what it has not read is nobody's business any more
                process.stdin.close()
