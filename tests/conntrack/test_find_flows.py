"""`find_flows`: which connections conntrack has balanced to backends, in the real kernel."""

from __future__ import annotations

from unittest import mock

import pytest

from socklb import Backend, find_flows
from socklb.conntrack.table import ConntrackTable

from .entries import flow, make_entries

pytestmark = pytest.mark.kernel

BACKEND = "10.0.0.5:8080/TCP"


@pytest.mark.parametrize("backends", [None, [Backend.parse(BACKEND)]], ids=["all", "of a backend"])
def test_they_are_streamed(network: None, backends: list[Backend] | None) -> None:
    """The first are there before the last datagram is, of each question."""
    count = 2000
    make_entries(*(flow("10.96.0.10:80/TCP", BACKEND, sport=1024 + n) for n in range(count)))
    receive, received = ConntrackTable._receive, []

    def noted(self: ConntrackTable, doing: str) -> bytes:
        received.append(receive(self, doing))
        return received[-1]

    with mock.patch.object(ConntrackTable, "_receive", noted):
        flows = find_flows(backends)
        first, before = next(flows), len(received)
        others = list(flows)
    assert len({first, *others}) == count
    assert before < len(received) - 2
