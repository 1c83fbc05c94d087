"""`socklb destroy`: those that are meant die, nobody else does, and the exit code says how it went."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from socklb import SocketFilter

from ..sockets import Sockets, add_v6_address, cookie_of, pending_error, talk
from .runner import Result, drop_privilege, run

pytestmark = pytest.mark.kernel

SUMS = ("matched", "destroyed", "gone", "skipped", "failed")
TO_9000 = "dst 127.0.0.2 and dport = 9000"
INTERRUPTED_AT_UDP = """
DiagSocket = module(".kernel.diag").DiagSocket
destroy = DiagSocket.destroy
def interrupted(self, requests, doing):
    if "udp" in doing:
        raise KeyboardInterrupt
    return destroy(self, requests, doing)
DiagSocket.destroy = interrupted
"""


class Crowd:
    """Connections of every kind; each has the name "protocol address port", by where the client went."""

    def __init__(self, sockets: Sockets) -> None:
        add_v6_address("fd00::2")
        self.pairs: dict[str, tuple[socket.socket, socket.socket]] = {}
        for address in ("127.0.0.2", "127.0.0.3", "::ffff:127.0.0.2", "::ffff:127.0.0.3", "fd00::2"):
            for port in (9000, 9001):
                self.pairs[f"tcp {address} {port}"] = sockets.tcp(address, port)
                self.pairs[f"udp {address} {port}"] = sockets.udp_pair(address, port)

    def dead(self) -> set[str]:
        """The names of the clients that were destroyed; all the others talk to their server."""
        dead = {name for name, (client, _) in self.pairs.items() if pending_error(client) == "ECONNABORTED"}
        for name, (client, server) in self.pairs.items():
            if name not in dead:
                talk(client, server)
        return dead


@pytest.fixture
def crowd(sockets: Sockets) -> Crowd:
    return Crowd(sockets)


def sums(result: Result) -> dict[str, int]:
    """The sums that are not 0, after a look at whether they add up."""
    said = result.json
    assert said["matched"] == sum(said[name] for name in SUMS[1:]) == len(said["sockets"])
    for name in SUMS[1:]:
        assert said[name] == sum(row["outcome"] == name for row in said["sockets"])
    return {name: said[name] for name in SUMS if said[name]}


class TestThoseMeantDieAndNobodyElse:
    def test_a_v4_address_means_mapped_sockets_too_and_a_second_run_finds_nothing(self, crowd: Crowd) -> None:
        first = run("destroy", "--tcp", "--json", TO_9000)
        assert (first.code, first.err, sums(first)) == (0, "", {"matched": 2, "destroyed": 2})
        assert crowd.dead() == {"tcp 127.0.0.2 9000", "tcp ::ffff:127.0.0.2 9000"}
        second = run("destroy", "--tcp", "--json", TO_9000)
        assert (second.code, second.err, sums(second)) == (0, "", {})

    @pytest.mark.parametrize(
        ("words", "dead"),
        [
            (["--udp", TO_9000], {"udp 127.0.0.2 9000", "udp ::ffff:127.0.0.2 9000"}),
            (["dst fd00::2 and dport = 9001"], {"tcp fd00::2 9001", "udp fd00::2 9001"}),
            (["dst", "[fd00::2]:9001", "--tcp"], {"tcp fd00::2 9001"}),
            (["--tcp", "dst 127.0.0.2:9000 or dst [fd00::2]:9000"],
             {"tcp 127.0.0.2 9000", "tcp ::ffff:127.0.0.2 9000", "tcp fd00::2 9000"}),
            (["--udp", "dst 127.0.0.0/8 and not dst 127.0.0.3 and dport > 9000"],
             {"udp 127.0.0.2 9001", "udp ::ffff:127.0.0.2 9001"}),
            (["--tcp", "--udp", "dst", "::ffff:127.0.0.3", "dport", "=", "9000"],
             {"tcp 127.0.0.3 9000", "tcp ::ffff:127.0.0.3 9000", "udp 127.0.0.3 9000", "udp ::ffff:127.0.0.3 9000"}),
            (["dst 10.0.0.1"], set()),
        ],
    )  # fmt: skip
    def test_by_protocol_address_and_port(self, crowd: Crowd, words: list[str], dead: set[str]) -> None:
        result = run("destroy", "--json", *words)
        assert (result.code, result.err, sums(result).get("destroyed", 0)) == (0, "", len(dead))
        assert crowd.dead() == dead

    def test_all_stands_for_the_filter(self, crowd: Crowd) -> None:
        result = run("destroy", "--all", "--json")
        assert result.code == 0
        assert {row["reason"] for row in result.json["sockets"] if row["outcome"] == "skipped"} == {
            "listening",
            "not connected",
        }
        assert {name for name, pair in crowd.pairs.items() if pending_error(pair[0])} == set(crowd.pairs)

    def test_all_allows_a_filter_that_bounds_nothing(self, crowd: Crowd) -> None:
        assert run("destroy", "--all", "--udp", "not dst 127.0.0.0/8 and dport != 9001").code == 0
        assert crowd.dead() == {"udp fd00::2 9000"}


class TestNothingDies:
    """Bad input ends with 2, missing privilege with 4, a dry run with 0; in all three nothing dies."""

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "FILTER"),
            ([""], "bounds no endpoint"),
            (["  "], "bounds no endpoint"),
            (["not dst 10.0.0.1"], "bounds no endpoint"),
            (["dport != 22"], "bounds no endpoint"),
            (["dst 0.0.0.0/0"], "bounds no endpoint"),
            (["dst 127.0.0.2 or dev lo"], "bounds no endpoint"),
            (["--state", "established", "--tcp"], "FILTER"),
            (["dts 127.0.0.2"], "'dts' at column 1"),
            (["--all", "dst 127.0.0.2 and"], "the end, column 18"),
            (["--limit", "0", "dst 127.0.0.2"], "--limit"),
            (["--state", "nosuch", "dst 127.0.0.2"], "'nosuch'"),
        ],
    )
    @pytest.mark.parametrize("json", [[], ["--json"]], ids=["table", "json"])
    def test_on_bad_input(self, sockets: Sockets, json: list[str], words: list[str], said: str) -> None:
        client = sockets.udp("127.0.0.2", 9000)
        result = run("destroy", *json, *words)
        assert (result.code, result.out) == (2, "")
        assert said in result.err
        assert "Traceback" not in result.err
        assert pending_error(client) == ""

    def test_without_privilege(self, crowd: Crowd) -> None:
        result = run("destroy", "--tcp", "--json", TO_9000, preexec=drop_privilege)
        assert result.code == 4
        assert sums(result) == {"matched": 2, "failed": 2}
        assert "CAP_NET_ADMIN" in result.json["error"]
        assert result.err == f"socklb: {result.json['error']}\n"
        assert {(row["reason"], row["error"]) for row in result.json["sockets"]} == {("Operation not permitted", 1)}
        assert crowd.dead() == set()

    @pytest.mark.parametrize("preexec", [None, drop_privilege], ids=["privileged", "unprivileged"])
    @pytest.mark.parametrize("words", [[TO_9000], ["--all", "--unconnected"]], ids=["filter", "all"])
    def test_in_a_dry_run(self, crowd: Crowd, words: list[str], preexec: Any) -> None:
        result = run("destroy", "--dry-run", "--json", *words, preexec=preexec)
        assert (result.code, result.err) == (0, "")
        assert set(sums(result)) == {"matched", "skipped"}
        assert {(row["reason"], row["dry_run"]) for row in result.json["sockets"]} <= {
            ("dry run", True),
            ("listening", True),
        }
        assert crowd.dead() == set()

    def test_and_nothing_matched_needs_no_privilege(self, crowd: Crowd) -> None:
        assert run("destroy", "dst 10.0.0.1", preexec=drop_privilege)[::2] == (0, "")

    def test_where_the_kernel_was_built_without_it(self, sockets: Sockets) -> None:
        sockets.udp("127.0.0.2", 9000)
        refuse = "module('.kernel.diag').DiagSocket.destroy = lambda self, requests, doing: [95] * len(requests)"
        result = run("destroy", "dst 127.0.0.2", "--json", patch=refuse)
        assert result.code == 3
        assert sums(result) == {"matched": 1, "failed": 1}
        assert "CONFIG_INET_DIAG_DESTROY" in result.json["error"]


class TestSpared:
    """Each is skipped with its reason, which is no failure."""

    def reasons(self, *words: str, env: dict[str, str | None] | None = None) -> dict[str, int]:
        result = run("destroy", "--json", *words, env=env)
        assert (result.code, result.err) == (0, "")
        reasons: dict[str, int] = {}
        for row in result.json["sockets"]:
            reasons[row["reason"] or row["outcome"]] = reasons.get(row["reason"] or row["outcome"], 0) + 1
        return reasons

    @pytest.mark.parametrize(
        ("words", "reasons"),
        [
            ([], {"listening": 1}),
            (["--state", "all"], {"listening": 1}),
            (["--state", "listening"], {"destroyed": 1}),
            (["--state", "all", "--state", "listen"], {"destroyed": 1}),
        ],
    )
    def test_listening_unless_named(self, sockets: Sockets, words: list[str], reasons: dict[str, int]) -> None:
        sockets.listen("127.0.0.2", 9000)
        assert self.reasons("--tcp", "src 127.0.0.2", *words) == reasons

    @pytest.mark.parametrize(
        ("words", "reasons"),
        [([], {"not connected": 1}), (["--unconnected"], {"destroyed": 1})],
        ids=["without", "with"],
    )
    def test_udp_without_a_peer_unless_asked_for(
        self, sockets: Sockets, words: list[str], reasons: dict[str, int]
    ) -> None:
        bound = sockets.udp_bound("127.0.0.2", 53)
        assert self.reasons("sport = 53", *words) == reasons
        assert pending_error(bound) == ("ECONNABORTED" if words else "")

    @pytest.mark.parametrize(("limit", "destroyed"), [(1, 1), (3, 3), (4, 4), (5, 4)])
    def test_beyond_the_limit_all_protocols_and_families_together(
        self, crowd: Crowd, limit: int, destroyed: int
    ) -> None:
        reasons = self.reasons("--limit", str(limit), TO_9000)
        assert reasons == {name: n for name, n in {"destroyed": destroyed, "limit": 4 - destroyed}.items() if n}
        assert len(crowd.dead()) == destroyed

    def test_the_ssh_session_that_it_runs_in(self, crowd: Crowd) -> None:
        near, far = crowd.pairs["tcp ::ffff:127.0.0.2 9000"]
        session = f"127.0.0.1 {near.getsockname()[1]} 127.0.0.2 9000"
        said = self.reasons("--all", "--tcp", "--state", "established", env={"SSH_CONNECTION": session})
        assert said["own session"] == 2
        assert pending_error(near) == pending_error(far) == ""


class TestFailures:
    """1: some sockets failed, each with its reason; the others are done."""

    def test_bound_udp_twins(self, sockets: Sockets) -> None:
        """The one that is found first answers 0 for ever, and hides the other."""
        twins = [sockets.udp_bound("127.0.0.2", 53, reuse_port=True) for _ in range(2)]
        client = sockets.udp("127.0.0.2", 9000)
        result = run("destroy", "--udp", "--unconnected", "--all", "--json")
        assert (result.code, result.err) == (1, "")
        assert sums(result) == {"matched": 3, "destroyed": 2, "failed": 1}
        (failed,) = (row for row in result.json["sockets"] if row["outcome"] == "failed")
        assert failed["reason"] == "another socket shares its address"
        assert failed["cookie"] in [cookie_of(twin) for twin in twins]
        assert sorted(pending_error(twin) for twin in twins) == ["", "ECONNABORTED"]
        assert pending_error(client) == "ECONNABORTED"

    def test_an_interrupt_keeps_the_account_of_what_was_done(self, sockets: Sockets) -> None:
        client, _ = sockets.tcp("127.0.0.2", 9000)
        later = sockets.udp("127.0.0.2", 9000)
        result = run("destroy", "--json", TO_9000, patch=INTERRUPTED_AT_UDP)
        assert (result.code, result.err) == (130, "socklb: interrupted\n")
        assert result.json["error"] == "interrupted"
        assert sums(result) == {"matched": 2, "destroyed": 1, "failed": 1}
        assert [row["reason"] for row in result.json["sockets"]] == ["", "interrupted, and perhaps destroyed"]
        assert (pending_error(client), pending_error(later)) == ("ECONNABORTED", "")


class TestWhatIsPrinted:
    """`--json`: a socket is an audit record without time, operation and actor. Else a line for each, and the sums."""

    def test_a_record(self, sockets: Sockets) -> None:
        client, _ = sockets.tcp("::ffff:127.0.0.2", 9000)
        expected = {
            "namespace": "host",
            "filter": str(SocketFilter.parse(TO_9000, "tcp")),
            "protocol": "tcp",
            "state": "ESTABLISHED",
            "src": "::ffff:127.0.0.1",
            "sport": client.getsockname()[1],
            "dst": "::ffff:127.0.0.2",
            "dport": 9000,
            "cookie": cookie_of(client),
            "uid": os.getuid(),
            "inode": os.fstat(client.fileno()).st_ino,
            "outcome": "destroyed",
            "reason": "",
            "error": None,
            "dry_run": False,
        }
        said = run("destroy", "--json", TO_9000).json
        assert said.pop("sockets") == [expected]
        assert said == {"matched": 1, "destroyed": 1, "gone": 0, "skipped": 0, "failed": 0}

    def test_lines(self, sockets: Sockets) -> None:
        client, _ = sockets.tcp("::ffff:127.0.0.2", 9000)
        near = f"[::ffff:127.0.0.1]:{client.getsockname()[1]}"
        *lines, last = run("destroy", "--limit", "1", "dst 127.0.0.2 or src 127.0.0.2:9000").out.splitlines()
        assert len(lines) == 3
        cells = [line.split(maxsplit=6) for line in lines]
        assert ["destroyed", "tcp", "ESTABLISHED"] in [row[:3] for row in cells]
        assert {row[6] for row in cells if row[0] == "skipped"} == {"(limit)", "(listening)"}
        assert [near, "->", "[::ffff:127.0.0.2]:9000"] in [row[3:6] for row in cells]
        assert last == "3 matched: 1 destroyed, 0 gone, 2 skipped, 0 failed"
