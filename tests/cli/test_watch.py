"""`socklb watch`: told what changes, it cuts what falls; it ends as it is told to, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from socklb import Backend

from ..networks import pinned_networks
from ..sockets import Sockets, error_of, eventually, pending_error, talk
from .agent import Change, delete, replace, upsert, watch, watching
from .runner import closed_pipe, drop_privilege, run

pytestmark = pytest.mark.kernel

A, B, C = (Backend(f"127.0.0.{n}", 9000, "udp") for n in (2, 3, 4))
ABORTED = "ECONNABORTED"
HOST = ("--netns", "host")
SLOW_SOURCE = """
import time
protocol = module(".sources.lines")
parse_line = protocol.parse_line
def slowly(line):
    time.sleep(0.3)
    return parse_line(line)
protocol.parse_line = slowly
"""
SLOW_FILE = """
import time
source = module(".sources.file")
apply = source._apply
def slowly(content, table):
    time.sleep(0.3)
    return apply(content, table)
source._apply = slowly
"""
FAILS_ONCE = """
DiagSocket = module(".kernel.diag").DiagSocket
destroy = DiagSocket.destroy
failed = []
def fail_once(self, requests, doing):
    if failed or doing != "destroy udp sockets in host":
        return destroy(self, requests, doing)
    failed.append(doing)
    return [5] * len(requests)
DiagSocket.destroy = fail_once
"""
CONNECTS_MEANWHILE = """
import socket
loop = module(".termination.loop")
cut = loop.terminate
def cut_and_connect(*arguments, **options):
    report = cut(*arguments, **options)
    late = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    late.connect(("127.0.0.2", 9000))
    late.detach()
    return report
