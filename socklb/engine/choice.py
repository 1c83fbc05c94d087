# SPDX-License-Identifier: MIT
"""The choice of network namespaces that a run works in, and when it has failed as a whole."""

from __future__ import annotations

from ..errors import NotPermitted
from ..kernel.names import UnknownName
from ..kernel.namespaces import CannotEnter, NetworkNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Union

    Namespaces = Union[str, NetworkNamespace, Iterable[NetworkNamespace]]

CURRENT, ALL = "current", "all"


def chosen(namespaces: Namespaces) -> Sequence[NetworkNamespace]:
    """Each namespace of a choice once. What was discovered also tells of those that may not be looked at.

    Raises ValueError or TypeError for what is no choice, KernelError where all are to be found and /proc is not there.
    """
    if isinstance(namespaces, NetworkNamespace):
        return [namespaces]
    if namespaces == CURRENT:
        return [NetworkNamespace.current()]
    if namespaces == ALL:
        from ..kernel.discovery import discover_namespaces  # most runs are in one

        return discover_namespaces()
    if isinstance(namespaces, str):
        raise ValueError(f'namespaces is "current", "all", or NetworkNamespaces, not {namespaces!r}')
    if namespaces is None:
        raise TypeError('namespaces is "current", "all", or NetworkNamespaces, not None')
    distinct = namespaces if hasattr(namespaces, "refused") else list(dict.fromkeys(namespaces))
    for namespace in distinct:
        if not isinstance(namespace, NetworkNamespace):
            raise TypeError(f"namespaces are NetworkNamespaces, not {namespace!r}")
    return distinct  # type: ignore[return-value] # discovered ones are a tuple


def is_one(namespaces: Namespaces) -> bool:
    """Whether a choice is of one namespace that was asked for alone: that it fails is an error, then."""
    return isinstance(namespaces, NetworkNamespace) or namespaces == CURRENT


def raise_if_all_failed(errors: dict[NetworkNamespace, BaseException], tried: int) -> None:
    """Raise the gravest error if no namespace of so many could be searched: entered, or asked. Where only some lack an
    interface or cgroup nothing matches in these, which is no error.
    """
    kinds = (NotPermitted, CannotEnter, UnknownName)
    if errors and len(errors) == tried and all(isinstance(error, kinds) for error in errors.values()):
        raise min(errors.values(), key=lambda error: isinstance(error, UnknownName))
    for namespace in [namespace for namespace, error in errors.items() if isinstance(error, UnknownName)]:
        del errors[namespace]
