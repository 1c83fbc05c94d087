# SPDX-License-Identifier: MIT
"""SIGINT, SIGTERM and SIGHUP end a one-shot command with its records and its report."""

from __future__ import annotations

import signal
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TEXTS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}

PATIENCE_SECONDS = 10.0
"""For so long a report waits for its reader once a signal has come."""


class Ended(KeyboardInterrupt):
    """A signal has asked the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__(_TEXTS[signal.Signals(number)])
        self.number = number


class _Ending:
    """What has come. The first signal raises while the work is done. Before and after it signals wait, for what is on
    its way to be shown must not be lost; for its reader a while, then `give_up` is called.
    """

    def __init__(self, give_up: Callable[[], object]) -> None:
        self._give_up = give_up
        self.came: list[int] = []
        self.waits, self.is_showing = True, False

    def handle(self, number: int, frame: object) -> None:
        self.came.append(number)
        if self.is_showing:
            self.set_alarm()
        if not self.waits:
            self.waits = True
            raise Ended(number)

    def set_alarm(self) -> None:
        if not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.signal(signal.SIGALRM, self._end)
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)

    def _end(self, number: int, frame: object) -> None:
        self._give_up()
        raise Ended(self.came[0])


_ending = _Ending(lambda: None)


@contextmanager
def ending_on_signals(give_up: Callable[[], object]) -> Iterator[None]:
    """While active, no signal ends the process, but Ended is raised (see `ended_by_signals`), unless it is ignored.
    `give_up` is called before a report that nobody reads is broken off.
    """
    global _ending
    _ending = _Ending(give_up)
    before = {number: signal.getsignal(number) for number in (*_TEXTS, signal.SIGALRM)}
    replaced = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in _TEXTS:
            if number in replaced:
                signal.signal(number, _ending.handle)
    except ValueError:  # not the main thread
        replaced = {}
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """The work: while active, a signal raises Ended, also one that has come before. What comes later changes nothing:
    the work is done, and its report says so.
    """
    try:
        _ending.waits = False
        obey_signal()
        yield
    finally:
        let_signals_wait()


def signals_so_far() -> list[int]:
    """Those that have come, for a command that handles the next ones itself."""
    return _ending.came.copy()


def let_signals_wait() -> None:
    """From now on: the work is done, and its report is to be shown."""
    _ending.waits = True


@contextmanager
def showing() -> Iterator[None]:
    """While active, a signal waits: a write that it interrupts would leave half a JSON value, or half a report."""
    before = _ending.waits, _ending.is_showing
    _ending.waits = _ending.is_showing = True
    if _ending.came:
        _ending.set_alarm()
    try:
        yield
    finally:
        _ending.waits, _ending.is_showing = before
        if not _ending.is_showing and _ending.came:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if not _ending.waits:
            obey_signal()


def obey_signal() -> None:
    """Raise Ended for a signal that has waited."""
    if _ending.came:
        _ending.waits = True
        raise Ended(_ending.came[0])
