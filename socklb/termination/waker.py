# SPDX-License-Identifier: MIT
"""Waiting that others end: a thread, or a signal handler, writes into a pipe that the waiting one polls."""

from __future__ import annotations

import os
import select
import signal
from contextlib import contextmanager, suppress

from ..errors import kernel_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Waker:
    """For one that waits, and any number that wake it up. The pipe is open as long as one of them has its Waker, so
    whoever comes too late writes into no other file.
    """

    def __init__(self) -> None:
        self._ends: tuple[int, ...] = ()
        try:
            self._ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise kernel_error(error.errno or 0, "open a pipe") from None

    def __del__(self) -> None:
        for end in self._ends:
            os.close(end)

    def wake(self) -> None:
        """End the wait that is on, or else the next one."""
        with suppress(BlockingIOError):  # full: it has been woken up often
            os.write(self._ends[1], b"\0")

    def wait(self, seconds: float | None = None) -> bool:
        """Until `wake` was called since the last wait, or so many seconds have gone; None: as long as it takes. Whether
        it was called.
        """
        polled = select.poll()
        polled.register(self._ends[0], select.POLLIN)
        if not polled.poll(None if seconds is None else max(0.0, seconds) * 1000):
            return False
        os.read(self._ends[0], 1 << 16)  # all that a pipe holds
        return True

    @contextmanager
    def woken_by_signals(self) -> Iterator[None]:
        """While active, a signal that Python handles ends a wait in the main thread. Python runs its handlers there
        alone, and would not notice one that comes just as the wait begins, or that the kernel gave to another thread.
        A program that has signals written elsewhere keeps that.
        """
        try:
            before = signal.set_wakeup_fd(-1)  # interrupted just here, it leaves none, rather than one that is closed
        except ValueError:  # not the main thread
            yield
            return
        try:
            signal.set_wakeup_fd(self._ends[1] if before == -1 else before, warn_on_full_buffer=False)
            yield
        finally:
            signal.set_wakeup_fd(before)
