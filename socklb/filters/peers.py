# SPDX-License-Identifier: MIT
"""The filters that find what is connected to backends, or to services."""

from __future__ import annotations

from .socket_filter import SocketFilter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..wire.reply import InetSocket
    from .backend import Backend

_PIECE = 1500  # backends in a filter, about as many as fit into one dump: a run can be stopped between two


def filters_to(
    backends: Iterable[Backend], predicate: Callable[[InetSocket], bool] | None = None
) -> list[SocketFilter]:
    """At least one for each protocol, and for each link of link-local addresses: where there is no such link, nothing
    matches that one alone.
    """
    groups: dict[tuple[str, str], list[Backend]] = {}
    for backend in backends:
        groups.setdefault((backend.protocol, backend.link), []).append(backend)
    return [
        SocketFilter.to_backends(group[start : start + _PIECE], predicate=predicate)
        for _, group in sorted(groups.items())
        for start in range(0, len(group), _PIECE)
    ]