loop.terminate = cut_and_connect
"""


def to(sockets: Sockets, backend: Backend) -> socket.socket:
    return sockets.udp(str(backend.address), backend.port)


def is_cut(client: socket.socket) -> bool:
    """However often it is asked: the pending error would be told once."""
    return error_of(client.getpeername) == "ENOTCONN"


def lines(*changes: Change | str) -> str:
    return "".join((change if isinstance(change, str) else json.dumps(change)) + "\n" for change in changes)


class TestLines:
    """Changes on standard input. What falls is cut; at the end of the input, after the last batch, it ends with 0."""

    def test_what_is_deleted_is_cut_and_nobody_else(self, sockets: Sockets) -> None:
        doomed, mapped = to(sockets, A), sockets.udp("::ffff:127.0.0.2", 9000)
        other, (client, server) = to(sockets, B), sockets.tcp("127.0.0.2", 9000)
        with watching() as agent:
            agent.tell(upsert(A), upsert(B))
            agent.tell(delete(A))
            eventually(lambda: is_cut(doomed), "the cut")
            assert agent.end() == (0, f"{A}: 2 matched: 2 destroyed, 0 gone, 0 skipped, 0 failed\n", "")
        assert (pending_error(mapped), pending_error(other)) == (ABORTED, "")
        talk(client, server)

    def test_all_that_was_told_is_done_when_the_input_ends(self, sockets: Sockets) -> None:
        clients = [to(sockets, backend) for backend in (A, B, C)]
        told = lines(upsert(A), upsert(B), upsert(C), delete(A), replace(C)).rstrip("\n")
        result = watch(stdin=told)
        assert (result.code, result.err, len(result.out.splitlines())) == (0, "", 2)
        assert [is_cut(client) for client in clients] == [True, True, False]

    def test_the_second_look_is_waited_for(self, sockets: Sockets) -> None:
        """It catches what was connecting meanwhile, here the agent itself after each pass."""
        to(sockets, A)
        result = watch(stdin=lines(upsert(A), delete(A)), patch=CONNECTS_MEANWHILE)
        assert (result.code, result.err) == (0, "")
        assert result.out == f"{A}: 1 matched: 1 destroyed, 0 gone, 0 skipped, 0 failed\n" * 2

    def test_a_backend_that_two_services_share_is_cut_when_the_last_lets_go(self, sockets: Sockets) -> None:
        client = to(sockets, A)
        with watching(*HOST) as agent:
            agent.tell(upsert(A, service="one"), upsert(A, service="two"), upsert(B))
            agent.tell(delete(A, service="one"), delete(B))
            agent.said(f"{B}: ")
            assert pending_error(client) == ""
            agent.tell(delete(A, service="two"))
            eventually(lambda: is_cut(client), "the cut")

    @pytest.mark.parametrize(
        ("change", "falls"),
        [
            ({"state": "terminating"}, False),
            ({"state": "active"}, False),
            ({"state": "quarantined"}, True),
            ({"state": "maintenance"}, True),
            ({"unhealthy": True}, True),
        ],
        ids=str,
    )
    def test_terminating_is_alive(self, sockets: Sockets, change: Change, falls: bool) -> None:
        client = to(sockets, A)
        assert watch(*HOST, stdin=lines(upsert(A), upsert(A, **change)))[::2] == (0, "")
        assert is_cut(client) == falls

    def test_nothing_is_cut_at_the_start_nor_for_a_backend_never_told_to_be_there(self, sockets: Sockets) -> None:
        clients = [to(sockets, backend) for backend in (A, B, C)]
        told = lines(upsert(A), upsert(B, state="quarantined"), delete(B), delete(C))
        assert watch(stdin=told) == (0, "", "")
        assert [pending_error(client) for client in clients] == ["", "", ""]

    def test_a_backend_that_is_back_within_the_batch_is_not_cut(self, sockets: Sockets) -> None:
        client = to(sockets, A)
        assert watch(stdin=lines(upsert(A), delete(A), upsert(A))) == (0, "", "")
        assert pending_error(client) == ""

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            ('{"op": "delete"', "no JSON: "),
            ("[]", "a change is an object, not an array"),
            ('{"op": "remove"}', "op is upsert, delete or replace, not 'remove'"),
            ('{"op": "delete", "backend": "127.0.0.2:9000"}', "'127.0.0.2:9000' names no protocol"),
            ('{"op": "upsert", "backend": "127.0.0.2:9000/UDP", "unhealty": true}', "unknown key 'unhealty'"),
            ('{"op": "upsert", "backend": "127.0.0.2:9000/UDP", "state": "up"}', "not 'up'"),
        ],
    )
    def test_a_bad_line_is_told_with_its_number_and_the_next_counts(self, sockets: Sockets, bad: str, why: str) -> None:
        client = to(sockets, A)
        result = watch(stdin=lines(upsert(A), "", bad, delete(A)))
        assert (result.code, is_cut(client)) == (0, True)
        (line,) = result.err.splitlines()
        assert line.startswith("socklb: line 3 is passed over: ")
        assert why in line


class TestSignals:
    """SIGTERM ends it with 0, SIGINT with 130, both after the batch at hand."""

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    @pytest.mark.parametrize("patch", ["", SLOW_SOURCE], ids=["", "a line that is still being read"])
    def test_what_has_been_told_is_cut(self, sockets: Sockets, number: int, code: int, patch: str) -> None:
        client, other = to(sockets, A), to(sockets, B)
        with watching(*HOST, patch=patch) as agent:
            agent.tell(upsert(A), upsert(B), delete(A))
            assert agent.stop(number) == (code, f"{A}: 1 matched: 1 destroyed, 0 gone, 0 skipped, 0 failed\n", "")
        assert (is_cut(client), pending_error(other)) == (True, "")

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    @pytest.mark.parametrize("source", ["-", "/run/backends.json"])
    def test_when_there_is_nothing_to_do(self, network: None, number: int, code: int, source: str) -> None:
        with watching(source=source) as agent:
            assert agent.stop(number)[:2] == (code, "")

    def test_the_second_look_is_not_waited_for(self, sockets: Sockets) -> None:
        to(sockets, A)
        with watching(*HOST, patch=CONNECTS_MEANWHILE, second_look=60) as agent:
            agent.tell(upsert(A), delete(A))
            agent.said("1 destroyed")
            result = agent.stop()
        assert (result.code, len(result.out.splitlines())) == (0, 1)

    def test_one_that_is_ignored_stays_ignored(self, sockets: Sockets) -> None:
        """Who starts it in the background of a shell script does not mean it by Ctrl-C."""
        client = to(sockets, A)
        with watching(*HOST, preexec=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as agent:
            agent.process.send_signal(signal.SIGINT)
            agent.tell(upsert(A), delete(A))
            eventually(lambda: is_cut(client), "the cut")
            assert agent.stop().code == 0


class Followed:
    """A file that is followed; it tells when it is read, by its time of access."""

    def __init__(self, directory: str) -> None:
        self.path = Path(directory, "backends.json")

    def put(self, text: str) -> None:
        """Atomically, as the help text asks for; and wait until it is read."""
        new = self.path.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        os.utime(new, (0, os.stat(new).st_mtime))
        new.rename(self.path)
        eventually(lambda: os.stat(self.path).st_atime > 0, "the file is read")


@pytest.fixture
def followed(network: None) -> Iterator[Followed]:
    with tempfile.TemporaryDirectory(dir="/run") as directory:
        yield Followed(directory)


class TestFile:
    """A FILE holds one replace, and is followed."""

    def test_what_is_no_longer_in_it_is_cut(self, sockets: Sockets, followed: Followed) -> None:
        clients = [to(sockets, backend) for backend in (A, B)]
        with watching(*HOST, source=str(followed.path)) as agent:
            agent.said("cannot be read: No such file or directory; the last table stays")
            followed.put(json.dumps(replace(A, B)))
            followed.put(json.dumps(replace(B)))
            eventually(lambda: is_cut(clients[0]), "the cut")
            assert pending_error(clients[1]) == ""
            followed.path.write_text('{"op": "replace", "backends": []}', encoding="utf-8")  # in place
            eventually(lambda: is_cut(clients[1]), "the other cut")
            result = agent.stop()
        assert (result.code, len(result.err.splitlines())) == (0, 1)

    def test_what_is_wrong_with_it_is_told_and_the_last_table_stays(self, sockets: Sockets, followed: Followed) -> None:
        client = to(sockets, A)
        with watching(*HOST, source=str(followed.path)) as agent:
            followed.put(json.dumps(replace(A)))
            followed.put("")
            agent.said("is empty; the last table stays")
            followed.put('{"op": "replace", "backe')
            agent.said("does not hold a replace: no JSON")
            followed.put(json.dumps(delete(A)))
            agent.said('its op is not "replace"')
            followed.path.unlink()
            agent.said("cannot be read")
            assert agent.stop()[:2] == (0, "")
        assert pending_error(client) == ""

    def test_what_it_held_last_is_cut_when_the_signal_comes(self, sockets: Sockets, followed: Followed) -> None:
        client = to(sockets, A)
        with watching(*HOST, source=str(followed.path), patch=SLOW_FILE) as agent:
            followed.put(json.dumps(replace(A, B)))
            followed.put(json.dumps(replace(B)))
            assert agent.stop().code == 0
        assert is_cut(client)


class TestNamespaces:
    """In all namespaces of the host unless told otherwise; one that appears later is seen by the next pass."""

    def test_one_that_appears_later(self, sockets: Sockets) -> None:
        near = to(sockets, A)
        with watching() as agent:
            agent.tell(upsert(A), upsert(B), delete(A))
            eventually(lambda: is_cut(near), "the cut")
            with pinned_networks("later") as (later,):
                far = later.make(lambda s: to(s, B))
                agent.tell(delete(B))
                eventually(lambda: is_cut(far), "the cut there")
                assert agent.end()[::2] == (0, "")

    def test_those_asked_for(self, sockets: Sockets) -> None:
        with pinned_networks("web", "db") as nets:
            far = [net.make(lambda s: to(s, A)) for net in nets]
            near = to(sockets, A)
            told = lines(upsert(A), delete(A))
            assert watch("--netns", "web", stdin=told)[::2] == (0, "")
            assert [pending_error(client) for client in (near, *far)] == ["", ABORTED, ""]

    def test_one_that_is_gone_is_told_once_and_the_others_are_done(self, sockets: Sockets) -> None:
        clients = [to(sockets, backend) for backend in (A, B)]
        with ExitStack() as pins:
            pins.enter_context(pinned_networks("web"))
            with watching(*HOST, "--netns", "web") as agent:
                agent.tell(upsert(A), upsert(B))
                pins.close()
                agent.tell(delete(A))
                eventually(lambda: is_cut(clients[0]), "the cut")
                agent.tell(delete(B))
                result = agent.end()
        assert (result.code, is_cut(clients[1])) == (0, True)
        assert result.err.count("no network namespace is pinned as 'web'") == 1


class TestItStaysAlive:
    """An agent outlives who reads what it says, and who lived in the namespaces it looks into."""

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_whose_reader_went_away(self, sockets: Sockets, stream: str) -> None:
        clients = [to(sockets, backend) for backend in (A, B)]
        with closed_pipe() as writer, watching(*HOST, **{stream: writer}) as agent:  # type: ignore[arg-type]
            agent.tell(upsert(A), upsert(B), "nonsense", delete(A))
            eventually(lambda: is_cut(clients[0]), "the cut")
            agent.tell("more nonsense", delete(B))
            eventually(lambda: is_cut(clients[1]), "the other cut")
            assert agent.end().code == 0

    @pytest.mark.parametrize("descriptor", [1, 2])
    def test_that_never_had_one(self, sockets: Sockets, descriptor: int) -> None:
        client = to(sockets, A)
        with watching(*HOST, preexec=lambda: os.close(descriptor)) as agent:
            agent.tell(upsert(A), "nonsense", delete(A))
            assert agent.end().code == 0
        assert is_cut(client)

    def test_without_leaving_threads_descriptors_or_children(self, sockets: Sockets) -> None:
        with pinned_networks("web", "db") as nets, watching() as agent:
            eventually(lambda: agent.threads() == 2, "it reads its input")
            at_rest = (2, agent.descriptors())
            for _ in range(12):
                clients = [net.make(lambda s: to(s, A)) for net in nets]
                agent.tell(upsert(A), delete(A))
                eventually(lambda clients=clients: all(map(is_cut, clients)), "the cuts")  # type: ignore[misc]
            eventually(lambda: (agent.threads(), agent.descriptors()) == at_rest, "it is at rest again")
            assert agent.children() == []
            assert agent.stop()[::2] == (0, "")


class TestItCannotStart:
    """What is wrong is told when it is started, and not when it is needed."""

    @pytest.mark.parametrize("netns", [(), HOST], ids=["all", "host"])
    def test_without_privilege(self, network: None, netns: tuple[str, ...]) -> None:
        result = run("watch", "--source", "-", *netns, preexec=drop_privilege, stdin=lines(upsert(A), delete(A)))
        assert (result.code, result.out) == (4, "")
        assert "CAP_NET_ADMIN" in result.err

    def test_where_the_kernel_cannot(self, network: None) -> None:
        patch = "module('.kernel.diag').DiagSocket.destroy = lambda self, requests, doing: [95] * len(requests)"
        result = run("watch", "--source", "-", patch=patch)
        assert (result.code, result.out) == (3, "")
        assert "CONFIG_INET_DIAG_DESTROY" in result.err

    def test_where_it_is_interrupted(self, network: None) -> None:
        patch = "def interrupt(): raise KeyboardInterrupt\nmodule('.cli.watch').probe = interrupt"
        assert run("watch", "--source", "-", patch=patch) == (130, "", "socklb: interrupted\n")

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ((), "--source"),
            (("--source",), "--source"),
            (("--source", "-", "--netns", "nosuch"), "'nosuch'"),
            (("--source", "-", "--netns", "/run/nosuch"), "/run/nosuch"),
            (("--source", "-", "--audit", "/nonexistent/audit"), "/nonexistent/audit cannot be opened"),
            (("--source", "-", "--rev-nat=/nonexistent"), "no directory /nonexistent"),
            (("--source", "-", "--rev-nat", "/nonexistent"), "/nonexistent"),
            (("--source", "-", "127.0.0.2:9000/UDP"), "127.0.0.2:9000/UDP"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_on_bad_input(self, sockets: Sockets, words: tuple[str, ...], said: str) -> None:
        client = to(sockets, A)
        result = run("watch", *words, stdin=lines(upsert(A), delete(A)))
        assert (result.code, result.out, pending_error(client)) == (2, "", "")
        assert said in result.err
        assert "Traceback" not in result.err

    def test_without_a_standard_input(self, network: None) -> None:
        result = run("watch", "--source", "-", preexec=lambda: os.close(0))
        assert result == (2, "", "socklb: --source -: standard input is closed\n")

    def test_with_a_standard_input_that_cannot_be_read(self, network: None) -> None:
        with tempfile.TemporaryFile("w") as written:
            descriptor = os.open(f"/proc/self/fd/{written.fileno()}", os.O_WRONLY)
            try:
                result = run("watch", "--source", "-", preexec=lambda: os.dup2(descriptor, 0))
            finally:
                os.close(descriptor)
        assert result == (1, "", "socklb: the source cannot be read: Bad file descriptor\n")


def test_what_fails_is_attempted_again(sockets: Sockets) -> None:
    """And then it is cut all the same."""
    client = to(sockets, A)
    patch = FAILS_ONCE
    with watching(*HOST, patch=patch) as agent:
        agent.tell(upsert(A), delete(A))
        agent.said(f"{A}: 1 matched: 0 destroyed, 0 gone, 0 skipped, 1 failed")
        agent.said(f"{A}: 1 matched: 1 destroyed, 0 gone, 0 skipped, 0 failed")
        assert agent.stop().code == 0
    assert is_cut(client)
