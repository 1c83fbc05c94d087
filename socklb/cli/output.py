"""What every command does with its results: JSON, exit codes, and a pipe that was closed at the other end."""

from __future__ import annotations

import json
import os
import sys

from ..errors import NotPermitted, NotSupported, SocklbError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
    if isinstance(error, ValueError):
        return BAD_INPUT
    return SOME_FAILED


def error_text(error: BaseException) -> str:
    """What an error says, without the number that OSError puts before it."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SocklbError) and isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2))


def silence_stdout() -> None:
    """Point standard output at nothing, so that the interpreter's last flush does not fail either."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)
