# SPDX-License-Identifier: MIT
"""What every command does with its results: JSON, exit codes, texts from elsewhere, a pipe whose reader has gone."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager
from signal import SIG_BLOCK, SIG_SETMASK, SIGHUP, SIGINT, SIGTERM, pthread_sigmask

from ..errors import AuditError, NotPermitted, NotSupported, SocklbError

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

_INDENT = "\n  "


def exit_code(error: BaseException) -> int:
    """The exit code that an error ends a command with. BAD_INPUT promises that nothing was destroyed."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + getattr(error, "number", SIGINT)
    report = getattr(error, "report", None)
    if report is None or not report.destroyed:
        if isinstance(error, NotSupported):
            return CANNOT
        is_refused = isinstance(error, OSError) and error.errno in (errno.EPERM, errno.EACCES)
        if isinstance(error, NotPermitted) or (is_refused and not isinstance(error, AuditError)):
            return REFUSED
    nothing_happened = report is None or not report.outcomes
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError) and nothing_happened:
        return BAD_INPUT
    return SOME_FAILED


def error_text(error: BaseException) -> str:
    """The message of an error, without the number that OSError puts before it."""
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, SocklbError) and isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def printable(text: str) -> str:
    """With what is not printable escaped: names from elsewhere must not steer a terminal, or forge a line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def warn(text: str) -> None:
    """Print a message on standard error; its further lines are indented.

    If that is closed, the message is dropped; the exit code stays the same.
    """
    if sys.stderr is None:  # print would take standard output instead
        return
    try:
        print(f"socklb: {_INDENT.join(map(printable, text.split(_INDENT)))}", file=sys.stderr)
    except OSError:
        _silence(sys.stderr)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object without being interrupted."""
    import json  # tables do without

    with interrupts_held_back():
        print(json.dumps(value, indent=2))


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP wait: a write that they interrupt would leave half a JSON value, or half a report."""
    before = pthread_sigmask(SIG_BLOCK, (SIGINT, SIGTERM, SIGHUP))
    try:
        yield
    finally:
        pthread_sigmask(SIG_SETMASK, before)


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Stop printing when the reader of a pipe has gone; the exit code stays the same."""
    try:
        yield
    except BrokenPipeError:
        _silence(sys.stdout)


def flush_stdout() -> None:
    """Write out what is left; silent if the pipe is closed. Raises OSError, for a full disk for example."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        _silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise


def _silence(stream: TextIO) -> None:
    """Point a stream at nothing, so that the interpreter's last flush does not fail too."""
    try:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    except OSError:  # a root without /dev: a pipe takes what is still to be flushed, and no more is printed
        _, descriptor = os.pipe()
        if stream is sys.stdout:
            sys.stdout = None
    os.dup2(descriptor, stream.fileno())
    os.close(descriptor)
