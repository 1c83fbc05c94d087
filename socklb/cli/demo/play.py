# SPDX-License-Identifier: MIT
"""The demo's play: a backend goes, and its clients are cut in both ways."""

from __future__ import annotations

from ...engine.run import destroy_sockets
from ...errors import NotSupported
from ...filters import SocketFilter
from ...kernel.sandbox import enter_private_network
from ..output import error_text
from . import services
from .world import HEIR, VICTIM, World

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...engine.report import Report
    from .world import Client


def play() -> tuple[list[str], list[dict[str, Any]], list[Report]]:
    """Build the world, destroy the connections to one backend, and cut who was balanced there: (the commands, a row for
    each client, their reports).
    """
    try:
        enter_private_network()
    except OSError as error:
        raise NotSupported(error.errno or 0, _why_no_world(error)) from None
    world = World()
    try:
        has_services = services.add_services(world)
        before = [client.talk() for client in world.clients]
        commands = [f"socklb destroy '{world.filter}'"]
        reports = [destroy_sockets([SocketFilter.parse(world.filter, protocol) for protocol in ("tcp", "udp")])]
        if has_services:
            command, report = services.terminate(world, VICTIM, HEIR)
            commands.append(command)
            reports.append(report)
        after = [client.talk() for client in world.clients]
    finally:
        world.close()
    rows = [
        {
            "client": f"{client.protocol} {client.form}",
            "backend": client.backend,
            "before": was,
            "after": now,
            "as_expected": was == client.backend and _is_expected(client, now),
        }
        for client, was, now in zip(world.clients, before, after)
    ]
    return commands, rows, reports


def _is_expected(client: Client, answer: str) -> bool:
    """A victim's client has an error, but for one of UDP that was balanced: another backend answers that."""
    if client.backend != VICTIM:
        return answer == client.backend
    if (client.form, client.protocol) == ("service", "udp"):
        return answer == HEIR
    return answer.startswith("E")


def _why_no_world(error: OSError) -> str:
    if isinstance(error, NotSupported):
        return f"{error_text(error)}; run the demo with a newer Python. Destroying works without it"
    return (
        f"no private network namespace can be made here ({error.strerror}): run the demo as root, or allow "
        "user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns; in a container, its seccomp profile)"
    )
