"""Conditions: which sockets each matches, when two are equal, and what is no condition at all."""

from __future__ import annotations

import operator
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import InetSocket, NotPermitted, cgroup, device, dport, dst, mark, sport, src
from socklb.filters import Condition, traits
from socklb.filters import conditions as kinds
from socklb.filters.conditions import EVERYTHING, And, Not, Or

from ..strategies import sockets
from .trees import Network, conditions, networks, socket_between, told_sockets, written_conditions

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
    """A v4 condition matches v4-mapped v6 sockets; `dst("::ffff:a.b.c.d")` means the v4 address; `::/0` v6 alone."""

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
            (cgroup(0), {"v6", "alike"}),  # `alike` tells none: that is 0
            (EVERYTHING, EVERY),
            (And(), EVERY),
            (Or(), set()),
        ],
        ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
    )
    def test_each_kind_matches_just_these(self, condition: Condition, matched: set[str]) -> None:
        assert {name for name, socket in SOCKETS.items() if condition.matches(socket)} == matched

    @given(sockets(), networks())
    def test_a_prefix_means_what_ipaddress_makes_of_it(self, socket: InetSocket, network: Network) -> None:
        def in_network(address: Any) -> bool:
            meant = _as_v4(network)
            mapped = address.ipv4_mapped if address.version == 6 and meant.version == 4 else None
            return (mapped or address) in meant

        assert dst(network).matches(socket) == in_network(socket.dst)
        assert src(network).matches(socket) == in_network(socket.src)

    @given(sockets())
    def test_every_socket_is_at_its_own_addresses_and_ports(self, socket: InetSocket) -> None:
        own = src(socket.src, socket.sport) & dst(socket.dst, socket.dport) & device(socket.interface & 0x7FFFFFFF)
        assert own.matches(socket) == (socket.interface < 1 << 31)

    @pytest.mark.parametrize("condition", [dst("10.0.0.5"), Or(dst("10.0.0.5"), dst("10.0.0.6"))], ids=str)
    @pytest.mark.parametrize("peer", ["::a00:5", "64:ff9b::a00:5", "2001:db8::a00:5"])
    def test_what_only_ends_like_a_mapped_address_is_none(self, condition: Condition, peer: str) -> None:
        assert not condition.matches(socket_between("[fd00::1]:1", f"[{peer}]:80"))
        assert condition.matches(socket_between("[fd00::1]:1", "[::ffff:a00:5]:80"))

    def test_a_mark_that_the_kernel_did_not_tell_is_not_permitted(self) -> None:
        untold = socket_between("127.0.0.1:1", "127.0.0.1:2")
        for condition in (mark(1), mark(0, 0), ~mark(1)):
            with pytest.raises(NotPermitted, match="CAP_NET_ADMIN"):
                condition.matches(untold)


def _as_v4(network: Network) -> Network:
    mapped = ip_network("::ffff:0:0/96")
    if network.version == 4 or network.prefixlen < 96 or network.network_address not in mapped:
        return network
    return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))


class TestBooleanLaws:
    """Conditions are joined with & | ~, and mean what logic says."""

    @given(conditions, told_sockets)
    def test_not_not_is_nothing(self, a: Condition, socket: InetSocket) -> None:
        assert (~a).matches(socket) is not a.matches(socket)
        assert (~~a).matches(socket) == a.matches(socket)

    @given(conditions, conditions, told_sockets)
    def test_and_is_both_or_is_any_whatever_their_order(self, a: Condition, b: Condition, socket: InetSocket) -> None:
        both, any_of_them = a.matches(socket) and b.matches(socket), a.matches(socket) or b.matches(socket)
        assert (a & b).matches(socket) == (b & a).matches(socket) == both
        assert (a | b).matches(socket) == (b | a).matches(socket) == any_of_them

    @given(conditions, conditions, told_sockets)
    def test_de_morgan(self, a: Condition, b: Condition, socket: InetSocket) -> None:
        assert (~(a & b)).matches(socket) == (~a | ~b).matches(socket)
        assert (~(a | b)).matches(socket) == (~a & ~b).matches(socket)

    @given(conditions, conditions, conditions, told_sockets)
    def test_and_distributes_over_or(self, a: Condition, b: Condition, c: Condition, socket: InetSocket) -> None:
        assert (a & (b | c)).matches(socket) == (a & b | a & c).matches(socket)

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


