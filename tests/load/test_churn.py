"""Ten thousand destroys while others open and close connections at full speed: nobody else is hit.

The others are the closest neighbours there can be. They connect to the backend's address or to its port, with the ports
of the same small range that the backend's own clients have; and to a second backend with the very tuple that has just
been closed, so that between the dump and the destroy another connection takes the place of the one that was meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from socklb import DestroyReport, SocketFilter, destroy_sockets

from ..sockets import eventually
from .churners import Churner, Told, churner
from .holders import Holder, holders

pytestmark = [pytest.mark.kernel, pytest.mark.load]

ROUNDS, VICTIMS = 20, 500
PORT = 9000
BACKEND, MAPPED, REJOINED = "127.0.9.1", "::ffff:127.0.9.1", "127.0.9.2"
HERE = "127.0.0.1"

FIRST, LAST = 20_000, 20_999  # the ports that the system gives
OWN_PORTS = range(20_000, 20_016)


@pytest.fixture
def victims(network: None) -> Iterator[Holder]:
    """Clients of the backend, 500 of the 1,000 ports theirs."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"{FIRST} {LAST}")
    with holders(VICTIMS, (BACKEND, MAPPED), PORT) as (holder,):
        yield holder


class Churn:
    """Two who must never be hit, and one who is, but not in the place of another."""

    def __init__(self, stack: ExitStack) -> None:
        self.neighbours = [
            stack.enter_context(churner(BACKEND, PORT + 1, HERE)),
            stack.enter_context(churner("127.0.9.3", PORT, HERE)),
        ]
        self.rejoiner = stack.enter_context(churner(REJOINED, PORT, "127.0.0.2", OWN_PORTS))

    @property
    def all(self) -> list[Churner]:
        return [*self.neighbours, self.rejoiner]

    def goes_on(self) -> None:
        """Each has made a good many more connections."""
        before = [each.made for each in self.all]
        eventually(lambda: all(e.made >= b + 100 for e, b in zip(self.all, before)), "more connections")


@pytest.fixture
def churn(victims: Holder) -> Iterator[Churn]:
    with ExitStack() as stack:
        yield Churn(stack)


def test_ten_thousand_destroys_hit_nobody_else(victims: Holder, churn: Churn) -> None:
    filter = SocketFilter.to_backends([(BACKEND, PORT, "tcp"), (REJOINED, PORT, "tcp")])
    verdicts: dict[int, str] = {}
    meanwhile: Counter[str] = Counter()
    for _ in range(ROUNDS):
        cookies = victims.renew()
        churn.goes_on()
        made = [each.made for each in churn.all]
        report = destroy_sockets(filter)
        for name, each, before in zip(("by port", "by address", "same tuple"), churn.all, made):
            meanwhile[name] += each.made - before
        seen = verdicts_of(report)
        assert {cookie: seen.pop(cookie) for cookie in cookies} == dict.fromkeys(cookies, "destroyed")
        assert victims.errors() == {("ECONNABORTED", "ECONNRESET"): VICTIMS}
        assert not seen.keys() & verdicts.keys()
        verdicts.update(seen)

    near = [each.stop() for each in churn.neighbours]
    rejoined = churn.rejoiner.stop()
    print(f"{ROUNDS * VICTIMS} destroyed, meanwhile connections made: {dict(meanwhile)}")
    print(f"those that came again with the same tuple: {dict(Counter(verdicts.values()))}")
    print(f"connections in all: {[len(told.cookies) for told in (*near, rejoined)]}")
    assert all(meanwhile[name] > 0 for name in ("by port", "by address", "same tuple")), meanwhile
    assert [told.deaths for told in near] == [[], []]
    assert_agrees(rejoined, verdicts)


def verdicts_of(report: DestroyReport) -> dict[int, str]:
    """By cookie; each has exactly one."""
    verdicts = {outcome.socket.cookie: outcome.verdict for outcome in report.outcomes}
    assert len(verdicts) == len(report.outcomes)
    return verdicts


def assert_agrees(told: Told, verdicts: dict[int, str]) -> None:
    """The report has theirs alone, destroyed or gone, and whose client died of it is in there as destroyed."""
    assert verdicts.keys() <= told.cookies
    assert {*verdicts.values()} <= {"destroyed", "gone"}
    died = {death.cookie for death in told.deaths if death.client}
    assert died <= {cookie for cookie, verdict in verdicts.items() if verdict == "destroyed"}
