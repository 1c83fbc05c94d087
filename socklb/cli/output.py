# SPDX-License-Identifier: MIT
"""What every command does with its results: JSON, exit codes, and a pipe that was closed at the other end."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

from ..errors import NotPermitted, NotSupported, SocklbError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TextIO

DONE = 0
SOME_FAILED = 1
BAD_INPUT = 2
CANNOT = 3
REFUSED = 4
INTERRUPTED = 130


def exit_code(error: BaseException) -> int:
    """The exit code that an error ends a command with."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, NotPermitted):
        return REFUSED
    if isinstance(error, NotSupported):
        return CANNOT
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return BAD_INPUT
    return SOME_FAILED


def error_text(error: BaseException) -> str:
    """What an error says, without the number that OSError puts before it."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SocklbError) and isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def complain(text: str) -> None:
    """Say it on standard error; where that is closed `print` would take standard output instead.

    Nobody can be told that there is nobody to tell: the command goes on, and its exit code says what it says.
    """
    if sys.stderr is None:
        return
    try:
        print(f"socklb: {text}", file=sys.stderr)
    except OSError:
        _silence(sys.stderr)


def print_json(value: dict[str, Any]) -> None:
    import json  # not needed for tables

    with _interrupts_held_back():
        print(json.dumps(value, indent=2))


def print_whole(text: str) -> None:
    """Print a piece of JSON without being interrupted."""
    with _interrupts_held_back():
        print(text, end="")


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """SIGINT waits: a write that it cuts leaves half a JSON value."""
    from signal import SIG_BLOCK, SIG_SETMASK, SIGINT, pthread_sigmask  # not needed for tables

    before = pthread_sigmask(SIG_BLOCK, (SIGINT,))
    try:
        yield
    finally:
        pthread_sigmask(SIG_SETMASK, before)


@contextmanager
def quiet_pipe() -> Iterator[None]:
    """What is printed in here ends at a closed pipe, and the exit code is the same as without one."""
    try:
        yield
    except BrokenPipeError:
        _silence(sys.stdout)


def flush_stdout() -> None:
    """Write out what is left; quiet if the pipe is closed. Raises OSError, a full disk for one."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        _silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise


def _silence(stream: TextIO) -> None:
    """Point it at nothing, so that the interpreter's last flush does not fail too."""
    try:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    except OSError:  # a root without /dev: a pipe takes what is still to be flushed, and no more is printed
        _, descriptor = os.pipe()
        if stream is sys.stdout:
            sys.stdout = None
    os.dup2(descriptor, stream.fileno())
    os.close(descriptor)