class TestValues:
    """Equal, and of equal hash, when of one kind with equal arguments."""

    def test_equal_arguments_make_equal_conditions(self) -> None:
        def some() -> list[Condition]:
            return [
                dst("10.0.0.1"), src("10.0.0.1"), dst("10.0.0.0/8"), dst("::a00:1"), dst("10.0.0.1", 80), dport(80),
                sport(80), dport(80, 81), device(1), device("lo"), cgroup(1), cgroup("a"), mark(1), mark(1, 1),
                ~dport(80), Not(Not(dport(80))), dport(80) & sport(1), sport(1) & dport(80),
                dport(80) | sport(1), And(), Or(),
            ]  # fmt: skip

        assert some() == some()
        assert list(map(hash, some())) == list(map(hash, some()))
        assert len(set(some())) == len(some())
        assert not any(one == other for one, other in permutations(some(), 2))

    @pytest.mark.parametrize("other", [80, "dport = 80", None])
    def test_a_condition_equals_nothing_else(self, other: object) -> None:
        assert dport(80) != other

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (dst("10.0.0.7/8"), dst("10.0.0.0/8")),
            (dst("::ffff:10.0.0.1"), dst(IPv4Address("10.0.0.1"))),
            (dst("::ffff:10.0.0.0/104"), dst(IPv4Network("10.0.0.0/8"))),
            (dst("2001:DB8:0::1"), dst("2001:db8::1/128")),
            (dport(80), dport(80, 80)),
            (mark(1), mark(1, 0xFFFFFFFF)),
        ],
        ids=str,
    )
    def test_what_is_written_differently_but_means_the_same_is_equal(self, one: Condition, other: Condition) -> None:
        assert one == other
        assert hash(one) == hash(other)

    @given(conditions | written_conditions)
    def test_repr_is_python_for_it(self, condition: Condition) -> None:
        networks_too = {"IPv4Network": IPv4Network, "IPv6Network": IPv6Network}
        assert eval(repr(condition), {**vars(kinds), **vars(traits), **networks_too}) == condition


class _FakeNames:
    def interface_index(self, name: str) -> int:
        return {"lo": 1, "eth0": 2}[name]

    def cgroup_id(self, path: str) -> int:
        if path != "web":
            raise ValueError(f"no cgroup {path!r}")
        return 77


class TestNames:
    """Names that depend on a namespace are replaced by their numbers before anything is matched."""

    @pytest.mark.parametrize("condition", [device("lo"), cgroup("web"), ~device("lo"), dport(80) & cgroup("web")])
    def test_a_name_cannot_be_matched(self, condition: Condition) -> None:
        assert not condition.is_resolved
        with pytest.raises(ValueError, match=r"'(dev = lo|cgroup = web)'"):
            condition.matches(SOCKETS["v4"])

    def test_resolving_replaces_names_wherever_they_are(self) -> None:
        named = (device("eth0") & ~cgroup("web")) | ~(device("lo") | dport(80))
        numbered = (device(2) & ~cgroup(77)) | ~(device(1) | dport(80))
        assert named.resolved(_FakeNames()) == numbered
        assert numbered.is_resolved

    @given(conditions)
    def test_what_has_no_names_is_resolved_already(self, condition: Condition) -> None:
        assert condition.is_resolved
        assert condition.resolved(_FakeNames()) == condition

    def test_an_unknown_name_is_told_by_whoever_looks_it_up(self) -> None:
        with pytest.raises(ValueError, match="'nowhere'"):
            (dport(80) & ~cgroup("nowhere")).resolved(_FakeNames())


