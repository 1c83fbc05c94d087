# SPDX-License-Identifier: MIT
"""A credit of processor time: bursts go at once, and lasting churn takes a fifth of one processor."""

from __future__ import annotations

from contextlib import contextmanager
from time import monotonic, process_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SHARE, MOST = 0.2, 2.0
"""The credit grows by so many seconds of processor time a second, up to so many."""

_LEAST = 0.001  # of a credit that is above 0: no wait is so short that it ends too early


class DutyCycle:
    """Work begins when the credit is above 0, and is charged what the whole process used meanwhile: all of its threads,
    and the kernel on their behalf. However long a piece of work is, it is never cut short.
    """

    def __init__(self) -> None:
        self._credit, self._time = MOST, monotonic()
        self._since: float | None = None  # something waits

    def wait(self) -> float:
        """Seconds until work may begin, 0 for now. Whoever asks has something to do, until `charged` or `forget`."""
        now = monotonic()
        self._credit, self._time = min(MOST, self._credit + SHARE * (now - self._time)), now
        if self._credit > 0:
            return 0.0
        if self._since is None:
            self._since = now
        return (_LEAST - self._credit) / SHARE

    def forget(self) -> None:
        """There is nothing to do any more."""
        self._since = None

    @contextmanager
    def charged(self) -> Iterator[float]:
        """A piece of work. Yields how many seconds it has waited for the credit."""
        used, since = process_time(), self._since
        self._since = None
        yield 0.0 if since is None else monotonic() - since
        self._credit -= process_time() - used
