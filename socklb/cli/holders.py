# SPDX-License-Identifier: MIT
"""The processes that hold a socket (`-p`), as ss(8) prints them and as JSON has them."""

from __future__ import annotations

from ..kernel.processes import CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, has_capability, holders
from .output import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, Optional

    from ..engine.report import Outcome
    from ..kernel.namespaces import NetworkNamespace
    from ..kernel.processes import Process

    Holders = Optional[list[Process]]
    """None: processes that one may not look at, as far as one can tell."""

UNSEEN = "unseen"


def holders_of(inode: int, known: Mapping[int, Holders]) -> Holders:
    """Of what `processes.holders` found, those of one socket; none if it has no owner any more, or not yet."""
    return known.get(inode) if inode else []


def users_words(processes: Iterable[Process]) -> list[str]:
    """As ss(8) has them, users:(("nginx",pid=12,fd=7),("nginx",pid=13,fd=7)), a word for each."""
    held = [f'("{_quoted(name)}",pid={pid},fd={fd})' for pid, name, _, fds in processes for fd in fds]
    return [f"{'' if n else 'users:('}{one}{',' if n + 1 < len(held) else ')'}" for n, one in enumerate(held)]


def _quoted(name: str) -> str:
    """It must not look like the end of its own, and the begin of another process."""
    return printable(name.replace("\\", "\\\\").replace('"', '\\"'))


def users_text(processes: Iterable[Process]) -> str:
    return "".join(users_words(processes))


def holders_record(processes: Holders) -> list[dict[str, Any]] | None:
    return None if processes is None else [process._asdict() for process in processes]


class Unseen:
    """How many sockets had no process that could be seen; as text, what is to be said of them."""

    def __init__(self) -> None:
        self.count = 0

    def __str__(self) -> str:
        sockets = "1 socket is" if self.count == 1 else f"{self.count} sockets are"
        why = missing_capabilities() or "closed meanwhile, passed on, or held in another user or pid namespace"
        return f"{sockets} held by no process that may be seen: {why}"


def missing_capabilities() -> str:
    """What is missing to see what processes of others hold, "" if nothing is."""
    may_list = has_capability(CAP_DAC_READ_SEARCH) or has_capability(CAP_DAC_OVERRIDE)
    names = [
        name
        for name, has in (("CAP_SYS_PTRACE", has_capability(CAP_SYS_PTRACE)), ("CAP_DAC_READ_SEARCH", may_list))
        if not has
    ]
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing" if names else ""


class Held:
    """The processes that held the sockets of a run (`destroy -p`), as far as one may look at what they hold. They are
    looked up before the sockets die: afterwards nothing leads to them.
    """

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
