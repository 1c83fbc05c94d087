"""`socklb watch`: sent changes, it cuts what goes down; it ends as it is told to, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from socklb import Backend

from ..children import Child
from ..networks import Network, networks, pinned_networks
from ..sockets import Sockets, error_of, eventually, pending_error, talk
from .agent import delete, lines, replace, upsert, watch, watching, without_start
from .runner import answers, closed_pipe, drop_privilege, run
from .test_probe import NO_UDP_DIAG, NO_V6

pytestmark = pytest.mark.kernel

A, B, C = (Backend(f"10.9.0.{n}", 9000, "udp") for n in (2, 3, 4))
ABORTED = "ECONNABORTED"
CURRENT = ("--netns", "current")
ONE_CUT = f"{A}: 1 matched: 1 destroyed\n"
SLOW_SOURCES = """
import time
lines, file = module(".sources.lines"), module(".sources.file")
parse_line, apply = lines.parse_line, file._apply
lines.parse_line = lambda *arguments: time.sleep(0.3) or parse_line(*arguments)
file._apply = lambda *arguments: time.sleep(0.3) or apply(*arguments)
"""
FAILS_ONCE = """
DiagSocket = module(".kernel.diag").DiagSocket
destroy = DiagSocket.destroy
failed = []
def fail_once(self, requests, doing):
    if failed or doing != "destroy udp sockets in current":
        return destroy(self, requests, doing)
    failed.append(doing)
    return [5] * len(requests)
DiagSocket.destroy = fail_once
"""
CONNECTS_MEANWHILE = """
import socket
loop = module(".termination.loop")
terminate = loop.terminate
def terminate_and_connect(*arguments, **options):
    report = terminate(*arguments, **options)
    late = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    late.connect(("10.9.0.2", 9000))
    late.detach()
    return report
loop.terminate = terminate_and_connect
"""


SIGNALS_TWICE = """
import os
DiagSocket = module(".kernel.diag").DiagSocket
destroy = DiagSocket.destroy
def destroy_and_signal(self, requests, doing):
    answers = destroy(self, requests, doing)
    if doing == "destroy udp sockets in current":
        os.kill(os.getpid(), {number})
        os.kill(os.getpid(), {number})
    return answers
