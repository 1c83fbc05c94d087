"""The table of backends: which are alive, and which have fallen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import Backend, BackendState, BackendTable
from socklb.termination.table import Instance

A, B, C = (Backend(f"10.0.0.{n}", 80, "tcp") for n in (1, 2, 3))
ALIVE = (BackendState.ACTIVE, BackendState.TERMINATING)
DEAD = (BackendState.QUARANTINED, BackendState.MAINTENANCE)


class TestStates:
    def test_the_words_are_the_balancer_s(self) -> None:
        assert [state.value for state in BackendState] == ["active", "terminating", "quarantined", "maintenance"]
        assert all(BackendState.parse(state.value) is state for state in BackendState)

    def test_an_unknown_one_is_named_with_those_that_are_known(self) -> None:
        with pytest.raises(ValueError, match="one of active, terminating, quarantined, maintenance, not 'Active'"):
            BackendState.parse("Active")


class TestAlive:
    """Alive while any service's instance of it is active or terminating, and healthy."""

    @pytest.mark.parametrize("unhealthy", [False, True])
    @pytest.mark.parametrize("state", BackendState, ids=str)
    def test_terminating_is_alive_and_what_is_put_aside_or_unhealthy_is_not(
        self, state: BackendState, unhealthy: bool
    ) -> None:
        for given_state in (state, state.value):
            table = BackendTable()
            table.upsert(A, "web", given_state, unhealthy)
            assert table.is_alive(A) is (state in ALIVE and not unhealthy)

    @pytest.mark.parametrize("state", DEAD, ids=str)
    def test_the_step_to_each_is_a_fall(self, state: BackendState) -> None:
        table = BackendTable()
        table.upsert(A)
        table.upsert(A, state=state)
        assert table.take_fallen() == [A]

    def test_the_step_to_unhealthy_is_a_fall_and_to_terminating_is_none(self) -> None:
        table = BackendTable()
        for backend in (A, B):
            table.upsert(backend)
        table.upsert(A, unhealthy=True)
        table.upsert(B, state=BackendState.TERMINATING)
        assert table.take_fallen() == [A]

    def test_nobody_has_heard_of_it(self) -> None:
        assert BackendTable().is_alive(A) is False


class TestFalls:
    """Cut only on the step from alive to not alive, deletion included."""

    def test_deletion(self) -> None:
        table = BackendTable()
        table.upsert(A, "web")
        table.delete(A, "web")
        assert (table.has_fallen(), table.take_fallen()) == (True, [A])
        assert (table.has_fallen(), table.take_fallen()) == (False, [])

    @pytest.mark.parametrize("last", ["delete", "maintenance", "replace"])
    def test_a_backend_of_two_services_falls_when_the_last_lets_go(self, last: str) -> None:
        table = BackendTable()
        table.upsert(A, "web")
        table.upsert(A, "api")
        table.delete(A, "web")
        assert (table.is_alive(A), table.take_fallen()) == (True, [])
        if last == "delete":
            table.delete(A, "api")
        elif last == "replace":
            table.replace([])
        else:
            table.upsert(A, "api", last)
        assert (table.is_alive(A), table.take_fallen()) == (False, [A])

    def test_deleted_without_a_service_is_deleted_from_all(self) -> None:
        table = BackendTable()
        for service in ("", "web", "api"):
            table.upsert(A, service)
        table.delete(A, "")
        assert table.take_fallen() == []
        table.delete(A)
        assert table.take_fallen() == [A]

    def test_first_seen_as_not_alive_or_never_seen(self) -> None:
        table = BackendTable()
        table.upsert(A, state="maintenance")
        table.upsert(A, state="quarantined")
        table.delete(A)
        table.delete(B)
        table.delete(B, "web")
        table.replace([Instance(C, unhealthy=True)])
        table.replace([])
        assert (table.has_fallen(), table.take_fallen()) == (False, [])

    def test_what_is_back_has_not_fallen(self) -> None:
        table = BackendTable()
        table.upsert(A)
        table.delete(A)
        table.upsert(A)
        assert (table.has_fallen(), table.take_fallen()) == (False, [])
        table.delete(A)
        assert table.take_fallen() == [A]

    def test_what_fell_and_changed_since_without_being_alive_has_still_fallen(self) -> None:
        table = BackendTable()
        table.upsert(A)
        table.delete(A)
        table.upsert(A, state="maintenance")
        table.delete(A)
        assert table.take_fallen() == [A]

    def test_in_the_order_in_which_they_fell(self) -> None:
        table = BackendTable()
        table.replace(map(Instance, (A, B, C)))
        for backend in (B, C, A):
            table.delete(backend)
        assert table.take_fallen() == [B, C, A]


