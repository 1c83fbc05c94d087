# SPDX-License-Identifier: MIT
"""How far a command is, on a terminal."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress

from .output import has_room, printable, terminal_width
from .signals import let_signals_wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..engine.run import Progress
    from ..kernel.namespaces import NetworkNamespace

_CLEAR_LINE = "\r\x1b[K"


@contextmanager
def progress(wanted: bool, *, then: str = "") -> Iterator[Progress]:
    """If wanted, and on a terminal, a line on standard error that counts namespaces and is erased in the end. When the
    last one is done signals wait for the report; unless more is to be done `then`, which the line says.
    """
    is_shown = wanted and sys.stderr is not None and sys.stderr.isatty()

    def step(done: int, total: int, namespace: NetworkNamespace) -> None:
        if is_shown:
            _show(f"{done} of {total} namespaces: {printable(namespace.name)}")
        if done == total and not then:
            let_signals_wait()
        elif done == total and is_shown:
            _show(then)

    try:
        yield step
    finally:
        if is_shown:
            _write(_CLEAR_LINE)


def _show(text: str) -> None:
    width = terminal_width(sys.stderr) or 80
    _write(_CLEAR_LINE + text[: width - 1])  # of a longer one only the last row is erased


def _write(text: str) -> None:
    """Unless the terminal is stopped: nothing waits for it before all is destroyed."""
    with suppress(OSError):  # one that has hung up must not end the run
        if has_room(sys.stderr):
            sys.stderr.write(text)
            sys.stderr.flush()
