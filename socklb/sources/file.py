# SPDX-License-Identifier: MIT
"""Changes as a file that is replaced or rewritten: it holds one `replace` object of the watch protocol."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import namedtuple

from .protocol import LARGEST, NO_LINK, LeftOut, Replace, parse_line, shortened
from .status import SourceStatus

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


_NOT_REGULAR = _Look(None, None, "is not a regular file")


class FileSource:
    """Follows a file, until `stop()`. What is wrong with it (empty, cut, no replace, deleted, too large, no regular
    file) is reported once, and the last table stays; it is read again when it has changed.

    Write it elsewhere and rename it over the old one; a rewrite in place works too, once it is complete. `if_missing`
    is added where it is said that there is no such file.
    """

    def __init__(self, path: str | os.PathLike[str], *, if_missing: str = "") -> None:
        self._path, self._if_missing = os.fsdecode(path), if_missing
        if "\0" in self._path:
            raise ValueError(f"embedded null byte in {self._path!r}")
        # Not what a symbolic link leads to: who follows one follows all that it comes to lead to.
        self.identity = f"file {os.path.abspath(self._path)}"
        self._stopped = threading.Event()
        self.status = SourceStatus([NO_LINK])

    def stop(self) -> None:
        self._stopped.set()

    def follow(self, table: BackendTable, warn: Callable[[str], object]) -> None:
        last, left_out = _Look(None, None, ""), LeftOut(warn, self.status)
        while not self._stopped.is_set():
            look = self._look(last)
            if look.content is not None and look.content != last.content:
                look = look._replace(problem=_apply(look.content, table, left_out))
                if not look.problem:
                    self.status.has_table = True
                    self.status.heard()
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
            if not stat.S_ISREG(status.st_mode):  # opening a device may do something
                return _NOT_REGULAR
            with open(self._path, "rb", opener=_open) as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):  # another one than before
                    return _NOT_REGULAR
                if before.st_size > LARGEST:
                    return _Look(None, None, f"is larger than {LARGEST >> 20} MiB")
                content = file.read(LARGEST) or b""  # None: one of /proc that others would wait at
                after = os.fstat(file.fileno())
        except (OSError, MemoryError) as error:
            hint = self._if_missing if isinstance(error, FileNotFoundError) else ""
            why = os.strerror(getattr(error, "errno", None) or errno.ENOMEM)
            return _Look(None, None, f"cannot be read: {why}{hint}")
        if not _is_whole(before, after):
            return last._replace(signature=None)
        is_settled = time.time() - after.st_ctime > _SETTLED_SECONDS
        return _Look(content, _signature(after) if is_settled else None, "")


def _open(path: str, flags: int) -> int:
    """What has been put in the place of a file is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _is_whole(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether nobody wrote while it was read; putting another one in its place changes its ctime alone."""
    is_same = _signature(before)[:-1] == _signature(after)[:-1]
    return is_same and (before.st_ctime_ns == after.st_ctime_ns or not after.st_nlink)


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _apply(content: bytes, table: BackendTable, left_out: LeftOut) -> str:
    """What is wrong with the content, "" if nothing: then it is in the table."""
    if not content.strip():
        return "is empty"
    try:
        change = parse_line(content)
        if not isinstance(change, Replace):
            raise ValueError('its op is not "replace"')
        change.apply(table)
        left_out.note(change.left_out)
    except ValueError as error:
        return f"does not hold a replace: {error}"
    return ""
