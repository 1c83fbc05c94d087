"""Conditions: which sockets each matches, when two are equal, and what is no condition at all."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import (
    InetSocket,
    SocketFilter,
    autobound,
    cgroup,
    device,
    dport,
    dst,
    idle,
    mark,
    pid,
    sport,
    src,
    stalled,
    uid,
)
from socklb.filters import Condition, peers, property_conditions, stuck
from socklb.filters import conditions as kinds
from socklb.filters.bounds import bounds
from socklb.filters.conditions import EVERYTHING, And, Host, Not, Or, Port
from socklb.filters.property_conditions import Autobound, Pid
from socklb.wire.reply import decode_msg

from ..strategies import ATTRIBUTE_VALUES, make_socket, sockets
from .trees import Network, conditions, networks, socket_between, written_conditions

UNREADABLE = Pid(7, is_resolved=True)

SOCKETS = {
    "v4": socket_between("127.0.0.1:40000", "10.0.0.5:80", mark=0x13, cgroup_id=7),
    "mapped": socket_between(
        "[::ffff:127.0.0.1]:40001", "[::ffff:10.0.0.5]:443", interface=3, mark=0x23, cgroup_id=1 << 40
    ),
    "v6": socket_between("[fd00::1]:53", "[2001:db8::5]:80", interface=1, mark=0, cgroup_id=0),
    "alike": socket_between("[::7f00:1]:40000", "[::a00:5]:80", mark=0xFFFFFFFF),  # the same digits, but not mapped
    "listener": socket_between("0.0.0.0:80", "0.0.0.0:0", state=10, mark=0, cgroup_id=7),
    "v6 listener": socket_between("[::]:80", "[::]:0", state=10, mark=0, cgroup_id=7),
}
EVERY = set(SOCKETS)
V4 = {"v4", "mapped", "listener"}
V6 = EVERY - {"v4", "listener"}


class TestMatches:
    """A v4 condition matches v4-mapped v6 sockets; `dst("::ffff:a.b.c.d")` is the v4 address; `::/0` is v6 alone."""

    @pytest.mark.parametrize(
        ("condition", "matched"),
        [
            (dst("10.0.0.5"), {"v4", "mapped"}),
            (dst(IPv4Address("10.0.0.5")), {"v4", "mapped"}),
            (dst("::ffff:10.0.0.5"), {"v4", "mapped"}),
            (dst("::ffff:a00:5"), {"v4", "mapped"}),
            (dst(IPv6Address("::ffff:10.0.0.5")), {"v4", "mapped"}),
            (dst("::ffff:10.0.0.0/104"), {"v4", "mapped"}),
            (dst("10.0.0.4"), set()),
            (dst("10.0.0.4/31"), {"v4", "mapped"}),
            (dst("10.0.0.6/31"), set()),
            (dst("10.0.0.0/8"), {"v4", "mapped"}),
            (dst("10.255.255.255/8"), {"v4", "mapped"}),
            (dst(IPv4Network("10.0.0.0/8")), {"v4", "mapped"}),
            (dst("0.0.0.0/1"), V4),
            (dst("0.0.0.0/0"), V4),
            (dst("::ffff:0:0/96"), V4),
            (dst("0.0.0.0"), {"listener"}),
            (dst("::"), {"v6 listener"}),
            (dst("::/0"), V6),
            (dst("::/1"), V6),
            (dst("::/80"), {"mapped", "alike", "v6 listener"}),
            (dst("::fffe:0:0/95"), {"mapped"}),
            (dst("::10.0.0.5"), {"alike"}),
            (dst("2001:db8::5"), {"v6"}),
            (dst("2001:db8::/32"), {"v6"}),
            (dst(IPv6Network("2001:db8::4/127")), {"v6"}),
            (dst("2001:db8::4"), set()),
            (src("127.0.0.1"), {"v4", "mapped"}),
            (src("10.0.0.5"), set()),
            (src("fd00::/8"), {"v6"}),
            (dst("10.0.0.5", 80), {"v4"}),
            (dst("10.0.0.0/8", 443), {"mapped"}),
            (src("::/0", 80), {"v6 listener"}),
            (src("127.0.0.1", 0), set()),
            (dport(80), {"v4", "v6", "alike"}),
            (sport(80), {"listener", "v6 listener"}),
            (dport(0), {"listener", "v6 listener"}),
            (dport(81, 443), {"mapped"}),
            (dport(80, 442), {"v4", "v6", "alike"}),
            (dport(1, 65535), {"v4", "mapped", "v6", "alike"}),
            (sport(40001, 65535), {"mapped"}),
            (sport(0, 65535), EVERY),
            (device(1), {"v6"}),
            (device(3), {"mapped"}),
            (device(0), {"v4", "alike", "listener", "v6 listener"}),
            (mark(0x13), {"v4"}),
            (mark(0x03, 0x0F), {"v4", "mapped"}),
            (mark(0x10, 0x10), {"v4", "alike"}),
            (mark(0, 0x10), {"mapped", "v6", "listener", "v6 listener"}),
            (mark(0, 0), EVERY),
            (cgroup(7), {"v4", "listener", "v6 listener"}),
            (cgroup(1 << 40), {"mapped"}),
            (cgroup(0), {"v6"}),
            (~cgroup(0), {"v4", "mapped", "listener", "v6 listener"}),  # of `alike` nothing is known
            (EVERYTHING, EVERY),
            (And(), EVERY),
            (Or(), set()),
        ],
        ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
    )
    def test_each_matches_just_these(self, condition: Condition, matched: set[str]) -> None:
        assert {name for name, socket in SOCKETS.items() if condition.matches(socket)} == matched

    @given(sockets(), networks())
    def test_a_prefix_matches_what_ipaddress_finds_in_it(self, socket: InetSocket, network: Network) -> None:
        """Alone, and as one of many endpoints where it is a single address."""

        def in_network(address: Any) -> bool:
            unmapped = _as_v4(network)
            mapped = address.ipv4_mapped if address.version == 6 and unmapped.version == 4 else None
            return (mapped or address) in unmapped

        for make, address in ((dst, socket.dst), (src, socket.src)):
            assert make(network).matches(socket) == Or(make(network)).matches(socket) == in_network(address)

    @given(sockets())
    def test_every_socket_is_at_its_own_addresses_and_ports(self, socket: InetSocket) -> None:
        own = src(socket.src, socket.sport) & dst(socket.dst, socket.dport) & device(socket.interface & 0x7FFFFFFF)
        assert own.matches(socket) == (socket.interface < 1 << 31)

    @pytest.mark.parametrize("condition", [dst("10.0.0.5"), Or(dst("10.0.0.5"), dst("10.0.0.6"))], ids=str)
    def test_what_only_ends_like_a_mapped_address_is_none(self, condition: Condition) -> None:
        for peer, matches in (("::a00:5", 0), ("64:ff9b::a00:5", 0), ("2001:db8::a00:5", 0), ("::ffff:a00:5", 1)):
            assert condition.matches(socket_between("[fd00::1]:1", f"[{peer}]:80")) == matches


def _as_v4(network: Network) -> Network:
    mapped = ip_network("::ffff:0:0/96")
    if network.version == 4 or network.prefixlen < 96 or network.network_address not in mapped:
        return network
    return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))


class TestBooleanLaws:
    """Conditions are joined with & | ~, which are and, or, not."""

    @given(conditions, sockets())
    def test_not_not_is_nothing(self, a: Condition, socket: InetSocket) -> None:
        assert (~a).evaluate(socket) is {True: False, False: True, None: None}[a.evaluate(socket)]
        assert (~~a).evaluate(socket) is a.evaluate(socket)

    @given(conditions, conditions, sockets())
    def test_and_is_both_or_is_any_whatever_their_order(self, a: Condition, b: Condition, socket: InetSocket) -> None:
        """Of False, None and True an `and` is the least, an `or` the greatest."""
        least, greatest = sorted((a.evaluate(socket), b.evaluate(socket)), key=(False, None, True).index)
        assert (a & b).evaluate(socket) is (b & a).evaluate(socket) is least
        assert (a | b).evaluate(socket) is (b | a).evaluate(socket) is greatest

    @given(conditions, conditions, conditions)
    def test_groups_of_a_kind_are_flattened(self, a: Condition, b: Condition, c: Condition) -> None:
        assert (a & b) & c == a & (b & c) == And(a, b, c)
        assert (a | b) | c == a | (b | c) == Or(a, b, c)

    @pytest.mark.parametrize(
        "mistake",
        [lambda a, b: a and b, lambda a, b: a or b, lambda a, b: not a, lambda a, b: bool(a), lambda a, b: a < 1 < b],
        ids=["and", "or", "not", "bool", "chain"],
    )
    def test_a_condition_has_no_truth_value(self, mistake: Callable[[Any, Any], object]) -> None:
        with pytest.raises(TypeError):
            mistake(dst("10.0.0.1"), dport(80))

    @pytest.mark.parametrize("other", ["dst 10.0.0.1", None, True, 1])
    def test_only_conditions_are_joined(self, other: Any) -> None:
        for join in (operator.and_, operator.or_):
            with pytest.raises(TypeError):
                join(dport(80), other)
            with pytest.raises(TypeError):
                join(other, dport(80))


class TestTheUnknown:
    """A condition on what a row does not carry is neither true nor false: neither it nor its negation matches."""

    @given(conditions, sockets(), st.data())
    def test_what_is_known_holds_whatever_the_rest_may_be(
        self, condition: Condition, socket: InetSocket, data: st.DataObject
    ) -> None:
        """And matching says yes to what is known alone, and raises nothing."""
        values: dict[Any, Any] = {name: data.draw(ATTRIBUTE_VALUES[name]) for name in ("mark", "cgroup_id")}
        values.update(socket.attributes)
        whole = make_socket(decode_msg(socket.row), socket.protocol, values)
        assert condition.evaluate(socket) in (condition.evaluate(whole), None)
        assert condition.evaluate(whole) is not None
        assert condition.matches(socket) is (condition.evaluate(socket) is True)

    @pytest.mark.parametrize(
        "condition", [mark(1), mark(0), mark(0, 0), cgroup(7), cgroup(0), uid(0), UNREADABLE, idle(0)], ids=str
    )
    def test_neither_it_nor_its_negation_matches(self, condition: Condition) -> None:
        socket = socket_between("127.0.0.1:1", "127.0.0.2:2")
        for unknown in (condition, ~condition, dport(2) & condition, dport(3) | ~condition):
            assert not SocketFilter("tcp", unknown).matches(socket)
            assert unknown.evaluate(socket) is None
        assert SocketFilter("tcp", dport(2) | condition).matches(socket)


def test_nested_too_deep_is_an_error_and_nothing_else_is() -> None:
    for wrap in (Not, lambda inner: inner & sport(1) if isinstance(inner, Or) else inner | sport(2)):
        deep: Condition = dport(80)
        for _ in range(100):
            deep = wrap(deep)
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            wrap(deep)
        assert deep.matches(socket_between("10.0.0.1:1", "10.0.0.2:80")) is True
        assert pickle.loads(pickle.dumps(deep)) == copy.deepcopy(deep) == deep
        assert hash(deep) == hash(copy.copy(deep))
        assert bounds(deep)
        assert SocketFilter.parse(str(deep), "tcp").plan().programs
        assert repr(deep)


class TestEquality:
    """Equal, and of equal hash, when of one kind with equal arguments (test_values.py has what all values share)."""

    def test_each_argument_counts(self) -> None:
        different = [
            dst("10.0.0.1"), src("10.0.0.1"), dst("10.0.0.0/8"), dst("::a00:1"), dst("10.0.0.1", 80), dport(80),
            sport(80), dport(80, 81), device(1), device("lo"), cgroup(1), cgroup("a"), mark(1), mark(1, 1),
            cgroup("a/"), uid(1), Pid(7), Pid(7, 1), stalled(1), idle(1),
            ~dport(80), Not(Not(dport(80))), dport(80) & sport(1), sport(1) & dport(80),
            dport(80) | sport(1), And(), Or(),
        ]  # fmt: skip
        assert not any(one == other for one, other in permutations(different, 2))
        assert not any(dport(80) == other for other in (80, "dport = 80", None))

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (dst("10.0.0.7/8"), dst("10.0.0.0/8")),
            (dst("::ffff:10.0.0.1"), dst(IPv4Address("10.0.0.1"))),
            (dst("::ffff:10.0.0.0/104"), dst(IPv4Network("10.0.0.0/8"))),
            (Host("dst", IPv6Address("::ffff:10.0.0.1").packed, 128), dst("10.0.0.1")),
            (dst("2001:DB8:0::1"), dst("2001:db8::1/128")),
            (dport(80), dport(80, 80)),
            (mark(1), mark(1, 0xFFFFFFFF)),
        ],
        ids=str,
    )
    def test_how_an_argument_is_written_does_not(self, one: Condition, other: Condition) -> None:
        assert one == other
        assert hash(one) == hash(other)

    @given(conditions | written_conditions)
    def test_repr_is_python_for_it(self, condition: Condition) -> None:
        modules = (kinds, property_conditions, stuck, peers)
        known = {name: value for module in modules for name, value in vars(module).items()}
        assert eval(repr(condition), known) == condition


class _FakeNames:
    def interface_index(self, name: str) -> int:
        return {"lo": 1, "eth0": 2}[name]

    def cgroup_id(self, path: str) -> int:
        if path != "web":
            raise ValueError(f"no cgroup {path!r}")
        return 77

    def cgroup_ids_below(self, path: str) -> frozenset[int]:
        return frozenset({77, 78} if path == "web/" else ())

    def process_sockets(self, pid: int, start: int) -> frozenset[int] | None:
        return frozenset({11, 12}) if (pid, start) == (7, 99) else None

    def local_ports(self) -> tuple[int, int]:
        return 20000, 30000


class TestNames:
    """Names that depend on a namespace are replaced by their numbers before anything is matched."""

    @pytest.mark.parametrize("condition", [device("lo"), cgroup("web"), ~device("lo"), dport(80) & cgroup("web")])
    def test_a_name_cannot_be_matched(self, condition: Condition) -> None:
        assert not condition.is_resolved
        with pytest.raises(ValueError, match=r"'(dev = lo|cgroup = web)'"):
            condition.matches(SOCKETS["v4"])

    def test_resolving_replaces_names_wherever_they_are(self) -> None:
        named = (device("eth0") & ~cgroup("web")) | ~(device("lo") | dport(80) | autobound())
        numbered = (device(2) & ~cgroup(77)) | ~(device(1) | dport(80) | Autobound(Port("src", 20000, 30000)))
        assert named.resolved(_FakeNames()) == numbered
        assert numbered.is_resolved

    def test_a_path_with_a_slash_is_this_cgroup_and_all_below(self) -> None:
        below = cgroup("web/").resolved(_FakeNames())
        for number in (76, 77, 78, 79):
            row = socket_between("10.0.0.1:1", "10.0.0.2:2", cgroup_id=number)
            assert below.matches(row) is (number in (77, 78))
            assert (~below).matches(row) is (number not in (77, 78))

    def test_a_process_is_the_sockets_that_it_holds(self) -> None:
        held = Pid(7, 99).resolved(_FakeNames())
        for inode, expected in ((11, True), (12, True), (13, False), (0, False)):
            assert held.matches(socket_between("10.0.0.1:1", "10.0.0.2:2", inode=inode)) is expected
        with pytest.raises(ValueError, match="'pid = 7' is not resolved"):
            pid(7).matches(SOCKETS["v4"])
        assert Pid(8, 99).resolved(_FakeNames()) == Pid(8, 99, is_resolved=True)

    @given(conditions)
    def test_what_has_no_names_is_resolved_already(self, condition: Condition) -> None:
        assert condition.is_resolved
        assert condition.resolved(_FakeNames()) == condition

    def test_the_error_for_an_unknown_name_is_passed_on(self) -> None:
        with pytest.raises(ValueError, match="'nowhere'"):
            (dport(80) & ~cgroup("nowhere")).resolved(_FakeNames())


class TestWrongArguments:
    """ValueError or TypeError, with the value in the message."""

    PORTS: tuple[Callable[[Any], Condition], ...] = (
        dport, sport, lambda port: dport(port, 65535), lambda port: sport(0, port), lambda port: dst("10.0.0.2", port),
        lambda port: src("10.0.0.1", port),
    )  # fmt: skip

    @given(st.sampled_from((-1, 0, 65535, 65536)) | st.integers())
    def test_a_port_is_0_to_65535(self, number: int) -> None:
        for make in self.PORTS:
            if 0 <= number <= 65535:
                assert make(number).matches(socket_between(f"10.0.0.1:{number}", f"10.0.0.2:{number}"))
            else:
                with pytest.raises(ValueError, match=str(number)):
                    make(number)

    @pytest.mark.parametrize("port", ["80", 80.0, True, b"80", (80,)], ids=repr)
    def test_a_port_is_an_int(self, port: Any) -> None:
        for make in self.PORTS:
            with pytest.raises(TypeError) as caught:
                make(port)
            assert repr(port) in str(caught.value)

    @pytest.mark.parametrize(
        "text",
        ["", " ", "host", "10.0.0", "10.0.0.256", "10.0.0.1.1", "10.0.0.1/33", "::1/129", "10.0.0.1:80", "[::1]", "*",
         ":::", "10.0.0.1/", "10.0.0.1/-1", "fe80::1%eth0", "fe80::1%1/64", "\x00", "1" * 5000],
    )  # fmt: skip
    def test_a_text_that_is_no_address(self, text: str) -> None:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - whose message is looked at below
            dst(text)
        assert text[:20] in str(caught.value) or repr(text)[1:-1] in str(caught.value)

    def test_a_zone_is_an_interface_under_another_name(self) -> None:
        for address in ("fe80::1%eth0", IPv6Address("fe80::1%eth0")):
            with pytest.raises(ValueError, match=r"device\(\)"):
                dst(address)

    @pytest.mark.parametrize("address", [None, 1, True, b"\x0a\0\0\1", ("10.0.0.1", 80)], ids=repr)
    def test_what_is_no_address_at_all(self, address: Any) -> None:
        for make in (src, dst):
            with pytest.raises(TypeError) as caught:
                make(address)
            assert repr(address) in str(caught.value)

    @pytest.mark.parametrize(
        ("make", "values"),
        [
            (device, ["", "x" * 128, "ä" * 64, "\ud800", -1, 1 << 31]),
            (mark, [-1, 1 << 32]),
            (lambda mask: mark(0, mask), [-1, 1 << 32]),
            (lambda mask: mark(0x13, mask), [0x10]),
            (cgroup, ["", -1, 1 << 64]),
            (lambda high: dport(81, high), [80]),
        ],
        ids=["device", "mark", "mask", "bits outside the mask", "cgroup", "upside down"],
    )
    def test_what_is_out_of_range(self, make: Callable[[Any], Condition], values: list[Any]) -> None:
        for value in values:
            with pytest.raises(ValueError) as caught:  # noqa: PT011 - whose message is looked at below
                make(value)
            shown = {"": "''", 0x10: "0x10"}.get(value, repr(value))
            assert shown in str(caught.value)

    @pytest.mark.parametrize(
        ("make", "values"),
        [
            (device, [True, None, b"lo"]),
            (mark, [True, "0x13", None]),
            (lambda mask: mark(1, mask), [True, None]),
            (cgroup, [False, None, b"/web"]),
            (dport, [None]),
        ],
        ids=["device", "mark", "mask", "cgroup", "port"],
    )
    def test_what_is_of_another_type(self, make: Callable[[Any], Condition], values: list[Any]) -> None:
        for value in values:
            with pytest.raises(TypeError) as caught:
                make(value)
            assert repr(value) in str(caught.value)

    def test_the_largest_name_and_index(self) -> None:
        for name in ("x" * 127, "ä" * 63, "eth0.100", "2"):
            assert not device(name).is_resolved
        assert device((1 << 31) - 1).matches(socket_between("10.0.0.1:1", "10.0.0.2:2", interface=(1 << 31) - 1))
