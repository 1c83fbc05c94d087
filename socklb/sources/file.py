# SPDX-License-Identifier: MIT
"""Changes as a file that is replaced or rewritten: it holds one `replace` object of the watch protocol."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import namedtuple

from .protocol import Replace, parse_line, shortened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..termination.table import BackendTable

_PAUSE_SECONDS = 0.2
# A file system's clock ticks slower than files can be written: a file that changed just now may change again and keep
# its time and size. For so long after a change it is read at each look. The ctime decides, for a copy may have brought
# the mtime of its original along.
_SETTLED_SECONDS = 1.0


class _Look(namedtuple("_Look", "content signature problem")):
    """What a look at the file found: its content, or what is wrong. `signature` is None if it must be read again."""

    __slots__ = ()


class FileSource:
    """Follows a file, until `stop()`. What is wrong with it (empty, cut, no replace, deleted) is reported once, and
    the last table stays; it is read again when it has changed.

    Write it elsewhere and rename it over the old one; a rewrite in place works too, once it is complete.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def follow(self, table: BackendTable, warn: Callable[[str], object]) -> None:
        last = _Look(None, None, "")
        while not self._stopped.is_set():
            look = self._look(last)
            if look.content is not None and look.content != last.content:
                look = look._replace(problem=_apply(look.content, table))
            elif look.content is not None:
                look = look._replace(problem=last.problem)
            if look.problem and look.problem != last.problem:
                warn(f"{self._path} {shortened(look.problem)}; the last table stays")
            last = look
            self._stopped.wait(_PAUSE_SECONDS)

    def _look(self, last: _Look) -> _Look:
        try:
            status = os.stat(self._path)
            if last.signature is not None and _signature(status) == last.signature:
                return last
            if not stat.S_ISREG(status.st_mode):
                return _Look(None, None, "is not a regular file")
            with open(self._path, "rb") as file:
                before = os.fstat(file.fileno())
                content = file.read()
                after = os.fstat(file.fileno())
        except OSError as error:
            return _Look(None, None, f"cannot be read: {os.strerror(error.errno or 0)}")
        if _signature(before) != _signature(after):
            return last._replace(signature=None)  # it changed while it was read
        is_settled = time.time() - after.st_ctime > _SETTLED_SECONDS
        return _Look(content, _signature(after) if is_settled else None, "")


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _apply(content: bytes, table: BackendTable) -> str:
    """What is wrong with the content, "" if nothing: then it is in the table."""
    if not content.strip():
        return "is empty"
    try:
        change = parse_line(content)
        if not isinstance(change, Replace):
            raise ValueError('its op is not "replace"')
        change.apply(table)
    except ValueError as error:
        return f"does not hold a replace: {error}"
    return ""
