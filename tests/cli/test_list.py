"""`socklb list` shows the sockets that a filter matches, and needs no privilege for it."""

from __future__ import annotations

import json
import os
import socket

import pytest

from socklb import SocketFilter, dport, find_sockets

from .. import this_kernel
from ..sockets import Sockets, cookie_of
from .runner import Result, drop_privilege, run, run_on_terminal

pytestmark = pytest.mark.kernel

TCP_TO_9000 = {"tcp 127.0.0.2 9000", "tcp ::ffff:127.0.0.2 9000"}


@pytest.fixture
def crowd(sockets: Sockets) -> dict[str, socket.socket]:
    """Clients of every kind, each with a name that says where it goes."""
    made = {f"tcp {address} {port}": sockets.tcp(address, port)[0] for address, port in (
        ("127.0.0.2", 9000), ("127.0.0.2", 9001), ("::ffff:127.0.0.2", 9000), ("::1", 9000))}  # fmt: skip
    made["udp 127.0.0.2 9000"] = sockets.udp("127.0.0.2", 9000)
    made["udp ::1 53"] = sockets.udp("::1", 53)
    return made


def peers(result: Result) -> set[str]:
    return {f"{row['protocol']} {row['dst']} {row['dport']}" for row in result.json["sockets"]}


class TestWhichSocketsAreShown:
    @pytest.mark.parametrize(
        ("words", "shown"),
        [
            (["dst 127.0.0.2 and dport = 9000"], {*TCP_TO_9000, "udp 127.0.0.2 9000"}),
            (["--tcp", "dst 127.0.0.2 and dport = 9000"], TCP_TO_9000),
            (["--udp", "dst 127.0.0.2 and dport = 9000"], {"udp 127.0.0.2 9000"}),
            (["--tcp", "--udp", "dst ::1 and dport <= 9000"], {"tcp ::1 9000", "udp ::1 53"}),
            (["dst [::1]:53 or dport = :9001"], {"udp ::1 53", "tcp 127.0.0.2 9001"}),
            (["dst 10.0.0.1"], set()),
            # one argument or several that stand together
            (["--tcp", "dst 127.0.0.2", "and dport = 9001"], {"tcp 127.0.0.2 9001"}),
            (["dst", "127.0.0.2", "dport", "=", ":9001", "--tcp"], {"tcp 127.0.0.2 9001"}),
            (["(", "dst", "127.0.0.2:9001", ")", "--tcp"], {"tcp 127.0.0.2 9001"}),
            (["!", "dport", "!=", "9001"], {"tcp 127.0.0.2 9001"}),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_those_of_the_filter_and_of_the_protocols_asked_for(
        self, crowd: dict[str, socket.socket], words: list[str], shown: set[str]
    ) -> None:
        result = run("list", *words, "--json")
        assert (result.code, result.err, peers(result)) == (0, "", shown)

    def test_without_a_filter_all_and_privilege_makes_no_difference(self, crowd: dict[str, socket.socket]) -> None:
        everything, seen = run("list", "--json"), run("list", "--json", preexec=drop_privilege)
        assert peers(everything) >= set(crowd)
        assert {row["state"] for row in everything.json["sockets"]} == {"ESTABLISHED", "LISTEN"}
        nobody = 65534  # what an owner is called in a user namespace that has no name for him
        assert seen.json == {"sockets": [{**row, "uid": nobody} for row in everything.json["sockets"]]}

    @pytest.mark.parametrize(
        ("words", "states"),
        [
            ([], {"ESTABLISHED", "LISTEN", "CLOSE_WAIT", "FIN_WAIT2"}),
            (["--state", "established"], {"ESTABLISHED"}),
            (["--state", "listening"], {"LISTEN"}),
            (["--state", "close-wait", "--state", "FIN_WAIT2"], {"CLOSE_WAIT", "FIN_WAIT2"}),
            (["--state", "bucket"], {"TIME_WAIT"}),
            (["--state", "all"], {"ESTABLISHED", "LISTEN", "CLOSE_WAIT", "FIN_WAIT2", "TIME_WAIT"}),
            (["--state", "bucket", "--state", "listening"], {"LISTEN", "TIME_WAIT"}),
            (["--state", "ESTAB,TIME-WAIT"], {"ESTABLISHED", "TIME_WAIT"}),
            (["-a"], {"ESTABLISHED", "LISTEN", "CLOSE_WAIT", "FIN_WAIT2", "TIME_WAIT"}),
            (["-n", "state", "connected", "-4", "exclude", "TIME-WAIT"], {"ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT2"}),
            (["-6"], set()),
        ],
    )
    def test_those_of_the_states_asked_for(self, sockets: Sockets, words: list[str], states: set[str]) -> None:
        sockets.tcp("127.0.0.2", 9000)
        sockets.fin_wait2("127.0.0.2", 9001)
        sockets.time_wait("127.0.0.2", 9002)
        result = run("list", "--tcp", "--json", *words)
        assert {row["state"] for row in result.json["sockets"]} == states


@pytest.mark.parametrize(
    ("command", "option", "advice"),
    [
        ("list", "-K", "write: socklb destroy FILTER"),
        ("list", "-l", "write --state listening"),
        ("list", "--unix", "SOCK_DESTROY is for TCP and UDP"),
        ("destroy", "-a", "write --state all"),
        ("list", "-N", "write --netns N"),
        ("list", "-i", "write -e"),
        ("list", "--options", "write -e"),
        ("list", "-m", "write -e"),
    ],
)
def test_an_option_of_ss_that_is_not_taken_is_answered_with_what_to_write(
    command: str, option: str, advice: str
) -> None:
    result = run(command, option, "dst 10.0.0.1")
    assert (result.code, advice in result.err) == (2, True)


def test_a_record(sockets: Sockets) -> None:
    client, _ = sockets.tcp("::ffff:127.0.0.2", 9000)
    (row,) = find_sockets(SocketFilter("tcp", dport(9000)))
    assert run("list", "--tcp", "--json", "dport = 9000").json == {
        "sockets": [
            {
                "namespace": "current",
                "protocol": "tcp",
                "state": "ESTABLISHED",
                "src": "::ffff:127.0.0.1",
                "sport": client.getsockname()[1],
                "dst": "::ffff:127.0.0.2",
                "dport": 9000,
                "interface": 0,
                "device": None,
                "cookie": cookie_of(client),
                "uid": os.getuid(),
                "inode": os.fstat(client.fileno()).st_ino,
                "cgroup_id": row.attributes["cgroup_id"],
                "timer": 0,
                "retransmits": 0,
                "expires_ms": 0,
            }
        ]
    }


NUMBERS = """
import signal
listing = module(".cli.list")
class Number(int):
    interface = 0
def numbers(filter, **_):
    yield from map(Number, range({count} if filter.protocol == 17 else 0))
listing.find_sockets = numbers
listing.socket_record = lambda number, device: {{"number": number}}
"""
INTERRUPTED_EVERYWHERE = """
import io, json, os
module(".cli.search")._ROWS_A_WRITE = 2

def interrupted_after(count):
    '''Whether so many lines were run, of whatever module, from when rows were asked for to when they are printed.'''
    lines = None
    def trace(frame, event, argument):
        nonlocal lines
        name = frame.f_code.co_name
        if event == "call" and name == "rows" and lines is None:
            lines = 0
        if event == "return" and name == "stream_json":
            sys.settrace(None)
        if event == "line" and lines is not None:
            lines += 1
            if lines == count:
                os.kill(os.getpid(), signal.SIGINT)
        return trace
    sys.stdout = io.StringIO()
    sys.settrace(trace)
    code = module(".cli").main(["list", "--json", "--udp"])
    sys.settrace(None)
    print(json.dumps([code, sys.stdout.getvalue()]), file=sys.__stdout__)
    return lines >= count

count = 1
while interrupted_after(count):
    count += 1
sys.exit()
"""


class TestJsonInPieces:
    """Written while the sockets come, many at a time, and whole however it ends."""

    @pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
    def test_each_row_is_there_once(self, network: None, count: int) -> None:
        result = run("list", "--json", patch=NUMBERS.format(count=count))
        rows = [{"namespace": "current", "number": number} for number in range(count)]
        assert (result.code, result.json) == (0, {"sockets": rows})

    def test_an_interrupt_at_any_point_leaves_whole_json(self, network: None) -> None:
        untraced = {"COVERAGE_PROCESS_CONFIG": None, "COVERAGE_PROCESS_START": None}  # there is one trace function
        done = run("list", patch=NUMBERS.format(count=5) + INTERRUPTED_EVERYWHERE, stdin="", env=untraced)
        *interrupted, (last_code, last) = map(json.loads, done.out.splitlines())
        whole = [{"namespace": "current", "number": number} for number in range(5)]
        lengths = set()
        for code, text in interrupted:
            said = json.loads(text)
            assert code == (130 if "error" in said else 0)  # what comes when all is said changes nothing
            assert said["sockets"] == whole[: len(said["sockets"])]
            assert said.get("error", "interrupted") == "interrupted"
            assert "error" in said or len(said["sockets"]) == 5
            lengths.add(len(said["sockets"]))
        assert (lengths, last_code, json.loads(last)) == ({0, 1, 2, 3, 4, 5}, 0, {"sockets": whole})


HEADS = ["Netid", "State", "Recv-Q", "Send-Q", "Local:Port", "Peer:Port", "Uid", "Inode", "Cookie"]


class TestTable:
    """A header and a row for each socket, with the columns that people know from ss(8)."""

    def test_has_a_row_for_each_socket(self, sockets: Sockets) -> None:
        client, _ = sockets.tcp("127.0.0.2", 9000)
        sockets.udp("::1", 53)
        sockets.udp_bound("127.0.0.3", 5353)
        client.send(b"unread")
        header, *rows = (line.split() for line in run("list").out.splitlines())
        assert header == HEADS
        cells = {row[4]: row for row in rows}
        near = f"127.0.0.1:{client.getsockname()[1]}"
        own = [os.getuid(), os.fstat(client.fileno()).st_ino, cookie_of(client)]
        assert cells[near] == ["tcp", "ESTABLISHED", "0", "0", near, "127.0.0.2:9000", *map(str, own)]
        states = sorted((*row[:2], row[2]) for row in rows)
        assert states == [
            ("tcp", "ESTABLISHED", "0"),
            ("tcp", "ESTABLISHED", "6"),
            ("tcp", "LISTEN", "0"),
            ("udp", "CLOSE", "0"),
            ("udp", "ESTABLISHED", "0"),
        ]
        assert cells["127.0.0.3:5353"][5] == "0.0.0.0:*"
        assert "[::1]:53" in {row[5] for row in rows}

    def test_is_only_a_header_where_there_is_no_socket(self, network: None) -> None:
        assert [line.split() for line in run("list").out.splitlines()] == [HEADS]
        assert run("list", "--json").json == {"sockets": []}

    @pytest.mark.parametrize(("columns", "shown"), [(80, 6), (0, 6), (122, 6), (123, 9), (200, 9)])
    def test_fits_a_terminal(self, sockets: Sockets, columns: int, shown: int) -> None:
        """The longest v4 addresses and the longest state do; one that does not know its width has 80 columns."""
        bound = sockets.make(socket.AF_INET, socket.SOCK_STREAM)
        bound.bind(("127.100.100.100", 50000))
        sockets.tcp("127.200.200.200", 60000, source="127.100.100.101")
        result = run_on_terminal("list", "--state", "all", stream="stdout", columns=columns)
        lines = result.out.splitlines()
        assert (result.code, len(lines)) == (0, 4 + this_kernel.lists_bound_only())
        assert {len(line.split()) for line in lines} == {shown}
        assert max(map(len, lines)) <= (columns or 80)
        elsewhere = run_on_terminal("list", "--netns", "current", "-p", stream="stdout", columns=columns).out
        assert max(len(line.expandtabs()) for line in elsewhere.splitlines()) <= (columns or 80)
        assert elsewhere.count("current") == elsewhere.count("\n") - 1 - elsewhere.count("\n\t")

    @pytest.mark.parametrize(("columns", "shown"), [("80", 6), ("123", 9), ("x", 9), ("0", 9)])
    def test_columns_may_be_given(self, network: None, columns: str, shown: int) -> None:
        assert len(run("list", env={"COLUMNS": columns}).out.split()) == shown
