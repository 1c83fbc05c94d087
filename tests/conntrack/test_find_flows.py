"""`find_flows`: which connections conntrack has balanced to backends, in the real kernel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest

from socklb import Backend, find_flows
from socklb.conntrack import table
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


SERVICES = {
    "10.96.0.10:53/UDP": ("10.0.0.5:53/UDP", "10.0.0.6:53/UDP"),
    "[fd00:96::10]:80/TCP": ("[fd00::5]:8080/TCP", "[fd00::6]:8080/TCP"),
}
"""Each with two backends."""
DST_NAT = 0x20

KERNELS: dict[str, dict[str, Callable[..., object]]] = {
    "this one": {},
    "one without reply filters": {"_has_reply_filters": lambda: False},
    "one that ignores filters": {"filter_by": lambda which, **_: b""},
}


@pytest.mark.parametrize("patches", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("more", [0, 9], ids=["few", "many"])
def test_every_kernel_gives_the_same_answers(
    network: None, patches: dict[str, Callable[..., object]], service: str, more: int
) -> None:
    """Whoever has translated, the port alone or the address too, in whatever zone; also with accounting."""
    a, b = SERVICES[service]
    other_port = Backend.parse(service)._replace(port=9)
    for name in ("acct", "timestamp"):
        Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}").write_text("1", encoding="ascii")
    make_entries(
        flow(service, a, sport=1),
        flow(service, a, sport=2, status=8 | DST_NAT),
        flow(service, str(other_port), sport=3),
    )
    make_entries(flow(service, a, sport=1, zone=7), flow(service, b, sport=4), flow(service, sport=5))
    make_entries(flow(service, b, sport=1, zone=8), is_zone_of_original=True)
    strangers = [Backend(f"10.9.9.{n + 1}", 1000 + n, "tcp") for n in range(more)]

    def found(*wanted: Backend) -> list[tuple[int, int, bool]]:
        """Each once: where filters are ignored every question is answered with all."""
        return sorted({(one.sport, one.zone, one.is_by_ipvs) for one in find_flows([*wanted, *strangers])})

    with ExitStack() as stack:
        for name, replacement in patches.items():
            stack.enter_context(mock.patch.object(table, name, replacement))
        assert found(Backend.parse(a)) == [(1, 0, True), (1, 7, True), (2, 0, False)]
        assert found(Backend.parse(b)) == [(1, 8, True), (4, 0, True)]
        assert found(other_port) == [(3, 0, True)]
        assert found(Backend.parse(service)) == [], "who answers is who was asked"
        assert found(Backend.parse(a)._replace(port=7)) == []
        assert len(found(Backend.parse(a), Backend.parse(b), other_port)) == len([*find_flows(None)]) == 6
