# SPDX-License-Identifier: MIT
"""The audit trail: a record of each verdict, and the file that takes records as JSON lines."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time

from ..errors import AuditError
from ..features import standard_module
from ..wire.reply import attribute_decoder
from .report import outcome_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .report import Outcome

    Audit = Callable[[dict[str, Any]], object]
    Target = Callable[[Outcome], dict[str, Any]]

_PATIENCE_MS = 10_000
_COMMAND_LENGTH = 4096
# O_NONBLOCK: a pipe without a reader is an error at once. O_NOFOLLOW: whoever may write to the directory could lead the
# records of a privileged process into any file.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW
_OWN_DESCRIPTORS = "/dev/fd"
_OWN_STREAMS = ("-", "/dev/stderr", "/dev/stdout")


class AuditTrail:
    """The records of one run: each outcome as a dict, handed to the `audit` function with time, operation and actor.

    The first record of a run also has the command line, or 4,096 characters of it. Not for several threads at once.
    """

    def __init__(self, audit: Audit, *, dry_run: bool) -> None:
        if not callable(audit):
            raise TypeError(f"audit is a function that takes a dict, not {audit!r}")
        attribute_decoder()
        self._audit, self._dry_run = audit, dry_run
        self._operation, self._actor = os.urandom(8).hex(), _actor()
        self._command = {"command": _shortened(" ".join(getattr(sys, "argv", ())))}
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
            self.recorded += 1  # last: what an interrupt leaves uncounted is said to be unrecorded


def _shortened(command: str) -> str:
    """Thousands of backends would make a line that not every reader takes."""
    return command if len(command) <= _COMMAND_LENGTH else f"{command[:_COMMAND_LENGTH]} [...]"


def _now() -> str:
    """RFC 3339, UTC, milliseconds."""
    seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03}Z"


def _actor() -> dict[str, int | str | None]:
    """Who is asking: the process, and who became root for it."""
    return {"uid": os.getuid(), "pid": os.getpid(), "sudo_user": os.environ.get("SUDO_USER")}


class AuditFile:
    """An audit function that appends records to a file as JSON lines, each in one write; "-" is standard error.

    Nothing is ever cut off. Where a write comes out short, or a writer is killed, half a line stays: the next record is
    on a line of its own, also if it was already written behind what another writer left. Waits up to 10 s for the
    reader of a pipe, without limit for a terminal. Refused are a symbolic link, except those in /dev to what is open
    already, and a file or pipe that belongs to another user (but root) or that others may write. Raises AuditError if
    it cannot be opened or written. A context manager.
    """

    def __init__(self, path: str) -> None:
        self._dumps = standard_module("json", "an audit").dumps  # few runs have one
        self._path = path
        self._name = "standard error" if path == "-" else path
        # Opened by whoever started this; the names in /dev are links to it.
        self._is_own = path in _OWN_STREAMS or os.path.dirname(path) == _OWN_DESCRIPTORS
        self._is_unfinished = False  # whether what this object wrote last was half a line
        self._end = 0  # of what this object wrote last
        self._descriptor = self._open()

    def reopen(self) -> None:
        """Go on in what is at the path now, after the file was renamed; if that fails (AuditError), in the old one."""
        if self._path == "-" or self._descriptor < 0:
            return
        new = self._open()
        try:
            os.dup2(new, self._descriptor, inheritable=False)  # at once, for another thread may be writing
            self._is_unfinished, self._end = False, 0
        finally:
            os.close(new)

    def _open(self) -> int:
        flags = _FLAGS & ~os.O_NOFOLLOW if self._is_own else _FLAGS
        try:
            descriptor = os.dup(2) if self._path == "-" else os.open(self._path, flags, 0o640)
        except OSError as error:
            if error.errno == errno.ELOOP:
                error.strerror = "it is a symbolic link; give the path that it leads to, or - for standard error"
            raise self._error("cannot be opened", error) from None
        try:
            if not self._is_own:
                _check_owner(os.fstat(descriptor))
                if _ends_half_way(descriptor):
                    os.write(descriptor, b"\n")  # end the line that a killed writer has left unfinished
        except OSError as error:
            os.close(descriptor)
            raise self._error("cannot be opened", error) from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def __call__(self, record: dict[str, Any]) -> None:
        data = b"\n" * self._is_unfinished + self._dumps(record).encode() + b"\n"
        try:
            if _is_regular(os.fstat(self._descriptor)):
                self._append(data)
            else:
                self._hand_over(data)
        except OSError as error:
            raise self._error("cannot be written", error) from None

    def _append(self, data: bytes) -> None:
        """In one write, and once more if that was behind half a line: others write to the file too."""
        is_behind_half = True
        while is_behind_half:
            self._is_unfinished = os.write(self._descriptor, data) < len(data)
            if self._is_unfinished:
                raise OSError(errno.ENOSPC, "the disk is full, or a quota or limit of file sizes is reached")
            begin, end = self._end, os.lseek(self._descriptor, 0, os.SEEK_CUR)
            self._end = end
            is_behind_half = (
                not self._is_own
                and begin != end - len(data)
                and not data.startswith(b"\n")
                and _is_inside_line(self._descriptor, end - len(data))
            )

    def _hand_over(self, data: bytes) -> None:
        """To a pipe or a terminal, in pieces that poll() promises room for."""
        from select import PIPE_BUF

        has_pieces = len(data) > PIPE_BUF
        while data:
            self._wait_for_reader()
            self._is_unfinished = has_pieces  # already now: a signal may come right after the write
            try:
                data = data[os.write(self._descriptor, data[:PIPE_BUF]) :]
            except BlockingIOError:  # another writer was first
                continue
            self._is_unfinished = bool(data)

    def _wait_for_reader(self) -> None:
        """A slow reader is no reason to stop; a stuck one is, unless it is a person at a terminal."""
        from select import POLLOUT, poll

        waiting = poll()
        waiting.register(self._descriptor, POLLOUT)
        if not waiting.poll(None if os.isatty(self._descriptor) else _PATIENCE_MS):
            raise OSError(errno.ETIMEDOUT, f"there was no room in it for {_PATIENCE_MS / 1000:g} seconds")

    def _error(self, what: str, error: OSError) -> AuditError:
        return AuditError(error.errno or 0, f"the audit file {self._name} {what}: {error.strerror}")

    def close(self) -> None:
        """Close the file; records that come later raise AuditError, and so does a file system that lost data."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            try:
                os.close(descriptor)
            except OSError as error:
                raise self._error("cannot be closed", error) from None

    def __enter__(self) -> AuditFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.close()
        except AuditError:
            if kind is None:  # else what ended the block says more
                raise


