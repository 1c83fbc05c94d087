"""What the kernel is told says what `matches` says, for every condition and every socket."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from socklb import InetSocket, NotSupported, SocketFilter, autobound, cgroup, device, dport, dst, mark, sport, src
from socklb.filters import Condition
from socklb.filters.compiler import Plan, compile_condition
from socklb.filters.conditions import And, Not, Or
from socklb.wire import bytecode
from socklb.wire.bytecode import (
    INET_DIAG_BC_CGROUP_COND,
    INET_DIAG_BC_D_COND,
    INET_DIAG_BC_D_EQ,
    INET_DIAG_BC_DEV_COND,
    INET_DIAG_BC_MARK_COND,
    INET_DIAG_BC_S_COND,
    INET_DIAG_BC_S_EQ,
    decode_program,
)

from .. import bytecode_vm as vm
from ..strategies import ports
from .trees import conditions, networks, socket_between, told_sockets

LATER_CODES = (
    INET_DIAG_BC_S_EQ,
    INET_DIAG_BC_D_EQ,
    INET_DIAG_BC_MARK_COND,
    INET_DIAG_BC_DEV_COND,
    INET_DIAG_BC_CGROUP_COND,
)
lacking = st.frozensets(st.sampled_from(LATER_CODES))

_near = st.integers(0, 40).map(lambda n: f"10.0.{n % 3}.{n}") | st.integers(0, 20).map(lambda n: f"fd00::{n:x}")


def _several(ports: st.SearchStrategy[int | None]) -> st.SearchStrategy[Or]:
    endpoints = st.builds(lambda make, host, port: make(host, port), st.sampled_from((src, dst)), _near, ports)
    return st.lists(endpoints, min_size=2, max_size=40).map(lambda parts: Or(*parts))


_few, _more = st.sampled_from((53, 80, 443)), st.sampled_from((53, 80, 81, 443, 8000, 8080, 9000))
many_endpoints = _several(_few) | _several(_more) | _several(st.none() | _few)


def lets_through(plan: Plan, socket: InetSocket) -> bool:
    """What the kernel would send for a plan, by its own rules."""
    return any(not program or vm.run(program, vm.entry_of(socket)) for program in plan.programs)


class TestTheKernelIsToldWhatIsMeant:
    """DESIGN: interpreter(compile(tree)) == tree.matches(socket); the verifier accepts every compiled program."""

    @given(conditions, told_sockets)
    def test_for_every_tree_and_every_socket(self, condition: Condition, socket: InetSocket) -> None:
        plan = compile_condition(condition)
        assert plan.rest is None
        assert lets_through(plan, socket) == condition.matches(socket)

    @given(conditions, lacking)
    def test_every_program_is_one_that_the_kernel_accepts(self, condition: Condition, lacks: frozenset[int]) -> None:
        for program in compile_condition(condition, lacks).programs:
            assert not program or vm.verify(program)

    @given(many_endpoints, st.data())
    def test_for_many_endpoints(self, condition: Or, data: st.DataObject) -> None:
        hosts = [(f"10.0.{n % 3}.{n}", "10.9.9.9") for n in range(42)] + [
            (f"fd00::{n:x}", "fd00::9:9") for n in range(22)
        ]
        near, other = data.draw(st.sampled_from(hosts))
        port = data.draw(st.sampled_from((1, 53, 79, 80, 443, 8080, 9001)))
        local, peer = data.draw(st.permutations((_endpoint(near, port), _endpoint(other, port))))
        socket = socket_between(local, peer)
        assert lets_through(compile_condition(condition), socket) == condition.matches(socket)

    @pytest.mark.parametrize("count", range(1, 7))
    @pytest.mark.parametrize(
        "hosts", [["10.0.0.{}"], ["fd00::{}"], ["10.0.0.{}", "fd00::{}"]], ids=["v4", "v6", "both"]
    )
    def test_each_of_many_endpoints_is_let_through_and_its_neighbours_are_not(
        self, hosts: list[str], count: int
    ) -> None:
        """However many ports there are, and so whatever stands in front of the tree."""
        named = [(host.format(n), 1000 + n % count * 10) for host in hosts for n in range(1, 9)]
        plan = compile_condition(Or(*(dst(host, port) for host, port in named)))
        assert all(map(vm.verify, plan.programs))
        for host, port in named:
            client = "10.9.9.9:1" if "." in host else "[fd00::9:9]:1"
            for number, meant in ((port, True), (port - 1, False), (port + 1, False), (999, False), (1100, False)):
                assert lets_through(plan, socket_between(client, _endpoint(host, number))) is meant

    @pytest.mark.parametrize("port", [80, 443])
    @pytest.mark.parametrize("whole", [0, 2, 3])
    def test_an_endpoint_of_any_port_is_not_kept_out_by_the_ports_of_the_others(self, whole: int, port: int) -> None:
        plan = compile_condition(Or(*(dst(f"10.0.0.{n}", None if n == whole else 80) for n in range(4))))
        for n in range(4):
            assert lets_through(plan, socket_between("10.9.9.9:1", f"10.0.0.{n}:{port}")) is (n == whole or port == 80)

    @given(st.lists(st.tuples(networks(), st.none() | ports), min_size=1, max_size=30), told_sockets)
    def test_for_any_mixture_of_prefixes_and_ports(
        self, pairs: list[tuple[object, int | None]], socket: InetSocket
    ) -> None:
        condition = Or(*(dst(network, port) for network, port in pairs))  # type: ignore[arg-type]
        assert lets_through(compile_condition(condition), socket) == condition.matches(socket)

    def test_a_row_that_has_another_end_by_now_does_not_pass_when_asked_again(self) -> None:
        again = compile_condition(dst("10.0.0.2", 80) & device(3)).again
        assert again is not None
        assert again.matches(socket_between("10.0.0.1:1", "10.0.0.2:80"))
        assert not again.matches(socket_between("10.0.0.1:1", "10.0.0.3:80"))
        assert compile_condition(mark(1)).again is None

    @pytest.mark.parametrize("chosen", [True, False])
    @pytest.mark.parametrize("negated", [True, False])
    def test_autobound_is_told_too(self, chosen: bool, negated: bool) -> None:
        (program,) = compile_condition(~autobound() if negated else autobound()).programs
        socket = socket_between("10.0.0.1:1", "10.0.0.2:2")
        assert vm.run(program, vm.entry_of(socket, autobound=chosen)) == (chosen is not negated)


class TestAnOldKernel:
    """What it cannot evaluate is matched in Python on what is left; the compiled part is then a superset."""

    @given(conditions, told_sockets, lacking)
    def test_no_program_has_a_code_that_it_lacks(
        self, condition: Condition, socket: InetSocket, lacks: frozenset[int]
    ) -> None:
        plan = compile_condition(condition, lacks)
        used = {instruction.code for program in plan.programs for _, instruction in decode_program(program)}
        assert not used & lacks
        assert used == plan.codes

    @given(conditions, told_sockets, lacking)
    def test_nothing_that_matches_is_held_back(
        self, condition: Condition, socket: InetSocket, lacks: frozenset[int]
    ) -> None:
        plan = compile_condition(condition, lacks)
        assert lets_through(plan, socket) or not condition.matches(socket)

    @given(conditions, told_sockets, lacking)
    def test_what_is_left_makes_up_for_the_rest(
        self, condition: Condition, socket: InetSocket, lacks: frozenset[int]
    ) -> None:
        plan = compile_condition(condition, lacks)
        meant = lets_through(plan, socket) and (plan.rest is None or plan.rest.matches(socket))
        assert meant == condition.matches(socket)

    def test_ports_need_no_python_without_the_equal_operators(self) -> None:
        plan = compile_condition(dport(80) & ~sport(443), frozenset({INET_DIAG_BC_S_EQ, INET_DIAG_BC_D_EQ}))
        assert plan.rest is None

    @pytest.mark.parametrize(
        ("condition", "code"),
        [
            (device(3), INET_DIAG_BC_DEV_COND),
            (mark(1), INET_DIAG_BC_MARK_COND),
            (cgroup(7), INET_DIAG_BC_CGROUP_COND),
        ],
        ids=["dev", "fwmark", "cgroup"],
    )
    def test_the_rest_of_a_condition_still_goes_to_the_kernel(self, condition: Condition, code: int) -> None:
        plan = compile_condition(dport(80) & condition, frozenset({code}))
        assert plan.rest == condition
        assert plan.programs == compile_condition(dport(80)).programs

    @pytest.mark.parametrize(
        ("told", "plainly"),
        [
            (~(sport(1) | dport(2)), ~sport(1) & ~dport(2)),
            (~(sport(1) & dport(2)), ~sport(1) | ~dport(2)),
            (~~(sport(1) | dport(2)), sport(1) | dport(2)),
        ],
        ids=str,
    )
    def test_no_more_is_let_through_than_needs_be(self, told: Condition, plainly: Condition) -> None:
        plan = compile_condition(told & cgroup(7), frozenset({INET_DIAG_BC_CGROUP_COND}))
        assert plan.programs == compile_condition(plainly).programs


class TestAutobound:
    """Only the kernel can evaluate it: it is told, or the search is refused before anything is found."""

    def test_beside_what_an_old_kernel_lacks(self) -> None:
        plan = compile_condition(autobound() & cgroup(7), frozenset({INET_DIAG_BC_CGROUP_COND}))
        assert plan.rest == cgroup(7)
        assert plan.programs == compile_condition(autobound()).programs

    def test_beside_more_than_a_program_holds(self) -> None:
        plan = compile_condition(And(*(Not(dport(port)) for port in range(8000)), autobound()))
        assert plan.rest == And(*(Not(dport(port)) for port in range(8000)))
        socket = socket_between("10.0.0.9:1", "10.0.0.1:9000")
        assert [vm.run(plan.programs[0], vm.entry_of(socket, autobound=b)) for b in (True, False)] == [True, False]

    def test_in_an_or_with_it(self) -> None:
        with pytest.raises(NotSupported, match="autobound"):
            compile_condition(autobound() | cgroup(7), frozenset({INET_DIAG_BC_CGROUP_COND}))


class TestManyBackends:
    """The kernel's work on a socket grows with the logarithm of the number of backends."""

    @staticmethod
    def longest_way(count: int, *, scattered: bool) -> int:
        step = 0x01010107 if scattered else 1
        numbers = [0x0A000000 + n * step & 0xFFFFFFFF for n in range(count)]
        condition = Or(*(dst(f"{n >> 24}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", 80) for n in numbers))
        (program,) = compile_condition(condition).programs
        last = max(numbers)
        peers = [last, last ^ 1, numbers[0], numbers[count // 2], 0xDFFFFFFF]
        return max(_steps(program, socket_between("10.0.0.1:1", _v4(n, 80))) for n in peers)

    @pytest.mark.parametrize("scattered", [True, False])
    def test_a_thousand_take_a_few_steps_more_than_ten(self, scattered: bool) -> None:
        assert self.longest_way(1000, scattered=scattered) <= self.longest_way(10, scattered=scattered) + 20

    @pytest.mark.parametrize("count", [100, 1000])
    def test_the_program_grows_with_their_number_alone(self, count: int) -> None:
        condition = Or(*(dst(f"10.1.{n >> 8}.{n & 255}", 80) for n in range(count)))
        (program,) = compile_condition(condition).programs
        assert len(program) <= 36 * count + 16

    def test_ports_of_one_address_are_searched_in_halves(self) -> None:
        condition = Or(*(dst("10.0.0.1", port) for port in range(1000, 2000)))
        (program,) = compile_condition(condition).programs
        for port, there in ((999, False), (1000, True), (1500, True), (1999, True), (2000, False)):
            socket = socket_between("10.0.0.9:1", f"10.0.0.1:{port}")
            assert vm.run(program, vm.entry_of(socket)) == there
            assert _steps(program, socket) <= 25

    def test_a_socket_of_another_port_or_network_is_out_after_a_step_or_two(self) -> None:
        condition = Or(*(dst(f"10.1.{n >> 8}.{n & 255}", 80) for n in range(1000)))
        (program,) = compile_condition(condition).programs
        assert _steps(program, socket_between("10.0.0.9:1", "10.1.0.1:81")) == 1
        assert _steps(program, socket_between("10.0.0.9:1", "10.2.0.1:80")) == 2


class TestMoreThanAnAttributeHolds:
    """Programs that would exceed an attribute are split, unnoticed by the caller. Here it holds a tenth of 64 KiB."""

    MOST = 6000
    BACKENDS = tuple(f"10.0.{n >> 8 & 255}.{n & 255}" for n in range(0, 350 * 3, 3))

    @pytest.fixture(autouse=True)
    def _small_attributes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bytecode, "MAX_SIZE", self.MOST)

    @pytest.mark.parametrize("around", ["alone", "and", "behind", "or", "not"])
    def test_each_piece_fits_and_together_they_mean_the_same(self, around: str) -> None:
        many = Or(*(dst(address, 80) for address in self.BACKENDS))
        condition: Condition = {
            "alone": many,
            "and": And(many, sport(1000, 2000)),
            "behind": And(sport(1000, 2000), many),
            "or": Or(many, sport(3000)),
            "not": Not(And(*(Not(part) for part in many.parts))),
        }[around]
        plan = compile_condition(condition)
        assert 1 < len(plan.programs) <= 4
        assert plan.rest is None
        for program in plan.programs:
            assert len(program) <= self.MOST
            assert vm.verify(program)
        for peer, port in itertools.product(
            ("10.0.0.3:80", "10.0.4.23:80", "10.0.0.4:80", "10.0.0.3:81"), (1500, 3000)
        ):
            socket = socket_between(f"10.0.0.9:{port}", peer)
            assert lets_through(plan, socket) == condition.matches(socket)

    def test_backends_of_their_own_cannot_match_twice(self) -> None:
        assert compile_condition(Or(*(dst(address, 80) for address in self.BACKENDS))).disjoint
        assert not compile_condition(Or(sport(3), *(dst(address, 80) for address in self.BACKENDS))).disjoint
        assert not compile_condition(Or(dst(self.BACKENDS[0]), *(dst(a, 80) for a in self.BACKENDS))).disjoint
        assert compile_condition(Or(dst(self.BACKENDS[0], 0), *(dst(a, 80) for a in self.BACKENDS))).disjoint
        assert compile_condition(Or(*map(dst, self.BACKENDS))).disjoint

    def test_what_goes_along_with_the_halves_of_an_or_may_match_in_both(self) -> None:
        twice = Or(*(dst(address, 80) for address in self.BACKENDS), dst(self.BACKENDS[0]))
        plan = compile_condition(And(sport(1), twice))
        socket = socket_between("10.0.0.9:1", f"{self.BACKENDS[0]}:80")
        assert sum(vm.run(program, vm.entry_of(socket)) for program in plan.programs) == 2
        assert not plan.disjoint

    def test_an_and_that_cannot_be_cut_is_told_in_part(self) -> None:
        condition = And(*(Not(dport(port)) for port in range(800)))
        plan = compile_condition(condition)
        assert plan.rest == condition
        for port in (0, 799, 800):
            socket = socket_between("10.0.0.9:1", f"10.0.0.1:{port}")
            assert lets_through(plan, socket) or not condition.matches(socket)

    @pytest.mark.parametrize("parts", [1, 2, 3])
    def test_an_or_with_a_part_that_cannot_be_cut_is_matched_again(self, parts: int) -> None:
        """Wherever that part stands among those that are told in full."""
        uncut: Condition = And(*(Not(dport(port)) for port in range(80, 880)))
        others = [dst("10.0.0.1", 80), dst("10.0.0.2", 81)][: parts - 1]
        for at in range(parts):
            condition = Or(*others[:at], uncut, *others[at:])
            plan = compile_condition(condition)
            assert plan.rest == condition
            for port in (79, 80, 81, 500, 879, 880):
                socket = socket_between("10.0.0.9:1", f"10.0.0.1:{port}")
                assert lets_through(plan, socket) or not condition.matches(socket)


def test_a_condition_without_a_test_needs_no_program() -> None:
    assert compile_condition(And()).programs == (b"",)


def test_a_host_and_its_port_are_one_instruction() -> None:
    assert [i.code for _, i in decode_program(compile_condition(dst("10.0.0.1", 80)).programs[0])] == [
        INET_DIAG_BC_D_COND
    ]
    both_sides = src("10.0.0.1", 1) & dst("10.0.0.2", 2)
    assert [i.code for _, i in decode_program(compile_condition(both_sides).programs[0])] == [
        INET_DIAG_BC_S_COND,
        INET_DIAG_BC_D_COND,
    ]


@pytest.mark.parametrize("condition", [dport(0, 80), dport(80, 65535), dport(80)], ids=str)
def test_an_end_that_every_port_is_within_is_not_asked_for(condition: Condition) -> None:
    (program,) = compile_condition(condition).programs
    assert len(list(decode_program(program))) == 1


@given(conditions)
def test_a_filter_is_compiled_once(condition: Condition) -> None:
    filter = SocketFilter("tcp", condition)
    assert filter.plan() is filter.plan()


@given(st.integers(0, 65535), st.integers(0, 65535), told_sockets)
def test_two_ports_that_exclude_each_other(one: int, other: int, socket: InetSocket) -> None:
    assume(one != other)
    condition = And(dst("10.0.0.0/8"), dport(one), dport(other))
    assert not lets_through(compile_condition(condition), socket)


def _endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _v4(number: int, port: int) -> str:
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:{port}"


def _steps(program: bytes, socket: InetSocket) -> int:
    """How many instructions the kernel runs for a socket."""
    return vm.steps(program, vm.entry_of(socket))
