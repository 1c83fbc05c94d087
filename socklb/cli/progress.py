# SPDX-License-Identifier: MIT
"""How far a command is, on a terminal."""

from __future__ import annotations

import sys
from contextlib import contextmanager

from .help import terminal_width

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..engine.run import Progress
    from ..kernel.namespaces import NetworkNamespace

_CLEAR_LINE = "\r\x1b[K"


@contextmanager
def progress(wanted: bool) -> Iterator[Progress | None]:
    """A line on standard error that counts namespaces and is erased in the end; None if not wanted or no terminal."""
    if not wanted or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    try:
        yield _show
    finally:
        sys.stderr.write(_CLEAR_LINE)
        sys.stderr.flush()


def _show(done: int, total: int, namespace: NetworkNamespace) -> None:
    width = terminal_width(sys.stderr) or 80
    text = f"{done} of {total} namespaces: {namespace.name}"[: width - 1]  # of a longer one only the last row is erased
    sys.stderr.write(_CLEAR_LINE + text)
    sys.stderr.flush()
