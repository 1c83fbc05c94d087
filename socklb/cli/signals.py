# SPDX-License-Identifier: MIT
"""SIGINT, SIGTERM and SIGHUP end a one-shot command with its records and its report."""

from __future__ import annotations

import signal
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_TEXTS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


class Ended(KeyboardInterrupt):
    """A signal has asked the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(_TEXTS[signal.Signals(number)])
        self.number = number


class _Ending:
    """What has come. Only the first signal raises: a report that is on its way to be shown must not be lost."""

    def __init__(self) -> None:
        self.waits, self.came = False, 0

    def handle(self, number: int, frame: object) -> None:
        self.came = self.came or number
        if not self.waits:
            self.waits = True
            raise Ended(number)


_ending = _Ending()


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """While active, a signal raises Ended, unless it is ignored."""
    global _ending
    _ending = _Ending()
    before = {number: signal.getsignal(number) for number in _TEXTS}
    replaced = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for number in replaced:
            signal.signal(number, _ending.handle)
    except ValueError:  # not the main thread
        replaced = []
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, before[number])


def let_signals_wait() -> None:
    """From now on: the work is done, and its report is to be shown."""
    _ending.waits = True


def obey_signal() -> None:
    """Raise Ended for a signal that has waited."""
    if _ending.came:
        raise Ended(_ending.came)
