"""A command in a root, and what becomes of the applications around it.

Each runs in a user namespace of its own, as any user could make it, with the sockets of the applications in its network
namespace; the command runs in a root that was entered by pivot_root.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from .. import world
from ..cli.runner import Result
from ..sockets import Sockets, in_child, pending_error, talk
from .roots import MinimalRoot, Roots

T = TypeVar("T")


def in_own_network(function: Callable[[], T]) -> T:
    """What a function returns in a user namespace with a network namespace of its own, loopback up."""

    def enter() -> None:
        world.become(0, world.CLONE_NEWNET)
        world.loopback_up()

    return in_child(function, enter)


class Aftermath(NamedTuple):
    result: Result
    to_backend: list[str]
    """What SO_ERROR gave the five clients of the backend."""
    to_others: list[str]


def run_among_clients(roots: Roots, root: MinimalRoot, *words: str, stdin: str = "") -> Aftermath:
    """Run a command there, while applications outside are connected to port 9000 and to others."""

    def play() -> Aftermath:
        with Sockets() as sockets:
            clients = [
                sockets.tcp("127.0.0.2", 9000)[0],
                sockets.tcp("::ffff:127.0.0.2", 9000)[0],
                sockets.tcp("::1", 9000)[0],
                sockets.udp_pair("127.0.0.2", 9000)[0],
                sockets.udp_pair("::1", 9000)[0],
            ]
            others = [
                sockets.tcp("127.0.0.2", 9001),
                sockets.tcp("::1", 9001),
                sockets.udp_pair("127.0.0.2", 9001),
                sockets.tcp("127.0.0.3", 9000),
            ]
            result = roots.run(root, *words, stdin=stdin)
            for client, server in others:
                talk(client, server)
            return Aftermath(
                result, [pending_error(client) for client in clients], [pending_error(client) for client, _ in others]
            )

    return in_own_network(play)


BACKENDS = ("127.0.0.2:9000/TCP", "[::1]:9000/TCP", "127.0.0.2:9000/UDP", "[::1]:9000/UDP")
FILTER = "( dst 127.0.0.2 or dst ::1 ) and dport = 9000"
CUT = ["ECONNABORTED"] * 5
ALIVE = [""] * 5
