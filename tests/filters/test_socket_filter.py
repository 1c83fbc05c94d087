"""SocketFilter: which sockets of one protocol match."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import (
    STATE_FILTER_TCP,
    STATE_FILTER_UDP,
    Backend,
    InetSocket,
    SocketFilter,
    TcpState,
    device,
    dport,
    dst,
    src,
    state_mask,
    states_in,
)
from socklb.filters import Condition
from socklb.filters.bounds import bounds
from socklb.filters.conditions import EVERYTHING
from socklb.filters.endpoints import Endpoint
from socklb.filters.peers import Peers
from socklb.kernel import names
from socklb.wire.request import IPPROTO_TCP, IPPROTO_UDP
from socklb.wire.socket_id import AF_INET, AF_INET6

from ..strategies import families, sockets, state_masks
from .trees import conditions, full_sockets, socket_between

TIME_WAIT_TIMER = 3


def tcp(**fields: Any) -> InetSocket:
    return socket_between("127.0.0.1:40000", "10.0.0.5:80", **fields)


class TestProtocol:
    """protocol "tcp", "udp" or IPPROTO_TCP, IPPROTO_UDP, else ValueError ("mptcp" says: destroy its TCP subflows)."""

    @pytest.mark.parametrize(
        ("protocol", "number"),
        [("tcp", 6), ("TCP", 6), ("udp", 17), ("Udp", 17), (6, 6), (17, 17), (IPPROTO_TCP, 6), (IPPROTO_UDP, 17)],
    )
    def test_by_name_or_number(self, protocol: str | int, number: int) -> None:
        assert SocketFilter(protocol).protocol == number

    @pytest.mark.parametrize("protocol", ["mptcp", "MPTCP", 262])
    def test_mptcp_is_refused_with_what_to_do_instead(self, protocol: str | int) -> None:
        with pytest.raises(ValueError, match="TCP subflows"):
            SocketFilter(protocol)

    @pytest.mark.parametrize("protocol", ["", "sctp", "6", "tcp ", 0, 132, True, None, 6.0, b"tcp", ["tcp"]], ids=repr)
    def test_anything_else_is_an_error_that_shows_it(self, protocol: Any) -> None:
        with pytest.raises(ValueError, match="'tcp' or 'udp'") as caught:
            SocketFilter(protocol)
        assert repr(protocol) in str(caught.value)

    @given(sockets())
    def test_a_filter_matches_its_protocol_alone(self, socket: InetSocket) -> None:
        for protocol in (IPPROTO_TCP, IPPROTO_UDP):
            assert SocketFilter(protocol, states="all").matches(socket) == (socket.protocol == protocol)


class TestStates:
    """`states` is a mask or an iterable of states and defaults to the protocol's filter."""

    def test_the_default_is_the_protocols_own(self) -> None:
        assert SocketFilter("tcp").states == STATE_FILTER_TCP
        assert SocketFilter("udp").states == STATE_FILTER_UDP

    @pytest.mark.parametrize(
        ("states", "mask"),
        [
            (0xFFFFFFFF, 0xFFFFFFFF),
            (iter([1, 31]), 0x80000002),
            (TcpState.LISTEN, 0x400),  # a state is no mask, though its number could be one
            (["established", TcpState.LISTEN, 8], 0x502),
            ("bucket", 0x1048),
        ],
        ids=lambda value: str(value).partition(" at 0x")[0],
    )
    def test_as_mask_as_states_or_in_the_words_of_ss(self, states: Any, mask: int) -> None:
        """test_states.py has them all, and the wrong ones."""
        assert SocketFilter("tcp", states=states).states == mask

    @pytest.mark.parametrize(("states", "error"), [(0, ValueError), ((1, "nosuch"), ValueError), ([1.5], TypeError)])
    def test_wrong_ones_are_errors(self, states: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="state"):
            SocketFilter("tcp", states=states)

    @given(state_masks.filter(bool), st.sampled_from([state for state in TcpState if state not in (3, 7)]))
    def test_a_row_matches_the_bit_of_its_state(self, mask: int, state: int) -> None:
        assert SocketFilter("tcp", states=mask).matches(tcp(state=state)) == bool(mask >> state & 1)

    @pytest.mark.parametrize(("state", "bits"), [(3, (3, 12)), (7, (7, 13))])
    def test_a_row_that_answers_to_two_bits(self, state: int, bits: tuple[int, int]) -> None:
        """A request socket reports state 3 and answers to 12 too; a bound one reports 7 and answers to 13."""
        for bit in range(1, 32):
            assert SocketFilter("tcp", states=[bit]).matches(tcp(state=state)) == (bit in bits)

    @pytest.mark.parametrize("state", [0, 14, 31, 32, 255])
    def test_a_state_from_the_future_matches_its_own_bit_if_it_has_one(self, state: int) -> None:
        assert SocketFilter("tcp", states=0xFFFFFFFF).matches(tcp(state=state)) == (1 <= state <= 31)
        assert not SocketFilter("tcp").matches(tcp(state=state))


