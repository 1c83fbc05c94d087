# SPDX-License-Identifier: MIT
"""SIGTERM and SIGHUP end a one-shot command as SIGINT does: with its records and its report."""

from __future__ import annotations

import signal
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TEXTS = {signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


class Ended(KeyboardInterrupt):
    """A signal other than SIGINT has asked the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(_TEXTS[signal.Signals(number)])
        self.number = number


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """While active, SIGTERM and SIGHUP raise Ended, unless they are ignored or handled by someone else."""
    replaced = [number for number in _TEXTS if signal.getsignal(number) == signal.SIG_DFL]
    try:
        for number in replaced:
            signal.signal(number, _end)
    except ValueError:  # not the main thread
        replaced = []
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: object) -> None:
    raise Ended(number)
