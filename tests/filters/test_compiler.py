"""The compiled programs let through what `matches` says, for every condition and every socket."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random
from typing import Any
from unittest import mock

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from socklb import (
    InetSocket,
    NotSupported,
    SocketFilter,
    autobound,
    cgroup,
    dport,
    dst,
    idle,
    pid,
    sport,
    src,
    stalled,
    uid,
)
from socklb.filters import Condition, compiler, peers
from socklb.filters.compiler import Plan, compile_condition
from socklb.filters.conditions import And, Not, Or, Port
from socklb.filters.peers import Peers
from socklb.filters.property_conditions import Autobound
from socklb.wire import bytecode
from socklb.wire.bytecode import INET_DIAG_BC_CGROUP_COND, INET_DIAG_BC_D_COND, INET_DIAG_BC_S_COND, decode_program

from .. import bytecode_vm as vm
from ..strategies import ports
from .trees import conditions, full_sockets, mini_sockets, networks, resolved_leaves, socket_between, trees

NO_CGROUP = frozenset({INET_DIAG_BC_CGROUP_COND})

_near = st.integers(0, 40).map(lambda n: f"10.0.{n % 3}.{n}") | st.integers(0, 20).map(lambda n: f"fd00::{n:x}")


def _several(ports: st.SearchStrategy[int | None]) -> st.SearchStrategy[Or]:
    endpoints = st.builds(lambda make, host, port: make(host, port), st.sampled_from((src, dst)), _near, ports)
    return st.lists(endpoints, min_size=2, max_size=40).map(lambda parts: Or(*parts))


_few, _more = st.sampled_from((53, 80, 443)), st.sampled_from((53, 80, 81, 443, 8000, 8080, 9000))
many_endpoints = st.one_of(*map(_several, (_few, _more, st.none() | _few, st.none() | _more)))
mixtures = st.lists(st.builds(dst, networks(), st.none() | ports), min_size=1, max_size=30).map(lambda many: Or(*many))


@st.composite
def near_sockets(draw: st.DrawFn) -> InetSocket:
    hosts = [(f"10.0.{n % 3}.{n}", "10.9.9.9") for n in range(42)] + [(f"fd00::{n:x}", "fd00::9:9") for n in range(22)]
    near, other = draw(st.sampled_from(hosts))
    port = draw(st.sampled_from((1, 53, 79, 80, 443, 8080, 9001)))
    return socket_between(*draw(st.permutations((_endpoint(near, port), _endpoint(other, port)))))


def lets_through(plan: Plan, socket: InetSocket) -> bool:
    """What the kernel would send for a plan, by its own rules."""
    return any(not program or vm.run(program, vm.entry_of(socket)) for program in plan.programs)


class TestPrograms:
    """DESIGN: interpreter(compile(tree)) == tree.matches(socket); the verifier accepts every compiled program."""

    @given(
        st.one_of(
            st.tuples(conditions | mixtures, full_sockets | mini_sockets), st.tuples(many_endpoints, near_sockets())
        )
    )
    def test_let_through_what_matches(self, pair: tuple[Condition, InetSocket]) -> None:
        """Without CGROUP_COND (before Linux 5.9) the kernel lets more through, never less, as it does where it takes
        what a mini-socket does not have for 0; the checks make up for both.
        """
        condition, socket = pair
        matches = condition.matches(socket)
        for missing_ops in (frozenset[int](), NO_CGROUP):
            plan = compile_condition(condition, missing_ops)
            let_through = lets_through(plan, socket)
            assert let_through >= matches
            assert let_through == matches or missing_ops or condition.evaluate(socket) is None
            assert (let_through and plan.lets_through(socket)) == matches
            used = {instruction.code for program in plan.programs for _, instruction in decode_program(program)}
            assert used == plan.ops
            assert not used & missing_ops
            assert all(not program or vm.verify(program) for program in plan.programs)

    @pytest.mark.parametrize("count", range(1, 7))
    @pytest.mark.parametrize(
        "hosts", [["10.0.0.{}"], ["fd00::{}"], ["10.0.0.{}", "fd00::{}"]], ids=["v4", "v6", "both"]
    )
    def test_each_of_many_endpoints_is_let_through_and_its_neighbours_are_not(
        self, hosts: list[str], count: int
    ) -> None:
        """However many ports there are, and so whatever test precedes the tree."""
        named = [(host.format(n), 1000 + n % count * 10) for host in hosts for n in range(1, 9)]
        plan = compile_condition(Or(*(dst(host, port) for host, port in named)))
        assert all(map(vm.verify, plan.programs))
        for host, port in named:
            client = "10.9.9.9:1" if "." in host else "[fd00::9:9]:1"
            for number in (port, port - 1, port + 1, 999, 1100):
                assert lets_through(plan, socket_between(client, _endpoint(host, number))) is (number == port)

    @pytest.mark.parametrize("others", [[80] * 7, range(80, 87)], ids=["one port", "many ports"])
    @pytest.mark.parametrize("whole", [0, 2, 7])
    def test_an_endpoint_of_any_port_is_not_kept_out_by_the_ports_of_the_others(
        self, whole: int, others: Sequence[int]
    ) -> None:
        named: list[int | None] = [*others[:whole], None, *others[whole:]]
        plan = compile_condition(Or(*(dst(f"10.0.0.{n}", port) for n, port in enumerate(named))))
        for (n, port), number in itertools.product(enumerate(named), (1, 80, 83, 443)):
            assert lets_through(plan, socket_between("10.9.9.9:1", f"10.0.0.{n}:{number}")) is (port in (None, number))

    @given(st.integers(0, 65535), st.integers(0, 65535), full_sockets)
    def test_two_ports_that_exclude_each_other(self, one: int, other: int, socket: InetSocket) -> None:
        assume(one != other)
        condition = And(dst("10.0.0.0/8"), dport(one), dport(other))
        assert not lets_through(compile_condition(condition), socket)

    @given(conditions, conditions, full_sockets | mini_sockets)
    def test_two_that_are_joined(self, one: Condition, other: Condition, socket: InetSocket) -> None:
        first, second = (compile_condition(each).programs[0] for each in (one, other))
        assume(first and second)
        accepted = [vm.run(program, vm.entry_of(socket)) for program in (first, second)]
        joined = bytecode.either(first, second), bytecode.except_for(first, second)
        for program, expected in zip(joined, (any(accepted), accepted[1] and not accepted[0])):
            assert program
            assert vm.verify(program)
            assert vm.run(program, vm.entry_of(socket)) == expected

    @given(
        st.lists(st.lists(st.integers(0, 59), max_size=3), min_size=2, max_size=12), st.randoms(use_true_random=False)
    )
    def test_peers_that_drift(self, changes: list[list[int]], random: Random) -> None:
        """A pass after another one: one program, new or used again, lets each of them through, and none another."""
        hosts = [f"10.0.{n % 3}.{n}" if n % 4 else f"fd00::{n:x}" for n in range(60)]
        those = {*random.sample(range(60), 40)}
        with (
            mock.patch.object(peers, "_PROGRAM", 60 * random.choice((9, 20, 50))),
            mock.patch.object(bytecode, "MAX_SIZE", random.choice((1500, 65532))),
            mock.patch.object(compiler, "_WORTH_KEEPING", 1),
            mock.patch.object(compiler, "_MOST_PROGRAMS", 10),
            mock.patch.object(compiler, "_recent", []),
        ):
            for change in changes:
                those.symmetric_difference_update(change)
                plan = SocketFilter.to_backends([(hosts[n], 80 + n % 2, "tcp") for n in those]).plan()
                assert all(map(vm.verify, plan.programs))
                for n, host in enumerate(hosts):
                    client = "[fd00::9:9]:1" if ":" in host else "10.9.9.9:1"
                    found = vm.entry_of(socket_between(client, _endpoint(host, 80 + n % 2)))
                    assert sum(vm.run(program, found) for program in plan.programs) == (n in those)
                assert len(compiler._recent) <= 4

    def test_peers_that_differ_little_are_not_compiled_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compiled: list[int] = []
        emit = Peers.emit

        def noted(peers: Peers, *to: Any) -> None:
            compiled.append(len(peers.endpoints))
            emit(peers, *to)

        monkeypatch.setattr(Peers, "emit", noted)
        monkeypatch.setattr(compiler, "_recent", [])
        for first, last, expected in (
            (0, 1000, [1000]),
            (0, 1000, []),
            (30, 1030, [30, 30]),  # those that are left out, and the new ones
            (40, 1063, [1023]),  # too many are others
            (0, 1000, []),
            (2000, 3777, [1777]),  # as many as a program holds
            (2000, 3787, [10]),
            (2000, 3850, [73, 925, 925]),  # it has no room for those
            (2000, 3900, [50]),  # the two have
        ):
            compiled.clear()
            SocketFilter.to_backends([(f"10.7.{n >> 8}.{n & 255}", 80, "tcp") for n in range(first, last)]).plan()
            assert compiled == expected

    @pytest.mark.parametrize("host", ["10.{}.{}.{}", "fd00::{:x}:{:x}:{:x}"], ids=["v4", "v6"])
    @pytest.mark.parametrize(("count", "several"), [(4000, True), (40_000, False)])
    def test_thousands_of_peers(self, host: str, count: int, several: bool) -> None:
        """Some programs, of which each is as full as may be; or one that keeps most away, where they would be many."""
        named = [(host.format(n >> 14, n >> 6 & 255, n % 64), 1000 + n % 7) for n in range(count)]
        condition = SocketFilter.to_backends([(*one, "tcp") for one in named]).where
        for whole in (condition, condition & sport(1)):
            plan = compile_condition(whole)
            is_guard_alone = whole is condition and not several
            assert is_guard_alone == (len(plan.programs) == 1)
            assert len(plan.programs) <= 4 or whole is not condition
            for address, port in named[:: count // 50]:
                for found in (port, 1000 + (port - 999) % 7):
                    row = socket_between("10.9.9.9:1" if "." in host else "[fd00::9:9]:1", _endpoint(address, found))
                    through = sum(vm.run(program, vm.entry_of(row)) for program in plan.programs)
                    assert through == (found == port) or (is_guard_alone and through)
                    assert plan.lets_through(row) is (found == port)

    def test_no_condition_needs_no_program(self) -> None:
        assert compile_condition(And()).programs == (b"",)

    @pytest.mark.parametrize(
        ("condition", "ops"),
        [
            (dst("10.0.0.1", 80), [INET_DIAG_BC_D_COND]),
            (src("10.0.0.1", 1) & dst("10.0.0.2", 2), [INET_DIAG_BC_S_COND, INET_DIAG_BC_D_COND]),
            (dport(80), [INET_DIAG_BC_D_COND]),  # S_EQ and D_EQ would need Linux 5.0
            (dport(0, 80), [bytecode.INET_DIAG_BC_D_LE]),
            (sport(80, 65535), [bytecode.INET_DIAG_BC_S_GE]),
        ],
        ids=str,
    )
    def test_no_instruction_too_many(self, condition: Condition, ops: list[int]) -> None:
        (program,) = compile_condition(condition).programs
        assert [instruction.code for _, instruction in decode_program(program)] == ops

    def test_a_row_that_is_connected_elsewhere_by_now_fails_the_checks(self) -> None:
        for condition in (dst("10.0.0.2", 80), dst("10.0.0.2", 80) & ANY_AUTOBOUND):
            plan = compile_condition(condition)
            assert plan.lets_through(socket_between("10.0.0.1:1", "10.0.0.2:80"))
            assert not plan.lets_through(socket_between("10.0.0.1:1", "10.0.0.3:80"))

    @pytest.mark.parametrize(
        ("condition", "compiled"),
        [
            (dport(80), dport(80)),
            (~(sport(1) | dport(2)), ~sport(1) & ~dport(2)),
            (~(sport(1) & dport(2)), ~sport(1) | ~dport(2)),
            (~~(sport(1) | dport(2)), sport(1) | dport(2)),
        ],
        ids=str,
    )
    def test_what_a_kernel_cannot_evaluate_is_left_out_and_nothing_else(
        self, condition: Condition, compiled: Condition
    ) -> None:
        plan = compile_condition(condition & cgroup(7), NO_CGROUP)
        assert plan.programs == compile_condition(compiled).programs

    @pytest.mark.parametrize("in_python", [stalled(1), ~idle(1), uid(1), ~pid(1)], ids=str)
    def test_what_no_kernel_can_evaluate_is_left_out_too(self, in_python: Condition) -> None:
        plan = compile_condition(dport(80) & in_python)
        assert plan.programs == compile_condition(dport(80)).programs
        assert plan.needs_info is (in_python in (stalled(1), ~idle(1)))

    def test_a_filter_is_compiled_once_for_each_kind_of_kernel(self) -> None:
        filter = SocketFilter("tcp", cgroup(7))
        assert filter.plan() is filter.plan() is not filter.plan(NO_CGROUP)
        assert filter.plan(NO_CGROUP) is filter.plan(frozenset(NO_CGROUP))


ANY_AUTOBOUND = Autobound(Port("src", 0, 65535))


class TestAutobound:
    """Only the kernel can evaluate it: it is compiled, or the search is refused before anything is found."""

    @given(
        trees(resolved_leaves | st.just(Autobound(Port("src", 2, 80))), 0), full_sockets | mini_sockets, st.booleans()
    )
    def test_wherever_it_stands(self, condition: Condition, socket: InetSocket, chosen: bool) -> None:
        """The kernel takes every mini-socket for one whose port it chose."""
        chosen = chosen or not socket.attributes
        plan = compile_condition(condition)
        entry = vm.entry_of(socket, autobound=chosen)
        let_through = any(not program or vm.run(program, entry) for program in plan.programs)
        known = _replaced(condition, sport(2, 80) if chosen else Or())
        found = let_through and plan.lets_through(socket)
        values = {_replaced(condition, other).evaluate(socket) for other in (sport(2, 80), Or())}
        assert found == known.matches(socket) or (not found and None in values)

    def test_it_is_the_port_that_counts_too(self) -> None:
        condition = Autobound(Port("src", 2000, 3000))
        for port, chosen, negated in itertools.product((1999, 2000, 3000, 3001), (True, False), (True, False)):
            plan, socket = (
                compile_condition(~condition if negated else condition),
                socket_between(f"[::1]:{port}", "[::1]:2"),
            )
            let_through = vm.run(plan.programs[0], vm.entry_of(socket, autobound=chosen))
            assert (let_through and plan.lets_through(socket)) == ((chosen and 2000 <= port <= 3000) is not negated)

    def test_what_the_kernel_takes_for_the_cgroup_of_a_mini_socket_does_not_count(self) -> None:
        plan, socket = compile_condition(~ANY_AUTOBOUND | ~cgroup(7)), socket_between("10.0.0.1:1", "10.0.0.2:2")
        assert vm.run(plan.programs[0], vm.entry_of(socket, autobound=True))
        assert not plan.lets_through(socket)

    def test_the_range_is_that_of_a_namespace(self) -> None:
        with pytest.raises(ValueError, match="'autobound' is not resolved"):
            compile_condition(autobound())

    def test_and_what_an_old_kernel_lacks(self) -> None:
        plan = compile_condition(ANY_AUTOBOUND & cgroup(7), NO_CGROUP)
        assert plan.programs == compile_condition(ANY_AUTOBOUND).programs
        for number in (7, 8):
            assert plan.lets_through(socket_between("10.0.0.1:1", "10.0.0.2:2", cgroup_id=number)) is (number == 7)

    def test_or_what_an_old_kernel_lacks(self) -> None:
        with pytest.raises(NotSupported, match="autobound"):
            compile_condition(ANY_AUTOBOUND | cgroup(7), NO_CGROUP)

    def test_and_more_than_a_program_holds(self) -> None:
        plan = compile_condition(And(*(Not(dport(port)) for port in range(8000)), ANY_AUTOBOUND))
        for port in (7999, 8000):
            assert plan.lets_through(socket_between("10.0.0.9:1", f"10.0.0.1:{port}")) is (port == 8000)
        socket = socket_between("10.0.0.9:1", "10.0.0.1:9000")
        assert [vm.run(plan.programs[0], vm.entry_of(socket, autobound=b)) for b in (True, False)] == [True, False]

    def test_or_more_than_a_program_holds(self) -> None:
        with pytest.raises(NotSupported, match="autobound"):
            compile_condition(And(*(Not(dport(port)) for port in range(8000))) | ANY_AUTOBOUND)


def _replaced(condition: Condition, by: Condition) -> Condition:
    """With another condition for each `autobound`."""
    if isinstance(condition, Not):
        return Not(_replaced(condition.part, by))
    if isinstance(condition, (And, Or)):
        return type(condition)(*(_replaced(part, by) for part in condition.parts))
    return by if isinstance(condition, Autobound) else condition


class TestManyBackends:
    """The kernel's work on a socket grows with the logarithm of the number of backends."""

    @staticmethod
    def longest_path(count: int, *, scattered: bool) -> int:
        step = 0x01010107 if scattered else 1
        numbers = [0x0A000000 + n * step & 0xFFFFFFFF for n in range(count)]
        condition = Or(*(dst(_v4(n), 80) for n in numbers))
        (program,) = compile_condition(condition).programs
        last = max(numbers)
        peers = [last, last ^ 1, numbers[0], numbers[count // 2], 0xDFFFFFFF]
        return max(_steps(program, socket_between("10.0.0.1:1", f"{_v4(n)}:80")) for n in peers)

    @pytest.mark.parametrize("scattered", [True, False])
    def test_a_thousand_take_a_few_steps_more_than_ten(self, scattered: bool) -> None:
        assert self.longest_path(1000, scattered=scattered) <= self.longest_path(10, scattered=scattered) + 20

    def test_the_program_grows_with_their_number_alone(self) -> None:
        for count in (100, 1000):
            condition = Or(*(dst(f"10.1.{n >> 8}.{n & 255}", 80) for n in range(count)))
            (program,) = compile_condition(condition).programs
            assert len(program) <= 36 * count + 16
        # a socket of another port or network is out after a step or two
        assert _steps(program, socket_between("10.0.0.9:1", "10.1.0.1:81")) == 1
        assert _steps(program, socket_between("10.0.0.9:1", "10.2.0.1:80")) == 2

    def test_ports_of_one_address_are_searched_in_halves(self) -> None:
        condition = Or(*(dst("10.0.0.1", port) for port in range(1000, 2000)))
        (program,) = compile_condition(condition).programs
        for port in (999, 1000, 1500, 1999, 2000):
            socket = socket_between("10.0.0.9:1", f"10.0.0.1:{port}")
            assert vm.run(program, vm.entry_of(socket)) == (1000 <= port < 2000)
            assert _steps(program, socket) <= 25


class TestMoreThanAnAttributeHolds:
    """Programs that would exceed an attribute are split, unnoticed by the caller. Here it holds a tenth of 64 KiB."""

    MOST = 6000
    BACKENDS = tuple(f"10.0.{n >> 8 & 255}.{n & 255}" for n in range(0, 350 * 3, 3))
    MANY = Or(*(dst(address, 80) for address in BACKENDS))

    @pytest.fixture(autouse=True)
    def _small_attributes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bytecode, "MAX_SIZE", self.MOST)

    @pytest.mark.parametrize(
        "condition",
        [
            MANY,
            And(MANY, sport(1000, 2000)),
            And(sport(1000, 2000), MANY),
            Or(MANY, sport(3000)),
            Not(And(*(Not(part) for part in MANY.parts))),
        ],
        ids=["alone", "and", "after", "or", "not"],
    )
    def test_each_piece_fits_and_together_they_match_the_same(self, condition: Condition) -> None:
        plan = compile_condition(condition)
        assert 1 < len(plan.programs) <= 4
        assert all(len(program) <= self.MOST and vm.verify(program) for program in plan.programs)
        for peer, port in itertools.product(
            ("10.0.0.3:80", "10.0.4.23:80", "10.0.0.4:80", "10.0.0.3:81"), (1500, 3000)
        ):
            socket = socket_between(f"10.0.0.9:{port}", peer)
            assert lets_through(plan, socket) == condition.matches(socket)

    @pytest.mark.parametrize(
        ("condition", "disjoint"),
        [
            (MANY, True),
            (Or(*map(dst, BACKENDS)), True),
            (Or(MANY, dst(BACKENDS[0], 0)), True),
            (Or(MANY, dst(BACKENDS[0])), False),
            (Or(MANY, dst(BACKENDS[0], 80)), False),
            (Or(MANY, src("10.0.0.10")), False),
            (Or(MANY, sport(1)), False),
            (Or(*(sport(0, high) for high in range(1, 700))), False),
            (And(sport(1), Or(MANY, dst(BACKENDS[0]))), False),
        ],
        ids=["endpoints", "addresses", "ports", "any port", "twice", "both sides", "a port", "only ports", "in an and"],
    )
    def test_only_distinct_endpoints_are_disjoint(self, condition: Condition, disjoint: bool) -> None:
        plan = compile_condition(condition)
        assert plan.disjoint is disjoint
        entry = vm.entry_of(socket_between("10.0.0.10:1", f"{self.BACKENDS[0]}:80"))
        assert sum(vm.run(program, entry) for program in plan.programs) == (1 if disjoint else 2)

    @pytest.mark.parametrize("parts", [0, 1, 2, 3])
    def test_what_cannot_be_divided_is_compiled_in_part_and_matched_again(self, parts: int) -> None:
        """Alone, and wherever it stands in an `or` with what is compiled in full."""
        undivided: Condition = And(*(Not(dport(port)) for port in range(80, 880)))
        others = [dst("10.0.0.1", 80), dst("10.0.0.2", 81)][: parts - 1]
        for at in range(max(parts, 1)):
            condition = Or(*others[:at], undivided, *others[at:]) if parts else undivided
            plan = compile_condition(condition)
            for port in (79, 80, 81, 500, 879, 880):
                socket = socket_between("10.0.0.9:1", f"10.0.0.1:{port}")
                assert (lets_through(plan, socket) and plan.lets_through(socket)) == condition.matches(socket)


def _endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _v4(number: int) -> str:
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _steps(program: bytes, socket: InetSocket) -> int:
    """How many instructions the kernel runs for a socket."""
    return vm.steps(program, vm.entry_of(socket))