def _is_regular(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


def _check_owner(status: os.stat_result) -> None:
    """Raise OSError for a file or pipe that another user could change, or read as its owner."""
    if not (_is_regular(status) or stat.S_ISFIFO(status.st_mode)):
        return  # a terminal, /dev/null
    if status.st_uid not in (0, os.geteuid()):
        raise PermissionError(errno.EACCES, f"it belongs to uid {status.st_uid}, who could change it; chown it")
    if status.st_mode & 0o022:
        mode = stat.filemode(status.st_mode)
        raise PermissionError(errno.EACCES, f"others may write to it ({mode}); chmod go-w")


def _ends_half_way(descriptor: int) -> bool:
    """Whether it is a file whose last line has no end, though a live writer gets a moment for it."""
    for pause in (0, 0.001, 0.01, 0.1):
        time.sleep(pause)
        status = os.fstat(descriptor)
        if not (_is_regular(status) and _is_inside_line(descriptor, status.st_size)):
            return False
    return True


def _is_inside_line(descriptor: int, offset: int) -> bool:
    """Whether the line before the offset has no end. False for what cannot be read, and at the beginning."""
    try:
        with open(f"{_OWN_DESCRIPTORS}/{descriptor}", "rb", buffering=0) as file:
            return os.pread(file.fileno(), 1, offset - 1) not in (b"", b"\n")
    except OSError:
        return False
