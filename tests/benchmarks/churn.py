"""A hundred backends go down and come back each second, for a minute: what it costs, and when one is cut that stays
down.
"""

from __future__ import annotations

import threading
import time

from socklb import Backend, BackendTable, NetworkNamespace, TerminationLoop
from socklb.termination.loop import Pass

from ..networks import Network
from ..sockets import error_of
from .timing import Ratio

SECONDS, A_SECOND = 60.0, 100
_CLIENT = Backend("127.0.4.1", 9000, "udp")


def measure_churn(nets: list[Network]) -> tuple[dict[str, float], list[Ratio]]:
    """In the namespace of the crowd and in these."""
    backends = [Backend(f"127.0.5.{number + 1}", 9000, "tcp") for number in range(A_SECOND)]
    table, passes = BackendTable(), list[Pass]()
    loop = TerminationLoop(
        table, namespaces=[NetworkNamespace.current(), *(net.namespace for net in nets)], on_pass=passes.append
    )
    client = nets[-1].make(lambda sockets: sockets.udp(str(_CLIENT.address), _CLIENT.port))
    table.replace([(backend,) for backend in (*backends, _CLIENT)])
    thread = threading.Thread(target=loop.run)
    begin, used, cut = time.monotonic(), time.process_time(), 0.0
    thread.start()
    went_down = 0.0
    while time.monotonic() - begin < SECONDS:
        for backend in backends:
            table.delete(backend)
        time.sleep(0.1)
        for backend in backends:
            table.upsert(backend)
        for _ in range(9):
            time.sleep(0.1)
            if went_down and not cut and error_of(client.getpeername):
                cut = time.monotonic() - went_down
        if not went_down and time.monotonic() - begin > SECONDS / 2:
            table.delete(_CLIENT)
            went_down = time.monotonic()
    used, passed = time.process_time() - used, time.monotonic() - begin
    loop.stop()
    thread.join()
    assert cut, "the client of a backend that stayed down was not cut"
    times = {
        "churn: from going down to the error of its client": cut * 1000,
        "churn: longest wait for processor time": max(done.waited for done in passes) * 1000,
        "churn: passes": float(len(passes)),
    }
    return times, [Ratio(f"churn, {A_SECOND} backends a second: processor time / time", used / passed, 0.25)]
