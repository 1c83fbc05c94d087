# SPDX-License-Identifier: MIT
"""How far a command is, on a terminal."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress

from .help import terminal_width
from .signals import let_signals_wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..engine.run import Progress
    from ..kernel.namespaces import NetworkNamespace

_CLEAR_LINE = "\r\x1b[K"


@contextmanager
def progress(wanted: bool) -> Iterator[Progress]:
    """If wanted, and on a terminal, a line on standard error that counts namespaces and is erased in the end. When the
    last one is done signals wait for the report.
    """
    is_shown = wanted and sys.stderr is not None and sys.stderr.isatty()

    def step(done: int, total: int, namespace: NetworkNamespace) -> None:
        if is_shown:
            _show(done, total, namespace)
        if done == total:
            let_signals_wait()

    try:
        yield step
    finally:
        if is_shown:
            _write(_CLEAR_LINE)


def _show(done: int, total: int, namespace: NetworkNamespace) -> None:
    width = terminal_width(sys.stderr) or 80
    text = f"{done} of {total} namespaces: {namespace.name}"[: width - 1]  # of a longer one only the last row is erased
    _write(_CLEAR_LINE + text)


def _write(text: str) -> None:
    with suppress(OSError):  # a terminal that has hung up must not end the run
        sys.stderr.write(text)
        sys.stderr.flush()
