# SPDX-License-Identifier: MIT
"""The filters that find what is connected to backends, or to services."""

from __future__ import annotations

from .socket_filter import SocketFilter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..wire.reply import InetSocket
    from .backend import Backend


def filters_to(
    backends: Iterable[Backend], predicate: Callable[[InetSocket], bool] | None = None
) -> list[SocketFilter]:
    """One for each protocol, and for each link of link-local addresses: where there is no such link, nothing matches
    that one alone.
    """
    groups: dict[tuple[str, str], list[Backend]] = {}
    for backend in backends:
        groups.setdefault((backend.protocol, backend.link), []).append(backend)
    return [SocketFilter.to_backends(group, predicate=predicate) for _, group in sorted(groups.items())]
