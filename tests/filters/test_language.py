"""The filter language of ss(8): the condition that each form stands for, and the error for each mistake."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socklb import (
    STATE_FILTER_TCP,
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
    state_mask,
    uid,
)
from socklb import TcpState as S
from socklb.cli.arguments import FILTER_HELP
from socklb.filters import Condition, FilterSyntaxError
from socklb.filters.bounds import bounds
from socklb.filters.conditions import EVERYTHING, And, Or
from socklb.filters.language import parse
from socklb.kernel import names
from socklb.states import named_states
from socklb.wire.address import format_address

from ..strategies import addresses, ports, v6_addresses
from .trees import conditions, full_sockets, written_conditions

A, B, C = dst("10.0.0.1"), dport(80), sport(1024)


def read(text: str) -> Condition:
    return parse(text, "tcp")[0]


def error_of(text: str) -> FilterSyntaxError:
    with pytest.raises(FilterSyntaxError) as caught:
        read(text)
    return caught.value


class TestTests:
    """The forms of a single test."""

    @pytest.mark.parametrize(
        ("condition", "texts"),
        [
            (dst("10.0.0.1"), ["dst 10.0.0.1", "dst = 10.0.0.1", "dst == 10.0.0.1", "dst eq 10.0.0.1",
                               "dst 10.0.0.1:*", "dst ::ffff:10.0.0.1"]),
            (src("10.0.0.1"), ["src 10.0.0.1"]),
            (~dst("10.0.0.1"), ["dst != 10.0.0.1"]),
            (~src("10.0.0.1", 80), ["src neq 10.0.0.1:80"]),
            (dst("10.0.0.0/8"), ["dst 10.0.0.0/8", "dst 10.1.2.3/8", "dst 10/8"]),
            (dst("10.1.0.0/16"), ["dst 10.1/16"]),
            (dst("10.1.2.0/24"), ["dst 10.1.2/24"]),
            (dst("0.0.0.0/0"), ["dst 0/0"]),
            (dst("10.0.0.1", 80), ["dst 10.0.0.1:80", "dst [::ffff:10.0.0.1]:80"]),
            (src("10.0.0.1", 0), ["src 10.0.0.1:0"]),
            (dst("10.0.0.0/8", 80), ["dst 10/8:80"]),
            (dport(80), ["dst *:80", "dst :80", "dport 80", "dport :80"]),
            (sport(80), ["src *:80"]),
            (EVERYTHING, ["dst *", "dst *:*", "dport *", "sport = :*"]),
            (dst("0.0.0.0/0") & dport(80), ["dport inet::80", "dport = INET::80"]),
            (src("::/0") & ~sport(80), ["sport != inet6::80"]),
            (dst("::1"), ["dst ::1"]),
            (dst("::"), ["dst ::"]),
            (dst("2001:db8::1:80"), ["dst [2001:db8::1:80]"]),
            (dst("2001:db8::1:beef"), ["dst 2001:db8::1:beef"]),
            (dst("2001:db8::/32"), ["dst 2001:db8::/32", "dst 2001:DB8::/32"]),
            (dst("2001:db8::1"), ["dst 2001:db8::1", "dst [2001:db8::1]", "dst 2001:db8::1:*"]),
            (dst("2001:db8::1", 53), ["dst [2001:db8::1]:53"]),
            (dst("2001:db8::/32", 53), ["dst [2001:db8::/32]:53", "dst [2001:db8::]/32:53", "dst 2001:db8::/32:53"]),
            (dst("::", 8080), ["dst :::8080", "dst [::]:8080"]),
            (src("::1", 12345), ["src ::1:12345", "src = ::1:12345"]),
            (dst("10.0.0.1", 22), ["dst ::ffff:10.0.0.1:22"]),
            (dst("1:2:3:4:5:6:7:8"), ["dst 1:2:3:4:5:6:7:8"]),
            (dst("1:2:3:4:5:6:7:8", 80), ["dst 1:2:3:4:5:6:7:8:80"]),
            (device("lo"), ["dev lo"]),
            (device("eth0.100"), ["dev = eth0.100"]),
            (device("2"), ["dev eq 2"]),
            (~device("lo"), ["dev != lo"]),
            (mark(0x13), ["fwmark 19", "fwmark = 0x13"]),
            (mark(0x10, 0xF0), ["fwmark = 0x10/0xf0"]),
            (~mark(1, 1), ["fwmark != 1/1"]),
            (cgroup("system.slice/ssh.service"), ["cgroup system.slice/ssh.service"]),
            (cgroup("/sys/fs/cgroup/user@1000"), ["cgroup = /sys/fs/cgroup/user@1000"]),
            (cgroup(77), ["cgroup == 77"]),
            (~cgroup(77), ["cgroup != 77"]),
            (cgroup("system.slice/"), ["cgroup system.slice/"]),
            (autobound(), ["autobound", "AutoBound"]),
            (uid(0), ["uid 0", "uid = root", "UID eq 0"]),
            (~uid(1000), ["uid != 1000", "not uid 1000"]),
            (pid(77), ["pid 77", "pid == 77"]),
            (stalled(30), ["stalled 30s", "stalled 30000ms", "stalled 0.5m", "STALLED 30.0s"]),
            (stalled(0.5), ["stalled 500ms"]),
            (~idle(5400), ["not idle 90m", "! idle 1.5h"]),
        ],
        ids=str,
    )  # fmt: skip
    def test_forms(self, condition: Condition, texts: list[str]) -> None:
        assert [read(text) for text in texts] == [condition] * len(texts)

    @pytest.mark.parametrize("value", ["80", ":80"])
    @pytest.mark.parametrize(
        ("operators", "condition"),
        [
            ("= == eq", dport(80)),
            ("!= ne neq", ~dport(80)),
            ("< lt", dport(0, 79)),
            ("<= le leq", dport(0, 80)),
            ("> gt", dport(81, 65535)),
            (">= ge geq", dport(80, 65535)),
        ],
        ids=str,
    )
    def test_comparison_of_ports(self, operators: str, value: str, condition: Condition) -> None:
        for operator in operators.split():
            assert read(f"dport {operator} {value}") == condition
            assert read(f"dport {operator.upper()} {value}") == condition
        symbol = operators.split()[0]
        for text in (f"dport{symbol}{value}", f"dport {symbol}{value}", f"dport{symbol} {value}"):
            assert read(text) == condition

    def test_the_ends_of_the_range(self) -> None:
        assert read("dport > 65534") == read("dport = 65535") == dport(65535)
        assert read("dport < 1") == read("dport = 0") == dport(0)
        assert read("dport >= 0") == read("dport <= 65535") == dport(0, 65535)


class TestServiceNames:
    """A service name is looked up for the protocol, then for any; a number never is."""

    @pytest.fixture(autouse=True)
    def services(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = {("bad", "tcp"): 81, ("web", "tcp"): 80, ("web", "udp"): 8080, ("web",): 1, ("any",): 7}

        def look_up(*question: str) -> int:
            if question not in known:
                raise OSError("service/proto not found")
            return known[question]

        monkeypatch.setattr("_socket.getservbyname", look_up)

    @pytest.mark.parametrize("text", ["dport web", "dport = :web", "dport eq web", "dst *:web", "dst :web"])
    def test_the_protocol_decides(self, text: str) -> None:
        assert parse(text, "tcp")[0] == dport(80)
        assert parse(text, "udp")[0] == dport(8080)

    def test_a_service_of_another_protocol_will_do(self) -> None:
        assert read("dport any") == dport(7)
        assert read("src [::1]:any") == read("src ::1:any") == src("::1", 7)

    def test_one_that_could_be_the_end_of_a_v6_address_is_refused(self) -> None:
        assert "[::1:bad] for the address" in error_of("dst ::1:bad").why
        assert read("dst ::1:beef") == dst("::1:beef")

    @pytest.mark.parametrize("text", ["dport {}", "dport = :{}", "dst 10.0.0.1:{}", "dst [::1]:{}"])
    @pytest.mark.parametrize("name", ["nosuch", "-1", "8o", "٨", "+80", "0x50"])
    def test_neither_a_number_nor_a_service(self, text: str, name: str) -> None:
        assert "service name" in error_of(text.format(name)).why


class TestStructure:
    """`and`, `or`, `not`, parentheses; what stands side by side is joined by `and`."""

    TESTS = {"a": "dst 10.0.0.1", "b": "dport = 80", "c": "sport = 1024"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("condition", "texts"),
        [
            (EVERYTHING, ["", " \t\n "]),
            (A, ["( {a} )", "(({a}))", "{a} and dst *"]),
            (A & B, ["{a} and {b}", "{a} & {b}", "{a} && {b}", "{a} {b}", "{a} And {b}", "{a}&{b}", "({a})({b})"]),
            (A & B & C, ["{a} and {b} {c}"]),
            (A | B, ["{a} or {b}", "{a} | {b}", "{a} || {b}", "{a} OR {b}"]),
            (A | B | C, ["{a}|{b}||{c}"]),
            (~A, ["not {a}", "! {a}", "!{a}", "NOT {a}"]),
            (~~A, ["not ! {a}", "!!{a}"]),
            (~A & B, ["not {a} {b}"]),
            (~A | B, ["not {a} or {b}"]),
            (~(A | B), ["not ( {a} or {b} )", "!({a}|{b})"]),
            (A & ~B, ["{a} and not {b}", "{a} !{b}"]),
            ((A & B) | C, ["{a} and {b} or {c}", "{a} {b} || {c}"]),
            (A | (B & C), ["{a} or ( {b} and {c} )"]),
            ((A | B) & C, ["( {a} or {b} ) and {c}", "( {a} or {b} ) {c}"]),
            (A & (B | C), ["{a} ( {b} or {c} )"]),
        ],
        ids=str,
    )
    def test_structure(self, condition: Condition, texts: list[str]) -> None:
        assert [read(text.format(**self.TESTS)) for text in texts] == [condition] * len(texts)

    def test_words_may_be_upper_case(self) -> None:
        assert read("DST 10.0.0.1 AND NOT ( DPORT GE 80 OR DEV Lo )") == A & ~(dport(80, 65535) | device("Lo"))

    @pytest.mark.parametrize(("opened", "closed", "most"), [("not ", "", 100), ("(", ")", 100), ("!(", ")", 50)])
    def test_100_levels_are_parsed_and_one_more_is_an_error(self, opened: str, closed: str, most: int) -> None:
        assert isinstance(read(opened * most + "dport 80" + closed * most), Condition)
        assert "more than 100" in error_of(opened * (most + 1) + "dport 80" + closed * (most + 1)).why

    @pytest.mark.parametrize("text", ["(", "!", "not ", "! (", "( dport 80 or "])
    def test_any_depth_is_an_error_and_no_recursion_error(self, text: str) -> None:
        error_of(text * 20_000)

    def test_any_length_is_parsed(self) -> None:
        assert read(" or ".join(["dport 80"] * 5000)) == Or(*[B] * 5000)
        assert read(" ".join(["dport 80"] * 5000)) == And(*[B] * 5000)


class TestMistakes:
    """Every error names the word and its column, and hints at what is accepted."""

    @pytest.mark.parametrize(
        ("hint", "texts"),  # the word at fault is in quotation marks
        [
            ("host names are not resolved", ["dst «example.com»", "dst «example.com:80»", "src = «localhost»"]),
            ("zones are not supported, name the interface with 'dev'",
             ["dst «fe80::1%eth0»", "dst «[fe80::1%eth0]:80»", "src «10.0.0.1%lo»"]),
            ("states come first", ["dst 10.0.0.1 «state» established", "not «exclude» time-wait",
                                   "dst ::1 or «State» established", "dst ::1 or dst ::2 «state» established"]),
            ("is no duration", ["stalled «30»", "idle «s»", "idle «1..5m»", "stalled «-1s»", "idle «1d»"]),
            ("longer than a year", ["idle «9000h»"]),
            ("a duration and means at least so long", ["stalled «>=» 30s", "idle «=» 1m"]),
            ("there is no user", ["uid «nobody-at-all»"]),
            ("expected the number of a process", ["pid «nginx»"]),
            ("pid 0 is no process", ["pid «0»"]),
            ("expected one of dst, src, dport, sport, dev, fwmark, cgroup, autobound, uid, pid, stalled, idle",
             ["«prot» 80", "dst 10.0.0.1 «dprot» 80", "«10.0.0»", "dst 10.0.0.1 «80»"]),
            ("write dport or sport", ["«port» 80", "dst 10.0.0.1 «PORT» 80"]),
            ("write dst 10.0.0.1:80 for the peer, src 10.0.0.1:80 for", ["«10.0.0.1:80»", "dport 80 or «10.0.0.1:80»"]),
            ("dst needs a value", ["dst«»"]),
            ("dport needs a value", ["dst 10.0.0.1 and dport «»", "dport =«»", "dport = «=» 80"]),
            ("sport needs a value", ["( sport «)»"]),
            ("dev needs a value", ["dev «&» dport 80"]),
            ("fwmark needs a value", ["fwmark «!»"]),
            ("expected a condition",
             ["dst 10.0.0.1 and«»", "dst 10.0.0.1 or «»", "not«»", "dport 80 or sport 1 and«»"]),
            ("expected a condition before this",
             ["«and» dport 80", "dport 80 and «or» dport 81", "«=» 80", "(«)»", "«)»"]),
            ('unmatched "("', ["«(» dport 80", "dport 80 and «(» ( sport 1 )"]),
            ('unmatched ")"', ["dport 80 «)»"]),
            ('unmatched "["', ["dst «[::1»"]),
            ("expected [ADDRESS] or [ADDRESS]:PORT", ["dst «[]:80»", "dst «[::1]80»"]),
            ("not an IP address",
             ["dst «::1]:80»", "dst «10.0.0»", "dst «10.0.0.256»", "dst «10.0.0.1/33»", "dst «::1:x:y»"]),
            ("the prefix length must be a number", ["dst «10.0.0.1/»", "dst «10.0.0.1/255.0.0.0»", "dst «::1/x»"]),
            ("neither a port number nor a service name",
             ["dst «10.0.0.1:»", "dport «:»", "dst «:::»", "dst «::1:nope»"]),
            ("a port must be in 0..65535",
             ["dst «10.0.0.1:65536»", "dport «65536»", "dport = «:99999»", "dst «::1:99999»"]),
            ("write [::1:8080] for the address, [::1]:8080 for a port of ::1",
             ["dst «::1:8080»", "src = «::1:8080»", "dport 1 or not dst «::1:8080»"]),
            ("[2001:db8::5]:80", ["dst «2001:db8::5:80»"]),
            ("", [f"dport «{'9' * 5000}»"]),
            ("no port is < 0", ["dport < «0»"]),
            ("no port is > 65535", ["dport > «65535»"]),
            ("only be compared with = and !=", ["dst «>=» 10.0.0.1", "dev «lt» lo", "fwmark «>»1"]),
            ("127 bytes", [f"dev «{'x' * 128}»"]),
            ("expected VALUE or VALUE/MASK", ["fwmark «one»", "fwmark «1/»"]),
            ("is outside", ["fwmark «-1»", "fwmark «0x100000000»", f"cgroup «{1 << 64}»", "uid «4294967295»"]),
            ("outside its mask", ["fwmark «0x13/0x10»"]),
            ("'and' after 'or' is ambiguous, use parentheses",
             ["dport 1 or sport 2 «and» dst ::1", "dport 1 or sport 2 «dst» ::1", "dport 1 | !sport 2 «&&» dst ::1",
              "dport 1 or sport 2 «(» dst ::1 )", "dport 1 sport 2 or dport 3 «sport» 4",
              "dport 1 or ( dport 2 or dport 3 «and» sport 1 )"]),
        ],
    )  # fmt: skip
    def test_mistake(self, hint: str, texts: list[str]) -> None:
        for marked in texts:
            before, word, after = re.split("[«»]", marked)
            error = error_of(before + word + after)
            assert (error.text, error.word, error.column) == (before + word + after, word, len(before) + 1)
            assert hint in error.why

    def test_the_message_points_at_the_word(self) -> None:
        assert str(error_of("dst 10.0.0.1\tand dprot = 80")).splitlines() == [
            "filter: unknown word, expected one of dst, src, dport, sport, dev, fwmark, cgroup, autobound, uid, pid, "
            "stalled, idle: 'dprot' at column 18",
            "  dst 10.0.0.1 and dprot = 80",
            "                   ^",
        ]
        assert "the end, column 4" in str(error_of("dst"))

    def test_it_is_a_value_error_from_the_public_call_too(self) -> None:
        with pytest.raises(ValueError, match="'dprot' at column 1"):
            SocketFilter.parse("dprot 80", "tcp")


class TestV6:
    """A v6 address in brackets may have a port. Without, it is refused where its end could be one."""

    @given(v6_addresses, ports | st.none(), st.integers(0, 128) | st.none(), st.sampled_from(("dst", "src")))
    def test_in_brackets_it_is_what_it_says(
        self, address: IPv6Address, port: int | None, length: int | None, side: str
    ) -> None:
        network = f"{address}" if length is None else f"{address}/{length}"
        end = "" if port is None else f":{port}"
        expected = {"dst": dst, "src": src}[side](network, port)
        assert read(f"{side} [{network}]{end}") == expected
        assert length is None or read(f"{side} [{address}]/{length}{end}") == expected

    _few_groups = st.lists(st.sampled_from((0, 0, 1, 0x80, 0x8080, 0xBEEF)), min_size=8, max_size=8).map(
        lambda groups: IPv6Address(":".join(f"{group:x}" for group in groups))
    )

    @given(_few_groups | addresses, ports | st.none(), st.none() | st.integers(0, 32))
    def test_without_it_has_one_reading_or_none(
        self, address: IPv4Address | IPv6Address, port: int | None, length: int | None
    ) -> None:
        text = format_address(address) + ("" if length is None else f"/{length}") + ("" if port is None else f":{port}")
        host, _, end = text.rpartition(":")
        readings: list[tuple[str, int | None]] = [(text, None)] if _is_network(text) else []
        if _is_network(host) and end.isdigit():
            readings.append((host, int(end)))
        if len(readings) == 1:
            assert read(f"dst {text}") == dst(*readings[0])
        else:
            assert error_of(f"dst {text}").why == f"write [{text}] for the address, [{host}]:{end} for a port of {host}"

    def test_a_mapped_address_is_the_v4_one_as_the_help_says(self) -> None:
        assert read("dst [::ffff:10.0.0.5]") == read("dst 10.0.0.5")
        assert "[::ffff:10.0.0.5] is 10.0.0.5" in FILTER_HELP


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


_VOCABULARY = (
    "dst src dport sport dev fwmark cgroup and or not & && | || ! ( ) = == != < <= > >= eq ne lt le gt ge 80 :80 :http "
    "uid pid stalled idle 30s 0x1/0x1 10/8 10.0.0.1 10.0.0.1:80 ::1 [::1]:53 [::1 [ ] * *:* : / % lo state established"
)
_texts = st.text() | st.lists(
    st.tuples(st.sampled_from(_VOCABULARY.split()) | st.text(max_size=3), st.sampled_from((" ", "", "\t"))), max_size=12
).map(lambda pairs: "".join(word + blank for word, blank in pairs))


def _result_of(text: str) -> Condition | FilterSyntaxError:
    try:
        return read(text)
    except FilterSyntaxError as error:
        return error


class TestLaws:
    """str() of a condition is its text in the language; any text is a condition or a FilterSyntaxError."""

    @given(written_conditions)
    def test_what_is_written_reads_back(self, condition: Condition) -> None:
        assert read(str(condition)) == condition

    @given(conditions, full_sockets)
    def test_any_tree_reads_back_to_one_that_matches_the_same(self, condition: Condition, socket: InetSocket) -> None:
        """Where no interface is called by a number."""
        back = read(str(condition)).resolved(names)
        assert back.matches(socket) == condition.matches(socket)
        assert bounds(back) == bounds(condition)
        assert read(str(back)).resolved(names) == back

    @given(_texts)
    @example("dport \x00")
    @example("dport \ud800")
    @example("dev \ud800")
    @example("cgroup \ud800")
    @example("fwmark " + "1" * 5000)
    @example("dst 1/" + "1" * 5000)
    @example("dev " + "1" * 5000)
    def test_any_text_is_a_condition_or_a_syntax_error_at_one_of_its_words(self, text: str) -> None:
        result = _result_of(text)
        if isinstance(result, Condition):
            assert read(str(result)) == result
            return
        assert result.text == text
        assert text[result.column - 1 :].startswith(result.word)
        assert result.word or result.column == len(text) + 1
        assert not any(map(str.isspace, result.word))
        message, shown, pointer = str(result).split("\n")
        assert message.startswith(f"filter: {result.why}: ")
        assert (len(shown), len(pointer)) == (len(text) + 2, result.column + 2)


class TestStates:
    """A filter may begin with states, as ss(8) has it."""

    @pytest.mark.parametrize(
        ("text", "states"),
        [
            ("state established", state_mask(S.ESTABLISHED)),
            ("state ESTAB,SYN-SENT state time-wait", state_mask(S.ESTABLISHED, S.SYN_SENT, S.TIME_WAIT)),
            ("exclude established", STATE_FILTER_TCP & ~state_mask(S.ESTABLISHED)),
            ("state all exclude unconn", named_states("all")[0] & ~state_mask(S.CLOSE, S.BOUND_INACTIVE)),
            ("exclude syn-recv", STATE_FILTER_TCP & ~state_mask(S.SYN_RECV, S.NEW_SYN_RECV)),
        ],
    )
    def test_they_are_those_of_the_filter(self, text: str, states: int) -> None:
        found = SocketFilter.parse(f"{text} dport = :80", "tcp")
        assert (found.states, found.where) == (states, dport(80))
        assert SocketFilter.parse(text, "tcp").where == EVERYTHING

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("state listening", True),
            ("state all", False),
            ("exclude established", False),
            ("state listen exclude listen,close", None),
        ],
    )
    def test_listening_sockets_are_named_on_purpose_or_not(self, text: str, names: bool | None) -> None:
        """What is left when others are excluded names nobody."""
        if names is None:
            with pytest.raises(ValueError, match="leaves no state"):
                SocketFilter.parse(text, "tcp")
        else:
            assert SocketFilter.parse(text, "tcp").names_listen is names

    @pytest.mark.parametrize(
        ("text", "column", "why"),
        [
            ("state", 6, "state needs a state"),
            ("exclude nowhere dst *", 9, "unknown state 'nowhere'"),
            ("dst 10.0.0.1 state established", 14, "states come first"),
        ],
    )
    def test_what_is_wrong_is_named(self, text: str, column: int, why: str) -> None:
        with pytest.raises(FilterSyntaxError, match=why) as caught:
            SocketFilter.parse(text, "tcp")
        assert caught.value.column == column

    def test_they_are_given_once(self) -> None:
        with pytest.raises(ValueError, match="given twice"):
            SocketFilter.parse("state established", "tcp", states="all")


class TestAnyAddress:
    @pytest.mark.parametrize("word", ["*", "any", "ALL", "default"])
    def test_has_several_words(self, word: str) -> None:
        assert read(f"dst {word}") == EVERYTHING
        assert read(f"dst {word}:80") == dport(80)

    def test_may_be_of_a_family(self) -> None:
        assert read("dst inet:10.0.0.1:80") == dst("10.0.0.1") & dport(80)
        assert read("src inet6:[::1]:80") == src("::1") & sport(80)
        assert (read("dst inet:*"), read("dst inet6:any:80")) == (dst("0.0.0.0/0"), dst("::/0") & dport(80))

    def test_is_of_that_family(self) -> None:
        with pytest.raises(FilterSyntaxError, match=r"10\.0\.0\.1 is no address of inet6"):
            read("dst inet6:10.0.0.1")
