# SPDX-License-Identifier: MIT
"""The audit file: one JSON line for each verdict."""

from __future__ import annotations

import errno
import json
import os
import select
import stat
import time

from ..errors import AuditError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PATIENCE_MS = 10_000
_PAGE = 4096
_VARIANCE = 128  # bytes by which records of one run differ in length, an address or a reason
# O_NONBLOCK: a pipe that nobody has open to read is an error at once.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class AuditFile:
    """Appends records to a file, each in one write, or to standard error ("-"). Called with one dict a verdict.

    A write that comes out short is cut back, so that the file holds whole lines only; a record may have blanks behind
    it. The reader of a pipe is waited for, ten seconds, of a terminal for ever. Raises AuditError when it cannot be
    opened or written. A context manager.
    """

    def __init__(self, path: str) -> None:
        self._name = "standard error" if path == "-" else path
        try:
            self._descriptor = os.dup(2) if path == "-" else os.open(path, _FLAGS, 0o640)
        except OSError as error:
            raise self._error("cannot be opened", error) from None
        try:
            self._is_regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
            if self._is_regular and path != "-" and _ends_half_way(path):
                self._append(b"\n")  # what a killed writer has left half done stands alone
        except BaseException:
            self.close()
            raise

    def __call__(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode()
        self._append(line + self._padding(len(line) + 1) + b"\n")

    def _padding(self, length: int) -> bytes:
        """Blanks behind a record, up to the end of the page if the next record, of about this length, would cross it.

        A kill cuts a write where a page ends (generic_perform_write()), and a line with it.
        """
        if not self._is_regular:
            return b""
        left = -(os.lseek(self._descriptor, 0, os.SEEK_END) + length) % _PAGE
        return b" " * left if left < length + _VARIANCE else b""

    def _append(self, data: bytes) -> None:
        try:
            written = self._write(data)
            while written < len(data):
                if self._is_regular:
                    self._cut_back(written)
                    raise OSError(errno.ENOSPC, "the disk is full, or a quota or limit of file sizes is reached")
                data = data[written:]  # a pipe or a terminal takes the rest later
                written = self._write(data)
        except OSError as error:
            raise self._error("cannot be written", error) from None

    def _write(self, data: bytes) -> int:
        if self._is_regular:
            return os.write(self._descriptor, data)
        while True:
            self._wait_for_reader()
            try:
                return os.write(self._descriptor, data[: select.PIPE_BUF])  # for so much there is room
            except BlockingIOError:  # unless another writer was first
                continue

    def _wait_for_reader(self) -> None:
        """A slow one is no reason to stop, one that is stuck is, unless it is a person at a terminal."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        if not poll.poll(None if os.isatty(self._descriptor) else _PATIENCE_MS):
            raise OSError(errno.ETIMEDOUT, f"there was no room in it for {_PATIENCE_MS / 1000:g} seconds")

    def _cut_back(self, written: int) -> None:
        """The file offset is behind what was just appended; if another writer has appended since, leave it all."""
        end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        if os.fstat(self._descriptor).st_size == end:
            os.ftruncate(self._descriptor, end - written)

    def _error(self, what: str, error: OSError) -> AuditError:
        return AuditError(error.errno or 0, f"the audit file {self._name} {what}: {error.strerror}")

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> AuditFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ends_half_way(path: str) -> bool:
    """Whether the last line is not ended; a writer that lives may be about to. False for what cannot be read."""
    for pause in (0, 0.001, 0.01, 0.1):
        time.sleep(pause)
        try:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                if file.read() in (b"", b"\n"):
                    return False
        except OSError:
            return False
    return True
