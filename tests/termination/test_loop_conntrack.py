"""TerminationLoop and conntrack: clients of services are cut with their backend, and looked after until rules obey."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Iterator
from math import ceil
from typing import Any, NamedTuple
from unittest import mock

import pytest

from socklb import Backend, BackendTable, NotSupported, Outcome, Report, TerminationLoop
from socklb.cli.demo.dnat import set_services
from socklb.termination import loop as loop_module
from socklb.termination.balanced import Balanced
from socklb.termination.duty_cycle import DutyCycle
from socklb.termination.loop import Pass
from socklb.termination.reasons import ALIVE_AGAIN, STILL_BALANCED
from socklb.termination.schedule import LOOKS, PAUSES
from socklb.termination.waker import Waker

from .. import world
from ..nat import answering, ask
from ..sockets import Sockets, pending_error

pytestmark = pytest.mark.kernel

ADDRESSES = {"A": "127.0.0.2", "B": "127.0.0.3", "C": "127.0.0.4"}
START = 1000.25


class Done(NamedTuple):
    time: float
    backends: list[Backend]
    report: Report
    failed: list[Backend]
    error: str


def backend(name: str, protocol: str) -> Backend:
    return Backend(ADDRESSES[name], 8080, protocol)


class Node:
    """Services on loopback, whose clients say who answers, and a loop whose time passes only while it waits."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets, self.time, self.passes = sockets, START, list[Done]()
        self.table = BackendTable()
        self.table.replace((backend(name, protocol),) for name in ADDRESSES for protocol in ("tcp", "udp"))

    def balance(self, name: str) -> None:
        """New clients get to this backend."""
        set_services({Backend("127.0.9.1", 80, each): backend(name, each) for each in ("tcp", "udp")})

    def client(self, name: str, protocol: str) -> socket.socket:
        self.balance(name)
        client = self._sockets.make(socket.AF_INET, {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[protocol])
        client.connect(("127.0.9.1", 80))
        assert ask(client) == name
        return client

    def run(self, after_pass: Callable[[], object] = lambda: None, **options: Any) -> None:
        """Until there is nothing more to do."""

        def on_pass(done: Pass) -> None:
            assert done.report is not None
            self.passes.append(Done(self.time, done.backends, done.report, done.failed, str(done.error or "")))
            after_pass()

        def wait(waker: Waker, seconds: float | None) -> None:
            if seconds is None:
                loop.finish()
            elif not is_woken(waker, 0):
                self.time += seconds

        loop = TerminationLoop(self.table, namespaces="current", second_pass=None, on_pass=on_pass, **options)
        now, is_woken = mock.Mock(side_effect=lambda: self.time), Waker.wait
        with (
            mock.patch.object(loop_module, "monotonic", now),
            mock.patch.object(Waker, "wait", wait),
            mock.patch.object(DutyCycle, "wait", return_value=0.0),
        ):
            loop.run()
        assert loop.outstanding == []

    @property
    def verdicts(self) -> list[list[tuple[str, str]]]:
        """Of each pass."""
        return [sorted((one.verdict, one.reason) for one in done.report.outcomes) for done in self.passes]


@pytest.fixture
def node(sockets: Sockets) -> Iterator[Node]:
    made = Node(sockets)
    try:
        made.balance("A")
    except (OSError, NotSupported) as error:
        world.cannot(f"no NAT: {error}")
    servers = {}
    for name, address in ADDRESSES.items():
        servers[sockets.listen(address, 8080)] = servers[sockets.udp_bound(address, 8080)] = name
    with answering(servers):
        yield made


def test_clients_of_a_service_are_cut_with_their_backend(node: Node) -> None:
    """And conntrack is looked at once more, which finds nothing."""
    tcp, udp, other = node.client("A", "tcp"), node.client("A", "udp"), node.client("B", "tcp")
    for protocol in ("tcp", "udp"):
        node.table.delete(backend("A", protocol))
    node.run()
    assert node.verdicts == [[("destroyed", ""), ("rerouted", "")], []]
    assert (pending_error(tcp), ask(udp), ask(other)) == ("ECONNABORTED", "B", "B")


def test_further_looks_are_at_whole_seconds_and_those_for_several_backends_are_one(node: Node) -> None:
    clients = [node.client(name, "udp") for name in ("A", "B")]
    node.balance("C")
    node.table.delete(backend("A", "udp"))

    def go_on() -> None:
        node.time += 0.25
        node.table.delete(backend("B", "udp"))

    node.run(go_on)
    assert [done.backends for done in node.passes] == [
        *([backend(name, "udp")] for name in ("A", "B")),
        [backend(name, "udp") for name in ("A", "B")],
    ]
    assert node.passes[-1].time == ceil(START + LOOKS[0])
    assert [ask(client) for client in clients] == ["C", "C"]


def test_a_client_that_is_balanced_there_again_and_again_counts_once_then_its_backend_fails(node: Node) -> None:
    """The balancer's rules still name the backend; it is tried again, no other one is."""
    client = node.client("A", "udp")
    for name in ("A", "C"):
        node.table.delete(backend(name, "udp"))
    node.run(lambda: ask(client))
    looks = len(LOOKS)
    assert node.verdicts == [[("rerouted", "")], *[[]] * (looks + 1)]
    gone = backend("A", "udp")
    assert [(done.failed, done.error) for done in node.passes if done.failed or done.error] == [
        ([gone], f"clients of {gone}: {STILL_BALANCED}")
    ]
    assert node.passes[looks].failed
    assert node.passes[looks + 1].time - node.passes[looks].time == PAUSES[0]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_backend_that_comes_back_meanwhile_keeps_its_clients(node: Node, protocol: str) -> None:
    client = node.client("A", protocol)
    node.table.delete(backend("A", protocol))
    locate = Balanced.locate

    def locate_and_come_back(found: Balanced) -> None:
        locate(found)
        node.table.upsert(backend("A", protocol))

    with mock.patch.object(Balanced, "locate", locate_and_come_back):
        node.run()
    assert node.verdicts == [[("skipped", ALIVE_AGAIN)]]
    node.balance("B")
    assert ask(client) == "A"


def test_who_was_cut_is_forgotten_when_the_backend_is_done_with(node: Node) -> None:
    """A process that follows a cluster for months keeps no account of it."""
    gone = [backend(name, "udp") for name in ("A", "B")]
    clients = [node.client(name, "udp") for name in ("A", "B")]
    node.balance("C")
    node.table.delete(gone[0])
    kept: list[set[Backend]] = []

    def after_pass() -> None:
        node.passes.clear()
        gc.collect()
        there = {one.flow.backend for one in gc.get_objects() if type(one) is Outcome and one.flow}
        kept.append(there & {*gone})
        if len(kept) == 2:
            node.table.delete(gone[1])

    node.run(after_pass)
    assert kept == [{gone[0]}] * 2 + [{gone[1]}] * 2
    assert [ask(client) for client in clients] == ["C", "C"]


def test_a_dry_run_looks_once_and_deletes_nothing(node: Node) -> None:
    clients = [node.client("A", protocol) for protocol in ("tcp", "udp")]
    node.balance("B")
    for protocol in ("tcp", "udp"):
        node.table.delete(backend("A", protocol))
    node.run(dry_run=True)
    assert node.verdicts == [[("would_destroy", "")] * 2]
    assert [ask(client) for client in clients] == ["A", "A"]