class TestTimeWait:
    """A filter accepts an `is_time_wait` row only if TIME_WAIT is in its mask (FIN_WAIT2 is then added to the
    request)."""

    MINI = (tcp(state=6, timer=TIME_WAIT_TIMER), tcp(state=5, timer=TIME_WAIT_TIMER))

    @given(state_masks.filter(bool))
    def test_a_mini_socket_matches_time_wait_whatever_its_substate(self, mask: int) -> None:
        filter = SocketFilter("tcp", states=mask)
        has_time_wait = bool(mask >> TcpState.TIME_WAIT & 1)
        assert [filter.matches(mini) for mini in self.MINI] == [has_time_wait] * 2
        assert filter.request_states == mask | (has_time_wait << TcpState.FIN_WAIT2)
        assert filter.matches(tcp(state=5)) == bool(mask >> TcpState.FIN_WAIT2 & 1)

    def test_the_default_leaves_them_out(self) -> None:
        assert not any(map(SocketFilter("tcp").matches, self.MINI))


class TestNamesListen:
    """LISTEN counts as named one by one or in a mask, but not by a group, nor by a mask of all that the default has."""

    @pytest.mark.parametrize(
        ("states", "named"),
        [
            *((s, True) for s in ("listening", TcpState.LISTEN, [1, 10], 1 << 10, 0x402, ["all", 10])),
            (states_in(STATE_FILTER_TCP), True),
            *((s, False) for s in (None, "all", "big", ["big", "established"], "established", [1])),
            *((s, False) for s in (STATE_FILTER_TCP, 0xFFFF, 0xFFFFFFFF)),
        ],
        ids=repr,
    )
    def test_by_what_was_given(self, states: Any, named: bool) -> None:
        assert SocketFilter("tcp", states=states).names_listen is named


class TestFamily:
    """`family` None is both."""

    def test_the_families_to_search(self) -> None:
        searched = [SocketFilter("tcp", family=family).families for family in (None, AF_INET, AF_INET6)]
        assert searched == [(AF_INET, AF_INET6), (AF_INET,), (AF_INET6,)]

    @given(sockets(protocol=IPPROTO_TCP), families)
    def test_a_family_is_the_sockets_own_mapped_ones_are_v6(self, socket: InetSocket, family: int) -> None:
        assert SocketFilter("tcp", states="all").matches(socket)
        assert SocketFilter("tcp", states="all", family=family).matches(socket) == (socket.family == family)

    @pytest.mark.parametrize("family", [0, 1, -2, "inet", True], ids=repr)
    def test_another_family_is_an_error(self, family: Any) -> None:
        with pytest.raises(ValueError, match="family") as caught:
            SocketFilter("tcp", family=family)
        assert repr(family) in str(caught.value)


class TestPredicate:
    """predicate(InetSocket) -> bool is called last, in Python, for sockets that match all else."""

    @given(conditions, full_sockets, st.booleans())
    def test_it_is_called_for_what_matches_all_else(self, where: Condition, socket: InetSocket, verdict: bool) -> None:
        asked = []

        def predicate(candidate: InetSocket) -> bool:
            asked.append(candidate)
            return verdict

        without = SocketFilter("tcp", where).matches(socket)
        assert SocketFilter("tcp", where, predicate=predicate).matches(socket) == (without and verdict)
        assert asked == ([socket] if without else [])

    @pytest.mark.parametrize(
        "options",
        [{"where": dport(81)}, {"states": "syn-sent"}, {"family": AF_INET6}, {"protocol": "udp"}],
        ids=["condition", "state", "family", "protocol"],
    )
    def test_it_is_not_called_for_anything_else(self, options: dict[str, Any]) -> None:
        def never(socket: InetSocket) -> bool:
            raise LookupError(socket)

        assert not SocketFilter(**{"protocol": "tcp", **options}, predicate=never).matches(tcp())
        with pytest.raises(LookupError):
            SocketFilter("tcp", predicate=never).matches(tcp())

    @pytest.mark.parametrize(("answer", "accepted"), [(1, True), ("yes", True), (None, False), ([], False)], ids=repr)
    def test_any_truth_value_will_do(self, answer: object, accepted: bool) -> None:
        assert SocketFilter("tcp", predicate=lambda socket: answer).matches(tcp()) is accepted

    def test_it_must_be_callable(self) -> None:
        with pytest.raises(TypeError, match="'uid == 0'"):
            SocketFilter("tcp", predicate="uid == 0")  # type: ignore[arg-type]


