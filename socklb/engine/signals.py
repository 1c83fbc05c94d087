# SPDX-License-Identifier: MIT
"""Signals wait for the end of the batch at hand: what the kernel did has to be in the report and the audit first."""

from __future__ import annotations

from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any


class HeldSignals:
    """Between `hold` and `release`, SIGINT, SIGTERM and SIGHUP wait until `obey` is called, where Python handles them;
    a second one is handled at once, for something may be stuck. For the main thread, where Python's handlers run; in
    another one nothing is held.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []
        self._released = False
        self._thread = get_ident()

    def hold(self) -> None:
        import signal  # takes a while to import

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                try:
                    signal.signal(number, self._note)
                except ValueError:  # not the main thread
                    self._handlers.clear()
                    return

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._waiting or self._released:
            self._handlers[number](number, frame)
        else:
            self._waiting.append((number, frame))

    def obey(self) -> None:
        """Handle the signal that has come, which usually raises."""
        if self._waiting and get_ident() == self._thread:
            number, frame = self._waiting.pop()
            self._handlers[number](number, frame)

    def release(self, *, quietly: bool = False) -> None:
        """Put the handlers back, and handle what has come; `quietly` without raising KeyboardInterrupt."""
        import signal

        self._released = True  # a handler that raises may leave the others of these in place: they hand on from now on
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        try:
            self.obey()
        except KeyboardInterrupt:
            if not quietly:
                raise
