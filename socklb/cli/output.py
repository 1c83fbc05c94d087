# SPDX-License-Identifier: MIT
"""What every command does with its results: JSON, exit codes, texts from elsewhere, a pipe whose reader has gone."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import contextmanager
from signal import SIGINT

from ..errors import AuditError, NotPermitted, NotSupported, SocklbError
from ..wire.reply import attribute_decoder
from .signals import ended_by_signals, showing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TextIO

DONE = 0
SOME_FAILED = 1
BAD_INPUT = 2
CANNOT = 3
REFUSED = 4
NO_MATCH = 5
INTERRUPTED = 130

ENDS = (SocklbError, ValueError, OSError, MemoryError, KeyboardInterrupt)
"""What ends a command with a message and an exit code; anything else is a fault of the package."""

DEFAULT_WIDTH = 80
"""Of a terminal that does not tell."""

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
    if isinstance(error, OSError) and error.strerror and (isinstance(error, SocklbError) or not error.filename):
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


def prepare_json() -> None:
    """Import what `print_json` needs for sockets: after a kill there may be no memory for it."""
    json_dumps()
    attribute_decoder()


def json_dumps() -> Callable[..., str]:
    """json.dumps, imported when first needed: tables do without."""
    from json import dumps

    return dumps


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object without being interrupted."""
    text = json_dumps()(value, indent=2)
    with showing():
        print(text)


@contextmanager
def error_as_json(wanted: bool, **rest: Any) -> Iterator[None]:
    """If wanted, what ends the work within is shown as an object with "error" and the rest; bad input is not."""
    try:
        with ended_by_signals():
            yield
    except ENDS as error:
        if wanted and exit_code(error) != BAD_INPUT:
            print_json({**rest, "error": error_text(error)})
        raise


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Stop printing when the reader of a pipe has gone; the exit code stays the same."""
    try:
        yield
    except BrokenPipeError:
        _silence(sys.stdout)


def prepare_stdout() -> None:
    """A name that cannot be encoded must not end a report, nor a signal an unbuffered write half way."""
    if not hasattr(sys.stdout, "reconfigure"):
        return
    sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdout.buffer, io.RawIOBase):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(sys.stdout.buffer), sys.stdout.encoding, "backslashreplace", line_buffering=True
        )


def flush_stdout() -> None:
    """Write out what is left; silent if the pipe is closed. Raises OSError, for a full disk for example."""
    if sys.stdout is None:
        return
    try:
        with showing():
            sys.stdout.flush()
    except OSError as error:
        _silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, f"write standard output: {error.strerror}") from None


def silence_stuck() -> None:
    """Drop what is still to be written on standard output, and on standard error if there is no room."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and (stream is sys.stdout or not has_room(stream)):
            _silence(stream)


def terminal_width(stream: TextIO | None) -> int | None:
    """COLUMNS, else the width of the terminal that a stream is; None if it is not a terminal."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_WIDTH  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return None


def has_room(stream: TextIO) -> bool:
    """Whether a write of a line would not wait: a terminal may be stopped, the reader of a pipe be busy."""
    from select import POLLOUT, poll  # few commands ask

    waiting = poll()
    waiting.register(stream.fileno(), POLLOUT)
    return bool(waiting.poll(0))


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
