# SPDX-License-Identifier: MIT
"""Where changes of backends come from.

A source has an `identity`, which tells what it follows from what others do, a `status`, and two methods.
`follow(table, warn)` puts changes into a table until its input ends or `stop()` is called, from any thread; it reports
what is wrong with its input to `warn`, a function that takes a text, and goes on.
"""

from __future__ import annotations

from .file import FileSource
from .lines import LineSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from ..termination.table import PackedTable
    from .status import SourceStatus

    class Source(Protocol):
        """What every source has."""

        status: SourceStatus
        identity: str

        def follow(self, table: PackedTable, warn: Callable[[str], object]) -> None: ...

        def stop(self) -> None: ...


__all__ = ["FileSource", "LineSource"]
