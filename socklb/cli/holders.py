# SPDX-License-Identifier: MIT
"""The processes that hold a socket (`-p`), as ss(8) prints them and as JSON has them."""

from __future__ import annotations

from ..kernel.processes import CAP_SYS_PTRACE, has_capability
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


def users_text(processes: Iterable[Process]) -> str:
    """As ss(8) has them: users:(("nginx",pid=12,fd=7),("nginx",pid=13,fd=7))."""
    held = [f'("{printable(name)}",pid={pid},fd={fd})' for pid, name, _, fds in processes for fd in fds]
    return f"users:({','.join(held)})"


def holders_record(processes: Holders) -> list[dict[str, Any]] | None:
    return None if processes is None else [process._asdict() for process in processes]


class Unseen:
    """How many sockets had processes that could not be seen; as text, what is to be said of them."""

    def __init__(self) -> None:
        self.count = 0

    def __str__(self) -> str:
        is_missing = not has_capability(CAP_SYS_PTRACE)
        why = (
            "CAP_SYS_PTRACE is missing" if is_missing else "they are in another user or pid namespace, or passed it on"
        )
        held = "socket is" if self.count == 1 else "sockets are"
        return f"{self.count} {held} held by processes that may not be seen: {why}"
