"""Among a million sockets: one backend, a hundred thousand sockets in one call, a thousand backends, and `watch`."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

from socklb import (
    Backend,
    NetworkNamespace,
    SocketFilter,
    destroy_sockets,
    dport,
    dst,
    find_sockets,
    terminate_connections,
)
from socklb.termination.loop import GATHER_SECONDS

from ..load.holders import Holder, holders
from .crowd import BACKEND, VICTIMS, Crowd
from .timing import Ratio, Subject, best_times, ratios_of
from .walk import walk_once
from .watched import Watched

KILLS, BACKENDS = 100_000, 1_000
_ROOT = str(Path(__file__).parents[2])
_TO, _FIRST, _LAST = "127.5.0.1", 20_000, 20_099  # whom the many are connected to, each process to one of the ports
_GONE = [Backend(f"127.6.{number >> 8}.{number & 255}", 21_000, "tcp") for number in range(BACKENDS)]

_WALK = "one kernel walk"
_FIND = "find one backend's sockets"
_DESTROY = f"destroy one backend's {VICTIMS} connections"
_DESTROY_MANY = f"destroy {KILLS:,} in one call"
_SS_K = f"ss -K of {KILLS:,}, whole process"
_TERMINATE = f"terminate {BACKENDS:,} backends with a connection each"
_WATCH = "watch: from the line that deletes a backend to the client's error"
_GATHER_AND_WALK = "one kernel walk + 50 ms"


def measure_million(crowd: Crowd, rounds: int) -> tuple[dict[str, float], list[Ratio]]:
    """`rounds` of what is quick; every third has the slow ones too."""
    one = SocketFilter.to_backend(*BACKEND, "tcp")
    many = SocketFilter("tcp", dst(_TO) & dport(_FIRST, _LAST))
    with ExitStack() as stack:
        of_many = stack.enter_context(holders(KILLS, (_TO,), _FIRST))
        of_backends = stack.enter_context(holders(BACKENDS, [str(gone.address) for gone in _GONE], _GONE[0].port))
        watched = stack.enter_context(Watched(_ROOT))
        crowd.renew_victims()
        subjects = {
            _WALK: Subject(walk_once),
            _FIND: Subject(lambda: _expect(VICTIMS, sum(1 for _ in find_sockets(one))), crowd.renew_victims),
            _DESTROY: Subject(lambda: _expect(VICTIMS, destroy_sockets(one).destroyed), crowd.renew_victims),
            _TERMINATE: Subject(_terminate, lambda: _reconnect(of_backends)),
            _WATCH: Subject(watched.go_down, watched.come_up),
            _DESTROY_MANY: Subject(
                lambda: _expect(KILLS, destroy_sockets(many).destroyed), lambda: _reconnect(of_many), every=3
            ),
        }
        if shutil.which("ss"):
            subjects[_SS_K] = Subject(_ss_kill, lambda: _reconnect(of_many), every=3)
        best = best_times(subjects, rounds)
        watched.close_client()
    best[_GATHER_AND_WALK] = best[_WALK] + GATHER_SECONDS * 1000
    return best, ratios_of(
        best,
        [(_FIND, _WALK, 1.1), (_DESTROY_MANY, _SS_K, 0.7), (_TERMINATE, _FIND, 2.0), (_WATCH, _GATHER_AND_WALK, 1.5)],
    )


def _expect(count: int, found: int) -> None:
    assert found == count, found


def _reconnect(those: list[Holder]) -> None:
    for holder in those:
        holder.reconnect()


def _terminate() -> None:
    report = terminate_connections(_GONE, namespaces=NetworkNamespace.current(), conntrack=False)
    _expect(BACKENDS, report.destroyed)


def _ss_kill() -> None:
    """By the same condition; a line of output for each, as ever."""
    condition = f"dst {_TO} dport >= :{_FIRST} dport <= :{_LAST}"
    subprocess.run(["ss", "-HtKn", condition], check=True, stdout=subprocess.DEVNULL, cwd=_ROOT)
