"""`socklb list` shows the sockets that a filter means, and needs no privilege for it."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from ..sockets import Sockets, cookie_of
from .runner import Result, drop_privilege, run

pytestmark = pytest.mark.kernel

TCP_TO_9000 = {"tcp 127.0.0.2 9000", "tcp ::ffff:127.0.0.2 9000"}


@pytest.fixture
def crowd(sockets: Sockets) -> dict[str, socket.socket]:
    """Clients of every kind, each with a name that says where it goes."""
    made = {"tcp 127.0.0.2 9000": sockets.tcp("127.0.0.2", 9000)[0]}
    made["tcp 127.0.0.2 9001"] = sockets.tcp("127.0.0.2", 9001)[0]
    made["tcp ::ffff:127.0.0.2 9000"] = sockets.tcp("::ffff:127.0.0.2", 9000)[0]
    made["tcp ::1 9000"] = sockets.tcp("::1", 9000)[0]
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
        ],
    )
    def test_those_of_the_filter_and_of_the_protocols_asked_for(
        self, crowd: dict[str, socket.socket], words: list[str], shown: set[str]
    ) -> None:
        result = run("list", "--json", *words)
        assert (result.code, result.err, peers(result)) == (0, "", shown)

    def test_without_a_filter_all(self, crowd: dict[str, socket.socket]) -> None:
        result = run("list", "--json")
        assert peers(result) >= set(crowd)
        assert {row["state"] for row in result.json["sockets"]} == {"ESTABLISHED", "LISTEN"}

    @pytest.mark.parametrize(
        "words",
        [
            ["--json", "--tcp", "dst 127.0.0.2 and dport = 9001"],
            ["--json", "--tcp", "dst", "127.0.0.2", "and", "dport", "=", "9001"],
            ["--tcp", "dst 127.0.0.2", "and dport = 9001", "--json"],
            ["dst", "127.0.0.2", "dport", "=", ":9001", "--tcp", "--json"],
            ["--json", "(", "dst", "127.0.0.2:9001", ")", "--tcp"],
            ["--json", "!", "dport", "!=", "9001"],
        ],
    )
    def test_the_filter_is_one_argument_or_several_that_stand_together(
        self, crowd: dict[str, socket.socket], words: list[str]
    ) -> None:
        assert peers(run("list", *words)) == {"tcp 127.0.0.2 9001"}


class TestStates:
    """`--state` may be repeated, and takes the groups of ss(8)."""

    @pytest.mark.parametrize(
        ("words", "states"),
        [
            ([], {"ESTABLISHED", "LISTEN", "CLOSE_WAIT", "FIN_WAIT2"}),
            (["--state", "established"], {"ESTABLISHED"}),
            (["--state", "listening"], {"LISTEN"}),
            (["--state", "close-wait", "--state", "FIN_WAIT2"], {"CLOSE_WAIT", "FIN_WAIT2"}),
            (["--state", "time-wait"], {"TIME_WAIT"}),
            (["--state", "bucket"], {"TIME_WAIT"}),
            (["--state", "big"], {"ESTABLISHED", "LISTEN", "CLOSE_WAIT", "FIN_WAIT2"}),
            (["--state", "all"], {"ESTABLISHED", "LISTEN", "CLOSE_WAIT", "FIN_WAIT2", "TIME_WAIT"}),
            (["--state", "bucket", "--state", "listening"], {"LISTEN", "TIME_WAIT"}),
        ],
    )
    def test_show_themselves_alone(self, sockets: Sockets, words: list[str], states: set[str]) -> None:
        sockets.tcp("127.0.0.2", 9000)
        sockets.fin_wait2("127.0.0.2", 9001)
        sockets.time_wait("127.0.0.2", 9002)
        result = run("list", "--tcp", "--json", *words)
        assert {row["state"] for row in result.json["sockets"]} == states

    def test_an_unknown_one_is_named(self) -> None:
        result = run("list", "--state", "estalbished")
        assert (result.code, result.out) == (2, "")
        assert "--state" in result.err
        assert "'estalbished'" in result.err


class TestJson:
    """`{"sockets": [...]}`; state is the name, cookie and inode are numbers."""

    def test_a_socket_is_told_as_the_kernel_knows_it(self, sockets: Sockets) -> None:
        client, _ = sockets.tcp("::ffff:127.0.0.2", 9000)
        result = run("list", "--tcp", "--json", "dport = 9000")
        assert set(result.json) == {"sockets"}
        (row,) = result.json["sockets"]
        expected: dict[str, Any] = {
            "namespace": "host",
            "protocol": "tcp",
            "state": "ESTABLISHED",
            "src": "::ffff:127.0.0.1",
            "sport": client.getsockname()[1],
            "dst": "::ffff:127.0.0.2",
            "dport": 9000,
            "cookie": cookie_of(client),
            "uid": os.getuid(),
            "inode": os.fstat(client.fileno()).st_ino,
        }
        assert row == expected

    def test_no_socket_is_an_empty_list(self, network: None) -> None:
        assert run("list", "--json").json == {"sockets": []}


class TestTable:
    """A header and one row a socket, with the columns that people know from ss(8)."""

    def test_has_a_row_for_each_socket(self, sockets: Sockets) -> None:
        client, _ = sockets.tcp("127.0.0.2", 9000)
        sockets.udp("::1", 53)
        bound = sockets.udp_bound("127.0.0.3", 5353)
        header, *rows = run("list").out.splitlines()
        names = "Netid State Recv-Q Send-Q Local:Port Peer:Port Uid Inode Cookie Netns"
        assert header.split() == names.split()
        assert sorted(row.split()[0:2] for row in rows) == [
            ["tcp", "ESTABLISHED"],
            ["tcp", "ESTABLISHED"],
            ["tcp", "LISTEN"],
            ["udp", "CLOSE"],
            ["udp", "ESTABLISHED"],
        ]
        cells = {row.split()[4]: row.split() for row in rows}
        near = f"127.0.0.1:{client.getsockname()[1]}"
        inode = str(os.fstat(client.fileno()).st_ino)
        assert cells[near][2:] == [
            "0",
            "0",
            near,
            "127.0.0.2:9000",
            str(os.getuid()),
            inode,
            str(cookie_of(client)),
            "host",
        ]
        assert cells["127.0.0.3:5353"][5] == "0.0.0.0:*"
        assert cells["127.0.0.3:5353"][8] == str(cookie_of(bound))
        assert "[::1]:53" in {row.split()[5] for row in rows}

    def test_shows_what_waits_in_the_queues(self, sockets: Sockets) -> None:
        client, server = sockets.tcp("127.0.0.2", 9000)
        client.send(b"unread")
        header, row = run(
            "list", "--tcp", "src", f"{server.getsockname()[0]}:9000", "--state", "established"
        ).out.splitlines()
        assert dict(zip(header.split(), row.split()))["Recv-Q"] == "6"

    def test_is_only_a_header_where_there_is_no_socket(self, network: None) -> None:
        result = run("list")
        assert (result.code, len(result.out.splitlines())) == (0, 1)


def test_privilege_makes_no_difference(crowd: dict[str, socket.socket]) -> None:
    result = run("list", "--json", preexec=drop_privilege)
    everything = run("list", "--json").json["sockets"]
    nobody = 65534  # what an owner is called in a user namespace that has no name for him
    assert (result.code, result.err) == (0, "")
    assert result.json == {"sockets": [{**row, "uid": nobody} for row in everything]}
