# SPDX-License-Identifier: MIT
"""Where the loop looks: the network namespaces of a pass, but for those where its work is done."""

from __future__ import annotations

from time import monotonic

from ..engine.choice import ALL, CURRENT
from ..kernel.discovery import DiscoveredNamespaces, discover_namespaces
from ..kernel.namespaces import NetworkNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Union

    from ..engine.choice import Namespaces

    Choice = Union[Namespaces, Callable[[], Namespaces]]

THREADS_SECONDS = 60.0
"""How often namespaces are looked for that only a thread is in: with many threads it is what a pass costs most."""


class Places:
    """A choice of namespaces, looked up again and again; those that only a thread is in are remembered from one
    minute's look. Raises TypeError or ValueError for what is no choice.
    """

    def __init__(self, choice: Choice) -> None:
        self._choice = _checked(choice)
        self._of_threads: list[NetworkNamespace] = []
        self._next_look = 0.0

    def now(self) -> Any:
        """What `destroy_sockets` takes for namespaces."""
        found = self._choice() if callable(self._choice) else self._choice
        return self._discover() if isinstance(found, str) and found == ALL else found

    def _discover(self) -> DiscoveredNamespaces:
        threads = monotonic() >= self._next_look
        found = discover_namespaces(threads=threads)
        if threads:
            self._next_look = monotonic() + THREADS_SECONDS
            self._of_threads = [namespace for namespace in found if "/task/" in namespace.path]
        both = DiscoveredNamespaces(dict.fromkeys((*found, *self._of_threads)))
        vars(both).update(vars(found))
        return both


def without(found: Any, searched: frozenset[NetworkNamespace]) -> Any:
    """What was found, but for those that have been searched."""
    if isinstance(found, (str, NetworkNamespace)):
        return found
    left = [namespace for namespace in found if namespace not in searched]
    if not isinstance(found, DiscoveredNamespaces):
        return left
    discovered = DiscoveredNamespaces(left)
    vars(discovered).update(vars(found), refused=())  # what was refused is summed up over all attempts
    return discovered


def _checked(namespaces: Any) -> Any:
    """The choice of namespaces, as it is used again and again."""
    if callable(namespaces):
        return namespaces
    if isinstance(namespaces, str):
        if namespaces not in (CURRENT, ALL):
            raise ValueError(f'namespaces is "current", "all", or NetworkNamespaces, not {namespaces!r}')
        return namespaces
    # That a single one has vanished is no failure here.
    several = (namespaces,) if isinstance(namespaces, NetworkNamespace) else tuple(namespaces)
    for namespace in several:
        if not isinstance(namespace, NetworkNamespace):
            raise TypeError(f"namespaces are NetworkNamespaces, not {namespace!r}")
    return several
