# SPDX-License-Identifier: MIT
"""How it goes with a source, for whoever asks."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class SourceStatus:
    """Written by the thread that follows, read by any. `bad_entries`: how many were left out, by kind.

    `speaks_up`: whether it is to be heard now and then, even if nothing has changed.
    """

    def __init__(self, kinds: Iterable[str], *, speaks_up: bool = False) -> None:
        self.speaks_up = speaks_up
        self.has_table = False
        self.last_seen: float | None = None  # when anything came, by the wall clock
        self.last_heard: float | None = None  # the same by monotonic()
        self.reconnects = 0
        self.bad_entries = dict.fromkeys(kinds, 0)
        self.held = 0

    def heard(self) -> None:
        """Something has just come."""
        self.last_seen, self.last_heard = time.time(), time.monotonic()
