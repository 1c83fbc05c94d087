"""Sixteen threads that use every public call at once, each on connections of its own.

A CPython without a GIL, which `.ci/build-python DIRECTORY PREFIX / --disable-gil` builds, runs them side by side.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread

import pytest

import socklb
from socklb import Backend, BackendTable, SocketFilter, TerminationLoop

from .sockets import Sockets, eventually, pending_error, socket_of

pytestmark = pytest.mark.kernel

THREADS = 16
WAYS = ("filter", "backend", "table")
HOST = "127.0.0.2"


def use_all(port: int, way: str, table: BackendTable) -> None:
    """Every call, asked about one port; at the end its one connection is destroyed, in one of the ways."""
    gone = SocketFilter.to_backend(HOST, port, "tcp")
    backend = Backend.parse(f"{HOST}:{port}/TCP")
    parsed = SocketFilter.parse(f"dst {HOST}:{port}", "tcp")
    built = SocketFilter("tcp", socklb.dst(f"{HOST}/32") & socklb.dport(port) & ~socklb.src("10.0.0.0/8"))
    assert len(list(socklb.find_sockets(built))) == 1
    (found,) = socklb.find_sockets(gone)
    assert [socket.cookie for socket in socklb.find_sockets(parsed)] == [found.cookie]
    assert found.dport == port
    assert socklb.states_in(socklb.state_mask(found.state)) == (found.state,)
    here = socklb.discover_namespaces()[0]
    assert (here.name, found.cookie in socklb.live_cookies([here])) == ("current", True)
    assert {answer.status for answer in socklb.probe().values()} == {"supported"}
    table.upsert(backend, str(port))
    if way == "table":
        table.delete(backend, str(port))
        return
    if way == "filter":
        report = socklb.destroy_sockets(gone)
    else:
        report = socklb.terminate_connections([backend], namespaces="current")
    assert [(one.verdict, socket_of(one).cookie) for one in report.outcomes] == [("destroyed", found.cookie)]


def test_no_thread_sees_anything_of_another(sockets: Sockets) -> None:
    ports = [[9000 + THREADS * number + thread for number in range(len(WAYS))] for thread in range(THREADS)]
    clients = [sockets.tcp(HOST, port)[0] for row in ports for port in row]
    bystander, _ = sockets.tcp(HOST, 8999)
    table, start = BackendTable(), Barrier(THREADS)
    loop = TerminationLoop(table, namespaces="current")
    looping = Thread(target=loop.run)

    def work(row: list[int]) -> None:
        start.wait()
        for port, way in zip(row, WAYS):
            use_all(port, way, table)

    looping.start()
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(work, ports):
                pass
        eventually(lambda: not loop.outstanding, "the loop has done what it was told")
    finally:
        loop.stop()
        looping.join()
    assert {pending_error(client) for client in clients} == {"ECONNABORTED"}
    assert pending_error(bystander) == ""
