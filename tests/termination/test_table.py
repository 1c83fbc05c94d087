"""The table of backends: which are alive, and which have gone down."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socklb import Backend, BackendState, BackendTable
from socklb.termination.table import Instance, PackedTable, packed, taking_down, unpacked

A, B, C = (Backend(f"10.0.0.{n}", 80, "tcp") for n in (1, 2, 3))


class TestStates:
    def test_the_words_are_the_balancer_s(self) -> None:
        assert [state.value for state in BackendState] == ["active", "terminating", "quarantined", "maintenance"]
        assert all(BackendState.parse(state.value) is state for state in BackendState)

    def test_an_unknown_one_is_named_with_those_that_are_known(self) -> None:
        with pytest.raises(ValueError, match="one of active, terminating, quarantined, maintenance, not 'Active'"):
            BackendState.parse("Active")


class Model:
    """What the rules say, with no thought of how: all instances, and who has been alive and is not."""

    def __init__(self) -> None:
        self.instances: dict[tuple[Backend, str], bool] = {}
        self.down: set[Backend] = set()

    def alive(self) -> set[Backend]:
        return {backend for (backend, _), is_alive in self.instances.items() if is_alive}

    def change(self, instances: dict[tuple[Backend, str], bool]) -> None:
        before = self.alive()
        self.instances = instances
        self.down = (self.down | before) - self.alive()


some_backends = st.sampled_from((A, A, B))
some_services = st.sampled_from(("", "web"))
instances = st.builds(
    Instance,
    some_backends,
    some_services,
    st.sampled_from((*BackendState, BackendState.ACTIVE)),
    st.sampled_from((False, False, True)),
)
operations = st.one_of(
    instances.map(lambda instance: ("upsert", instance)),
    st.tuples(st.just("delete"), st.tuples(some_backends, st.none() | some_services)),
    st.lists(instances, max_size=4).map(lambda several: ("replace", several)),
    st.just(("drain", None)),
)


def alive(instance: Instance) -> bool:
    return instance.state in (BackendState.ACTIVE, BackendState.TERMINATING) and not instance.unhealthy


@settings(max_examples=5 * (settings.default or settings()).max_examples)
@given(st.lists(operations, min_size=5, max_size=40), st.booleans())
def test_the_table_is_the_model(steps: list[tuple[str, object]], by_value: bool) -> None:
    """Who is alive, who has gone down and whether the subscriber hears of it, after each of any operations.

    A backend goes down only on the step from alive to not alive, deletion included; what was never alive cannot.
    """
    table, model, calls = BackendTable(), Model(), list[int]()
    with table.subscribe(lambda: calls.append(1)):
        for name, argument in steps:
            calls.clear()
            if name == "upsert":
                assert isinstance(argument, Instance)
                state = (
                    argument.state.value if by_value and isinstance(argument.state, BackendState) else argument.state
                )
                table.upsert(argument.backend, argument.service, state, argument.unhealthy)
                model.change({**model.instances, argument[:2]: alive(argument)})
            elif name == "delete":
                assert isinstance(argument, tuple)
                backend, service = argument
                table.delete(backend, service)
                kept = model.instances.items()
                model.change(
                    {key: value for key, value in kept if key != argument and (service, key[0]) != (None, backend)}
                )
            elif name == "replace":
                assert isinstance(argument, list)
                table.replace(argument)
                model.change(
                    {key: any(alive(i) for i in argument if i[:2] == key) for key in {i[:2] for i in argument}}
                )
            else:
                drained = table.drain_down()
                assert (len(drained), {*drained}) == (len(model.down), model.down)
                model.down = set()
            assert {backend for backend in (A, B) if table.is_alive(backend)} == model.alive()
            assert table.backends() == {backend: table.is_alive(backend) for backend, _ in model.instances}
            assert table.has_down() == bool(model.down)
            assert bool(calls) == (name != "drain" and bool(model.down))
    assert {*table.drain_down()} == model.down


class TestChanges:
    @pytest.mark.parametrize("states", [("active", "maintenance"), ("maintenance", "active")])
    def test_of_two_entries_for_one_service_the_alive_one_counts(self, states: tuple[str, ...]) -> None:
        """Whatever their order: an order must not decide who dies."""
        table = BackendTable()
        table.upsert(A, "web")
        table.replace([(A, "web", state) for state in states])
        assert (table.is_alive(A), table.drain_down()) == (True, [])

    def test_backends_are_drained_in_the_order_in_which_they_went_down(self) -> None:
        table = BackendTable()
        table.replace(map(Instance, (A, B, C)))
        for backend in (B, C, A):
            table.delete(backend)
        assert table.drain_down() == [B, C, A]

    def test_nothing_is_replaced_if_one_is_wrong(self) -> None:
        table = BackendTable()
        table.upsert(A)
        with pytest.raises(ValueError, match="not 'gone'"):
            table.replace([Instance(B), Instance(C, state="gone")])
        assert (table.is_alive(A), table.is_alive(B), table.drain_down()) == (True, False, [])

    def test_a_plain_tuple_is_an_instance_and_a_bare_backend_is_none(self) -> None:
        table = BackendTable()
        table.replace([(A, "web")])
        assert table.is_alive(A)
        for wrong in (B, "10.0.0.1:80/TCP", None, 5, (), (B, "web", "active", False, 1)):
            with pytest.raises(TypeError, match="an entry is a tuple of a Backend, "):
                table.replace([wrong])  # type: ignore[list-item]
        assert table.is_alive(A)

    def test_wrong_arguments_are_refused(self) -> None:
        """What is passed over in silence is not cut."""
        table = BackendTable()
        with pytest.raises(TypeError, match=r"Backend\.parse\(\)"):
            table.upsert("10.0.0.1:80/TCP")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="service of a backend is a str, not None"):
            table.upsert(A, None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="unhealthy is a bool, not 'no'"):
            table.upsert(A, unhealthy="no")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="one of active"):
            table.upsert(A, state="drained")
        with pytest.raises(TypeError, match="a BackendState or a str, not 5"):
            table.upsert(A, state=5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"Backend\.parse\(\)"):
            table.is_alive("10.0.0.1:80/TCP")  # type: ignore[arg-type]
        assert not table.is_alive(A)
        table.upsert(A, "web")
        with pytest.raises(TypeError, match=r"Backend\.parse\(\)"):
            table.delete("10.0.0.1:80/TCP")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="service of a backend is a str, not 1"):
            table.delete(A, 1)  # type: ignore[arg-type]
        assert table.is_alive(A)


class TestServices:
    def test_who_had_it_alive_is_told_when_it_goes_down(self) -> None:
        table = PackedTable()
        table.replace([(A, "web"), (A, "db"), (A, "old", "maintenance"), (B, "web")])
        table.replace([])
        assert {*table.keys()} == {packed(A), packed(B)}
        with taking_down(table) as down:
            assert (down, {*table.keys()}) == ({A: ["web", "db"], B: ["web"]}, {packed(A), packed(B)})
        assert table.keys() == []


class TestRecalled:
    """What an earlier process had alive is alive until the table is whole."""

    def test_what_is_not_there_by_then_goes_down(self) -> None:
        table = PackedTable()
        table.recall([A, B])
        table.upsert(A, "web")
        assert (table.is_alive(B), table.is_whole, table.drain_down()) == (True, False, [])
        table.replace([(A, "web"), (C, "web")])
        with taking_down(table) as down:
            assert (table.is_whole, down, table.is_alive(A)) == (True, {B: []}, True)
        table.delete(A, "web")
        with taking_down(table) as down:
            assert down == {A: ["web"]}

    def test_whoever_knows_more_of_one_counts(self) -> None:
        """Not every source ever has a whole table: lines may be upserts and deletes alone."""
        table = PackedTable()
        table.recall([A, B])
        table.upsert(A, "web", unhealthy=True)
        table.upsert(B, "web")
        assert table.drain_down() == [A]
        table.delete(B, "web")
        assert table.drain_down() == [B]


links = st.sampled_from(("", "%eth0", "%7", "%a b"))
addresses = st.ip_addresses(v=4) | st.builds(lambda n, link: f"fe80::{n:x}{link or '%lo'}", st.integers(1, 99), links)


@given(addresses | st.ip_addresses(v=6).map(str), st.integers(1, 65535), st.sampled_from(("tcp", "udp")))
def test_a_packed_backend_is_that_backend(address: Any, port: int, protocol: Any) -> None:
    try:
        backend = Backend(address, port, protocol)
    except ValueError:  # unspecified, or link-local without a link
        return
    assert unpacked(packed(backend)) == backend


class TestSubscriber:
    """Called in the thread that changes the table, after a change that leaves backends down."""

    def test_the_table_can_be_used_from_there(self) -> None:
        table, drained, threads = BackendTable(), list[Backend](), set[threading.Thread]()

        def on_down() -> None:
            threads.add(threading.current_thread())
            drained.extend(table.drain_down())

        with table.subscribe(on_down):
            table.upsert(A)
            table.delete(A)
            table.upsert(B)
        assert (drained, threads) == ([A], {threading.current_thread()})

    def test_one_at_a_time_and_nobody_afterwards(self) -> None:
        table, calls = BackendTable(), list[str]()
        with pytest.raises(TypeError, match="on_down is a function, not 5"), table.subscribe(5):  # type: ignore[arg-type]
            pytest.fail("a number")
        table.upsert(A)
        with table.subscribe(lambda: calls.append("first")):
            with pytest.raises(ValueError, match="has a subscriber already"), table.subscribe(lambda: None):
                pytest.fail("a second one")
            table.delete(A)
        table.upsert(B)
        table.delete(B)
        assert calls == ["first"]
        with table.subscribe(lambda: calls.append("second")):
            table.upsert(C)
        assert calls == ["first", "second"]


class Slow(str):
    """Whoever compares it waits until somebody else has had the time to."""

    def __ne__(self, other: object) -> bool:
        if threading.current_thread().name == "slow":
            self.entered.set()
            self.other_is_done.wait(0.03)
        return str.__ne__(self, other)

    def __eq__(self, other: object) -> bool:
        return not self != other

    __hash__ = str.__hash__
    entered, other_is_done = threading.Event(), threading.Event()


SLOW = Slow("slow")
CHANGES: dict[str, Callable[[BackendTable, str], object]] = {
    "upsert": lambda table, service: table.upsert(C, service),
    "delete": lambda table, service: table.delete(C, service),
    "replace": lambda table, service: table.replace([Instance(A)]),
    "drain": lambda table, service: table.drain_down(),
}


@pytest.mark.parametrize("second", CHANGES)
@pytest.mark.parametrize("first", ["upsert", "delete", "replace"])
def test_of_two_threads_one_waits_for_the_other(first: str, second: str) -> None:
    """The table may be used from any thread: no change is made while another is half done."""
    table = BackendTable()
    SLOW.entered.clear()
    SLOW.other_is_done.clear()
    for service in ("web", SLOW):
        table.upsert(C, service)
    done: list[str] = []

    def begin() -> None:
        CHANGES[first](table, SLOW)
        done.append(first)

    def follow() -> None:
        CHANGES[second](table, "db")
        done.append(second)
        SLOW.other_is_done.set()

    threads = [threading.Thread(target=begin, name="slow"), threading.Thread(target=follow)]
    for thread in threads:
        thread.start()
        assert SLOW.entered.wait(20)
    for thread in threads:
        thread.join(20)
    assert done == [first, second]
