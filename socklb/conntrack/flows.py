# SPDX-License-Identifier: MIT
"""Which connections conntrack has balanced to a backend."""

from __future__ import annotations

from ..filters.backend import check_backend
from ..filters.socket_filter import protocol_number
from ..kernel.namespaces import NetworkNamespace, run_in_netns
from .table import ConntrackTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from ..filters.backend import Backend
    from .layout import Flow


def endpoints_of(backends: Iterable[Backend]) -> frozenset[tuple[int, bytes, int]]:
    """(protocol, packed address, port) of each. A link-local backend has none: conntrack knows no links."""
    return frozenset(
        (protocol_number(backend.protocol), backend.address.packed, backend.port)
        for backend in backends
        if not backend.link
    )


def find_flows(
    backends: Iterable[Backend] | None, *, namespace: NetworkNamespace | None = None
) -> Generator[Flow, None, None]:
    """The flows that conntrack has balanced to one of the backends (None: to any), that is, whose client asked for
    another address or port. In whatever state, those of TCP that are closing too. Streamed: memory does not grow with
    their number, and one may come twice where others vanish meanwhile.

    `namespace` None is the caller's. Raises TypeError for what is no Backend; NotPermitted without CAP_NET_ADMIN in the
    user namespace that owns it, NotSupported where the kernel has no conntrack, KernelError for what it answers else.
    """
    if namespace is not None and not isinstance(namespace, NetworkNamespace):
        raise TypeError(f"namespace is a NetworkNamespace or None, not {namespace!r}")
    several = None if backends is None else list(backends)
    for backend in several or ():
        check_backend(backend)
    return _find(several, namespace)


def _find(backends: list[Backend] | None, namespace: NetworkNamespace | None) -> Generator[Flow, None, None]:
    with run_in_netns(namespace, ConntrackTable) as table:
        if table.count():
            yield from table.dnated() if backends is None else table.stream_to(endpoints_of(backends))
