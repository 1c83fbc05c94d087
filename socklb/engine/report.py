# SPDX-License-Identifier: MIT
"""What became of the sockets that a filter matched, and the record of it."""

from __future__ import annotations

from collections import namedtuple

from ..states import state_word
from ..wire.address import format_address
from ..wire.request import PROTOCOL_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NamedTuple, Optional

    from ..wire.reply import InetSocket

DESTROYED = "destroyed"
GONE = "gone"
SKIPPED = "skipped"
FAILED = "failed"
_VERDICTS = (DESTROYED, GONE, SKIPPED, FAILED)

if TYPE_CHECKING:

    class Outcome(NamedTuple):
        """One socket's verdict: "destroyed", "gone", "skipped" or "failed".

        `reason` says why it was skipped or failed, or that it is gone behind an answer that was lost ("" otherwise);
        `error` is the errno of a failure or None.
        """

        socket: InetSocket
        verdict: str
        reason: str = ""
        error: Optional[int] = None

else:
    Outcome = namedtuple("Outcome", "socket verdict reason error", defaults=("", None))


class Counts:
    """How many sockets got which verdict.

    `destroyed`: answered 0. `gone`: closed by itself in between, if no reason says otherwise. `skipped`: spared, with
    the reason. `failed`: still there, with the reason. `matched` is the sum of the four.
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts = dict.fromkeys(_VERDICTS, 0)

    def count(self, verdict: str) -> None:
        """Take in one more."""
        self._counts[verdict] += 1

    def _of(self, verdict: str) -> int:
        return self._counts[verdict]

    @property
    def destroyed(self) -> int:
        return self._of(DESTROYED)

    @property
    def gone(self) -> int:
        return self._of(GONE)

    @property
    def skipped(self) -> int:
        return self._of(SKIPPED)

    @property
    def failed(self) -> int:
        return self._of(FAILED)

    @property
    def matched(self) -> int:
        return sum(map(self._of, _VERDICTS))

    def sums(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("matched", *_VERDICTS)}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' '.join(f'{name}={count}' for name, count in self.sums().items())}>"


class DestroyReport(Counts):
    """What a destroy did: `outcomes`, one for each socket that matched, and their sums.

    `unrecorded` are those that the audit failed to take: at most one batch. What was given up after that has not been
    touched, and is not in the audit either.
    """

    __slots__ = ("outcomes", "unrecorded")

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: list[Outcome] = []  # and nothing beside it: one step takes a verdict in, interrupts or not
        self.unrecorded: list[Outcome] = []

    def _of(self, verdict: str) -> int:
        return sum(outcome.verdict == verdict for outcome in self.outcomes)


def socket_record(socket: InetSocket) -> dict[str, Any]:
    """A socket as JSON takes it: addresses as text, state by name, cookie and inode as numbers."""
    return {
        "protocol": PROTOCOL_NAMES[socket.protocol],
        "state": state_word(socket.state),
        "src": format_address(socket.src),
        "sport": socket.sport,
        "dst": format_address(socket.dst),
        "dport": socket.dport,
        "cookie": socket.cookie,
        "uid": socket.uid,
        "inode": socket.inode,
    }


def outcome_record(outcome: Outcome, where: str, subject: dict[str, str], dry_run: bool) -> dict[str, Any]:
    """A verdict as JSON takes it. `where` is the namespace's name, `subject` what the socket was meant by."""
    return {
        "namespace": where,
        **subject,
        "dry_run": dry_run,
        **socket_record(outcome.socket),
        "outcome": outcome.verdict,
        "reason": outcome.reason,
        "error": outcome.error,
    }
