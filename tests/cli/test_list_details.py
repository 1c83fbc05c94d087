"""`list -p` and `list -e`: who holds a socket, and what the kernel tells of it, in the words of ss(8) and as JSON."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from ipaddress import ip_address
from types import MappingProxyType

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socklb import InetSocket, SocketFilter, dport, find_sockets
from socklb.cli import details as details_module
from socklb.cli.details import EXTENSIONS, details, details_record
from socklb.kernel.processes import command_name
from socklb.wire.attributes import NUMBERS, Md5Signature, encode_value
from socklb.wire.netlink import encode_attributes
from socklb.wire.records import BbrInfo, DctcpInfo, TcpInfo, VegasInfo
from socklb.wire.reply import MSG_SIZE, InetDiagMsg
from socklb.wire.socket_id import SocketId

from .. import this_kernel, world
from ..capabilities import Capability, with_only
from ..children import Child, questions
from ..sockets import Sockets, add_v6_address
from ..ss import require_ss
from ..strategies import attributes, make_socket
from ..strategies import sockets as any_sockets
from .runner import run, run_on_terminal


@pytest.fixture
def crowd(sockets: Sockets) -> Sockets:
    """Sockets in the states whose words differ, but for those that only time brings."""
    add_v6_address("fd00::1")
    sockets.tcp("fd00::1", 9003)
    marked, server = sockets.tcp("127.0.0.2", 9000)
    marked.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x18)
    marked.send(b"x" * 50_000)
    server.send(b"answer")
    kept, _ = sockets.tcp("127.0.0.2", 9000)
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sockets.syn_sent("127.0.0.4", 9004)
    sockets.fin_wait1("127.0.0.6", 9006)
    sockets.last_ack("127.0.0.8", 9008)
    sockets.time_wait("127.0.0.10", 9010)
    sockets.udp("127.0.0.2", 53)
    sockets.udp("::1", 53)
    sockets.udp_bound("::", 54)
    if this_kernel.has_mptcp():
        listener, client = (sockets.make(socket.AF_INET, socket.SOCK_STREAM, this_kernel.IPPROTO_MPTCP) for _ in "12")
        listener.bind(("127.0.0.3", 9005))
        listener.listen()
        client.connect(("127.0.0.3", 9005))
    return sockets


def ss(*words: str) -> list[str]:
    command = ["ss", "--no-header", "--numeric", "--all", "--oneline", "--tcp", "--udp", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def by_cookie(lines: list[str]) -> dict[str, list[str]]:
    """The words of each socket, each with its number: rates are two words."""
    found = {}
    for line in lines:
        words = re.sub(r"\b(send|pacing_rate|delivery_rate) ", r"\1:", line).split()
        (cookie,) = (word for word in words if word.startswith("sk:"))
        found[cookie] = [word for word in words if word != cookie]
    return found


def key_of(word: str) -> str:
    return word.partition(":")[0]


class TestWordsOfSs:
    """`list -e` prints the words of `ss -tieno`, with the same numbers, in the same order.

    Where they differ: of a cgroup that cannot be seen from here ss says "unreachable" and the id in hexadecimal, list
    its id as filters and JSON have it. An older ss does not know all words of today's kernels, a newer one more.
    """

    RUNNING = frozenset({"timer", "lastsnd", "lastrcv", "lastack", "busy", "rwnd_limited"})  # of each moment
    AT_LEAST = (
        *("timer", "ino", "fwmark", "v6only", "<->", "<--", "---", "ts", "sack", "wscale", "rto", "rtt", "mss", "pmtu"),
        *("rcvmss", "advmss", "cwnd", "bytes_sent", "bytes_acked", "bytes_received", "segs_out", "segs_in"),
        *("data_segs_out", "data_segs_in", "send", "lastsnd", "lastrcv", "lastack", "pacing_rate", "delivered"),
        *("delivery_rate", "app_limited", "busy", "unacked", "rcv_space", "rcv_ssthresh", "notsent", "minrtt"),
    )

    def words(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        there = by_cookie([line.split(None, 6)[6] for line in ss("-ieo")])
        lines = run("list", "-ea").out.splitlines()[1:]
        return by_cookie([line for line in lines if line.startswith("\t")]), there

    def compared(self, words: list[str], common: set[str]) -> list[str]:
        text = " ".join(
            key_of(word) if key_of(word) in self.RUNNING else word for word in words if key_of(word) in common
        )
        return re.sub(r"cgroup:unreachable:(\w+)", lambda match: f"cgroup:{int(match[1], 16)}", text).split()

    @pytest.mark.kernel
    def test_each_socket_has_them(self, crowd: Sockets) -> None:
        require_ss()
        for _ in range(100):  # what is repeated, or acknowledged late, comes between the two
            here, there = self.words()
            of_both = [{key_of(word) for words in rows.values() for word in words} for rows in (here, there)]
            common = set.intersection(*of_both)
            ours = {cookie: self.compared(words, common) for cookie, words in here.items()}
            theirs = {cookie: self.compared(words, common) for cookie, words in there.items() if cookie in here}
            if ours == theirs:
                break
        assert ours == theirs
        assert {*self.AT_LEAST} - common == set()
        assert {*of_both[0]} - common <= {"cgroup", "rcv_wnd", "rehash", "rcv_ooopack", "snd_wnd"}
        assert "tcp-ulp-mptcp" in common or not this_kernel.has_mptcp()

    @pytest.mark.parametrize(
        ("milliseconds", "text"),
        [(0, ""), (7, "007ms"), (1500, "1.500ms"), (9_000, "9sec"), (59_999, "59sec"), (60_000, "1min"),
         (62_345, "1min2sec"), (599_000, "9min59sec"), (7_199_500, "119min")],
    )  # fmt: skip
    def test_a_time_is_written_as_there(self, milliseconds: int, text: str) -> None:
        assert details_module._duration(milliseconds) == text

    def test_what_no_socket_of_a_test_brings(self) -> None:
        info = TcpInfo.of(*range(1, 6), 0xFF & ~4, *range(7, 9), *range(1000, 1058))
        values = {
            "info": info,
            "cong": "dctcp",
            "dctcpinfo": DctcpInfo.of(1, 2, 3, 4, 5),
            "bbrinfo": BbrInfo.of(1, 1, 2000, 256, 384),
            "vegasinfo": VegasInfo.of(1, 2, 500, 4),
        }
        row = row_of(values, timer=9, retransmits=3, expires_ms=60_000, uid=5, inode=6)
        words = " ".join(details(row)).split(" ")
        assert words[:4] == ["timer:(unknown,1min,3)", "uid:5", "ino:6", "sk:ff"]
        assert words[4:11] == ["ts", "sack", "ecn", "ecnseen", "fastopen", "dctcp", "rto:1"]
        assert "backoff:5 rtt:1.015/1.016 ato:1.001" in " ".join(words)
        assert "dctcp:(ce_state:2,alpha:3,ab_ecn:4,ab_tot:5)" in words
        assert f"bbr:(bw:{8 * ((1 << 32) + 1)}bps,mrtt:2,pacing_gain:1,cwnd_gain:1.5)" in words
        assert f"{1018 * 1002 * 8_000_000 / 500:.0f}bps" in words  # vegas has an opinion of its own
        assert {"ssthresh:1017", "reordering:1020", "retrans:1007/1023", "lost:1006", "sacked:1005"} <= {*words}


def row_of(values: Mapping[str, object] = MappingProxyType({}), **fields: int) -> InetSocket:
    """Of a TCP socket with these attributes."""
    empty = InetDiagMsg(2, 1, 0, 0, SocketId(0, 0, bytes(4), bytes(4), 0, 255), 0, 0, 0, 0, 0)
    return make_socket(empty._replace(**fields), 6, values)


def with_attributes(row: InetSocket, pairs: list[tuple[int, bytes]]) -> InetSocket:
    """The same with others."""
    return InetSocket(row.row[:MSG_SIZE] + encode_attributes(pairs), row.protocol)


class TestAnyRow:
    """Whatever a kernel sends, as long as its attributes can be told apart, is shown."""

    any_attribute = attributes.map(lambda pair: encode_value(*pair)) | st.tuples(
        st.sampled_from(sorted(NUMBERS.values())) | st.integers(0, 60), st.binary(max_size=40)
    )
    any_row = st.builds(with_attributes, any_sockets(), st.lists(any_attribute, max_size=5))

    @given(any_row)
    @example(with_attributes(row_of(), [(NUMBERS["shutdown"], b"\1\2"), (NUMBERS["ulp_info"], b"?")]))
    def test_as_words_that_do_not_steer_a_terminal(self, row: InetSocket) -> None:
        words = list(details(row))
        assert "".join(words).isprintable()
        assert [word for word in words if word.startswith("sk:")] == [f"sk:{row.cookie:x}"]

    @given(any_row)
    def test_as_json_with_every_attribute(self, row: InetSocket) -> None:
        record = json.loads(json.dumps(details_record(row)))
        unknown = record.pop("unknown_attributes", {})
        numbers = {str(key): value.hex() for key, value in row.attributes.items() if isinstance(key, int)}
        names = {details_module._NAMES.get(key, key) for key in row.attributes if isinstance(key, str)}
        assert (unknown, set(record) - {"cgroup", "is_mptcp_subflow"}) == (numbers, names)
        assert {key: record[key] for key in names & {"mark", "tos", "shutdown"}} == {
            key: value.hex() if isinstance(value, bytes) else value
            for key, value in row.attributes.items()
            if key in ("mark", "tos", "shutdown")
        }


@pytest.mark.kernel
class TestJson:
    def test_has_all_that_the_kernel_sent(self, sockets: Sockets) -> None:
        sockets.tcp("127.0.0.2", 9000)
        (row,) = find_sockets(SocketFilter("tcp", dport(9000)), extensions=EXTENSIONS)
        (shown,) = run("list", "-e", "--json", "dport = 9000").json["sockets"]
        (plain,) = run("list", "--json", "dport = 9000").json["sockets"]
        assert plain.items() <= shown.items()
        info = shown["tcp_info"]
        sent = {name: value for name, value in row.attributes["info"]._asdict().items() if value is not None}
        assert sent.keys() | {"snd_wscale", "rcv_wscale", "delivery_rate_app_limited"} <= info.keys()
        assert {name: info[name] for name in ("rtt", "snd_cwnd", "snd_mss", "advmss")} == {
            name: sent[name] for name in ("rtt", "snd_cwnd", "snd_mss", "advmss")
        }
        assert shown["congestion"] == row.attributes["cong"]
        assert shown["skmeminfo"] == row.attributes["skmeminfo"]._asdict()
        assert shown["is_mptcp_subflow"] is False
        paths = details_module._cgroup_paths()
        assert shown["cgroup"] == paths.get(shown["cgroup_id"])

    def test_a_subflow_of_mptcp_is_called_one(self, crowd: Sockets) -> None:
        this_kernel.needs(this_kernel.has_mptcp, "has no MPTCP", since=(6, 1))
        rows = run("list", "-te", "--json", "dport = 9005 or dport = 9000").json["sockets"]
        assert {row["dport"]: row["is_mptcp_subflow"] for row in rows} == {9005: True, 9000: False}
        assert {row["ulp_info"]["name"] for row in rows if row["is_mptcp_subflow"]} == {"mptcp"}

    def test_signatures(self) -> None:
        signature = Md5Signature(2, 32, ip_address("10.0.0.1").packed, b"key")
        row = row_of({"md5sig": (signature,)})
        expected = {"family": 2, "prefix_len": 32, "address": "0a000001", "key": b"key".hex()}
        assert details_record(row)["md5sig"] == [expected]


@pytest.mark.kernel
class TestProcesses:
    @pytest.fixture
    def held(self, sockets: Sockets) -> Iterator[Child]:
        """Sockets, one of which has two descriptors, and another process that holds them too."""
        client, _ = sockets.tcp("127.0.0.2", 9000)
        sockets.keep(client.dup())
        sockets.time_wait("127.0.0.10", 9010)
        with Child(lambda pipe: list(questions(pipe))) as other:
            yield other

    @pytest.mark.parametrize("few", [1, 4096])
    def test_are_those_that_ss_shows(self, held: Child, few: int) -> None:
        require_ss()
        patch = f"module('.cli.list')._FEW = {few}"
        here = run("list", "-pa", patch=patch).out.splitlines()[1:]
        assert sorted(map(self.users, here)) == sorted(map(self.users, ss("-p")))
        assert max(len(self.users(line)) for line in here) == 4

    def users(self, line: str) -> list[str]:
        """The holders in a line, which ss has in no order."""
        return sorted(re.findall(r'\("[^"]*",pid=\d+,fd=\d+\)', line))

    def test_a_record(self, held: Child) -> None:
        (client,) = run("list", "-p", "--json", "dport = 9000").json["sockets"]
        pids, name = sorted((os.getpid(), held.pid)), command_name(os.getpid())
        fds = client["processes"][0]["fds"]
        assert (len(fds), fds) == (2, sorted(fds))
        assert client["processes"] == [{"pid": pid, "name": name, "uid": os.getuid(), "fds": fds} for pid in pids]
        assert [row["processes"] for row in run("list", "-pa", "--json", "state", "time-wait").json["sockets"]] == [[]]

    @pytest.mark.parametrize(
        ("preexec", "is_missing"), [(with_only(Capability.CAP_NET_ADMIN), True), (partial(world.become, 0), False)]
    )
    def test_those_that_may_not_be_seen_are_said_and_no_capability_that_is_there(
        self, held: Child, preexec: object, is_missing: bool
    ) -> None:
        """A user namespace of one's own gives CAP_SYS_PTRACE there, which does not reach the processes outside."""
        code, out, err = run("list", "-pa", preexec=preexec)  # type: ignore[arg-type]
        count = sum(line.endswith(" unseen") for line in out.splitlines())
        assert (code, count) == (0, 4)
        assert err.startswith("socklb: 4 sockets are held by no process that may be seen: ")
        assert ("CAP_SYS_PTRACE" in err) == is_missing
        rows = run("list", "-p", "--json", "dport = 9000", preexec=preexec)  # type: ignore[arg-type]
        assert [row["processes"] for row in rows.json["sockets"]] == [None]
        assert rows.err.startswith("socklb: 1 socket is held")

    @pytest.mark.parametrize("option", ["-p", "-e", "-pe"])
    @pytest.mark.parametrize("columns", [80, 0, 300])
    def test_fits_a_terminal(self, held: Child, option: str, columns: int) -> None:
        """What does not stands in further lines, each behind a tab; no word is cut."""
        shown = run_on_terminal("list", option, "-a", stream="stdout", columns=columns)
        on_paper = run("list", option, "-a").out.splitlines()
        lines = shown.out.splitlines()
        assert max(len(line.expandtabs(8)) for line in lines) <= (columns or 80)
        assert sorted(map(self.users, [" ".join(lines)])) == sorted(map(self.users, [" ".join(on_paper)]))
        assert any(line.startswith("\t") for line in lines) == (columns != 300 or "e" in option)
