"""`socklb destroy`: what matches dies, nobody else does, and the exit code says how it went."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from socklb import SocketFilter, find_sockets
from socklb.kernel.processes import command_name

from ..capabilities import with_only
from ..children import Child, questions
from ..networks import pinned_networks
from ..sockets import Sockets, add_v6_address, cookie_of, pending_error, talk
from .runner import INTERRUPTED_AT_UDP, Result, answers, drop_privilege, run

pytestmark = pytest.mark.kernel

COUNTS = ("matched", "destroyed", "rerouted", "cleared", "would_destroy", "gone", "skipped", "failed")
TO_9000 = "dst 127.0.0.2 and dport = 9000"
SIGNALLED = """
import os, signal
kind = module(".{folder}.{module}").{kind}
usual = kind.{method}
def signalled(self, *arguments):
    kind.{method} = usual
    os.kill(os.getpid(), signal.{signal})
    return usual(self, *arguments)
kind.{method} = signalled
"""
OUT_OF_MEMORY = """
DiagSocket = module(".kernel.diag").DiagSocket
look_up = DiagSocket.look_up
def at_first(self, *arguments):
    DiagSocket.look_up = then
    return look_up(self, *arguments)
def then(self, *arguments):
    raise MemoryError
DiagSocket.look_up = at_first
"""
NO_ROOM_FOR_SOCKETS = """
import json
dumps = json.dumps
def refusing(value, **options):
    if "sockets" in value:
        raise MemoryError
    return dumps(value, **options)
json.dumps = refusing
"""
NO_MORE_IMPORTS = """
DiagSocket = module(".kernel.diag").DiagSocket
destroy = DiagSocket.destroy
class Refused:
    def find_spec(self, name, *_):
        raise MemoryError(name)
def destroy_and_refuse(self, *arguments):
    answers = destroy(self, *arguments)
    sys.meta_path.insert(0, Refused())
    return answers
DiagSocket.destroy = destroy_and_refuse
"""


CLOSED_AT_ONCE = """
import os, time
DiagSocket = module(".kernel.diag").DiagSocket
destroy = DiagSocket.destroy
def destroy_and_wait(self, *arguments):
    answers = destroy(self, *arguments)
    while os.path.exists("/proc/{pid}/fd/{fd}"):
        time.sleep(0.001)
    return answers
DiagSocket.destroy = destroy_and_wait
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


def counts(result: Result) -> dict[str, int]:
    """Those that are not 0, after a look at whether sockets, namespaces and backends add up to them."""
    said = result.json
    assert said["matched"] == sum(said[name] for name in COUNTS[1:]) == len(said["sockets"])
    assert Counter(row["outcome"] for row in said["sockets"]) == {n: said[n] for n in COUNTS[1:] if said[n]}
    for rows in (said["namespaces"], said["backends"].values()):
        assert not rows or all(said[name] == sum(row[name] for row in rows) for name in COUNTS)
    return {name: said[name] for name in COUNTS if said[name]}