class TestReplace:
    """These are the instances, and no others; nothing is changed if one of them is wrong."""

    def test_what_is_no_longer_there_falls(self) -> None:
        table = BackendTable()
        table.replace([Instance(A, "web"), Instance(A, "api"), Instance(B), Instance(C)])
        table.replace([Instance(A, "api"), Instance(B, state="quarantined")])
        assert sorted(table.take_fallen()) == [B, C]
        assert [table.is_alive(backend) for backend in (A, B, C)] == [True, False, False]

    def test_nothing_is_changed_if_one_is_wrong(self) -> None:
        table = BackendTable()
        table.upsert(A)
        with pytest.raises(ValueError, match="not 'gone'"):
            table.replace([Instance(B), Instance(C, state="gone")])
        assert (table.is_alive(A), table.is_alive(B), table.take_fallen()) == (True, False, [])

    def test_a_plain_tuple_is_an_instance_and_a_bare_backend_is_none(self) -> None:
        table = BackendTable()
        table.replace([(A, "web")])  # type: ignore[list-item]
        assert table.is_alive(A)
        for wrong in (B, "10.0.0.1:80/TCP", None, (B, "web", "active", False, 1)):
            with pytest.raises(TypeError):
                table.replace([wrong])  # type: ignore[list-item]
        assert table.is_alive(A)


class TestWrongArguments:
    """Refused, for what is passed over in silence is not cut."""

    def test_upsert(self) -> None:
        table = BackendTable()
        with pytest.raises(TypeError, match=r"Backend\.parse\(\)"):
            table.upsert("10.0.0.1:80/TCP")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="service of a backend is a str, not None"):
            table.upsert(A, None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="unhealthy is a bool, not 'no'"):
            table.upsert(A, unhealthy="no")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="one of active"):
            table.upsert(A, state="drained")
        assert not table.is_alive(A)

    def test_delete(self) -> None:
        table = BackendTable()
        table.upsert(A, "web")
        with pytest.raises(TypeError, match=r"Backend\.parse\(\)"):
            table.delete("10.0.0.1:80/TCP")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="service of a backend is a str, not 1"):
            table.delete(A, 1)  # type: ignore[arg-type]
        assert table.is_alive(A)


class TestToldOfFalls:
    """Called in the thread that changes the table, after a change that leaves fallen backends."""

    def test_for_each_way_to_fall(self) -> None:
        falls: list[Callable[[BackendTable], None]] = [
            lambda table: table.delete(A),
            lambda table: table.upsert(A, unhealthy=True),
            lambda table: table.replace([]),
        ]
        for fall in falls:
            table, called = BackendTable(), list[threading.Thread]()
            with table.told_of_falls(partial(lambda called: called.append(threading.current_thread()), called)):
                table.replace([Instance(A), Instance(B)])
                assert called == []
                fall(table)
            assert called == [threading.current_thread()]

    def test_the_table_can_be_used_from_there(self) -> None:
        table, taken = BackendTable(), list[Backend]()
        with table.told_of_falls(lambda: taken.extend(table.take_fallen())):
            table.upsert(A)
            table.delete(A)
            table.upsert(B)
        assert taken == [A]

    def test_one_at_a_time_and_nobody_afterwards(self) -> None:
        table, called = BackendTable(), list[str]()
        table.upsert(A)
        with table.told_of_falls(lambda: called.append("first")):
            with pytest.raises(ValueError, match="has a loop that follows it"), table.told_of_falls(lambda: None):
                pytest.fail("a second one")
            table.delete(A)
        table.upsert(B)
        table.delete(B)
        assert called == ["first"]
        with table.told_of_falls(lambda: called.append("second")):
            table.upsert(C)
        assert called == ["first", "second"]


