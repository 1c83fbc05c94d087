# SPDX-License-Identifier: MIT
"""How far a command is, on a terminal."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..engine.everywhere import Progress
    from ..kernel.namespaces import NetworkNamespace

_CLEAR_LINE = "\r\x1b[K"


@contextmanager
def progress() -> Iterator[Progress | None]:
    """A line on standard error that counts namespaces, and is gone in the end; None where that is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    try:
        yield _tell
    finally:
        sys.stderr.write(_CLEAR_LINE)
        sys.stderr.flush()


def _tell(done: int, total: int, namespace: NetworkNamespace) -> None:
    text = f"{done} of {total} namespaces: {namespace.name}"
    sys.stderr.write(_CLEAR_LINE + text[: _width() - 1])  # of what wraps only the last row could be cleared
    sys.stderr.flush()


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80  # 0 is a terminal that does not know
    except OSError:
        return 80
