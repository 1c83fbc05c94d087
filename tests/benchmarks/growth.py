"""How the costs grow: with the sockets of a host, the backends that are gone, the namespaces, the sockets destroyed."""

from __future__ import annotations

from contextlib import ExitStack

from socklb import Backend, SocketFilter, destroy_sockets, dport, dst, find_sockets, terminate_connections

from ..load.holders import holders
from ..networks import networks
from .crowd import BACKEND, Crowd
from .plot import Panel
from .timing import Subject, best_times
from .walk import walk_once

_TO, _FIRST, _LAST = "127.5.0.1", 20_000, 20_099
_WALK = "one kernel walk"


def measure_growth(most_sockets: int, rounds: int) -> list[Panel]:
    """The crowd that backends, namespaces and kills are among has a tenth of `most_sockets`."""
    sizes = [size for size in (1_000, 10_000, 100_000, 1_000_000) if size < most_sockets] + [most_sockets]
    sockets = [_among(size, rounds) for size in sizes]
    with Crowd(most_sockets // 10):
        backends = [_of_backends(10**power, rounds) for power in range(5)]
        namespaces = [_of_namespaces(10**power, rounds) for power in range(4)]
        kills = [_of_kills(10**power, max(1, rounds // 3)) for power in range(6)]
    return [
        Panel("One backend among so many sockets", "sockets", _lines(sizes, sockets)),
        Panel("Backends gone at once", "backends", _lines([10**power for power in range(5)], backends)),
        Panel("Namespaces", "namespaces", _lines([10**power for power in range(4)], namespaces)),
        Panel("Sockets destroyed in one call", "sockets destroyed", _lines([10**power for power in range(6)], kills)),
    ]


def _lines(numbers: list[int], measured: list[dict[str, float]]) -> dict[str, list[tuple[float, float]]]:
    return {name: [(n, best[name]) for n, best in zip(numbers, measured)] for name in measured[0]}


def _among(size: int, rounds: int) -> dict[str, float]:
    one = SocketFilter.to_backend(*BACKEND, "tcp")
    with Crowd(size) as crowd:
        subjects = {
            "destroy its 100 connections": Subject(lambda: destroy_sockets(one), crowd.renew_victims),
            "find them": Subject(lambda: [*find_sockets(one)], crowd.renew_victims),
            _WALK: Subject(walk_once),
        }
        return best_times(subjects, rounds)


def _of_backends(count: int, rounds: int) -> dict[str, float]:
    many = [Backend(f"172.{16 + (n >> 16)}.{n >> 8 & 255}.{n & 255}", 1024 + n % 40_000, "tcp") for n in range(count)]
    subjects = {
        "terminate": Subject(lambda: terminate_connections(many, namespaces="current", conntrack=False)),
        _WALK: Subject(walk_once),
    }
    return best_times(subjects, rounds)


def _of_namespaces(count: int, rounds: int) -> dict[str, float]:
    gone = [Backend("10.9.77.1", 9000, "tcp")]
    with networks(count) as nets:
        namespaces = [net.namespace for net in nets]
        subjects = {
            "terminate": Subject(lambda: terminate_connections(gone, namespaces=namespaces)),
            "conntrack left out": Subject(lambda: terminate_connections(gone, namespaces=namespaces, conntrack=False)),
        }
        return best_times(subjects, rounds)


def _of_kills(count: int, rounds: int) -> dict[str, float]:
    filter = SocketFilter("tcp", dst(_TO) & dport(_FIRST, _LAST))
    with ExitStack() as stack:
        those = stack.enter_context(holders(count, (_TO,), _FIRST))

        def reconnect() -> None:
            for holder in those:
                holder.reconnect()

        return best_times({"destroy": Subject(lambda: destroy_sockets(filter), reconnect)}, rounds)
