"""find_flows: who is balanced to which backend, in a namespace."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

import socklb
from socklb import Backend, Flow, MalformedMessage, find_flows
from socklb.conntrack.flows import endpoints_of

from ..fake_kernel import FakeKernel
from ..networks import networks
from ..sockets import in_child
from .ctnetlink import FakeConntrack, installed, inverse, make
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
        found = [flow.backend for flow in find_flows(BACKENDS)]
        assert sorted(map(str, found)) == sorted(map(str, BACKENDS))

    def test_flows_that_are_closing_are_among_them(self, network: None) -> None:
        make(
            *(
                one._replace(flow=one.flow._replace(tcp_state=state))
                for state, one in enumerate(map(balanced, [TCP, TCP6]), 7)
            )
        )
        assert sorted((flow.state, flow.is_closing) for flow in find_flows(None)) == [
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
        (flow,) = in_child(lambda: [*find_flows(BACKENDS)])
        assert (type(flow), type(flow.original).__name__, flow.state) == (Flow, "FlowTuple", "ESTABLISHED")


def test_both_names_are_the_packages() -> None:
    assert {"Flow", "find_flows"} <= {*socklb.__all__}
