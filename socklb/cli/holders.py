# SPDX-License-Identifier: MIT
"""The processes that hold a socket (`-p`), as ss(8) prints them and as JSON has them."""

from __future__ import annotations

from ..kernel.processes import CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, has_capability
from .output import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Optional

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
