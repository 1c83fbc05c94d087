"""A run: its filters, namespaces, limit and hook, what becomes of many namespaces, and what runs at once."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Sequence
from copy import copy
from importlib import import_module
from types import FrameType
from typing import Any, Optional
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import socklb
from socklb import (
    Counts,
    InetSocket,
    KernelError,
    MalformedMessage,
    NetworkNamespace,
    NotPermitted,
    NotSupported,
    Report,
    RunStopped,
    SocketFilter,
    destroy_sockets,
    dport,
    dst,
    find_sockets,
)
from socklb.engine import run as run_module
from socklb.engine.run import Run
from socklb.kernel.diag import DiagSocket
from socklb.kernel.names import UnknownName
from socklb.kernel.namespaces import CannotEnter, NamespaceVanished
from socklb.kernel.netlink_socket import BATCH

from ..fake_kernel import FakeKernel, StatefulTable, row, table, tries, verdicts
from ..networks import pinned_networks
from ..sockets import Sockets, pending_error, socket_of
from .test_parallel import PATIENCE, processors

TCP, UDP = SocketFilter("tcp", dport(80)), SocketFilter("udp", dport(80))
Record = dict[str, Any]


def netns(number: int) -> NetworkNamespace:
    """Without a path: the fake kernel is there, whatever thread asks."""
    return NetworkNamespace(f"net{number}", "", 0, number)


def report_of(error: BaseException) -> Report:
    report = getattr(error, "report", None)
    assert isinstance(report, Report)
    return report


class TestArguments:
    """One filter or several; "current", "all", one namespace, or several."""

    @pytest.mark.parametrize(
        ("kind", "says", "arguments"),
        [
            (TypeError, "not None", {"namespaces": None}),
            (TypeError, "NetworkNamespaces, not 'current'", {"namespaces": ["current"]}),
            (ValueError, "not 'host'", {"namespaces": "host"}),
            (ValueError, "not ''", {"namespaces": ""}),
            (TypeError, "a SocketFilter, not 'd'", {"filters": "dst 10.0.0.1"}),
            (TypeError, "None", {"filters": None}),
            (TypeError, "a SocketFilter, not None", {"filters": [TCP, None]}),
            (TypeError, "a function that takes a dict", {"audit": "file"}),
            (ValueError, "cannot be asked for", {"extensions": ["nosuch"]}),
            *((ValueError, "below 1", {"limit": limit}) for limit in (0, -1, -(1 << 70))),
            *((TypeError, "limit is an int or None", {"limit": limit}) for limit in (True, False, 1.0, "1")),
        ],
    )
    def test_a_wrong_one_is_refused_before_anything_is_asked(
        self, kind: type[Exception], says: str, arguments: dict[str, Any]
    ) -> None:
        with FakeKernel(table([row(1)])).installed() as kernel, pytest.raises(kind, match=says) as caught:
            destroy_sockets(**{"filters": TCP, **arguments})
        assert (kernel.sent, getattr(caught.value, "report", None)) == ([], None)

    @pytest.mark.parametrize("filters", [TCP, [TCP], (TCP, TCP)], ids=["one", "several", "twice"])
    @pytest.mark.parametrize(
        ("namespaces", "names"),
        [
            ("current", ["current"]),
            (netns(1), ["net1"]),
            ([netns(1), netns(2), netns(1)], ["net1", "net2"]),
            ({netns(1): "a mapping"}.keys(), ["net1"]),
            ([], []),
        ],
    )
    def test_each_way_to_name_them(self, filters: Any, namespaces: Any, names: list[str]) -> None:
        steps: list[tuple[int, int, str]] = []

        def progress(done: int, total: int, namespace: NetworkNamespace) -> None:
            steps.append((done, total, namespace.name))

        with FakeKernel(table([row(1), row(2)])).installed() as kernel, processors(1):
            report = destroy_sockets(filters, namespaces=namespaces, progress=progress)
        assert steps == [(done, len(names), name) for done, name in enumerate(names, 1)]
        assert sorted(namespace.name for namespace in report.namespaces) == names
        assert all(counts == Counts(destroyed=2) for counts in report.namespaces.values())
        assert tries(kernel) == dict.fromkeys((1, 2), len(names)) or not names

    @pytest.mark.kernel
    def test_two_protocols_over_all_namespaces_with_one_limit(self, sockets: Sockets) -> None:
        def connect(sockets: Sockets) -> list[Any]:
            return [sockets.tcp("127.0.0.2", 9000)[0], sockets.udp("127.0.0.2", 9000)]

        each = [SocketFilter(protocol, dst("127.0.0.2", 9000)) for protocol in ("tcp", "udp")]
        with pinned_networks("blue", "green") as nets:
            clients = [client for made in (connect(sockets), *(net.make(connect) for net in nets)) for client in made]
            report = destroy_sockets(each, namespaces="all", limit=4)
            assert [pending_error(client) for client in clients].count("ECONNABORTED") == report.destroyed == 4
        assert [outcome.reason for outcome in report.outcomes if outcome.verdict == "skipped"] == ["limit"] * 2
        assert {namespace.name: counts.matched for namespace, counts in report.namespaces.items()} == dict.fromkeys(
            ("current", "blue", "green"), 2
        )

    @pytest.mark.kernel
    def test_a_predicate_may_find_sockets_elsewhere(self, network: None) -> None:
        """The thread that works there stays there."""
        where: list[tuple[str, str]] = []

        with pinned_networks("blue", "green", "red") as nets:

            def look_around(_: InetSocket) -> bool:
                before = os.readlink("/proc/thread-self/ns/net")
                assert len([*find_sockets(TCP, namespace=nets[2].namespace)]) == 1
                where.append((before, os.readlink("/proc/thread-self/ns/net")))
                return True

            for net in nets:
                net.make(lambda sockets: sockets.tcp("127.0.0.2", 80))
            wanted = SocketFilter("tcp", dport(80), predicate=look_around)
            report = destroy_sockets(wanted, namespaces=[net.namespace for net in nets[:2]])
        assert report.destroyed == 2
        assert all(before == after for before, after in where)


class TestFiltersAndLimit:
    @given(st.lists(st.sets(st.integers(1, 9)), min_size=1, max_size=4), st.none() | st.integers(1, 9))
    def test_a_socket_has_one_outcome_by_the_first_filter_that_matches_it(
        self, matched: list[set[int]], limit: Optional[int]
    ) -> None:
        """Also one that is spared, which the next filter finds again."""
        filters = [
            SocketFilter("tcp", dport(80, 80 + n), predicate=lambda socket, some=some: socket.cookie in some)  # type: ignore[misc]
            for n, some in enumerate(matched)
        ]
        first = {cookie: str(filter) for filter, some in reversed(list(zip(filters, matched))) for cookie in some}
        records: list[Record] = []
        with FakeKernel(StatefulTable([row(cookie) for cookie in range(1, 10)])).installed():
            report = destroy_sockets(filters, limit=limit, audit=records.append)
        assert verdicts(report).keys() == first.keys()
        assert report.destroyed == min(len(first), limit or 9)
        assert {record["cookie"]: record["filter"] for record in records} == first

    @pytest.mark.parametrize("limit", [1, 5, 23, 24, 25])
    @pytest.mark.parametrize("dry_run", [False, True])
    def test_the_limit_is_that_of_all_namespaces_together(self, limit: int, dry_run: bool) -> None:
        with FakeKernel(table([row(n) for n in range(1, 5)])).installed() as kernel, processors(3):
            report = destroy_sockets(TCP, namespaces=map(netns, range(1, 7)), limit=limit, dry_run=dry_run)
        said = [(outcome.verdict, outcome.reason) for outcome in report.outcomes]
        allowed = min(24, limit)
        assert said.count(("skipped", "limit")) == 24 - allowed
        assert said.count(("would_destroy" if dry_run else "destroyed", "")) == allowed
        assert sum(tries(kernel).values()) == (0 if dry_run else allowed)

    def test_a_twin_that_is_tried_again_counts_once(self) -> None:
        rows = [row(1, sport=7000), row(2, sport=7000), row(3)]
        with FakeKernel(StatefulTable(rows)).installed() as kernel:
            report = destroy_sockets(TCP, limit=2)
        assert verdicts(report) == {1: "skipped", 2: "destroyed", 3: "destroyed"}, "2 hides 1"
        assert tries(kernel) == {2: 1, 3: 1}


def carried_out(run: Run, *filters: SocketFilter) -> Report:
    """What it did to the sockets of this namespace that they match, to those of TCP without a filter."""
    return run.carry_out(lambda: run.search(filters or [TCP], [NetworkNamespace.current()], is_one=True))


class TestTheHook:
    """`spare` is asked about those that the policy does not spare: before the limit counts, and before each batch."""

    def test_it_is_asked_at_first_and_before_each_batch(self) -> None:
        asked: list[list[int]] = []

        def spare(sockets: Sequence[InetSocket], _: NetworkNamespace) -> list[str]:
            asked.append([socket.cookie for socket in sockets])
            return ["odd" if socket.cookie % 2 else "" for socket in sockets]

        rows = [row(n, state=10 if n == 7 else 1) for n in range(1, 101)]
        with FakeKernel(StatefulTable(rows)).installed():
            report = carried_out(Run(spare=spare, limit=40))
        assert sorted(asked[0] + asked[1]) == [n for n in range(1, 101) if n != 7]
        assert [len(batch) for batch in asked[2:]] == [40]
        assert {(o.reason, socket_of(o).cookie % 2) for o in report.outcomes if socket_of(o).cookie != 7} == {
            *(("odd", 1), ("", 0), ("limit", 0))
        }
        assert (report.destroyed, report.skipped) == (40, 60)

    def test_where_it_fails_everybody_fails_and_nobody_is_asked_for(self) -> None:
        def spare(sockets: Sequence[InetSocket], _: NetworkNamespace) -> list[str]:
            raise KernelError(errno.EIO, "read the map")

        with FakeKernel(StatefulTable([row(1), row(2)])).installed() as kernel, pytest.raises(KernelError) as caught:
            carried_out(Run(spare=spare))
        failed = ("failed", os.strerror(errno.EIO), errno.EIO)
        assert [outcome[1:4] for outcome in report_of(caught.value).outcomes] == [failed] * 2
        assert kernel.destroys == []


# ------------------------------------------------------------------------------------- many namespaces

FATES: tuple[BaseException, ...] = (
    NotPermitted(errno.EPERM, "no"),
    UnknownName("no interface"),
    CannotEnter(errno.ENOSYS, "no setns"),
    NamespaceVanished(errno.ESTALE, "gone"),
    KernelError(errno.ETIMEDOUT, "slow"),
    MalformedMessage("x", offset=0, expected=1, got=2),
    ValueError("no such path"),
    NotSupported(errno.EOPNOTSUPP, "no"),
    ZeroDivisionError(),
    KeyboardInterrupt(),
)
FATE_OF = {type(error).__name__: error for error in FATES}
ENDS_THE_RUN = ("NotSupported", "ZeroDivisionError", "KeyboardInterrupt")


def expected_end(fates: list[str]) -> tuple[str, dict[str, str], int]:
    """What is raised, the errors of the namespaces, and how many are begun."""
    errors = {f"net{n}": fate for n, fate in enumerate(fates) if fate not in ("", "NamespaceVanished")}
    for begun, fate in enumerate(fates, 1):
        if fate in ENDS_THE_RUN:
            not_begun = dict.fromkeys((f"net{n}" for n in range(begun, len(fates))), "RunStopped")
            return fate, {**{name: errors[name] for name in errors if name not in not_begun}, **not_begun}, begun
    there = [fate for fate in fates if fate != "NamespaceVanished"]
    if there and {*there} <= {"NotPermitted", "UnknownName", "CannotEnter"}:
        return min(there, key="UnknownName".__eq__), errors, len(fates)  # that nothing can match says least
    errors = {name: kind for name, kind in errors.items() if kind != "UnknownName"}  # nothing matched there
    return "", errors, len(fates)


class TestManyNamespaces:
    """One that fails does not stop the others, unless they would fail alike."""

    @pytest.mark.parametrize("first", ["", *FATE_OF])
    def test_what_becomes_of_a_run(self, first: str) -> None:
        self.look([first])
        for second in ("", *FATE_OF):
            self.look([first, second])

    def look(self, fates: list[str]) -> None:
        namespaces = [netns(number) for number in range(len(fates))]
        steps: list[tuple[int, int, NetworkNamespace]] = []

        def enter(namespace: NetworkNamespace, function: Any, **_: bool) -> Any:
            fate = fates[namespace.inode]
            if fate:
                raise copy(FATE_OF[fate])
            return function()

        raised, errors, begun = expected_end(fates)
        with mock.patch.object(run_module, "run_in_netns", enter), FakeKernel(table([row(1)])).installed():
            try:
                with processors(1):
                    report = destroy_sockets(TCP, namespaces=namespaces, progress=lambda *step: steps.append(step))
                    end = ""
            except BaseException as error:
                end, report = type(error).__name__, report_of(error)
        assert end == raised
        assert {namespace.name: type(error).__name__ for namespace, error in report.errors.items()} == errors
        assert {namespace.name: counts.destroyed for namespace, counts in report.namespaces.items()} == {
            f"net{n}": int(fate == "" and n < begun)
            for n, fate in enumerate(fates)
            if fate != "NamespaceVanished" or n >= begun
        }
        assert report.unsearched == []
        assert steps == [(done, len(fates), namespaces[done - 1]) for done in range(1, begun + 1)]

    def test_the_others_finish_the_batch_at_hand(self) -> None:
        """One answers EOPNOTSUPP while the other is in the middle of its first batch."""
        begun, stopped = threading.Event(), threading.Event()
        stop = Run.stop

        def noted_stop(run: Run, why: str) -> None:
            stop(run, why)
            stopped.set()

        def destroy(diag: DiagSocket, requests: Sequence[bytes], doing: str) -> list[int]:
            if doing.endswith("net2"):
                assert begun.wait(PATIENCE)
                return [errno.EOPNOTSUPP] * len(requests)
            begun.set()
            assert stopped.wait(PATIENCE)
            return [0] * len(requests)

        with (
            FakeKernel(table([row(n) for n in range(1, 2 * BATCH + 1)])).installed(),
            mock.patch.object(DiagSocket, "destroy", destroy),
            mock.patch.object(Run, "stop", noted_stop),
            mock.patch.object(import_module("socklb.engine.probe"), "can_destroy", return_value=False),
            processors(2),
            pytest.raises(NotSupported) as caught,
        ):
            destroy_sockets(TCP, namespaces=[netns(1), netns(2)])
        report = report_of(caught.value)
        assert report.namespaces == {
            netns(1): Counts(destroyed=BATCH, failed=BATCH),
            netns(2): Counts(failed=2 * BATCH),
        }
        assert isinstance(report.errors[netns(1)], RunStopped)


class NotedLock:
    """Stands for the lock of a run: `awaited` is set once a thread has to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.awaited = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.awaited.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class TestAtOnce:
    """Without an audit no thread waits for another's kernel call; with one, for a batch and its records."""

    def test_without_an_audit(self) -> None:
        both = threading.Barrier(2)

        def destroy(diag: DiagSocket, requests: Sequence[bytes], doing: str) -> list[int]:
            both.wait(PATIENCE)
            return [0] * len(requests)

        with (
            FakeKernel(table([row(1)])).installed(),
            mock.patch.object(DiagSocket, "destroy", destroy),
            processors(2),
        ):
            assert destroy_sockets(TCP, namespaces=[netns(1), netns(2)]).destroyed == 2

    def test_with_an_audit(self) -> None:
        lock, events = NotedLock(), list[str]()

        def destroy(diag: DiagSocket, requests: Sequence[bytes], doing: str) -> list[int]:
            events.append("kernel")
            if len(events) == 1:
                assert lock.awaited.wait(PATIENCE)
            return [0] * len(requests)

        with (
            FakeKernel(table([row(1), row(2)])).installed(),
            mock.patch.object(DiagSocket, "destroy", destroy),
            mock.patch.object(run_module, "RLock", return_value=lock),
            processors(2),
        ):
            destroy_sockets(TCP, namespaces=[netns(1), netns(2)], audit=lambda record: events.append("record"))
        assert events == ["kernel", "record", "record"] * 2


def test_few_objects_are_on_the_way_of_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run, rounds, a table, a netlink socket."""
    send = DiagSocket._send
    kinds: set[str] = set()

    def noted_send(diag: DiagSocket, data: bytes, doing: str) -> None:
        frame: Optional[FrameType] = sys._getframe()
        while doing.startswith("destroy") and frame is not None:
            kind = type(frame.f_locals.get("self", frame.f_locals.get("diag")))
            if kind.__module__.startswith(f"{socklb.__name__}."):
                kinds.add(kind.__name__)
            frame = frame.f_back
        send(diag, data, doing)

    monkeypatch.setattr(DiagSocket, "_send", noted_send)
    with FakeKernel(StatefulTable([row(1)])).installed():
        assert destroy_sockets(TCP).destroyed == 1
    assert "DiagSocket" in kinds
    assert len(kinds) <= 4, kinds
