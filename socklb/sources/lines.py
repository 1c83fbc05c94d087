# SPDX-License-Identifier: MIT
"""Changes as lines: the watch protocol on a descriptor, usually standard input."""

from __future__ import annotations

import os
import select

from .protocol import LARGEST, NO_LINK, LeftOut, parse_line, shortened
from .status import SourceStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..termination.table import BackendTable

_READ_SIZE = 1 << 16
_PATIENCE_MS = 200  # until a stop is noticed


class LineSource:
    """One change a line, until the end of the input or `stop()`. A bad line is reported by its number and passed over.

    The descriptor stays open. `name` tells the writer of the lines from others, in `identity`.
    """

    def __init__(self, descriptor: int, name: str = "") -> None:
        if isinstance(descriptor, bool) or not isinstance(descriptor, int) or descriptor < 0:
            raise TypeError(f"a descriptor is the number of an open file, not {descriptor!r}")
        self._descriptor = descriptor
        self.identity = f"lines {name}"
        self._stopped = False
        self.status = SourceStatus([NO_LINK])

    def stop(self) -> None:
        self._stopped = True

    def follow(self, table: BackendTable, warn: Callable[[str], object]) -> None:
        left_out = LeftOut(warn, self.status)
        for number, line in enumerate(self._lines(), 1):
            if not line.strip():
                continue
            try:
                if len(line) > LARGEST:
                    raise ValueError(f"longer than {LARGEST >> 20} MiB")
                change = parse_line(line)
                change.apply(table)
                left_out.note(change.left_out)
                self.status.has_table = True
                self.status.heard()
            except ValueError as error:
                warn(shortened(f"line {number} is passed over: {error}"))

    def _lines(self) -> Iterator[bytes]:
        """Each line; the rest at the end of the input is one too. One that is too long is cut behind the limit, and its
        end is not waited for: there may be none.
        """
        pieces: list[bytes] = []
        size = 0
        for data in self._reads():
            *ended, rest = data.split(b"\n")
            for piece in ended:
                if size <= LARGEST:
                    yield b"".join([*pieces, piece])
                pieces, size = [], 0
            if size <= LARGEST:
                pieces.append(rest)
                size += len(rest)
                if size > LARGEST:
                    yield b"".join(pieces)
                    pieces.clear()
        if pieces and not self._stopped:
            yield b"".join(pieces)

    def _reads(self) -> Iterator[bytes]:
        """What comes, as it comes. A blocking read could not be stopped, so poll first."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        while not self._stopped:
            if not poll.poll(_PATIENCE_MS):
                continue
            try:
                data = os.read(self._descriptor, _READ_SIZE)
            except BlockingIOError:  # another process was first to read what there was
                continue
            if not data:
                return
            yield data
