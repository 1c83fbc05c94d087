"""Ten thousand destroys while others open and close connections at full speed: nobody else is hit.

The others are the closest neighbours there can be. They connect to the backend's address or to its port, with the ports
of the same small range that the backend's own clients have; and to a second backend with the very tuple that has just
been closed, so that between the dump and the destroy another connection takes the place of the one that matched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from socklb import SocketFilter, destroy_sockets

from ..fake_kernel import verdicts
from ..sockets import eventually
from .churners import Churner, churner
from .holders import Holder, holders

pytestmark = [pytest.mark.kernel, pytest.mark.load]

ROUNDS, VICTIMS = 20, 500
PORT = 9000
BACKEND, MAPPED, SECOND_BACKEND = "127.0.9.1", "::ffff:127.0.9.1", "127.0.9.2"
FIRST, LAST = 20_000, 20_999  # the ports that the system gives
OWN_PORTS = range(20_000, 20_016)


@pytest.fixture
def victims(network: None) -> Iterator[Holder]:
    """Clients of the backend, 500 of the 1,000 ports theirs."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"{FIRST} {LAST}")
    with holders(VICTIMS, (BACKEND, MAPPED), PORT) as (holder,):
        yield holder


@pytest.fixture
def churn(victims: Holder) -> Iterator[dict[str, Churner]]:
    """Two who must never be hit, and one who is, but not in the place of another."""
    with ExitStack() as stack:
        yield {
            "same address": stack.enter_context(churner(BACKEND, PORT + 1, "127.0.0.1")),
            "same port": stack.enter_context(churner("127.0.9.3", PORT, "127.0.0.1")),
            "same tuple": stack.enter_context(churner(SECOND_BACKEND, PORT, "127.0.0.2", OWN_PORTS)),
        }


def made_by(churn: dict[str, Churner]) -> Counter[str]:
    return Counter({name: each.made for name, each in churn.items()})


def test_ten_thousand_destroys_hit_nobody_else(victims: Holder, churn: dict[str, Churner]) -> None:
    filter = SocketFilter.to_backends([(BACKEND, PORT, "tcp"), (SECOND_BACKEND, PORT, "tcp")])
    reported: dict[int, str] = {}
    meanwhile: Counter[str] = Counter()
    for _ in range(ROUNDS):
        cookies = victims.reconnect()
        for each in churn.values():
            goal = each.made + 100
            eventually(lambda each=each, goal=goal: each.made >= goal, "more connections")  # type: ignore[misc]
        before = made_by(churn)
        seen = verdicts(destroy_sockets(filter))
        meanwhile += made_by(churn) - before
        assert {cookie: seen.pop(cookie) for cookie in cookies} == dict.fromkeys(cookies, "destroyed")
        assert victims.errors() == {("ECONNABORTED", "ECONNRESET"): VICTIMS}
        assert not seen.keys() & reported.keys()
        reported.update(seen)

    churned = {name: each.stop() for name, each in churn.items()}
    print(f"{ROUNDS * VICTIMS} destroyed, connections made meanwhile: {dict(meanwhile)}")
    print(f"those to the second backend: {dict(Counter(reported.values()))}")
    assert all(meanwhile[name] for name in churn)
    assert churned["same address"].deaths == churned["same port"].deaths == []
    # The report has those to the second backend alone, and whose client got an error is in there as destroyed.
    assert reported.keys() <= churned["same tuple"].cookies
    assert {*reported.values()} <= {"destroyed", "gone"}
    died = {death.cookie for death in churned["same tuple"].deaths if death.client}
    assert died <= {cookie for cookie, verdict in reported.items() if verdict == "destroyed"}
