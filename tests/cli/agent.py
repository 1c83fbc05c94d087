"""`socklb watch` as a process that is sent changes, and looked at while it runs.

with watching() as agent:                        # --source - : lines on its standard input
    agent.send(upsert(BACKEND), delete(BACKEND))
    result = agent.end()                         # or agent.stop(signal.SIGTERM)
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..sockets import eventually
from .runner import ROOT, SECONDS, Preexec, Result, but_for_the_world, bytes_waiting, command, environment, run

Change = dict[str, Any]


def upsert(backend: object, **more: object) -> Change:
    return {"op": "upsert", "backend": str(backend), **more}


def delete(backend: object, **more: object) -> Change:
    return {"op": "delete", "backend": str(backend), **more}


def replace(*backends: object) -> Change:
    return {"op": "replace", "backends": [{"backend": str(backend)} for backend in backends]}


def lines(*changes: Change | str) -> str:
    """The changes (or lines, as they are) as the watch protocol has them."""
    return "".join((change if isinstance(change, str) else json.dumps(change)) + "\n" for change in changes)


_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", re.MULTILINE)
_START = re.compile(r"^socklb: follows .*\n", re.MULTILINE)
_SECONDS = re.compile(r"; \d+\.\d{3} s(?: after .*)?$", re.MULTILINE)


def without_zeros(text: str) -> str:
    """The sums without those that are 0, but for the first; and without times."""
    return re.sub(r", 0 \w+", "", _SECONDS.sub("", _TIME.sub("", text)))


def without_start(text: str) -> str:
    """The messages without times, and without the line that says what is followed."""
    return _START.sub("", _TIME.sub("", text))


class Agent:
    """The process, its standard input, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str], out: IO[str], err: IO[str]) -> None:
        self.process, self._out, self._err = process, out, err

    @property
    def out(self) -> str:
        return without_zeros(Path(self._out.name).read_text(encoding="utf-8"))

    @property
    def err(self) -> str:
        return without_start(but_for_the_world(Path(self._err.name).read_text(encoding="utf-8")))

    def send(self, *changes: Change | str) -> None:
        """Write the changes, and wait until they are read."""
        assert self.process.stdin is not None
        self.process.stdin.write(lines(*changes))
        self.process.stdin.flush()
        pipe = self.process.stdin.fileno()
        eventually(lambda: bytes_waiting(pipe) == 0, "the lines are read")

    def wait_for(self, text: str) -> None:
        """Wait until it has printed this, on standard output or on standard error."""
        eventually(lambda: text in self.out + self.err, f"it prints {text!r}")

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

    def threads_and_descriptors(self) -> tuple[int, int]:
        threads, descriptors = (len(os.listdir(f"/proc/{self.process.pid}/{name}")) for name in ("task", "fd"))
        return threads, descriptors

    def _catches(self, number: int) -> bool:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(caught & 1 << (number - 1)) or self.process.poll() is not None


def second_pass_after(seconds: float) -> str:
    """A patch of the command, whose second pass comes after a second."""
    return f'module(".termination.loop").TerminationLoop.__init__.__kwdefaults__["second_pass"] = {seconds}\n'


def watch(*words: str, stdin: str, patch: str = "", preexec: Preexec = None) -> Result:
    """`socklb watch` on lines that are all there, to its end, with the second pass soon after the first."""
    result = run("watch", "--source", "-", *words, stdin=stdin, patch=second_pass_after(0.05) + patch, preexec=preexec)
    return result._replace(out=without_zeros(result.out), err=without_start(result.err))


@contextmanager
def watching(
    *words: str,
    source: str = "-",
    patch: str = "",
    second_pass: float = 0.05,
    preexec: Preexec = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Iterator[Agent]:
    """`socklb watch`, from when a signal would end it in order; it is killed in the end."""
    with ExitStack() as stack:
        out, err = (stack.enter_context(tempfile.NamedTemporaryFile("w", encoding="utf-8")) for _ in range(2))
        process = stack.enter_context(
            subprocess.Popen(
                command(("watch", "--source", source, *words), patch=second_pass_after(second_pass) + patch),
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
            eventually(lambda: agent._catches(signal.SIGUSR1), "it runs")
            yield agent
        finally:
            process.kill()
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has not read all
                process.stdin.close()
