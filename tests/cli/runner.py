"""The command line of the package under test as a process of its own, in the namespaces of whoever calls.

run("list", "--json")                              root of the test's world
run("destroy", "...", preexec=drop_privilege)      without privilege
run("list", flags=("-I", "-S"))                    another kind of interpreter
run("list", patch="module('.engine.find').x = 1")  with a fault put in before the command starts
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Optional

import socklb

from .. import package_under_test, world

NAME = package_under_test.NAME
PACKAGE = Path(socklb.__file__).resolve().parent
ROOT = PACKAGE.parents[NAME.count(".")]
"""The directory that the package under test is imported from: the checkout, or where a vendored copy is."""

COMMANDS = ("list", "destroy", "terminate", "watch", "flows", "probe", "rev-nat", "demo")
SECONDS = 600  # ends what hangs, on a machine that is busy too
_OF_THE_WORLD = re.compile("socklb: namespaces of processes that /proc does not show .* pid namespace.*\n")

Preexec = Optional[Callable[[], object]]
drop_privilege = world.drop_privilege


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which has to be one JSON object and nothing else."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def run(
    *words: str,
    flags: Sequence[str] = (),
    patch: str = "",
    preexec: Preexec = None,
    env: Mapping[str, str | None] | None = None,
    stdout: int = subprocess.PIPE,
    stdin: str = "",
    stderr: int = subprocess.PIPE,
) -> Result:
    """Run `socklb WORDS...` to its end. A variable that `env` gives as None is taken out of the environment."""
    done = subprocess.run(
        command(words, flags, patch),
        cwd=ROOT,
        env=environment(env),
        preexec_fn=preexec,
        input=stdin,
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
        timeout=SECONDS,
    )
    return Result(done.returncode, done.stdout or "", but_for_the_world(done.stderr or ""))


def but_for_the_world(text: str) -> str:
    """Without what each command says that searches all namespaces: the test world is a pid namespace of its own."""
    return _OF_THE_WORLD.sub("", text)


def command(words: Sequence[str], flags: Sequence[str] = (), patch: str = "") -> list[str]:
    """The argument vector. In a patch, `module(".engine.find")` is that module of the package under test."""
    python = [sys.executable, "-W", "error", *flags]
    if patch:
        import_it = f"import importlib, sys\nmodule = lambda name: importlib.import_module({NAME!r} + name)\n"
        return [*python, "-c", f"{import_it}{patch}\nsys.exit(module('.cli').main())", *words]
    if "-I" in flags:  # an isolated interpreter does not look into the current directory
        there = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); "
        return [*python, "-c", f"{there}runpy.run_module({NAME!r}, run_name='__main__', alter_sys=True)", *words]
    return [*python, "-m", NAME, *words]


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This process's, but for what would change what is printed."""
    changes = {"PYTHONUNBUFFERED": None, "COLUMNS": None, "SOCKLB_DEBUG": None, **(changes or {})}
    values: dict[str, str | None] = {**os.environ, **changes}
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def closed_pipe() -> Iterator[int]:
    """The writing end of a pipe that nobody can read."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def bytes_waiting(descriptor: int) -> int:
    """How much a pipe holds."""
    return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0])


def run_on_terminal(*words: str, stream: str, columns: int = 0, patch: str = "") -> Result:
    """Run it with a terminal of so many columns (0: one that does not know) as "stdout" or "stderr"."""
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        try:
            result = run(*words, patch=patch, **{stream: inner})  # type: ignore[arg-type]
            os.write(inner, b"\0")  # the kernel passes on what was written a while later, and in order
            shown = b""
            while not shown.endswith(b"\0"):
                shown += screen.read(1 << 16)
        finally:
            os.close(inner)
    text = but_for_the_world(shown[:-1].decode().replace("\r\n", "\n"))
    return result._replace(**{stream[3:]: text})  # type: ignore[arg-type]


def answers(code: int) -> str:
    """A patch: a kernel that answers this errno to each destroy."""
    return f"module('.kernel.diag').DiagSocket.destroy = lambda self, requests, doing: [{code}] * len(requests)\n"


INTERRUPTED_AT_UDP = """
DiagSocket = module(".kernel.diag").DiagSocket
destroy = DiagSocket.destroy
def interrupted(self, requests, doing):
    if "udp" in doing:
        raise KeyboardInterrupt
    return destroy(self, requests, doing)
DiagSocket.destroy = interrupted
"""
"""A patch: an interrupt comes while UDP sockets are destroyed, which is after TCP sockets."""
