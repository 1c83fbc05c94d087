"""`--conntrack`, `--no-conntrack` and `--external` of terminate and watch, and what both say of conntrack."""

from __future__ import annotations

import json
import socket
from typing import NamedTuple

import pytest

from ..nat import BACKEND_PORT, NODE, NODE_PORT, VIP4, Node, Pod, ask
from ..sockets import Sockets, error_of, pending_error
from .agent import delete, lines, second_pass_after, upsert, watch, watching, without_zeros
from .runner import Preexec, Result, drop_privilege, run
from .test_destroy import counts
from .test_flows import ABSENT

pytestmark = pytest.mark.kernel

UDP = "10.9.0.2:9000/UDP"
SOON = 'module(".termination.terminate").LOOKS = module(".termination.schedule").LOOKS = (0.01, 0.01)\n'
LEFT_OUT = "clients of service addresses are left out"
NOT_PERMITTED = f"conntrack is not permitted: where CAP_NET_ADMIN is missing, {LEFT_OUT}"


class Cannot(NamedTuple):
    """Why it cannot be asked, and what is said of that."""

    status: str
    code: int
    missing: str
    said: str
    preexec: Preexec = None
    patch: str = ""


CANNOT = pytest.mark.parametrize(
    "why",
    [
        Cannot("absent", 3, "CONFIG_NF_CT_NETLINK", f"conntrack is absent: {LEFT_OUT}", patch=ABSENT),
        Cannot("not permitted", 4, "CAP_NET_ADMIN", NOT_PERMITTED, preexec=drop_privilege),
    ],
    ids=lambda why: why.status,
)
INTERRUPTED_WHILE_IT_WAITS = """
import os, signal
def sleep(seconds): os.kill(os.getpid(), signal.SIGINT)
module(".termination.terminate").sleep = sleep
"""
COMES_LATER = """
from itertools import count
ConntrackTable, errors = module(".conntrack.table").ConntrackTable, module(".errors")
usual, calls = ConntrackTable.count, count()
def absent_at_first(self):
    if next(calls) < 2:
        raise errors.NotSupported(22, "no conntrack")
    return usual(self)
ConntrackTable.count = absent_at_first
"""
"""A patch: neither when it starts nor in the first pass."""


def of(pod: Pod) -> list[str]:
    return [f"{pod.v4}:{BACKEND_PORT}/{protocol}" for protocol in ("TCP", "UDP")]


def clients_of_a_dead_pod(node: Node) -> tuple[socket.socket, socket.socket]:
    """Over TCP and UDP."""
    node.balance(node.a)
    tcp, udp = (node.client.connect(protocol, VIP4) for protocol in ("tcp", "udp"))
    assert [ask(client) for client in (tcp, udp)] == ["A", "A"]
    node.a.die()
    node.balance(node.b)
    return tcp, udp


def terminate(node: Node, *words: str, patch: str = SOON) -> Result:
    """But not in `outside`, which stands for another machine."""
    return run("terminate", *of(node.a), "--netns", "current", "--netns", "client", *words, patch=patch)


class TestTerminate:
    def test_tcp_is_cut_and_udp_rerouted(self, node: Node) -> None:
        tcp, udp = clients_of_a_dead_pod(node)
        result = terminate(node, "--json")
        assert (result.code, result.err, result.json["conntrack"]) == (0, "", "done")
        assert counts(result) == {"matched": 2, "destroyed": 1, "rerouted": 1}
        assert (pending_error(tcp), ask(udp)) == ("ECONNABORTED", "B")
        first, second = result.json["sockets"]
        for row, outcome, backend in ((first, "destroyed", of(node.a)[0]), (second, "rerouted", of(node.a)[1])):
            assert (row["outcome"], row["backend"], row["service"], row["zone"]) == (outcome, backend, f"{VIP4}:80", 0)
            assert row["conntrack_id"] > 0
        assert (first["namespace"], second["namespace"]) == ("client", "current")
        assert (first["cookie"] > 0, second["cookie"]) == (True, None)

    def test_a_dry_run_says_so_in_lines_that_name_service_and_backend(self, node: Node) -> None:
        tcp, udp = clients_of_a_dead_pod(node)
        ports = [client.getsockname()[1] for client in (tcp, udp)]
        *rows, last = terminate(node, "--dry-run").out.splitlines()
        assert rows == [
            f"would destroy tcp ESTABLISHED {node.client.v4}:{ports[0]} -> {VIP4}:80 to {node.a.v4}:8080 in client",
            f"would destroy udp -           {node.client.v4}:{ports[1]} -> {VIP4}:80 to {node.a.v4}:8080",
        ]
        assert last == "2 matched: 2 would be destroyed, 0 skipped, 0 failed (dry run)"
        assert (error_of(tcp.getpeername), ask(udp, patience=0.2)) == ("", "timeout")

    def test_without_it_nobody_looks_there(self, node: Node) -> None:
        _, udp = clients_of_a_dead_pod(node)
        result = terminate(node, "--no-conntrack", "--json")
        assert (result.code, result.err, counts(result), result.json["conntrack"]) == (0, "", {}, "off")
        assert ask(udp, patience=0.2) == "timeout"

    def test_whose_socket_is_elsewhere_is_cut_on_request(self, node: Node) -> None:
        node.balance(node.a)
        elsewhere = node.outside.connect("tcp", NODE, NODE_PORT)
        assert ask(elsewhere) == "A"
        node.a.die()
        node.balance(node.b)
        spared = terminate(node, "--json")
        assert [(row["outcome"], row["reason"]) for row in spared.json["sockets"]] == [("skipped", "no local socket")]
        cleared = terminate(node, "--external")
        assert cleared.out.splitlines()[-1] == "1 matched: 0 destroyed, 1 cleared, 0 gone, 0 skipped, 0 failed"
        assert ask(elsewhere) == "ECONNRESET"

    def test_an_interrupt_while_it_waits_to_look_again(self, node: Node) -> None:
        clients_of_a_dead_pod(node)
        result = terminate(node, "--json", patch=INTERRUPTED_WHILE_IT_WAITS)
        assert (result.code, result.json["error"], result.err) == (130, "interrupted", "socklb: interrupted\n")
        assert counts(result) == {"matched": 2, "destroyed": 1, "rerouted": 1}


