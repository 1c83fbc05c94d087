"""find_flows: who is balanced to which backend, in a namespace."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import socklb
from socklb import Backend, Flow, MalformedMessage, find_flows
from socklb.conntrack import table
from socklb.conntrack.flows import endpoints_of
from socklb.conntrack.table import ConntrackTable

from ..fake_kernel import FakeKernel
from ..networks import networks
from ..sockets import in_child
from .ctnetlink import FILTER, Entry, FakeConntrack, attribute, flow, installed, inverse, make, nest
from .test_layout import TCP, UDP6
from .test_table_real import ALL, TCP6, UDP, balanced, entry, tuples_of

BACKENDS = [Backend("10.244.2.2", 8080, "tcp"), Backend("fd00::244:2", 5353, "udp")]
TO_BACKENDS = [balanced(TCP), balanced(UDP6)]


def test_endpoints_are_as_the_kernel_writes_them() -> None:
    mapped, linked = Backend("::ffff:10.244.2.2", 8080, "udp"), Backend("fe80::1%lo", 80, "tcp")
    assert endpoints_of([*BACKENDS, mapped, linked]) == {
        (6, TCP[1].src, 8080),
        (17, UDP6[1].src, 5353),
        (17, TCP[1].src, 8080),
    }


@pytest.mark.parametrize("wrong", [["10.0.0.1:80/TCP"], [("10.0.0.1", 80, "tcp")], [None], 5])
def test_what_is_no_backend_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises(TypeError):
        find_flows(wrong)


def test_what_is_no_namespace_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="a NetworkNamespace or None, not '/run/netns/x'"):
        find_flows(BACKENDS, namespace="/run/netns/x")  # type: ignore[arg-type]


def test_nothing_is_asked_before_the_first_is_taken_and_nothing_is_open_after_the_last() -> None:
    with FakeConntrack(TO_BACKENDS * 2, at_once=1).installed() as kernel:
        all_flows = find_flows(None)
        assert kernel.sockets == []
        assert [*islice(all_flows, 1)] == [TO_BACKENDS[0].flow]
        all_flows.close()
        assert [made.closed for made in kernel.sockets] == [True]


def test_where_there_are_no_entries_only_their_count_is_asked_for() -> None:
    with FakeConntrack([]).installed() as kernel:
        assert [*find_flows(BACKENDS)] == [*find_flows(None)] == []
        assert len(kernel.sent) == 2


def test_nonsense_leaves_no_socket_open() -> None:
    with installed(FakeKernel(lambda requests: [b"?"])), pytest.raises(MalformedMessage):
        next(find_flows(None))


@pytest.mark.kernel
class TestRealKernel:
    def test_flows_to_backends_and_all_that_are_translated(self, network: None) -> None:
        others = [balanced(UDP), entry(TCP6[0], inverse(TCP6[0]))]
        make(*TO_BACKENDS, *others)
        to_backends = tuples_of([one.flow for one in TO_BACKENDS])
        assert tuples_of([*find_flows(BACKENDS)]) == to_backends
        assert tuples_of([*find_flows(iter(BACKENDS))]) == to_backends
        assert tuples_of([*find_flows(None)]) == tuples_of([one.flow for one in (*TO_BACKENDS, others[0])])
        assert [*find_flows([])] == []
        found = [one.backend for one in find_flows(BACKENDS)]
        assert sorted(map(str, found)) == sorted(map(str, BACKENDS))

    def test_flows_that_are_closing_are_among_them(self, network: None) -> None:
        make(
            *(
                one._replace(flow=one.flow._replace(tcp_state=state))
                for state, one in enumerate(map(balanced, [TCP, TCP6]), 7)
            )
        )
        assert sorted((one.state, one.is_closing) for one in find_flows(None)) == [
            ("CLOSE", True),
            ("TIME_WAIT", True),
        ]

    def test_of_another_namespace(self, network: None) -> None:
        make(balanced(TCP))
        with networks(1) as (there,):
            there.run(lambda: make(*map(balanced, ALL)))
            assert len([*find_flows(None, namespace=there.namespace)]) == 4
        assert len([*find_flows(None)]) == 1

    def test_they_can_be_handed_to_another_process(self, network: None) -> None:
        make(balanced(TCP))
        (found,) = in_child(lambda: [*find_flows(BACKENDS)])
        assert (type(found), type(found.original).__name__, found.state) == (Flow, "FlowTuple", "ESTABLISHED")


def test_both_names_are_the_packages() -> None:
    assert {"Flow", "find_flows"} <= {*socklb.__all__}


BACKEND = "10.0.0.5:8080/TCP"


@pytest.mark.kernel
@pytest.mark.parametrize("backends", [None, [Backend.parse(BACKEND)]], ids=["all", "of a backend"])
def test_they_are_streamed(network: None, backends: list[Backend] | None) -> None:
    """The first are there before the last datagram is, of each question."""
    count = 2000
    make(*(Entry(flow("10.96.0.10:80/TCP", BACKEND, sport=1024 + n)) for n in range(count)))
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
    "one that refuses filters": {"filter_by": lambda which, **_: nest(FILTER, attribute(1, b"\xff" * 4))},
}


@pytest.mark.kernel
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
    make(
        Entry(flow(service, a, sport=1)),
        Entry(flow(service, a, sport=2, status=8 | DST_NAT)),
        Entry(flow(service, str(other_port), sport=3)),
        Entry(flow(service, a, sport=1, zone=7), reply_zone=7),
        Entry(flow(service, b, sport=4)),
        Entry(flow(service, sport=5)),
        Entry(flow(service, b, sport=1, zone=8)),
    )
    strangers = [Backend(f"10.9.9.{n + 1}", 1000 + n, "tcp") for n in range(more)]

    def found(*wanted: Backend) -> list[tuple[int, int, bool]]:
        """Each once, also where filters are ignored, and every question is answered with all."""
        return sorted((one.sport, one.zone, one.is_by_ipvs) for one in find_flows([*wanted, *strangers]))

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(ConntrackTable, "takes_filters", True))
        for name, replacement in patches.items():
            stack.enter_context(mock.patch.object(table, name, replacement))
        assert found(Backend.parse(a)) == [(1, 0, True), (1, 7, True), (2, 0, False)]
        assert found(Backend.parse(b)) == [(1, 8, True), (4, 0, True)]
        assert found(other_port) == [(3, 0, True)]
        assert found(Backend.parse(service)) == [], "who answers is who was asked"
        assert found(Backend.parse(a)._replace(port=7)) == []
        assert len(found(Backend.parse(a), Backend.parse(b), other_port)) == len([*find_flows(None)]) == 6
