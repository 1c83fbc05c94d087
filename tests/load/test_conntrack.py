"""A backend dies on a node with pods: in the suite twice; `python -m tests.load.conntrack` goes on for long."""

from __future__ import annotations

import pytest

from ..nat import Node
from .conntrack import soak

pytestmark = pytest.mark.kernel


def test_exactly_its_clients_are_cut_and_exactly_their_entries_deleted(node: Node) -> None:
    done = soak(node, repetitions=2, seed=1)
    assert done.wrong == []
    assert done.counts["twins live"]
    assert done.counts["entries deleted"]
