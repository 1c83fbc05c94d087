"""A world as a state machine, on the real kernel: whatever happens in it, exactly those die who should.

Sockets of every kind come, change and go in several network namespaces, and are searched and destroyed by filters of
every kind, or because a backend fell. After each step every owner finds its socket as the model says, data gets through
every connection that the model holds for alive, and the kernel shows nobody else (/proc/net).

`SOCKLB_PROFILE=deep pytest tests/machine` takes more than 100,000 steps; the last lines say what was done in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from .backends import BackendMachine
from .endpoints import Place, make_places
from .machine import PLACES
from .tallies import never_done, share_in_vain, tally

pytestmark = pytest.mark.kernel

# Worlds, and steps in each.
_SIZES = {"quick": (25, 50), "full": (40, 40), "deep": (2800, 50)}
_WORLDS, _STEPS = _SIZES[os.environ.get("SOCKLB_PROFILE", "quick")]


@pytest.fixture(scope="module")
def places() -> Iterator[list[Place]]:
    made = make_places(PLACES)
    yield made
    for place in made:
        place.close()


def test_exactly_those_die_who_should(places: list[Place], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setattr(BackendMachine, "places", places)
    tally.clear()
    run_state_machine_as_test(
        BackendMachine,
        settings=settings(
            max_examples=_WORLDS,
            stateful_step_count=_STEPS,
            # No shrinking: which of several sockets the kernel finds first differs from one run to the next.
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert not never_done(), tally
    assert share_in_vain() < 0.5, tally
