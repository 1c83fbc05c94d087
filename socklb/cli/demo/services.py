# SPDX-License-Identifier: MIT
"""The demo's second half: clients of service addresses, which conntrack has balanced to the backends."""

from __future__ import annotations

import socket

from ...errors import KernelError
from ...features import has
from ...filters.backend import Backend
from .dnat import set_services

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...engine.report import Report
    from .world import World

_SERVICES = {"red": "127.0.9.1", "green": "127.0.9.2"}
_PORT = 80


def add_services(world: World) -> bool:
    """Connect a client over TCP and one over UDP to each service; False where there is no such balancing."""
    if not (has("conntrack") and has("termination")):
        return False
    try:
        _balance(world, {name: name for name in _SERVICES})
    except KernelError:
        return False
    for name, address in _SERVICES.items():
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            world.connect(name, kind, "service", world.servers[name, kind], socket.AF_INET, address, _PORT)
    return True


def terminate(world: World, victim: str, other: str) -> tuple[str, Report]:
    """The victim's service gets another backend, and those that are still balanced to it are cut: (the command, the
    report).
    """
    from ...termination.terminate import conntrack_join
    from ...termination.terminate import terminate as terminate_once

    _balance(world, {name: other if name == victim else name for name in _SERVICES})
    gone = [world.backend(victim, protocol) for protocol in ("tcp", "udp")]
    report = terminate_once(gone, "current", join=conntrack_join(True))
    return f"socklb terminate {' '.join(map(str, gone))}", report


def _balance(world: World, backends: dict[str, str]) -> None:
    set_services(
        {
            Backend(_SERVICES[name], _PORT, protocol): world.backend(backend, protocol)
            for name, backend in backends.items()
            for protocol in ("tcp", "udp")
        }
    )
