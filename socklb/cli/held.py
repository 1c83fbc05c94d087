# SPDX-License-Identifier: MIT
"""`destroy -p`: which processes held a socket. They are looked up before it dies: afterwards nothing leads to them."""

from __future__ import annotations

from ..kernel.processes import holders
from .holders import holders_of, holders_record, users_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ..engine.report import Outcome
    from ..kernel.namespaces import NetworkNamespace
    from ..kernel.processes import Process
    from .holders import Holders


class Held:
    """The processes that held the sockets of a run, as far as one may look at what they hold."""

    def __init__(self) -> None:
        self._known: dict[int, Holders] = {}  # by inode: it is one in all namespaces
        self._of_all: dict[int, list[Process]] | None = None

    def look(self, sockets: Sequence[Any], namespace: NetworkNamespace | None = None) -> list[str]:
        """A hook of Run, `spare`, that spares nobody. It is asked about all that was found in a namespace, and then
        about each batch, of which all is known by then. /proc is read for the first namespace, and once for the others.
        """
        new = {socket.inode for socket in sockets if socket.inode and socket.inode not in self._known}
        if new:
            if self._known and self._of_all is None:
                self._of_all = holders(None)
            found = holders(new) if self._of_all is None else self._of_all
            self._known.update((inode, found.get(inode)) for inode in new)
        return [""] * len(sockets)

    def look_at_spared(self, outcomes: list[Outcome]) -> list[Outcome]:
        """A hook of Run, `after`: `look` is not asked about spared sockets, whose outcomes come before the kill."""
        self.look([outcome.socket for outcome in outcomes if outcome.socket])
        return outcomes

    def of(self, outcome: Outcome) -> Holders:
        return holders_of(outcome.socket.inode if outcome.socket else 0, self._known)

    def text(self, outcome: Outcome) -> str:
        """As ss(8) has them."""
        processes = self.of(outcome)
        if processes is None:
            return "process unseen"
        return users_text(processes) if processes else ""

    def record(self, outcome: Outcome) -> list[dict[str, Any]] | None:
        return holders_record(self.of(outcome))
