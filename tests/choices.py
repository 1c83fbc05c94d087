"""Choices out of a run of bytes: the same bytes choose the same, whoever they come from.

A fuzzer, a generator of random numbers and a property all deal in bytes, and a file of them is a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Numbers and bytes from the front of `data`; zeros once it is used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def number(self, size: int = 1) -> int:
        """From so many bytes, any number that they hold."""
        start, self._at = self._at, min(self._at + size, len(self._data))
        return int.from_bytes(self._data[start : self._at], "big")

    def below(self, limit: int) -> int:
        return self.number(1 if limit <= 0x100 else 2 if limit <= 0x10000 else 4) % limit

    def of(self, several: Sequence[T]) -> T:
        return several[self.below(len(several))]

    def bytes(self, most: int) -> bytes:
        """At most so many, and no more than are left."""
        start, self._at = self._at, min(self._at + self.below(most + 1), len(self._data))
        return self._data[start : self._at]
