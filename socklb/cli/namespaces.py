# SPDX-License-Identifier: MIT
"""`--netns`: in which network namespaces a command works."""

from __future__ import annotations

from ..kernel.namespaces import HOST_NAME, NetworkNamespace
from .arguments import ALL
from .output import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..kernel.discovery import SkippedNamespace


def namespaces_from(words: Iterable[str]) -> list[NetworkNamespace] | None:
    """What the words of --netns stand for; None is all. Raises ValueError for what is none."""
    chosen = [None if word == ALL else _namespace(word) for word in words]
    return None if None in chosen else [namespace for namespace in chosen if namespace is not None]


def _namespace(word: str) -> NetworkNamespace:
    if word == HOST_NAME:
        return NetworkNamespace.current()
    if "/" in word:
        return NetworkNamespace.from_path(word, name=word)
    from ..kernel.discovery import pinned  # few need it

    return pinned(word)


def tell_skipped(skipped: Iterable[SkippedNamespace]) -> None:
    """Say which namespaces could not be looked at."""
    for text in skipped_texts(skipped):
        complain(text)


def skipped_texts(skipped: Iterable[SkippedNamespace]) -> list[str]:
    """How many paths to namespaces could not be looked at, by the reason."""
    from ..kernel.discovery import unreadable  # few need it

    reasons: dict[str, list[str]] = {}
    for path, reason in unreadable(skipped):
        reasons.setdefault(reason, []).append(path)
    return [f"namespaces not looked at: {_first(paths)}: {reason}" for reason, paths in reasons.items()]


def _first(paths: list[str]) -> str:
    others = len(paths) - 1
    return paths[0] + (f" and {others} other{'s' if others > 1 else ''}" if others else "")
