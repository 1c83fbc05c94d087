"""Many backends gone at once, in many namespaces; and a loop that goes through many batches."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from unittest import mock

from socklb import Backend, BackendTable, TerminationLoop, destroy_sockets, terminate_connections
from socklb.filters import SocketFilter
from socklb.kernel.diag import DiagSocket
from socklb.kernel.namespaces import run_in_netns
from socklb.termination import loop as loop_module

from ..networks import Network, networks
from .churn import measure_churn
from .timing import Ratio, Subject, best_times, ratios_of
from .walk import walk

NAMESPACES, BACKENDS = 50, 64
CLIENTS = 4  # in each namespace
PORT = 9000

_WALKS = f"{NAMESPACES} kernel walks, one after another"
_TERMINATE = f"terminate {BACKENDS} backends in {NAMESPACES} namespaces"
_WITHOUT = f"{_TERMINATE}, conntrack left out"
_ONE_BY_ONE = "one pass a backend and namespace"


def measure_everywhere(rounds: int) -> tuple[dict[str, float], list[Ratio]]:
    backends = [Backend(f"127.0.2.{number + 1}", PORT, "tcp") for number in range(BACKENDS)]
    with networks(NAMESPACES) as nets, ExitStack() as stack:
        namespaces = [net.namespace for net in nets]
        diags = [stack.enter_context(run_in_netns(namespace, DiagSocket)) for namespace in namespaces]

        def connect() -> None:
            for number, net in enumerate(nets):
                net.make(lambda s, number=number: _connect(s, backends, number))  # type: ignore[misc]

        def walks() -> None:
            for diag in diags:
                walk(diag)

        def terminate(conntrack: bool | str = "auto") -> None:
            report = terminate_connections(backends, namespaces=namespaces, conntrack=conntrack)
            assert report.destroyed == NAMESPACES * CLIENTS, report

        def one_by_one() -> None:
            filters = [SocketFilter.to_backend(*backend) for backend in backends]
            reports = [destroy_sockets(filter, namespaces=one) for one in namespaces for filter in filters]
            assert sum(report.destroyed for report in reports) == NAMESPACES * CLIENTS

        subjects = {
            _WALKS: Subject(walks),
            _TERMINATE: Subject(terminate, connect),
            _WITHOUT: Subject(lambda: terminate(False), connect),
            _ONE_BY_ONE: Subject(one_by_one, connect, every=rounds),
        }
        connect()
        with mock.patch.object(DiagSocket, "dump", autospec=True, side_effect=DiagSocket.dump) as dump:
            terminate()
        assert dump.call_count == NAMESPACES, "one walk a namespace and protocol"
        best = best_times(subjects, rounds)
        batches = _batches(nets[:2])
        times, churn = measure_churn(nets)
    return {**best, **times}, [
        *churn,
        *ratios_of(best, [(_TERMINATE, _WALKS, 0.65), (_TERMINATE, _WITHOUT, 1.05), (_TERMINATE, _ONE_BY_ONE, 0.03)]),
        Ratio("threads and descriptors after 1,000 batches / after ten", batches, 1.0),
    ]


def _connect(sockets: object, backends: list[Backend], number: int) -> None:
    for client in range(CLIENTS):
        backend = backends[(number + client * 7) % len(backends)]
        sockets.tcp(str(backend.address), PORT)  # type: ignore[attr-defined]


def _batches(nets: list[Network]) -> float:
    """Threads and descriptors of a loop after 1,000 batches, over those after ten."""
    backend, table, counts = Backend("127.0.3.1", PORT, "udp"), BackendTable(), list[int]()
    done = threading.Semaphore(0)
    loop = TerminationLoop(
        table, namespaces=[net.namespace for net in nets], second_pass=None, on_pass=lambda _: done.release()
    )
    thread = threading.Thread(target=loop.run)
    with mock.patch.object(loop_module, "GATHER_SECONDS", 0):
        thread.start()
        for _ in range(1000):
            table.upsert(backend)
            table.delete(backend)
            done.acquire()
            time.sleep(0.0005)  # on_pass is called before the loop waits again
            counts.append(threading.active_count() + len(os.listdir("/proc/self/fd")))
        loop.stop()
        thread.join()
    return counts[-1] / counts[9]
