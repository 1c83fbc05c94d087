"""A long run of `socklb watch`: it destroys the clients of what goes down and no others, and does not grow."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from ..cli.agent import Agent, watching
from ..networks import networks
from ..sockets import Sockets
from .backends import UP, Backends

pytestmark = [pytest.mark.kernel, pytest.mark.load]

SECONDS = float(os.environ.get("SOCKLB_SOAK_SECONDS", "60"))
"""How long backends come and go. A quarter of it is for warming up."""

PASSING, AT_ONCE = 1_250, 250
"""So many backends come and go before, never to return: more than any cache of the package has room for."""

GROWTH = 1 << 20
"""By how many bytes its memory may have grown since: the allocator takes a while to find its size. What is kept of each
connection that was destroyed, were it no more than its row, comes to more within the minute.
"""


class Size(NamedTuple):
    resident: int  # bytes
    descriptors: int
    threads: int

    @classmethod
    def of(cls, agent: Agent) -> Size:
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        threads, descriptors = agent.threads_and_descriptors()
        return cls(int(status.partition("VmRSS:")[2].split()[0]) << 10, descriptors, threads)


def run(backends: Backends, agent: Agent, seconds: float) -> tuple[Size, Size]:
    """For so long, and then until all are up again. How big the agent was at most, and how big it is at rest."""
    end, peak = time.monotonic() + seconds, Size(0, 0, 0)
    while time.monotonic() < end:
        backends.step(may_go_down=True)
        peak = Size(*map(max, zip(peak, Size.of(agent))))
    for _ in range(2_000):
        if backends.all_are_up:
            return peak, at_rest(agent)
        backends.step(may_go_down=False)
    left = [slot.backend for slot in backends.slots if slot.state != UP]
    raise AssertionError(f"clients are not destroyed: {left}")


def at_rest(agent: Agent) -> Size:
    """The least of many looks: the last pass may be on its way out still."""
    looks = []
    for _ in range(100):
        looks.append(Size.of(agent))
        time.sleep(0.01)
    return Size(*map(min, zip(*looks)))


def test_it_destroys_the_clients_of_what_goes_down_and_does_not_grow(
    sockets: Sockets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the current namespace and in two more."""
    audit = tmp_path / "audit"
    # One arena for all threads: in which of several something is allocated is left to chance.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    with networks(2) as nets:
        paths = [net.namespace.path.replace("/self/", f"/{os.getpid()}/") for net in nets]
        words = [word for name in ("current", *paths) for word in ("--netns", name)]
        with watching(*words, "--audit", str(audit), second_pass=1.0) as agent:
            backends = Backends([lambda function: function(sockets), *(net.make for net in nets)], agent.send)
            for _ in range(PASSING // AT_ONCE):
                backends.come_and_go(AT_ONCE)
            _, before = run(backends, agent, SECONDS / 4)
            peak, after = run(backends, agent, SECONDS * 3 / 4)
            result = agent.stop()
    print(f"{backends.times_down} times down, {backends.connected} connected, {len(backends.destroyed)} destroyed")
    print(f"before {before}, after {after}, peak {peak}")
    assert after[1:] == before[1:], "descriptors and threads"
    assert after.resident - before.resident <= GROWTH
    assert (result.code, result.err) == (0, "")
    records = [json.loads(line) for line in audit.read_text().splitlines()]
    assert Counter(record["outcome"] for record in records) == {"destroyed": len(backends.destroyed)}
    assert {record["cookie"] for record in records} == backends.destroyed