@CANNOT
class TestWhereItCannotBeAsked:
    """It is said, once, and is an error where it was required."""

    @pytest.mark.parametrize("dry_run", [False, True])
    def test_terminate(self, network: None, why: Cannot, dry_run: bool) -> None:
        words = ["terminate", "--netns", "current", UDP, *(["--dry-run"] if dry_run else [])]
        result = run(*words, "--json", preexec=why.preexec, patch=why.patch)
        there = "; the real run would look there" if dry_run and why.code == 4 else ""
        assert (result.code, result.err, result.json["conntrack"]) == (0, f"socklb: {why.said}{there}\n", why.status)
        assert run(*words, preexec=why.preexec, patch=why.patch)[::2] == (0, result.err)

    def test_terminate_where_it_is_required(self, sockets: Sockets, why: Cannot) -> None:
        client = sockets.udp("10.9.0.2", 9000)
        result = run("terminate", "--conntrack", "--json", UDP, preexec=why.preexec, patch=why.patch)
        assert (result.code, counts(result), result.json["conntrack"]) == (why.code, {}, why.status)
        assert why.missing in result.json["error"]
        assert result.err == f"socklb: {result.json['error']}\n"
        assert pending_error(client) == ""

    def test_watch_where_it_is_required(self, network: None, why: Cannot) -> None:
        result = watch("--conntrack", "--dry-run", stdin="", preexec=why.preexec, patch=why.patch)
        assert (result.code, result.out, why.missing in result.err) == (why.code, "", True)

    def test_watch_says_it_when_it_starts_and_no_more(self, network: None, why: Cannot) -> None:
        words = ("watch", "--source", "-", "--netns", "current", "--dry-run")
        result = run(*words, stdin=lines(upsert(UDP), delete(UDP)), preexec=why.preexec, patch=why.patch)
        assert result.code == 0
        assert f"; {why.said}" in result.err.splitlines()[0]
        assert result.err.count("conntrack is ") == 1


class TestWatch:
    def test_a_line_for_what_is_cut_and_none_for_a_look_that_finds_nothing(self, node: Node) -> None:
        node.balance(node.a)
        elsewhere = node.outside.connect("tcp", NODE, NODE_PORT)
        assert ask(elsewhere) == "A"
        tcp, udp = clients_of_a_dead_pod(node)
        with watching("--netns", "current", "--netns", "client", "--external", patch=SOON) as agent:
            agent.send(*map(upsert, of(node.a)), *map(delete, of(node.a)))
            agent.wait_for("rerouted")
            result = agent.end()
        backends = ", ".join(of(node.a))
        assert result == (0, f"{backends}: 3 matched: 1 destroyed, 1 rerouted, 1 cleared\n", "")
        assert (pending_error(tcp), ask(udp), ask(elsewhere)) == ("ECONNABORTED", "B", "ECONNRESET")

    def test_who_is_spared_is_said_once(self, sockets: Sockets) -> None:
        """Here an ssh session of its own, however often it is found."""
        session, _ = sockets.tcp("10.9.0.2", 9000)
        environment = {"SSH_CONNECTION": f"10.9.0.2 9000 10.9.0.1 {session.getsockname()[1]}"}
        words = ("watch", "--source", "-", "--netns", "current")
        stdin = lines(upsert("10.9.0.2:9000/TCP"), delete("10.9.0.2:9000/TCP"))
        result = run(*words, stdin=stdin, env=environment, patch=second_pass_after(0.05))
        assert without_zeros(result.out) == "10.9.0.2:9000/TCP: 1 matched: 0 destroyed, 1 skipped\n"

    def test_each_line_says_what_became_of_it_and_a_change_is_said(self, network: None) -> None:
        with watching("--netns", "current", "--log-json", patch=COMES_LATER) as agent:
            agent.send(upsert(UDP), delete(UDP))
            agent.wait_for("can be asked now")  # the second pass, which has no line of its own
            agent.send(upsert(UDP), delete(UDP))
            result = agent.end()
        passes = [json.loads(line) for line in result.out.splitlines()]
        assert [done["conntrack"] for done in passes] == ["absent", "done"]
        said = [json.loads(line)["message"] for line in result.err.splitlines()]
        assert [text for text in said if text.startswith("conntrack")] == ["conntrack can be asked now"]

    def test_it_says_that_it_does_not_look(self, network: None) -> None:
        words = ("watch", "--source", "-", "--netns", "current", "--no-conntrack", "--log-json")
        result = run(*words, stdin=lines(upsert(UDP), delete(UDP)))
        assert "; --no-conntrack; " in json.loads(result.err)["message"]
        assert json.loads(result.out)["conntrack"] == "off"


@pytest.mark.parametrize("command", [("terminate", UDP), ("watch", "--source", "-")], ids=lambda words: words[0])
@pytest.mark.parametrize("other", ["--conntrack", "--external"])
def test_usage(network: None, command: tuple[str, ...], other: str) -> None:
    result = run(*command, "--no-conntrack", other)
    assert (result.code, result.out) == (2, "")
    assert f"socklb {command[0]}: error: argument {other}: not allowed with argument --no-conntrack" in result.err
