# SPDX-License-Identifier: MIT
"""`--netns`: in which network namespaces a command works."""

from __future__ import annotations

from ..engine.choice import ALL, CURRENT
from ..errors import KernelError, NotPermitted
from ..kernel.namespaces import NetworkNamespace, NoSuchNamespace
from .output import error_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..engine.choice import Namespaces
    from ..kernel.discovery import UnsearchedNamespace


def namespaces_from(words: Iterable[str] | None, default: str) -> Namespaces:
    """What the words of --netns name, as calls take it. Raises ValueError for a word that names no namespace."""
    if words is None:
        return default
    named = [None if word == ALL else netns_from(word) for word in words]
    return ALL if None in named else [namespace for namespace in named if namespace is not None]


def netns_from(word: str) -> NetworkNamespace:
    """The one namespace that a word names. Raises ValueError if there is none."""
    if word == CURRENT:
        return NetworkNamespace.current()
    if "/" in word:
        return NetworkNamespace.from_path(word, name=word)
    from ..kernel.discovery import pin_names, pinned  # most commands run in one namespace

    found = pinned(word)
    if found is not None:
        return found
    unknown = f"no network namespace is pinned as {word!r} (known: {', '.join(pin_names()) or 'none'})"
    if word.isascii() and word.isdigit():
        try:
            return NetworkNamespace.from_pid(int(word))
        except NoSuchNamespace:
            raise NoSuchNamespace(f"{unknown}, and no process has this PID") from None
    raise NoSuchNamespace(f"{unknown}; current, all, a PID, or a path such as /proc/PID/ns/net can be given too")


class NamedNamespaces:
    """What the words of --netns name, looked up again each time: a pin may have been made anew. A word for a process
    means the one that had this pid the first time.
    """

    def __init__(self, words: Iterable[str]) -> None:
        """Raises ValueError for a word that names no namespace."""
        self._first = {word: netns_from(word) for word in words}

    def present(self, warn: Callable[[str, str], object]) -> list[NetworkNamespace]:
        """Those that are there; `warn` is called with the word for each of the others, and what is to be said of it."""
        present = []
        for word, first in self._first.items():
            try:
                found = netns_from(word)
            except ValueError as error:
                warn(word, str(error))
                continue
            except KernelError:
                found = first  # the error shows when it is entered, and does not stop the others
            if found.started == first.started:
                present.append(found)
            else:
                warn(word, f"what {word} named has ended, and is another process now")
        return present


def namespace_problems(
    errors: dict[NetworkNamespace, BaseException],
    unsearched: Iterable[UnsearchedNamespace],
    readable_only: bool,
    ended: BaseException | None = None,
) -> tuple[list[str], list[str]]:
    """What is to be said about namespaces that were not searched to the end, besides what ended the command: what went
    wrong, and what was to be expected where `readable_only` ones are.
    """
    problems, expected = list[str](), list[str]()
    for namespace, error in errors.items():
        if error is not ended:
            is_expected = readable_only and isinstance(error, NotPermitted)
            (expected if is_expected else problems).append(f"in {namespace.name}: {error_text(error)}")
    (expected if readable_only else problems).extend(unsearched_texts(unsearched))
    return problems, expected


def unsearched_texts(unsearched: Iterable[UnsearchedNamespace]) -> list[str]:
    """For each reason, the first path that could not be searched and how many others there are."""
    return [f"namespaces not searched: {_first(path, count - 1)}: {reason}" for path, reason, count in unsearched]


def _first(path: str, others: int) -> str:
    return path + (f" and {others} other{'s' if others > 1 else ''}" if others else "")
