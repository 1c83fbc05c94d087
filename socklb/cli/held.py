# SPDX-License-Identifier: MIT
"""`destroy -p`: which processes held a socket. They are looked up before it dies: afterwards nothing leads to them."""

from __future__ import annotations

from contextlib import suppress

from ..errors import SocklbError
from ..kernel.processes import holders
from .output import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Optional

    from ..engine.report import Outcome
    from ..kernel.namespaces import NetworkNamespace
    from ..kernel.processes import Process

    Holders = Optional[list[Process]]
    """None: processes that one may not look at, as far as one can tell."""


class Held:
    """The processes that held the sockets of a run, as far as one may look at what they hold."""

    def __init__(self) -> None:
        self._known: dict[int, Holders] = {}  # by inode: it is one in all namespaces

    def look(self, sockets: Sequence[Any], namespace: NetworkNamespace | None = None) -> list[str]:
        """A hook of Run, `spare`, that spares nobody. It is asked about all that was found, in which case /proc is read
        once, and again about each batch, of which all is known by then.
        """
        new = {socket.inode for socket in sockets if socket.inode} - self._known.keys()
        if new:
            found = holders(new)
            self._known.update((inode, found.get(inode)) for inode in new)
        return [""] * len(sockets)

    def look_at_spared(self, outcomes: Iterable[Outcome]) -> None:
        """The hook is not asked about those, and they are still there."""
        with suppress(SocklbError):
            self.look([outcome.socket for outcome in outcomes if outcome.socket])

    def of(self, outcome: Outcome) -> Holders:
        """None of them if the socket had no owner any more, or not yet."""
        inode = outcome.socket.inode if outcome.socket else 0
        return self._known.get(inode) if inode else []

    def text(self, outcome: Outcome) -> str:
        """As ss(8) has them."""
        processes = self.of(outcome)
        if processes is None:
            return "process unseen"
        held = (f'("{printable(process.name)}",pid={process.pid})' for process in processes)
        return f"users:({','.join(held)})" if processes else ""

    def record(self, outcome: Outcome) -> list[dict[str, Any]] | None:
        processes = self.of(outcome)
        return None if processes is None else [process._asdict() for process in processes]
