# SPDX-License-Identifier: MIT
"""Where verdicts are entered: into the report of their namespace and, as records, into the audit."""

from __future__ import annotations

import os
import sys
import time
from _thread import RLock  # as functools does: threading takes a while to import, and most runs have one thread

from ..errors import RunStopped
from .report import DestroyReport, outcome_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..wire.reply import InetSocket
    from .report import Outcome

    Audit = Callable[[dict[str, Any]], object]
    Subject = Callable[[InetSocket], dict[str, str]]


class Ledger:
    """The books of one operation, whatever threads it has. A context manager: who destroys is within `with ledger:`
    from before the kernel is asked until the verdicts are entered.

    One thread at a time is in there, and none any more once the ledger is closed (RunStopped): so at most one batch is
    unrecorded when the audit fails.
    """

    def __init__(self, audit: Audit | None, *, dry_run: bool) -> None:
        if audit is not None and not callable(audit):
            raise TypeError(f"audit is a function that takes a dict, not {audit!r}")
        self._audit, self._dry_run = audit, dry_run
        self._stamp = {} if audit is None else {"operation": os.urandom(8).hex(), "actor": _actor()}
        self._lock = RLock()
        self._why_closed = ""
        self.audit_error: BaseException | None = None

    def __enter__(self) -> Ledger:
        self._lock.acquire()
        if self._why_closed:
            self._lock.release()
            raise RunStopped(self._why_closed)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def close(self, why: str) -> None:
        """Let nobody in any more, and tell them why."""
        self._why_closed = self._why_closed or why

    @property
    def is_closed(self) -> bool:
        return bool(self._why_closed)

    def enter(self, report: DestroyReport, outcomes: list[Outcome], where: str, subject: Subject) -> None:
        """All into the report, and then into the audit, which is left alone once it has failed.

        `where` is the namespace's name; `subject` tells of a socket what it was meant by, a filter or a backend.
        """
        with self._lock:
            if self._audit is None:
                report.outcomes += outcomes
                return
            recorded = 0
            try:
                report.outcomes += outcomes
                for outcome in outcomes:
                    record = outcome_record(outcome, where, subject(outcome.socket), self._dry_run)
                    self._audit({"time": _now(), **self._stamp, **record})
                    recorded += 1
            except BaseException as error:
                self._audit, self.audit_error = None, error
                self.close("the audit failed")
                report.unrecorded = outcomes[recorded:]
                raise


def _now() -> str:
    """RFC 3339, UTC, milliseconds."""
    seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03}Z"


def _actor() -> dict[str, int | str | None]:
    """Who is asking: the process, and who became root for it."""
    return {
        "uid": os.getuid(),
        "pid": os.getpid(),
        "command": " ".join(getattr(sys, "argv", ())),
        "sudo_user": os.environ.get("SUDO_USER"),
    }
