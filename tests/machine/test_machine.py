"""A world as a state machine, on the real kernel: whatever happens in it, exactly the right sockets are destroyed.

Sockets of every kind come, change and go in several network namespaces, and are searched and destroyed by filters of
every kind, or because a backend goes down. After each step every owner finds its socket as the model says, data gets
through every connection that the model holds for alive, and the kernel shows nothing else (/proc/net).

`SOCKLB_PROFILE=deep pytest tests/machine` takes more than 100,000 steps; the last lines say what was done in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from socklb.termination import terminate as terminating

from .backends import BackendMachine
from .counters import counters, missing, share_in_vain
from .endpoints import Netns, make_namespaces
from .machine import NAMESPACES

pytestmark = pytest.mark.kernel

# Worlds, and steps in each.
_SIZES = {"quick": (25, 50), "full": (40, 40), "deep": (2800, 50)}
_WORLDS, _STEPS = _SIZES[os.environ.get("SOCKLB_PROFILE", "quick")]


@pytest.fixture(scope="module")
def namespaces() -> Iterator[list[Netns]]:
    made = make_namespaces(NAMESPACES)
    yield made
    for netns in made:
        netns.close()


def test_exactly_the_right_sockets_are_destroyed(namespaces: list[Netns], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setattr(BackendMachine, "namespaces", namespaces)
    monkeypatch.setattr(terminating, "LOOKS", ())
    counters.clear()
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
    assert not missing(), counters
    assert share_in_vain() < 0.5, counters