class TestWhatMatchesDiesAndNobodyElse:
    def test_a_v4_address_matches_mapped_sockets_too_and_a_second_run_finds_nothing(self, crowd: Crowd) -> None:
        first = run("destroy", "--tcp", "--json", TO_9000)
        assert (first.code, first.err, counts(first)) == (0, "", {"matched": 2, "destroyed": 2})
        assert crowd.dead() == {"tcp 127.0.0.2 9000", "tcp ::ffff:127.0.0.2 9000"}
        second = run("destroy", "--tcp", "--json", TO_9000)
        assert (second.code, counts(second)) == (0, {})

    @pytest.mark.parametrize(
        ("words", "dead"),
        [
            (["--udp", TO_9000], {"udp 127.0.0.2 9000", "udp ::ffff:127.0.0.2 9000"}),
            (["dst fd00::2 and dport = 9001"], {"tcp fd00::2 9001", "udp fd00::2 9001"}),
            (["dst", "[fd00::2]:9001", "--tcp"], {"tcp fd00::2 9001"}),
            (["--tcp", "dst 127.0.0.2:9000 or dst [fd00::2]:9000"],
             {"tcp 127.0.0.2 9000", "tcp ::ffff:127.0.0.2 9000", "tcp fd00::2 9000"}),
            (["--udp", "dst 127.0.0.0/16 and not dst 127.0.0.3 and dport > 9000"],
             {"udp 127.0.0.2 9001", "udp ::ffff:127.0.0.2 9001"}),
            (["--tcp", "--udp", "dst", "::ffff:127.0.0.3", "dport", "=", "9000"],
             {"tcp 127.0.0.3 9000", "tcp ::ffff:127.0.0.3 9000", "udp 127.0.0.3 9000", "udp ::ffff:127.0.0.3 9000"}),
            (["dst 10.0.0.1"], set()),
            (["--unbounded", "--udp", "not dst 127.0.0.0/8 and dport != 9001"], {"udp fd00::2 9000"}),
        ],
    )  # fmt: skip
    def test_by_protocol_address_and_port(self, crowd: Crowd, words: list[str], dead: set[str]) -> None:
        result = run("destroy", "--json", *words)
        assert (result.code, result.err, counts(result).get("destroyed", 0)) == (0, "", len(dead))
        assert crowd.dead() == dead

    def test_unbounded_stands_for_the_filter(self, crowd: Crowd) -> None:
        result = run("destroy", "--unbounded", "--json")
        assert result.code == 0
        reasons = {row["reason"] for row in result.json["sockets"] if row["outcome"] == "skipped"}
        assert reasons == {"listening", "not connected"}
        assert all(pending_error(client) for client, _ in crowd.pairs.values())


class TestNothingDies:
    """Bad input ends with 2, missing privilege with 4, a dry run with 0; in all three nothing dies."""

    @pytest.mark.parametrize("words", [[], ["not dst 10.0.0.1"], ["dst 127.0.0.2 and"], ["--limit", "0", TO_9000]])
    def test_on_bad_input(self, sockets: Sockets, words: list[str]) -> None:
        client = sockets.udp("127.0.0.2", 9000)
        assert run("destroy", "--json", *words)[:2] == (2, "")
        assert pending_error(client) == ""

    def test_without_privilege(self, crowd: Crowd) -> None:
        result = run("destroy", "--tcp", "--json", TO_9000, preexec=drop_privilege)
        assert (result.code, counts(result)) == (4, {"matched": 2, "failed": 2})
        assert "CAP_NET_ADMIN" in result.json["error"]
        assert result.err == f"socklb: {result.json['error']}\n"
        assert {(row["reason"], row["error"]) for row in result.json["sockets"]} == {("Operation not permitted", 1)}
        assert crowd.dead() == set()

    @pytest.mark.parametrize("preexec", [None, drop_privilege], ids=["privileged", "unprivileged"])
    @pytest.mark.parametrize("words", [[TO_9000], ["--unbounded", "--unconnected"]], ids=["filter", "unbounded"])
    def test_in_a_dry_run(self, crowd: Crowd, words: list[str], preexec: Any) -> None:
        result = run("destroy", "--dry-run", "--json", *words, preexec=preexec)
        assert (result.code, result.err) == (0, "")
        assert {*counts(result)} <= {"matched", "would_destroy", "skipped"}
        said = {(row["outcome"], row["reason"], row["dry_run"]) for row in result.json["sockets"]}
        assert ("would_destroy", "", True) in said
        assert said <= {("would_destroy", "", True), ("skipped", "listening", True)}
        assert crowd.dead() == set()

    def test_and_nothing_matched_needs_no_privilege(self, crowd: Crowd) -> None:
        assert run("destroy", "dst 10.0.0.1", preexec=drop_privilege)[::2] == (0, "")

    def test_where_the_kernel_was_built_without_it(self, sockets: Sockets) -> None:
        sockets.udp("127.0.0.2", 9000)
        result = run("destroy", "dst 127.0.0.2", "--json", patch=answers(95))
        assert (result.code, counts(result)) == (3, {"matched": 1, "failed": 1})
        assert "CONFIG_INET_DIAG_DESTROY" in result.json["error"]