class Model:
    """What the rules say, with no thought of how: all instances, and who has been alive and is not."""

    def __init__(self) -> None:
        self.instances: dict[tuple[Backend, str], bool] = {}
        self.fallen: set[Backend] = set()

    def alive(self) -> set[Backend]:
        return {backend for (backend, _), is_alive in self.instances.items() if is_alive}

    def change(self, instances: dict[tuple[Backend, str], bool]) -> None:
        before = self.alive()
        self.instances = instances
        self.fallen = (self.fallen | before) - self.alive()


some_backends = st.sampled_from((A, B, C))
some_services = st.sampled_from(("", "web", "api"))
instances = st.builds(Instance, some_backends, some_services, st.sampled_from(BackendState), st.booleans())
operations = st.one_of(
    instances.map(lambda instance: ("upsert", instance)),
    st.tuples(st.just("delete"), st.tuples(some_backends, st.none() | some_services)),
    st.lists(instances, max_size=4).map(lambda several: ("replace", several)),
    st.just(("take", None)),
)


def alive(instance: Instance) -> bool:
    return instance.state in ALIVE and not instance.unhealthy


@given(st.lists(operations, max_size=30))
def test_the_table_is_the_model(steps: list[tuple[str, object]]) -> None:
    """Who is alive, who has fallen and whether that is told, after each of any operations."""
    table, model, told = BackendTable(), Model(), list[int]()
    with table.told_of_falls(lambda: told.append(1)):
        for name, argument in steps:
            told.clear()
            if name == "upsert":
                assert isinstance(argument, Instance)
                table.upsert(*argument)
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
                model.change({instance[:2]: alive(instance) for instance in argument})
            else:
                taken = table.take_fallen()
                assert (len(taken), {*taken}) == (len(model.fallen), model.fallen)
                model.fallen = set()
            assert {backend for backend in (A, B, C) if table.is_alive(backend)} == model.alive()
            assert table.has_fallen() == bool(model.fallen)
            assert bool(told) == (name != "take" and bool(model.fallen))
    assert {*table.take_fallen()} == model.fallen


@given(st.lists(instances, max_size=6), st.lists(instances, max_size=6, unique_by=lambda instance: instance[:2]))
def test_replacing_is_deleting_what_is_left_out_and_upserting_the_rest(
    before: list[Instance], after: list[Instance]
) -> None:
    one, other = BackendTable(), BackendTable()
    for table in (one, other):
        table.replace(before)
    one.replace(after)
    kept = {instance[:2] for instance in after}
    for instance in after:
        other.upsert(*instance)
    for instance in before:
        if instance[:2] not in kept:
            other.delete(instance.backend, instance.service)
    assert [one.is_alive(backend) for backend in (A, B, C)] == [other.is_alive(backend) for backend in (A, B, C)]
    assert {*one.take_fallen()} == {*other.take_fallen()}


class Slow(Backend):
    """Whoever looks for it in a table waits until somebody else has had the time to."""

    def __hash__(self) -> int:
        if threading.current_thread().name == "slow":
            self.entered.set()
            self.other_is_done.wait(0.03)
        return super().__hash__()

    entered, other_is_done = threading.Event(), threading.Event()


CHANGES: dict[str, Callable[[BackendTable, Backend], object]] = {
    "upsert": lambda table, backend: table.upsert(backend, "web"),
    "delete": lambda table, backend: table.delete(backend, "web"),
    "replace": lambda table, backend: table.replace([Instance(A)]),
    "take": lambda table, backend: table.take_fallen(),
}


@pytest.mark.parametrize("second", CHANGES)
@pytest.mark.parametrize("first", ["upsert", "delete", "replace"])
def test_of_two_threads_one_waits_for_the_other(first: str, second: str) -> None:
    """The table may be used from any thread: no change is made while another is half done."""
    table, slow = BackendTable(), Slow("10.0.0.9", 80, "tcp")
    slow.entered.clear()
    slow.other_is_done.clear()
    table.upsert(slow)
    done: list[str] = []

    def begin() -> None:
        CHANGES[first](table, slow)
        done.append(first)

    def follow() -> None:
        CHANGES[second](table, B)
        done.append(second)
        slow.other_is_done.set()

    threads = [threading.Thread(target=begin, name="slow"), threading.Thread(target=follow)]
    for thread in threads:
        thread.start()
        assert slow.entered.wait(20)
    for thread in threads:
        thread.join(20)
    assert done == [first, second]
