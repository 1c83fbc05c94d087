"""A long run of `socklb watch`: it cuts what has fallen and nothing else, and stays as small as it was."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..networks import networks
from ..sockets import Sockets
from .comings_and_goings import ComingsAndGoings
from .watching import Size, Watching

pytestmark = [pytest.mark.kernel, pytest.mark.load]

SECONDS = float(os.environ.get("SOCKLB_SOAK_SECONDS", "60"))
"""How long backends come and go. A quarter of it is for warming up."""

PASSING, AT_ONCE = 1_250, 250
"""So many backends come and go before, never to return: more than any cache of the package has room for."""

GROWTH = 1 << 20
"""By how many bytes its memory may have grown since: the allocator takes a while to find its size. What is kept of each
connection that was cut, were it no more than its row, comes to more within the minute.
"""


class Soak:
    """A watch of the host and of two namespaces more, and what goes on in there."""

    def __init__(self, stack: ExitStack, sockets: Sockets, directory: Path) -> None:
        nets = stack.enter_context(networks(2))
        paths = [net.namespace.path.replace("/self/", f"/{os.getpid()}/") for net in nets]
        words = [word for name in ("host", *paths) for word in ("--netns", name)]
        self.watching = stack.enter_context(Watching(directory, words))
        self.world = ComingsAndGoings(
            [lambda function: function(sockets), *(net.make for net in nets)], self.watching.say
        )
        self.peak = Size(0, 0, 0)

    def go_on(self, seconds: float) -> Size:
        """For so long, and then until nothing is under way. How big it is then."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.world.turn(may_fall=True)
            self.peak = Size(*map(max, zip(self.peak, self.watching.size())))
        self.calm_down()
        return self.size_at_rest()

    def size_at_rest(self) -> Size:
        """The least of many looks: the last pass may be on its way out still."""
        looks = []
        for _ in range(100):
            looks.append(self.watching.size())
            time.sleep(0.01)
        return Size(*map(min, zip(*looks)))

    def calm_down(self) -> None:
        """Whatever has fallen is cut and alive again."""
        for _ in range(2_000):
            if self.world.is_quiet:
                return
            self.world.turn(may_fall=False)
        raise AssertionError(f"not cut: {[place.text for place in self.world.places if place.state != 'alive']}")


@pytest.fixture
def soak(sockets: Sockets, tmp_path: Path) -> Iterator[Soak]:
    with ExitStack() as stack:
        yield Soak(stack, sockets, tmp_path)


def test_it_cuts_what_has_fallen_and_stays_as_it_was(soak: Soak) -> None:
    for _ in range(PASSING // AT_ONCE):
        soak.world.come_and_go(AT_ONCE)
    before = soak.go_on(SECONDS / 4)
    after = soak.go_on(SECONDS * 3 / 4)
    world, watching = soak.world, soak.watching
    print(f"{world.falls} falls, {world.connected} connected, {len(world.cut)} cut")
    print(f"before {before}, after {after}, peak {soak.peak}")

    assert after[1:] == before[1:], "descriptors and threads"
    assert after.resident - before.resident <= GROWTH

    assert watching.terminate() == 0
    assert watching.errors() == ""
    records = watching.audited()
    assert Counter(record["outcome"] for record in records) == {"destroyed": len(world.cut)}
    assert {record["cookie"] for record in records} == world.cut