class TestRequireMatch:
    """`--require-match`: 5 if nothing matched; what is worse has its own code."""

    NONE = "socklb: nothing matched, and --require-match asks for a match\n"

    @pytest.mark.parametrize("more", [["--json"], ["--dry-run"]], ids=" ".join)
    @pytest.mark.parametrize(("filter", "code", "err"), [("src 127.0.0.2", 0, ""), ("dst 10.0.0.1", 5, NONE)])
    def test_what_is_spared_has_matched(
        self, sockets: Sockets, filter: str, code: int, err: str, more: list[str]
    ) -> None:
        sockets.listen("127.0.0.2", 9000)
        assert run("destroy", "--require-match", *more, filter)[::2] == (code, err)

    def test_where_a_namespace_could_not_be_searched_it_is_1(self, network: None) -> None:
        with pinned_networks("web"):
            where = ("--netns", "current", "--netns", "web")
            result = run("destroy", "--require-match", *where, "dst 10.0.0.1", preexec=drop_privilege)
        assert (result.code, self.NONE in result.err) == (1, True)


class TestNearMisses:
    """Where nothing matched, standard error alone says what the same filter matches with other options."""

    SAID = "socklb: nothing matched; the same filter matches with other options:\n  "
    HERE = "src 127.0.0.2 or dst 127.0.0.2"

    def said(self, *words: str, patch: str = "") -> list[str]:
        patient = "module('.cli.near_misses')._SECONDS = 600\n"
        result = run("destroy", "--json", *words, patch=patient + patch)
        assert (result.code, counts(result), "error" in result.json) == (0, {}, False)
        first, *lines = result.err.removesuffix("\n").split("\n  ")
        assert f"{first}\n  " == self.SAID if lines else not first
        return sorted(lines)

    @pytest.fixture
    def several(self, sockets: Sockets) -> None:
        sockets.time_wait("127.0.0.2", 9000)  # and a listener
        sockets.make(socket.AF_INET, socket.SOCK_STREAM).bind(("127.0.0.2", 9001))
        sockets.udp("::ffff:127.0.0.2", 9000)
        sockets.udp_bound("127.0.0.2", 53)

    LATE = "but no process holds them any more, and they end by themselves"

    @pytest.mark.parametrize(
        ("words", "lines"),
        [
            (["-t", "dst 127.0.0.2"], [f"1 tcp TIME_WAIT: --state time-wait, {LATE}", "1 udp ESTABLISHED: -u"]),
            (["-4", "--state", "estab", HERE], [
                "1 tcp CLOSE: cannot be destroyed, it has no peer",
                "1 tcp LISTEN: --state listen",
                f"1 tcp TIME_WAIT: --state time-wait, {LATE}",
                "1 udp CLOSE: --state close and --unconnected",
                "1 udp ESTABLISHED: -6",
            ]),
            (["-u", "state syn-sent exclude close src 127.0.0.2 and sport != 9001"], [
                '1 tcp LISTEN: -t and "state listen" in front of the filter',
                '1 udp CLOSE: "state close" in front of the filter and no exclude of it and --unconnected',
            ]),
            (["-6", "src 127.0.0.2 and sport = 9000"], ["1 tcp LISTEN: -4 and --state listen"]),
            (["stalled 1h dst 127.0.0.2"], []),
            (["--netns", "current", "dst 127.0.0.3"], []),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )  # fmt: skip
    def test_in_other_states_protocols_and_families(self, several: None, words: list[str], lines: list[str]) -> None:
        assert self.said(*words) == lines

    def test_no_more_are_counted_than_a_host_with_very_many_has_time_for(self, sockets: Sockets) -> None:
        for _ in range(3):
            sockets.udp("127.0.0.2", 9000)
        few = "module('.cli.near_misses')._MOST = 2"
        assert self.said("-t", TO_9000, patch=few) == ["at least 2 udp ESTABLISHED: -u"]

    def test_in_other_namespaces_unless_some_were_named(self, network: None) -> None:
        with pinned_networks("web", "db") as (web, db):
            clients = [net.make(lambda sockets: sockets.udp("127.0.0.2", 9000)) for net in (web, web, db)]
            assert self.said(TO_9000) == ["3 in 2 of 2 other network namespaces: --netns all"]
            assert self.said("--netns", "current", TO_9000) == []
            assert run("destroy", TO_9000, preexec=drop_privilege)[::2] == (0, "")
            assert [pending_error(client) for client in clients] == [""] * 3

    def test_an_interrupt_ends_the_search_and_nothing_else(self, sockets: Sockets) -> None:
        sockets.udp("127.0.0.2", 9000)
        patch = SIGNALLED.format(
            folder="cli", module="near_misses", kind="Counter", method="most_common", signal="SIGINT"
        )
        assert self.said("-t", TO_9000, patch=patch) == []


class TestSpared:
    """Each is skipped with its reason, which is no failure."""

    def reasons(self, *words: str, env: dict[str, str | None] | None = None) -> Counter[str]:
        result = run("destroy", "--json", *words, env=env)
        assert (result.code, result.err) == (0, "")
        return Counter(row["reason"] or row["outcome"] for row in result.json["sockets"])

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

    @pytest.mark.parametrize(("words", "reason"), [([], "not connected"), (["--unconnected"], "destroyed")])
    def test_udp_without_a_peer_unless_asked_for(self, sockets: Sockets, words: list[str], reason: str) -> None:
        bound = sockets.udp_bound("127.0.0.2", 53)
        assert self.reasons("sport = 53", *words) == {reason: 1}
        assert pending_error(bound) == ("ECONNABORTED" if words else "")

    @pytest.mark.parametrize(("limit", "destroyed"), [(1, 1), (3, 3), (4, 4), (5, 4)])
    def test_beyond_the_limit_all_protocols_and_families_together(
        self, crowd: Crowd, limit: int, destroyed: int
    ) -> None:
        assert +self.reasons("--limit", str(limit), TO_9000) == +Counter(destroyed=destroyed, limit=4 - destroyed)
        assert len(crowd.dead()) == destroyed

    def test_the_ssh_session_that_it_runs_in(self, crowd: Crowd) -> None:
        near, far = crowd.pairs["tcp ::ffff:127.0.0.2 9000"]
        session = f"127.0.0.1 {near.getsockname()[1]} 127.0.0.2 9000"
        reasons = self.reasons("--unbounded", "--tcp", "--state", "established", env={"SSH_CONNECTION": session})
        assert reasons["own session"] == 2
        assert pending_error(near) == pending_error(far) == ""


class TestProcesses:
    """`-p`: a verdict names the processes that held the socket before it was destroyed, as far as one may see."""

    def test_whoever_closes_it_at_once_is_named(self, sockets: Sockets) -> None:
        def client(pipe: Connection) -> None:
            made = sockets.udp("127.0.0.2", 9000)
            pipe.send(made.fileno())
            with pytest.raises(ConnectionAbortedError):
                made.recv(1)
            made.close()
            list(questions(pipe))

        with Child(client) as owner:
            patch = CLOSED_AT_ONCE.format(pid=owner.pid, fd=owner.receive())
            result = run("destroy", "-p", TO_9000, patch=patch)
            name = command_name(owner.pid)
        assert f' -> 127.0.0.2:9000 users:(("{name}",pid={owner.pid}' in result.out

    def test_all_that_hold_it_also_what_is_spared(self, sockets: Sockets) -> None:
        sockets.listen("127.0.0.2", 9000)
        sockets.udp("127.0.0.2", 9000)
        with Child(lambda pipe: list(questions(pipe))) as other:
            rows = run("destroy", "-p", "--json", "src 127.0.0.2 or dst 127.0.0.2").json["sockets"]
            pids = sorted((os.getpid(), other.pid))
        assert {row["outcome"] for row in rows} == {"skipped", "destroyed"}
        me = {"name": command_name(os.getpid()), "uid": os.getuid()}
        for row in rows:
            assert [process["pid"] for process in row["processes"]] == pids
            assert [process for process in row["processes"] if me.items() <= process.items()] == row["processes"]

    def test_of_one_that_may_not_be_seen_and_of_one_that_nobody_holds_any_more(self, sockets: Sockets) -> None:
        sockets.udp("127.0.0.2", 9000)
        sockets.fin_wait1("127.0.0.2", 9000)[0].close()
        words = ("destroy", "-p", "--dry-run", TO_9000)
        rows = run(*words, "--json", preexec=with_only()).json["sockets"]
        assert {row["state"]: row["processes"] for row in rows} == {"ESTABLISHED": None, "FIN_WAIT1": []}
        first, second, _ = run(*words, preexec=with_only()).out.splitlines()
        assert (first[-5:], second[-20:]) == (":9000", ":9000 process unseen")

    def test_without_it_nobody_reads_proc(self, sockets: Sockets) -> None:
        sockets.udp("127.0.0.2", 9000)
        never = "module('.kernel.processes').holders = None"
        result = run("destroy", "--json", TO_9000, patch=never)
        assert (counts(result), "processes" in result.json["sockets"][0]) == ({"matched": 1, "destroyed": 1}, False)


class TestFailures:
    """1: some sockets failed, each with its reason; the others are done."""

    def test_bound_udp_twins(self, sockets: Sockets) -> None:
        """The one that is found first answers 0 for ever, and hides the other."""
        twins = [sockets.udp_bound("127.0.0.2", 53, reuse_port=True) for _ in range(2)]
        client = sockets.udp("127.0.0.2", 9000)
        result = run("destroy", "--udp", "--unconnected", "--unbounded", "--json")
        assert (result.code, result.err) == (1, "")
        assert counts(result) == {"matched": 3, "destroyed": 2, "failed": 1}
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
        assert counts(result) == {"matched": 2, "destroyed": 1, "failed": 1}
        assert [row["reason"] for row in result.json["sockets"]] == ["", "interrupted, and perhaps destroyed"]
        assert (pending_error(client), pending_error(later)) == ("ECONNABORTED", "")


class TestEndedHalfWay:
    """By a signal, or for want of memory: after the batch at hand, with its records and its report."""

    COUNT = 100  # more than a batch of 64

    def ended(self, sockets: Sockets, patch: str, audit: Path) -> Result:
        clients = [sockets.udp("127.0.0.2", 9000) for _ in range(self.COUNT)]
        result = run("destroy", "--udp", "--json", "--audit", str(audit), TO_9000, patch=patch)
        dead = {cookie_of(client) for client in clients if pending_error(client)}
        said = result.json["sockets"]
        assert len(dead) == 64
        assert {row["cookie"] for row in said if row["outcome"] == "destroyed"} == dead
        assert (len(said), counts(result)["failed"]) == (self.COUNT, self.COUNT - 64)
        records = [json.loads(line) for line in audit.read_text().splitlines()]
        assert {(row["cookie"], row["outcome"]) for row in records} == {(row["cookie"], row["outcome"]) for row in said}
        return result

    @pytest.mark.parametrize(
        ("name", "text"), [("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "hung up")]
    )
    @pytest.mark.parametrize("where", ["kernel.diag.DiagSocket.destroy", "engine.audit.AuditFile.__call__"])
    def test_by_a_signal(self, sockets: Sockets, tmp_path: Path, where: str, name: str, text: str) -> None:
        patch = SIGNALLED.format(
            module=where.split(".")[1],
            folder=where.split(".")[0],
            kind=where.split(".")[2],
            method=where.split(".")[3],
            signal=name,
        )
        result = self.ended(sockets, patch, tmp_path / "audit")
        number = getattr(signal, name)
        assert (result.code, result.err, result.json["error"]) == (128 + number, f"socklb: {text}\n", text)

    def test_a_signal_that_comes_when_all_is_done_changes_nothing(self, sockets: Sockets) -> None:
        sockets.udp("127.0.0.2", 9000)
        patch = SIGNALLED.format(
            folder="engine", module="signals", kind="HeldSignals", method="release", signal="SIGTERM"
        )
        result = run("destroy", "--json", TO_9000, patch=patch)
        assert (result.code, result.err, counts(result)) == (0, "", {"matched": 1, "destroyed": 1})
        assert "error" not in result.json

    def test_for_want_of_memory(self, sockets: Sockets, tmp_path: Path) -> None:
        result = self.ended(sockets, OUT_OF_MEMORY, tmp_path / "audit")
        assert (result.code, result.err, result.json["error"]) == (1, "socklb: out of memory\n", "out of memory")

    def test_with_too_little_memory_for_its_report(self, sockets: Sockets) -> None:
        sockets.udp("127.0.0.2", 9000)
        result = run("destroy", "--json", TO_9000, patch=NO_ROOM_FOR_SOCKETS)
        assert (result.code, result.json["destroyed"]) == (1, 1)
        assert (
            f"socklb: {result.json['error']}\n" == result.err == "socklb: out of memory: the sockets are not listed\n"
        )

    def test_after_a_kill_nothing_is_imported(self, sockets: Sockets, tmp_path: Path) -> None:
        """There may be no memory for it."""
        for address in ("127.0.0.2", "::1"):
            sockets.udp(address, 9000)
        words = ("destroy", "--json", "--audit", str(tmp_path / "audit"), "dport = 9000")
        result = run(*words, patch=NO_MORE_IMPORTS)
        assert (result.code, result.err, len(result.json["sockets"])) == (0, "", 2)

    def test_for_want_of_memory_and_by_a_signal_that_comes_before_the_report(
        self, sockets: Sockets, tmp_path: Path
    ) -> None:
        signalled = SIGNALLED.format(
            folder="engine", module="audit", kind="AuditFile", method="close", signal="SIGTERM"
        )
        result = self.ended(sockets, OUT_OF_MEMORY + signalled, tmp_path / "audit")
        assert (result.code, result.err, result.json["error"]) == (143, "socklb: terminated\n", "terminated")

    def test_a_signal_that_is_ignored_stays_ignored(self, sockets: Sockets) -> None:
        """As under nohup, or in the background of a shell."""
        sockets.udp("127.0.0.2", 9000)
        patch = SIGNALLED.format(folder="kernel", module="diag", kind="DiagSocket", method="destroy", signal="SIGHUP")
        result = run("destroy", TO_9000, patch=patch, preexec=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        assert (result.code, result.err) == (0, "")


class TestWhatIsPrinted:
    """`--json`: a socket is an audit record without time, operation and actor. Else a line for each, and the sums."""

    def test_json(self, sockets: Sockets) -> None:
        client, _ = sockets.tcp("::ffff:127.0.0.2", 9000)
        (row,) = find_sockets(SocketFilter.parse(TO_9000, "tcp"))
        said = run("destroy", "--json", TO_9000).json
        assert said.pop("sockets") == [
            {
                "namespace": "current",
                "filter": str(SocketFilter.parse(TO_9000, "tcp")),
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
                "outcome": "destroyed",
                "reason": "",
                "error": None,
                "dry_run": False,
            }
        ]
        sums = {**dict.fromkeys(COUNTS, 0), "matched": 1, "destroyed": 1}
        (namespace,) = said.pop("namespaces")
        assert namespace.pop("path").endswith("/ns/net")
        assert namespace == {"name": "current", **sums, "error": None}
        rest = {"unsearched": [], "left_alone": [], "backends": {}, "conntrack": "off"}
        assert said == {"dry_run": False, **sums, **rest}

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

    def test_a_dry_run_says_in_each_form_what_would_be_destroyed_and_that_nothing_was(self, sockets: Sockets) -> None:
        client = sockets.udp("127.0.0.2", 9000)
        words = ("destroy", "--dry-run", TO_9000)
        said = run(*words, "--json").json
        assert (said["dry_run"], said["matched"], said["destroyed"], said["would_destroy"]) == (True, 1, 0, 1)
        line, last = run(*words).out.splitlines()
        assert line.startswith(f"would destroy udp ESTABLISHED 127.0.0.1:{client.getsockname()[1]} -> 127.0.0.2:9000")
        assert last == "1 matched: 1 would be destroyed, 0 skipped, 0 failed (dry run)"
        assert run(*words[:2], "dst 10.0.0.1").out.startswith("0 matched: 0 would be destroyed, ")