class TestWrongArguments:
    """ValueError or TypeError, with the value in the message."""

    @pytest.mark.parametrize("port", [-1, 65536, 1 << 40])
    def test_a_port_out_of_range(self, port: int) -> None:
        calls: list[Callable[[], object]] = [
            lambda: dport(port), lambda: sport(port), lambda: dport(port, 80), lambda: sport(80, port),
            lambda: dst("10.0.0.1", port), lambda: src("10.0.0.1", port),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(ValueError, match=str(port)):
                call()

    @pytest.mark.parametrize("port", ["80", 80.0, True, b"80", (80,)], ids=repr)
    def test_a_port_that_is_no_int(self, port: Any) -> None:
        calls: list[Callable[[], object]] = [
            lambda: dport(port), lambda: sport(1, port), lambda: dst("10.0.0.1", port),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(TypeError) as caught:
                call()
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

    @pytest.mark.parametrize("address", [None, 1, True, b"\x0a\0\0\1", 0x0A000001, ("10.0.0.1", 80)], ids=repr)
    def test_what_is_no_address_at_all(self, address: Any) -> None:
        for make in (src, dst):
            with pytest.raises(TypeError) as caught:
                make(address)
            assert repr(address) in str(caught.value)

    @pytest.mark.parametrize(
        ("call", "kind", "shown"),
        [
            (lambda: dport(81, 80), ValueError, "81..80"),
            (lambda: dport(None), TypeError, "None"),  # type: ignore[arg-type]
            (lambda: device(""), ValueError, "''"),
            (lambda: device("a-name-of-16-chr"), ValueError, "'a-name-of-16-chr'"),
            (lambda: device("ä" * 8), ValueError, "ä" * 8),
            (lambda: device("\ud800"), ValueError, "\\ud800"),
            (lambda: device(-1), ValueError, "-1"),
            (lambda: device(1 << 31), ValueError, "2147483648"),
            (lambda: device(True), TypeError, "True"),
            (lambda: device(None), TypeError, "None"),  # type: ignore[arg-type]
            (lambda: device(b"lo"), TypeError, "b'lo'"),  # type: ignore[arg-type]
            (lambda: mark(-1), ValueError, "-1"),
            (lambda: mark(1 << 32), ValueError, "4294967296"),
            (lambda: mark(0, 1 << 32), ValueError, "4294967296"),
            (lambda: mark(0x13, 0x10), ValueError, "0x13"),
            (lambda: mark("0x13"), TypeError, "'0x13'"),  # type: ignore[arg-type]
            (lambda: mark(1, None), TypeError, "None"),  # type: ignore[arg-type]
            (lambda: mark(True), TypeError, "True"),
            (lambda: cgroup(""), ValueError, "empty"),
            (lambda: cgroup(-1), ValueError, "-1"),
            (lambda: cgroup(1 << 64), ValueError, "18446744073709551616"),
            (lambda: cgroup(None), TypeError, "None"),  # type: ignore[arg-type]
            (lambda: cgroup(False), TypeError, "False"),
            (lambda: cgroup(b"/web"), TypeError, "b'/web'"),  # type: ignore[arg-type]
        ],
    )
    def test_the_rest(self, call: Callable[[], object], kind: type[Exception], shown: str) -> None:
        with pytest.raises(kind) as caught:
            call()
        assert shown in str(caught.value)

    @pytest.mark.parametrize("name", ["x" * 15, "ä" * 7, "lo", "eth0.100"])
    def test_the_longest_names_are_names(self, name: str) -> None:
        assert not device(name).is_resolved

    def test_the_largest_index_is_an_index(self) -> None:
        assert device((1 << 31) - 1).matches(socket_between("10.0.0.1:1", "10.0.0.2:2", interface=(1 << 31) - 1))

    @given(st.integers())
    def test_a_port_is_0_to_65535(self, number: int) -> None:
        if 0 <= number <= 65535:
            assert dport(number).matches(socket_between("10.0.0.1:1", f"10.0.0.2:{number}"))
        else:
            with pytest.raises(ValueError, match=str(number)):
                dport(number)
