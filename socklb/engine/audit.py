# SPDX-License-Identifier: MIT
"""The audit trail: a record of each verdict, and the file that takes records as JSON lines."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time

from ..errors import AuditError
from .report import outcome_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .report import Outcome

    Audit = Callable[[dict[str, Any]], object]
    Target = Callable[[Outcome], dict[str, str]]

_PATIENCE_MS = 10_000
# O_NONBLOCK: a pipe without a reader is an error at once.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class AuditTrail:
    """The records of one run: each outcome as a dict, handed to the `audit` function with time, operation and actor.

    The first record of a run also has the command line. Not for several threads at once.
    """

    def __init__(self, audit: Audit, *, dry_run: bool) -> None:
        if not callable(audit):
            raise TypeError(f"audit is a function that takes a dict, not {audit!r}")
        self._audit, self._dry_run = audit, dry_run
        self._operation, self._actor = os.urandom(8).hex(), _actor()
        self._command = {"command": " ".join(getattr(sys, "argv", ()))}
        self.recorded = 0  # how many outcomes have a record
        self.error: BaseException | None = None  # why no more are recorded

    def record(self, outcomes: list[Outcome], target: Target, device: Callable[[Outcome], str | None]) -> None:
        """Record the outcomes, with the name of what each is bound to, unless `error` is set."""
        if self.error is not None:
            return
        for outcome in outcomes:
            stamp = {"time": _now(), "operation": self._operation, "actor": self._actor, **self._command}
            self._audit({**stamp, **outcome_record(outcome, target(outcome), device(outcome), self._dry_run)})
            self._command = {}
            self.recorded += 1


def _now() -> str:
    """RFC 3339, UTC, milliseconds."""
    seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03}Z"


def _actor() -> dict[str, int | str | None]:
    """Who is asking: the process, and who became root for it."""
    return {"uid": os.getuid(), "pid": os.getpid(), "sudo_user": os.environ.get("SUDO_USER")}


class AuditFile:
    """An audit function that appends records to a file as JSON lines, each in one write; "-" is standard error.

    A write that comes out short is cut back, so that the file holds whole lines only. Waits up to 10 s for the reader
    of a pipe, without limit for a terminal. Raises AuditError if it cannot be opened or written. A context manager.
    """

    def __init__(self, path: str) -> None:
        from json import dumps  # few runs have an audit file

        self._dumps = dumps
        self._name = "standard error" if path == "-" else path
        try:
            self._descriptor = os.dup(2) if path == "-" else os.open(path, _FLAGS, 0o640)
        except OSError as error:
            raise self._error("cannot be opened", error) from None
        try:
            self._is_regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
            if self._is_regular and path != "-" and _ends_half_way(path):
                self._append(b"\n")  # end the line that a killed writer has left unfinished
        except BaseException:
            self.close()
            raise

    def __call__(self, record: dict[str, Any]) -> None:
        self._append(self._dumps(record).encode() + b"\n")

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
        from select import PIPE_BUF

        while True:
            self._wait_for_reader()
            try:
                return os.write(self._descriptor, data[:PIPE_BUF])  # poll() promises room for so much
            except BlockingIOError:  # unless another writer was first
                continue

    def _wait_for_reader(self) -> None:
        """A slow reader is no reason to stop; a stuck one is, unless it is a person at a terminal."""
        from select import POLLOUT, poll

        waiting = poll()
        waiting.register(self._descriptor, POLLOUT)
        if not waiting.poll(None if os.isatty(self._descriptor) else _PATIENCE_MS):
            raise OSError(errno.ETIMEDOUT, f"there was no room in it for {_PATIENCE_MS / 1000:g} seconds")

    def _cut_back(self, written: int) -> None:
        """The file offset is behind what was just appended; if another writer has appended since, leave it all."""
        end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        if os.fstat(self._descriptor).st_size == end:
            os.ftruncate(self._descriptor, end - written)

    def _error(self, what: str, error: OSError) -> AuditError:
        return AuditError(error.errno or 0, f"the audit file {self._name} {what}: {error.strerror}")

    def close(self) -> None:
        """Close the file; records that come later raise AuditError."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> AuditFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ends_half_way(path: str) -> bool:
    """Whether the last line has no end, though a live writer gets a moment for it. False for what cannot be read."""
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