class TestWhere:
    @pytest.mark.parametrize("where", ["dst 10.0.0.1", True, (dport(80),), bool], ids=repr)
    def test_a_condition_and_nothing_else(self, where: Any) -> None:
        with pytest.raises(TypeError, match="condition"):
            SocketFilter("tcp", where)

    @given(conditions, full_sockets)
    def test_it_decides_among_sockets_of_the_right_kind(self, where: Condition, socket: InetSocket) -> None:
        filter = SocketFilter(socket.protocol, where, states=0xFFFFFFFF)
        assert filter.matches(socket) == where.matches(socket)
        assert filter.is_bounded == bounds(where)

    def test_without_one_everything_matches_and_nothing_bounds(self) -> None:
        assert SocketFilter("tcp").where == EVERYTHING
        assert not SocketFilter("tcp", states="established", family=AF_INET, predicate=bool).is_bounded

    def test_its_text_is_in_the_language_of_ss(self) -> None:
        filter = SocketFilter("tcp", ~(dst("10.0.0.0/8") | device("lo")) & src("::1", 80))
        assert str(filter) == "( not ( dst 10.0.0.0/8 or dev = lo ) and src [::1] and sport = 80 )"
        assert repr(filter) == f"<SocketFilter tcp {filter} states=0x1f3e>"

    def test_names_are_resolved_and_all_else_is_kept(self) -> None:
        def predicate(socket: InetSocket) -> bool:
            return True

        named = SocketFilter("tcp", device("lo"), states="listening", family=AF_INET, predicate=predicate)
        resolved = named.resolved(names)
        assert not named.is_resolved
        assert resolved.is_resolved
        assert resolved.where == device(1)
        for kept in ("protocol", "states", "names_listen", "family", "predicate"):
            assert getattr(resolved, kept) == getattr(named, kept)
        group = SocketFilter("tcp", device("lo"), states="big").resolved(names)  # its mask alone would name LISTEN
        assert not group.names_listen


