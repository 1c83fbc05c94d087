# SPDX-License-Identifier: MIT
"""What outlives the process that follows a table: the backends that are alive, and those that are not done with.

The file is text: a line of JSON (format, boot id, seconds since the boot, identity of the source, the last version that
it saw), each backend in a line, and a checksum of all that. A new one is renamed over it, so that it is whole whenever
the process ends. It holds for one boot, so nothing has to be synced to the disk.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from stat import S_ISREG
from struct import Struct
from threading import Event
from time import CLOCK_BOOTTIME, clock_gettime, monotonic

from ..features import standard_module
from ..filters.backend import Backend
from ..kernel.boot import boot_id
from ..wire.request import PROTOCOL_NAMES
from .table import packed, unpacked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, BinaryIO, Protocol

    from .table import PackedTable

    class Identified(Protocol):
        """A source; one of Kubernetes has a `last_version` too."""

        identity: str


_FORMAT = 1
_END = b"end %08x\n"
_END_SIZE = len(_END % 0)
_PIECE = 1 << 20
_PROTOCOLS = {number: name.upper().encode("ascii") for number, name in PROTOCOL_NAMES.items()}
_LINES = {
    layout.size: (layout, line)
    for layout, line in (
        (Struct("!BH4B"), b"%d.%d.%d.%d:%d/%s\n"),
        (Struct("!BH8H"), b"[%x:%x:%x:%x:%x:%x:%x:%x]:%d/%s\n"),
    )
}

_PAUSE_SECONDS = 1.0
_TIMES_TAKEN = 20  # a writing takes a twentieth of the time at most
_RENEWED_SECONDS = 60.0
_SHOWN = 10  # of the backends that are left alone


class Memory:
    """Keeps a file of what a table has, and recalls what an earlier process has left there.

    `identity`: of the source; what was written for another one is not believed, nor what was written before this boot,
    or is damaged, or is older than `keep_seconds`: by then an address may be another's. It becomes FILE.old as soon as
    there is something to write; a `dry_run` writes nothing. Raises ValueError for a path where no file can be.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        source: Identified,
        table: PackedTable,
        warn: Callable[[str], object],
        *,
        keep_seconds: float = 900.0,
        dry_run: bool = False,
    ) -> None:
        self._path = os.path.realpath(os.fsdecode(path))  # a symbolic link stays one
        try:
            os.stat(os.path.dirname(self._path))
            if os.path.lexists(self._path) and not S_ISREG(os.stat(self._path).st_mode):
                raise ValueError(f"{self._path} is not a regular file")
        except OSError as error:
            raise ValueError(f"nothing can be remembered in {self._path}: {_reason(error)}") from None
        self._source, self._table, self._warn, self._keep_seconds = source, table, warn, keep_seconds
        self._dry_run = dry_run
        self._json = standard_module("json", "--remember")
        self._crc32 = standard_module("binascii", "--remember").crc32
        self._boot_id = boot_id()
        self._is_believed = True
        self._too_old: list[bytes] = []  # packed backends, until it is known which of them are gone
        self._age = 0.0
        self._problem = ""
        self._state: object = None  # what there was to write the last time
        self._began, self._pause = -_RENEWED_SECONDS, 0.0
        self._stopped = Event()

    def recall(self) -> None:
        """Before the source is followed: what is in the file, and not in the first whole table, then goes down."""
        try:
            with open(self._path, "rb") as file:
                problem = self._recall(file)
        except FileNotFoundError:
            return
        except (OSError, MemoryError) as error:
            problem = f"cannot be read: {_reason(error)}"
        except ValueError as error:
            problem = f"is damaged: {error}"
        if problem:
            self._is_believed = False
            aside = "" if self._dry_run else f", and the file becomes {self._path}.old"
            self._warn(f"{self._path} {problem}; what went down before this start is left alone{aside}")

    def _recall(self, file: BinaryIO) -> str:
        """Why the file is not believed; "" also if it is only too old, for then more is known later."""
        if os.fstat(file.fileno()).st_uid not in (0, os.geteuid()):
            return "belongs to another user"
        head = self._head(file)
        self._age = clock_gettime(CLOCK_BOOTTIME) - head["time"]
        if head["boot"] != self._boot_id:
            return "was written before this boot"
        if head["source"] != self._source.identity:
            return f"was written for another source ({head['source']}, and this is {self._source.identity})"
        if not 0 <= self._age <= self._keep_seconds:
            self._too_old = [packed(backend) for backend in _backends(file)]
            self._is_believed = False
            return ""
        self._table.recall(_backends(file))
        if head["version"]:
            self._source.last_version = head["version"]  # type: ignore[attr-defined] # it had one
        return ""

    def _head(self, file: BinaryIO) -> dict[str, Any]:
        """The first line, once the checksum is right; the next one is then the first of a backend."""
        crc, left = 0, os.fstat(file.fileno()).st_size - _END_SIZE
        while left > 0:
            piece = file.read(min(left, _PIECE))
            if not piece:
                break
            crc, left = self._crc32(piece, crc), left - len(piece)
        if file.read(_END_SIZE) != _END % crc:
            raise ValueError("its checksum is wrong")
        file.seek(0)
        try:
            head = self._json.loads(file.readline())
        except RecursionError:
            raise ValueError("its first line is nested too deeply") from None
        if not isinstance(head, dict) or head.get("format") != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT}")
        if not isinstance(head.get("time"), float) or not all(
            isinstance(head.get(name), str) for name in ("boot", "source", "version")
        ):
            raise ValueError("its first line lacks something")
        return head

    def stop(self) -> None:
        """Let `run` write once more, and return."""
        self._stopped.set()

    def run(self, outstanding: Callable[[], Iterable[Backend]]) -> None:
        """Write whenever that is due, until `stop()`: what the table has, and the backends that are not done with.

        Nothing is written before the table is whole: until then the file knows more than the table. A dry run then says
        what is left alone, and returns.
        """
        is_last = False
        while not is_last:
            is_last = self._stopped.wait(_PAUSE_SECONDS)
            if self._table.is_whole:
                self._tell_left_alone()
                if self._dry_run:
                    return
                state = self._table.version, [*outstanding()], self._version
                passed = monotonic() - self._began
                is_due = passed >= self._pause and (state != self._state or passed >= _RENEWED_SECONDS)
                if is_due or is_last:
                    self._state = state if self._write(outstanding) else None

    @property
    def _version(self) -> str:
        return getattr(self._source, "last_version", "")

    def _tell_left_alone(self) -> None:
        gone = [key for key in self._too_old if not self._table.holders(key)[0]]
        self._too_old.clear()
        if gone:
            shown = " ".join(str(unpacked(key)) for key in gone[:_SHOWN])
            where = self._path if self._dry_run else f"{self._path}.old"
            more = "" if len(gone) <= _SHOWN else f" (the first {_SHOWN}; {where} has all)"
            self._warn(
                f"{self._path} was {self._age:.0f} s old at the start: {len(gone)} backends that have gone since are "
                f"left alone, for their addresses may be others' by now; if not: socklb terminate {shown}{more}"
            )

    def _write(self, outstanding: Callable[[], Iterable[Backend]]) -> bool:
        """Whether that went well."""
        self._began = monotonic()
        problem, new = "", f"{self._path}.new"
        try:
            with suppress(FileNotFoundError):
                os.unlink(new)  # of a process that was killed
            with open(new, "xb", opener=_open_private) as file:
                crc = 0
                for line in self._lines(outstanding):
                    crc = self._crc32(line, crc)
                    file.write(line)
                file.write(_END % crc)
            if not self._is_believed:
                with suppress(FileNotFoundError):
                    os.replace(self._path, f"{self._path}.old")
                self._is_believed = True
            os.replace(new, self._path)
        except (OSError, MemoryError) as error:
            problem = f"{self._path} cannot be written: {_reason(error)}; it stays as it was, and it is tried again"
            with suppress(OSError):
                os.unlink(new)
        if problem != self._problem:
            self._warn(problem or f"{self._path} is written again")
        self._problem = problem
        self._pause = max(_PAUSE_SECONDS, _TIMES_TAKEN * (monotonic() - self._began))
        return not problem

    def _lines(self, outstanding: Callable[[], Iterable[Backend]]) -> Iterator[bytes]:
        """The table is asked before what is outstanding: what moves from there to here meanwhile is seen twice, not
        missed. The source's version is asked last: one that is newer than the table does no harm, an older one does.
        """
        time = clock_gettime(CLOCK_BOOTTIME)
        keys = self._table.keys()
        down = [*outstanding()]
        head = {
            "format": _FORMAT,
            "boot": self._boot_id,
            "time": time,
            "source": self._source.identity,
            "version": self._version,
        }
        yield f"{self._json.dumps(head)}\n".encode("ascii")
        for key in keys:
            yield _line(key)
        for backend in down:
            yield f"{backend}\n".encode("utf-8", "surrogateescape")


def _line(key: bytes) -> bytes:
    """Of a packed backend, in a tenth of the time that its str() takes unless it has a link."""
    if len(key) not in _LINES:
        return f"{unpacked(key)}\n".encode("utf-8", "surrogateescape")
    layout, line = _LINES[len(key)]
    protocol, port, *address = layout.unpack(key)
    return line % (*address, port, _PROTOCOLS[protocol])


def _backends(file: BinaryIO) -> Iterator[Backend]:
    for line in file:
        if line.startswith(b"end "):
            return
        yield Backend.parse(line[:-1].decode("utf-8", "surrogateescape"))


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _reason(error: OSError | MemoryError) -> str:
    return os.strerror(getattr(error, "errno", None) or errno.ENOMEM)