DiagSocket.destroy = destroy_and_signal
"""
HUNG_SOURCE = """
import threading
module(".sources.lines").LineSource.follow = lambda *arguments: threading.Event().wait()
module(".cli.watch")._SOURCE_SECONDS = 0.01
"""
IMPATIENT = 'module(".cli.outlet").PATIENCE_SECONDS = 0.05\n'
SOON = 'module(".termination.schedule").PAUSES = (0.02,) * 1000\n'
SIGNALLED = """
import os, signal
cli, watch, outlet = module(".cli"), module(".cli.watch"), module(".cli.outlet")
usual = {owner}.{function}
def signalled(*arguments):
    os.kill(os.getpid(), signal.{signal})
    return usual(*arguments)
{owner}.{function} = signalled
"""


@pytest.fixture
def sockets(sockets: Sockets) -> Sockets:
    """With addresses that are the same in every namespace, unlike loopback."""
    return sockets


def far(net: Network, backend: Backend) -> socket.socket:
    return net.make(lambda sockets: to(sockets, backend))


def to(sockets: Sockets, backend: Backend) -> socket.socket:
    return sockets.udp(str(backend.address), backend.port)


def is_cut(client: socket.socket) -> bool:
    """However often it is asked: a pending error is given once."""
    return error_of(client.getpeername) == "ENOTCONN"


class TestLines:
    """Changes on standard input. What goes down is cut; at the end of the input, after the last batch, it ends."""

    def test_what_is_deleted_is_cut_and_nobody_else(self, sockets: Sockets) -> None:
        doomed, mapped = to(sockets, A), sockets.udp("::ffff:10.9.0.2", 9000)
        other, (client, server) = to(sockets, B), sockets.tcp("10.9.0.2", 9000)
        with watching() as agent:
            agent.send(upsert(A), upsert(B), upsert(C, state="quarantined"))
            agent.send(delete(A), delete(C))
            eventually(lambda: is_cut(doomed), "the cut")
            assert agent.end() == (0, f"{A}: 2 matched: 2 destroyed\n", "")
        assert (pending_error(mapped), pending_error(other)) == (ABORTED, "")
        talk(client, server)

    def test_all_is_done_when_the_input_ends(self, sockets: Sockets) -> None:
        clients = [to(sockets, backend) for backend in (A, B, C)]
        changes = lines(upsert(A), upsert(B), upsert(C), delete(A), replace(C)).rstrip("\n")
        result = watch(stdin=changes)
        assert result == (0, f"{A}, {B}: 2 matched: 2 destroyed\n", "")
        assert [is_cut(client) for client in clients] == [True, True, False]

    def test_the_second_pass_is_waited_for(self, sockets: Sockets) -> None:
        """It catches what was connecting meanwhile, here the agent itself after each pass."""
        to(sockets, A)
        assert watch(stdin=lines(upsert(A), delete(A)), patch=CONNECTS_MEANWHILE) == (0, ONE_CUT * 2, "")

    def test_a_bad_line_is_reported_by_its_number_and_the_next_counts(self, sockets: Sockets) -> None:
        client = to(sockets, A)
        result = watch(stdin=lines(upsert(A), "", upsert(A, unhealty=True), delete(A)))
        assert (result.code, is_cut(client)) == (0, True)
        (line,) = result.err.splitlines()
        assert line.startswith("socklb: line 3 is passed over: unknown key 'unhealty'")

    def test_what_fails_is_attempted_again(self, sockets: Sockets) -> None:
        """And then it is cut all the same."""
        client = to(sockets, A)
        with watching(*CURRENT, patch=FAILS_ONCE) as agent:
            agent.send(upsert(A), delete(A))
            agent.wait_for(f"{A}: 1 matched: 0 destroyed, 1 failed\n{ONE_CUT}")
            assert agent.stop().code == 0
        assert is_cut(client)


class TestChurn:
    """Owners that close while they are about to be cut: whatever has become of their sockets, nothing has failed."""

    BACKEND = Backend("10.9.0.2", 9000, "tcp")

    def churn(self, pipe: Connection) -> None:
        """Connections that live for a moment; who is cut just tries again."""
        with Sockets() as sockets:
            listener = sockets.listen("10.9.0.2", 9000)
            pipe.send("listening")
            alive: deque[socket.socket] = deque()
            while not pipe.poll():
                with suppress(OSError):
                    alive.append(socket.create_connection(("10.9.0.2", 9000)))
                    alive.append(listener.accept()[0])
                while len(alive) > 30:
                    alive.popleft().close()
                time.sleep(0.002)  # the ports of those in TIME_WAIT have to last
            for each in alive:
                each.close()

    def test_nothing_fails(self, sockets: Sockets) -> None:
        with Child(self.churn) as child:
            child.receive()
            with watching(*CURRENT) as agent:
                for number in range(1, 11):
                    agent.send(upsert(self.BACKEND), delete(self.BACKEND))
                    eventually(lambda n=number: agent.out.count("\n") >= n, "a cut")  # type: ignore[misc]
                result = agent.end()
        assert (result.code, result.err) == (0, "")
        assert "destroyed" in result.out
        assert "failed" not in result.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
class TestSignals:
    """SIGTERM ends it with 0, SIGINT with 130, both after the batch at hand."""

    @pytest.mark.parametrize("patch", ["", SLOW_SOURCES], ids=["", "a line that is still being read"])
    def test_what_was_sent_is_cut(self, sockets: Sockets, number: int, code: int, patch: str) -> None:
        client, other = to(sockets, A), to(sockets, B)
        with watching(*CURRENT, patch=patch) as agent:
            agent.send(upsert(A), upsert(B), delete(A))
            assert agent.stop(number) == (code, ONE_CUT, "")
        assert (is_cut(client), pending_error(other)) == (True, "")

    @pytest.mark.parametrize("source", ["-", "/run/backends.json"])
    def test_when_there_is_nothing_to_do(self, network: None, number: int, code: int, source: str) -> None:
        with watching(source=source) as agent:
            assert agent.stop(number)[:2] == (code, "")

    def test_the_second_pass_is_not_waited_for(self, sockets: Sockets, number: int, code: int) -> None:
        to(sockets, A)
        with watching(*CURRENT, patch=CONNECTS_MEANWHILE, second_pass=60) as agent:
            agent.send(upsert(A), delete(A))
            agent.wait_for("1 destroyed")
            assert agent.stop(number) == (code, ONE_CUT, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_second_signal_ends_it_after_the_batch_at_hand(sockets: Sockets, number: int, code: int) -> None:
    """Both come while the first batch of 150 sockets is destroyed."""
    clients = [to(sockets, A) for _ in range(150)]
    with watching(*CURRENT, patch=SIGNALS_TWICE.format(number=int(number))) as agent:
        agent.send(upsert(A), delete(A))
        assert agent.result() == (code, f"{A}: 150 matched: 64 destroyed, 86 failed\n", "")
    assert sum(map(is_cut, clients)) == 64


@pytest.mark.parametrize(
    ("owner", "function", "name", "code"),
    [
        *(("cli", "parse", *each) for each in (("SIGHUP", 0), ("SIGTERM", 0), ("SIGINT", 130))),
        *(("watch", "probe", *each) for each in (("SIGHUP", 0), ("SIGUSR1", 0), ("SIGTERM", 0), ("SIGINT", 130))),
    ],
)
def test_a_signal_that_comes_while_it_starts(network: None, owner: str, function: str, name: str, code: int) -> None:
    patch = SIGNALLED.format(signal=name, owner=owner, function=function)
    assert watch(stdin="", patch=patch) == (code, "", "")


def test_signals_that_come_while_it_ends_break_nothing_off(network: None) -> None:
    patch = SIGNALLED.format(signal="SIGTERM", owner="outlet.Outlet", function="close")
    result = run("watch", "--source", "-", stdin="nonsense\n", patch=patch)
    assert (result.code, result.err.count("line 1 is passed over")) == (0, 1)


def test_a_signal_ends_it_though_its_source_hangs(network: None) -> None:
    """As a file on a disk that does not answer."""
    with watching(*CURRENT, patch=HUNG_SOURCE) as agent:
        assert agent.stop() == (0, "", "")


def test_sigusr1_shows_the_table(sockets: Sockets) -> None:
    """What is down is in it until it is done with."""
    to(sockets, A)
    with watching(*CURRENT, second_pass=600) as agent:
        agent.send(upsert(A), upsert(B), upsert(C, state="quarantined"), delete(A))
        agent.wait_for("1 destroyed")
        agent.process.send_signal(signal.SIGUSR1)
        agent.wait_for("backends alive\n")
        assert agent.stop().err == "".join(
            f"socklb: {line}\n" for line in (f"{B} alive", f"{C} down", f"{A} down", "1 of 3 backends alive")
        )


def test_sighup_opens_the_audit_file_anew(sockets: Sockets, tmp_path: Path) -> None:
    """As logrotate(8) wants it."""
    clients, path = [to(sockets, backend) for backend in (A, B)], tmp_path / "audit"
    with watching(*CURRENT, "--audit", str(path)) as agent:
        agent.send(upsert(A), upsert(B), delete(A))
        eventually(lambda: is_cut(clients[0]), "the cut")
        path.rename(tmp_path / "old")
        agent.process.send_signal(signal.SIGHUP)
        eventually(path.exists, "there is a new one")
        agent.send(delete(B))
        eventually(lambda: is_cut(clients[1]), "the other cut")
        assert agent.stop()[::2] == (0, "")
    named = [json.loads(file.read_text())["backend"] for file in (tmp_path / "old", path)]
    assert named == [str(A), str(B)]


def test_a_signal_that_is_ignored_stays_ignored(sockets: Sockets) -> None:
    """Ctrl-C is not for what a shell script started in the background."""
    client = to(sockets, A)
    with watching(*CURRENT, preexec=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as agent:
        agent.process.send_signal(signal.SIGINT)
        agent.send(upsert(A), delete(A))
        eventually(lambda: is_cut(client), "the cut")
        assert agent.stop().code == 0


class Followed:
    """A file that is followed; when it was read is seen by its time of access."""

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
        with watching(*CURRENT, source=str(followed.path)) as agent:
            agent.wait_for("cannot be read: No such file or directory; the last table stays")
            followed.put(json.dumps(replace(A, B)))
            followed.put(json.dumps(replace(B)))
            eventually(lambda: is_cut(clients[0]), "the cut")
            followed.put("")
            agent.wait_for("is empty; the last table stays")
            assert pending_error(clients[1]) == ""
            followed.path.write_text('{"op": "replace", "backends": []}', encoding="utf-8")  # in place
            eventually(lambda: is_cut(clients[1]), "the other cut")
            result = agent.stop()
        assert (result.code, len(result.err.splitlines())) == (0, 2)

    def test_what_it_held_last_is_cut_when_the_signal_comes(self, sockets: Sockets, followed: Followed) -> None:
        client = to(sockets, A)
        with watching(*CURRENT, source=str(followed.path), patch=SLOW_SOURCES) as agent:
            followed.put(json.dumps(replace(A, B)))
            followed.put(json.dumps(replace(B)))
            assert agent.stop().code == 0
        assert is_cut(client)


class TestNamespaces:
    """In all namespaces of the host unless some are named; one that appears later is seen by the next pass."""

    def test_one_that_appears_later(self, sockets: Sockets) -> None:
        near = to(sockets, A)
        with watching() as agent:
            agent.send(upsert(A), upsert(B), delete(A))
            eventually(lambda: is_cut(near), "the cut")
            with pinned_networks("later") as (later,):
                client = far(later, B)
                agent.send(delete(B))
                eventually(lambda: is_cut(client), "the cut there")
                assert agent.end()[::2] == (0, "")

    def test_a_loopback_address_is_another_one_elsewhere(self, sockets: Sockets) -> None:
        """It is left alone there, which is said once."""
        local = Backend("127.0.0.2", 9000, "udp")
        with pinned_networks("web") as (web,):
            clients = [to(sockets, local), web.make(lambda s: to(s, local))]
            result = watch(stdin=lines(upsert(local), delete(local)) * 2)
            assert [pending_error(client) for client in clients] == [ABORTED, ""]
        assert (result.code, result.err.count(str(local))) == (0, 1)

    def test_those_asked_for(self, sockets: Sockets) -> None:
        with pinned_networks("web", "db") as nets:
            clients = [far(net, A) for net in nets]
            near = to(sockets, A)
            assert watch("--netns", "web", stdin=lines(upsert(A), delete(A)))[::2] == (0, "")
            assert [pending_error(client) for client in (near, *clients)] == ["", ABORTED, ""]

    def test_one_that_is_gone_is_named_once_and_the_others_are_done(self, sockets: Sockets) -> None:
        clients = [to(sockets, backend) for backend in (A, B)]
        with ExitStack() as pins:
            pins.enter_context(pinned_networks("web"))
            with watching(*CURRENT, "--netns", "web") as agent:
                agent.send(upsert(A), upsert(B))
                pins.close()
                agent.send(delete(A))
                eventually(lambda: is_cut(clients[0]), "the cut")
                agent.send(delete(B))
                result = agent.end()
        assert (result.code, is_cut(clients[1])) == (0, True)
        assert result.err.count("no network namespace is pinned as 'web'") == 1


LEADS_NOWHERE = "Too many levels of symbolic links"


class TestWhatCouldNotBeSearched:
    def test_is_expected_with_readable_only_and_said_once(self, sockets: Sockets) -> None:
        pin = Path("/run/netns/nowhere")
        pin.parent.mkdir(exist_ok=True)
        pin.symlink_to("nowhere")
        try:
            result = watch("--readable-only", stdin=lines(upsert(A), delete(A)))
        finally:
            pin.unlink()
        assert (result.code, result.err.count(LEADS_NOWHERE), result.err.count("again")) == (0, 1, 0)

    def test_of_several_that_are_named_does_not_stop_the_others(self, sockets: Sockets) -> None:
        pin = Path("/run/netns/web")
        client = to(sockets, A)
        with ExitStack() as pins:
            pins.enter_context(pinned_networks("web"))
            with watching("--netns", "web", *CURRENT) as agent:
                agent.send(upsert(A))
                pins.close()
                pin.symlink_to("web")
                try:
                    agent.send(delete(A))
                    eventually(lambda: is_cut(client), "the cut")
                    agent.wait_for(f"{LEADS_NOWHERE}; it is tried again")
                finally:
                    pin.unlink()

    def test_it_is_tried_again_there_alone_and_said_once(self, sockets: Sockets) -> None:
        """A pin that leads nowhere, until it leads to a namespace with a client."""
        pin = Path("/run/netns/later")
        pin.parent.mkdir(exist_ok=True)
        pin.symlink_to("later")
        try:
            with networks(1) as (net,), watching(patch=SOON, second_pass=600) as agent:
                client = far(net, A)
                agent.send(upsert(A), delete(A))
                agent.wait_for(f"/run/netns/later: {LEADS_NOWHERE}")
                near = to(sockets, A)
                new = Path("/run/new")
                new.symlink_to(net.namespace.path.replace("/self/", f"/{os.getpid()}/"))
                new.rename(pin)
                eventually(lambda: is_cut(client), "the cut there")
                result = agent.stop()
        finally:
            pin.unlink()
        assert (result.code, pending_error(near), result.err.count("it is tried again")) == (0, "", 1)


@contextmanager
def taking_nothing(kind: str) -> Iterator[int]:
    """A pipe that is full and nobody reads, or a disk that is full."""
    if kind == "full":
        with open("/dev/full", "wb") as file:
            yield file.fileno()
        return
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(1 << 16))
        os.set_blocking(writer, True)
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


class TestItStaysAlive:
    """An agent outlives who reads what it prints, and who lived in the namespaces it looks into."""

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_whose_reader_went_away(self, sockets: Sockets, stream: str) -> None:
        clients = [to(sockets, backend) for backend in (A, B)]
        with closed_pipe() as writer, watching(*CURRENT, **{stream: writer}) as agent:  # type: ignore[arg-type]
            agent.send(upsert(A), upsert(B), "nonsense", delete(A))
            eventually(lambda: is_cut(clients[0]), "the cut")
            agent.send("more nonsense", delete(B))
            eventually(lambda: is_cut(clients[1]), "the other cut")
            assert agent.end().code == 0

    @pytest.mark.parametrize("kind", ["blocked", "full"])
    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_who_takes_nothing(self, sockets: Sockets, stream: str, kind: str) -> None:
        """What cannot be written is counted, and said at the end."""
        clients = [to(sockets, backend) for backend in (A, B)]
        with (
            taking_nothing(kind) as target,
            watching(*CURRENT, patch=IMPATIENT, second_pass=600, **{stream: target}) as agent,  # type: ignore[arg-type]
        ):
            agent.send(upsert(A), upsert(B), "nonsense", delete(A))
            eventually(lambda: is_cut(clients[0]), "the cut")
            agent.send("more nonsense", delete(B))
            eventually(lambda: is_cut(clients[1]), "the other cut")
            result = agent.stop()
        assert result.code == 0
        if stream == "stdout":
            assert "socklb: 2 lines of standard output could not be written\n" in result.err

    @pytest.mark.parametrize("descriptor", [1, 2])
    def test_that_never_had_one(self, sockets: Sockets, descriptor: int) -> None:
        client = to(sockets, A)
        with watching(*CURRENT, preexec=lambda: os.close(descriptor)) as agent:
            agent.send(upsert(A), "nonsense", delete(A))
            assert agent.end().code == 0
        assert is_cut(client)

    def test_without_leaving_threads_or_descriptors(self, sockets: Sockets) -> None:
        with pinned_networks("web", "db") as nets, watching() as agent:
            # Two threads that write, one that reads; the three streams, and a pipe each to wake a writer or the loop.
            at_rest = (4, 9)
            eventually(lambda: agent.threads_and_descriptors() == at_rest, "it waits")
            for _ in range(12):
                clients = [far(net, A) for net in nets]
                agent.send(upsert(A), delete(A))
                eventually(lambda clients=clients: all(map(is_cut, clients)), "the cuts")  # type: ignore[misc]
            eventually(lambda: agent.threads_and_descriptors() == at_rest, "it is at rest again")
            assert agent.stop()[::2] == (0, "")


class TestItCannotStart:
    """What is wrong is said when it is started, and not when it is needed; bad input is in test_main."""

    @pytest.mark.parametrize("netns", [(), CURRENT], ids=["all", "current"])
    def test_without_privilege(self, network: None, netns: tuple[str, ...]) -> None:
        result = run("watch", "--source", "-", *netns, preexec=drop_privilege, stdin=lines(upsert(A), delete(A)))
        assert (result.code, result.out) == (4, "")
        assert "CAP_NET_ADMIN" in result.err

    def test_where_the_kernel_cannot(self, network: None) -> None:
        result = run("watch", "--source", "-", patch=answers(95))
        assert (result.code, result.out) == (3, "")
        assert "CONFIG_INET_DIAG_DESTROY" in result.err

    def test_without_udp_diag_it_does_and_says_so(self, sockets: Sockets) -> None:
        """Once; and goes on when the first UDP backend goes down."""
        client, _ = sockets.tcp("10.9.0.2", 9000)
        tcp = A._replace(protocol="tcp")
        with watching(*CURRENT, patch=NO_UDP_DIAG) as agent:
            agent.send(upsert(A), upsert(B), upsert(tcp), delete(A))
            agent.send(delete(tcp), delete(B))
            agent.wait_for("1 destroyed")
            result = agent.stop()
        assert (result.code, pending_error(client), len(result.err.splitlines())) == (0, ABORTED, 1)
        assert "this kernel cannot destroy udp sockets: it lacks CONFIG_INET_DIAG and its udp_diag part" in result.err

    def test_without_ipv6_it_does(self, network: None) -> None:
        assert watch(stdin="", patch=NO_V6) == (0, "", "")

    def test_where_it_is_interrupted(self, network: None) -> None:
        patch = "def interrupt(): raise KeyboardInterrupt\nmodule('.cli.watch').probe = interrupt"
        assert run("watch", "--source", "-", patch=patch) == (130, "", "socklb: interrupted\n")

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
        text = "socklb: the source cannot be read: Bad file descriptor\n"
        assert result._replace(err=without_start(result.err)) == (1, "", text)