class TestBackends:
    """to_backend(address, port, protocol), to_backends(triples of one protocol)."""

    def test_one_backend_is_its_address_and_port(self) -> None:
        filter = SocketFilter.to_backend("10.0.0.5", 80, "udp", states=[1], family=AF_INET)
        assert (filter.protocol, filter.where) == (IPPROTO_UDP, dst("10.0.0.5", 80))
        assert (filter.states, filter.family) == (2, AF_INET)

    def test_several_are_any_of_them(self) -> None:
        triples: list[tuple[Any, int, Any]] = [
            ("10.0.0.5", 80, "tcp"),
            (IPv4Address("10.0.0.6"), 81, 6),
            ("::ffff:10.0.0.7", 82, "TCP"),
        ]
        filter = SocketFilter.to_backends(iter(triples), states=[1])
        packed = [bytes((10, 0, 0, 5)), bytes((10, 0, 0, 6)), bytes((10, 0, 0, 7))]
        assert filter.where == Peers(map(Endpoint, packed, (80, 81, 82)))
        assert (filter.protocol, filter.states) == (IPPROTO_TCP, 2)
        assert filter.is_bounded

    @given(st.lists(st.tuples(st.sampled_from(("10.0.0.1", "10.0.0.2", "10.0.0.3")), st.integers(80, 82)), min_size=1))
    def test_a_socket_matches_if_its_peer_is_a_backend(self, backends: list[tuple[str, int]]) -> None:
        filter = SocketFilter.to_backends([(address, port, "tcp") for address, port in backends])
        for address in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"):
            for port in range(79, 84):
                v4 = socket_between(f"127.0.0.1:{port}", f"{address}:{port}")
                mapped = socket_between(f"[::ffff:127.0.0.1]:{port}", f"[::ffff:{address}]:{port}")
                assert filter.matches(v4) == filter.matches(mapped) == ((address, port) in backends)

    def test_a_link_local_one_is_asked_for_on_its_link(self) -> None:
        """By name, or, where the link is a number, by index."""
        for link, bound in (("eth0", device("eth0")), ("2", device(2))):
            where = dst("fe80::1", 80) & bound
            for address in (f"fe80::1%{link}", IPv6Address(f"fe80::1%{link}")):
                assert SocketFilter.to_backend(address, 80, "tcp").where == where
                assert SocketFilter.to_backends([Backend(address, 80, "tcp")]).where == where
        for address in ("fe80::1", "2001:db8::1%eth0", "fe80::%eth0/64", "fe80::1%eth0/128"):
            for make in (SocketFilter.to_backend, Backend):
                with pytest.raises(ValueError, match=address):
                    make(address, 80, "tcp")

    @pytest.mark.parametrize("triples", [[], [("10.0.0.5", 80, "tcp"), ("10.0.0.5", 80, "udp")]], ids=["none", "mixed"])
    def test_none_and_mixed_protocols_are_errors(self, triples: Any) -> None:
        with pytest.raises(ValueError, match="at least one backend, and backends of one protocol"):
            SocketFilter.to_backends(triples)

    @pytest.mark.parametrize(
        ("address", "port", "protocol", "error", "shown"),
        [
            ("10.0.0.5", 65536, "tcp", ValueError, "65536"),
            ("10.0.0.5", -1, "tcp", ValueError, "-1"),
            ("web", 80, "tcp", ValueError, "'web'"),
            ("10.0.0.5", 80, "sctp", ValueError, "'sctp'"),
            # Less than an address and a port would match more sockets than were named.
            *(("10.0.0.1", port, "tcp", TypeError, "port must be an int") for port in (None, "80", True)),
            *(
                (prefix, 80, "tcp", ValueError, "single")
                for prefix in ("10.0.0.0/24", "10.0.0.1/8", "fd00::/64", "::/0")
            ),
        ],
    )
    def test_what_is_no_backend_is_an_error_that_shows_it(
        self, address: str, port: Any, protocol: str, error: type[Exception], shown: str
    ) -> None:
        with pytest.raises(error, match=shown):
            SocketFilter.to_backend(address, port, protocol)
        with pytest.raises(error, match=shown):
            SocketFilter.to_backends([(address, port, protocol)])


@pytest.mark.parametrize(
    "wrong", [None, 1, "10.0.0.1:80/TCP", (), ["10.0.0.1"], Backend("10.0.0.1", 80, "tcp")], ids=repr
)
def test_what_is_no_socket_and_what_are_no_backends_is_a_type_error(wrong: Any) -> None:
    for match in (SocketFilter("tcp").matches, dport(80).matches):
        with pytest.raises(TypeError, match="InetSocket"):
            match(wrong)
    if wrong != ():
        with pytest.raises(TypeError, match="not iterable" if wrong in (None, 1) else "several of"):
            SocketFilter.to_backends(wrong)


class TestParse:
    """.parse(text, protocol, *, states, family, predicate)"""

    def test_text_and_options(self) -> None:
        filter = SocketFilter.parse("dst 10.0.0.5 and dport = 80", "tcp", states=[1], family=AF_INET, predicate=bool)
        assert (filter.protocol, filter.where) == (IPPROTO_TCP, dst("10.0.0.5", 80))
        assert (filter.states, filter.family, filter.predicate) == (state_mask(1), AF_INET, bool)
        assert SocketFilter.parse("", "udp") == SocketFilter("udp")

    def test_a_service_name_is_of_the_filters_protocol(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("_socket.getservbyname", lambda name, protocol: {"tcp": 80, "udp": 8080}[protocol])
        assert SocketFilter.parse("dport = :web", IPPROTO_TCP).where == dport(80)
        assert SocketFilter.parse("dport = :web", IPPROTO_UDP).where == dport(8080)


def test_each_argument_counts_for_equality() -> None:
    different = [
        SocketFilter("tcp"),
        SocketFilter("udp"),
        SocketFilter("tcp", dport(80)),
        SocketFilter("tcp", family=AF_INET),
        SocketFilter("tcp", states=["established"]),
        SocketFilter("tcp", states="big"),
        SocketFilter("tcp", states=SocketFilter("tcp", states="big").states),  # names LISTEN
        SocketFilter("tcp", predicate=bool),
    ]
    assert not any(one == other for one, other in permutations(different, 2))
