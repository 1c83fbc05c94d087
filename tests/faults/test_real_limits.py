"""Real faults on the real kernel: no descriptor left, no room for answers, and nobody who answers."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Optional

import pytest

from socklb import (
    Backend,
    BackendTable,
    DestroyReport,
    KernelError,
    NetworkNamespace,
    SocketFilter,
    SocklbError,
    TerminationLoop,
    TerminationReport,
    destroy_sockets,
    device,
    dst,
    find_sockets,
    live_cookies,
    probe,
    terminate_connections,
)
from socklb.engine.report import Counts
from socklb.kernel import diag
from socklb.termination.loop import Pass
from socklb.wire.request import SOCK_DESTROY

from ..cli.runner import ROOT, command, environment
from ..fake_kernel import verdicts
from ..networks import networks, pinned
from ..sockets import Sockets, cookie_of, in_child, pending_error, talk, without_privilege
from .calls import End
from .terminations import error_in

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
UDP = SocketFilter("udp", dst(ADDRESS, PORT))
TCP = SocketFilter("tcp", dst(ADDRESS, PORT))

BACKENDS = [Backend(ADDRESS, PORT, "tcp")]
Some = Optional[list[NetworkNamespace]]


def run_pass(namespaces: Some) -> TerminationReport:
    """One of the loop, as long as it takes: nothing is attempted again."""
    passes: list[Pass] = []
    table = BackendTable()
    table.upsert(BACKENDS[0])
    table.delete(BACKENDS[0])
    loop = TerminationLoop(table, namespaces=namespaces, second_look=None, on_pass=passes.append)
    loop.stop()
    loop.run()
    ((_, report, error, *_),) = passes
    if error is not None:
        raise error
    assert report is not None
    return report


CALLS: dict[str, Callable[[list[NetworkNamespace]], object]] = {
    "find": lambda here: list(find_sockets(TCP)),
    "live-cookies": live_cookies,
    "destroy": lambda here: destroy_sockets(TCP),
    "terminate": lambda here: terminate_connections(BACKENDS, namespaces=here),
    "loop": run_pass,
    "dry-run": lambda here: destroy_sockets(TCP, dry_run=True),
    "probe": lambda here: probe(),
}
LISTS, KILLS = ("find", "live-cookies"), ("destroy", "terminate", "loop")
EACH = pytest.mark.parametrize("name", CALLS)
EVERYWHERE: dict[str, Callable[[Some], TerminationReport]] = {
    "terminate": lambda namespaces: terminate_connections(BACKENDS, namespaces=namespaces),
    "loop": run_pass,
}


class Ending(NamedTuple):
    """How a call ended, how many were destroyed by what it reports, and whether descriptors are as before."""

    end: End
    destroyed: int
    as_before: bool


def ending(call: Callable[[], object], left: int = 0) -> Ending:
    before = [os.open(os.devnull, os.O_RDONLY) for _ in range(left)]
    for one in before:
        os.close(one)
    report: object
    try:
        report, end = call(), End()
    except SocklbError as error:
        report, end = error.report, End.of(error)
    if isinstance(report, TerminationReport) and len(report.namespaces) == 1:
        end = End.of(error_in(report))
    after = [os.open(os.devnull, os.O_RDONLY) for _ in range(left)]
    for one in after:
        os.close(one)
    return Ending(end, report.destroyed if isinstance(report, Counts) else 0, after == before)


@pytest.fixture
def here(network: None) -> list[NetworkNamespace]:
    return [NetworkNamespace.current()]


LEAVE_ONE = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
while len(os.listdir("/proc/self/fd")) < 64:  # the one that lists them is among them
    os.open(os.devnull, os.O_RDONLY)
"""


class TestNoDescriptorLeft:
    """RLIMIT_NOFILE reached is KernelError(EMFILE), and nobody dies."""

    @EACH
    @pytest.mark.parametrize("left", range(4))
    def test_it_works_or_it_is_an_error(
        self, here: list[NetworkNamespace], sockets: Sockets, name: str, left: int
    ) -> None:
        """A netlink socket is all that a call needs to list; to try or to destroy it looks at one thing more."""
        client, server = sockets.tcp(ADDRESS, PORT)
        works = left >= (1 if name in LISTS else 2)
        ended = in_child(lambda: ending(lambda: CALLS[name](here), left), lambda: leave_descriptors(left))
        assert ended == Ending(
            End() if works else End(KernelError, errno.EMFILE), int(works and name in KILLS), as_before=True
        )
        if ended.destroyed:
            assert pending_error(client) == "ECONNABORTED"
        else:
            talk(client, server)

    @pytest.mark.parametrize("call", EVERYWHERE.values(), ids=EVERYWHERE)
    @pytest.mark.parametrize("left", range(8))
    def test_in_every_namespace(self, sockets: Sockets, call: Callable[[Some], TerminationReport], left: int) -> None:
        """Which of two at once finds none left is chance; each has its report or its error, and who died is told."""

        def run() -> tuple[dict[str, End], Ending]:
            results: dict[str, End] = {}

            def call_and_look() -> object:
                report = call(None)
                for namespace, result in report.namespaces.items():
                    results[namespace.name] = End.of(result if isinstance(result, SocklbError) else None)
                assert not report.skipped_namespaces
                return report

            ended = ending(call_and_look, left)
            return results, ended

        client, server = sockets.tcp(ADDRESS, PORT)
        with networks(1) as (other,), pinned(other.namespace.path, "other"):
            results, ended = in_child(run, lambda: leave_descriptors(left))
        out_of_them = End(KernelError, errno.EMFILE)
        assert ended.as_before
        if left:
            assert ended.end == End()
            assert results.keys() == {"host", "other"}
            assert set(results.values()) <= {End(), out_of_them}
        else:
            assert (results, ended.end) == ({}, out_of_them)
        if left == 7:
            assert out_of_them not in results.values()
        assert ended.destroyed == (results.get("host") == End())
        if ended.destroyed:
            assert pending_error(client) == "ECONNABORTED"
        else:
            talk(client, server)

    @pytest.mark.parametrize("left", range(3))
    def test_namespaces_are_discovered_or_it_is_an_error(self, network: None, left: int) -> None:
        """One descriptor at a time is all it takes."""

        def run() -> tuple[list[str], Ending]:
            names: list[str] = []
            ended = ending(lambda: names.extend(one.name for one in NetworkNamespace.discover()), left)
            return names, ended

        with networks(1) as (other,), pinned(other.namespace.path, "other"):
            names, ended = in_child(run, lambda: leave_descriptors(left))
        assert ended == Ending(End() if left else End(KernelError, errno.EMFILE), 0, as_before=True)
        assert names == (["host", "other"] if left else [])

    def test_a_name_that_cannot_be_looked_up_is_no_unknown_one(self, network: None) -> None:
        def look() -> End:
            return ending(lambda: list(find_sockets(SocketFilter("tcp", device("lo"))))).end

        assert in_child(look, lambda: leave_descriptors(0)) == End(KernelError, errno.EMFILE)

    def test_the_own_session_is_not_forgotten(self, sockets: Sockets) -> None:
        """The netlink socket takes the last descriptor, and /proc cannot be read any more."""
        client, server = sockets.tcp(ADDRESS, PORT)
        peer, own = client.getpeername(), client.getsockname()
        words = command(["destroy", "--tcp", f"dst {ADDRESS}:{PORT}"], patch=f"{LEAVE_ONE}\nmodule('.cli.destroy')")
        done = subprocess.run(
            ["sh", "-c", 'unset SSH_CONNECTION; "$@"; exit $?', "sh", *words],
            cwd=ROOT,
            env=environment({"SSH_CONNECTION": f"{peer[0]} {peer[1]} {own[0]} {own[1]}"}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 1
        assert "look for one's own ssh session, which is spared: Too many open files" in done.stderr
        talk(client, server)


def leave_descriptors(count: int) -> None:
    """In this process so many more files can be opened."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    for one in taken[:count]:
        os.close(one)


class TestTheSmallestBuffer:
    """What finds no room is lost, and told: a dump is whole, a destroy that may have been done is no success."""

    COUNT = 300

    @pytest.fixture(autouse=True)
    def _smallest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        usual = diag.open_netlink

        def small() -> socket.socket:
            opened = usual()
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel makes it the least it allows
            return opened

        monkeypatch.setattr(diag, "open_netlink", small)

    @pytest.fixture
    def clients(self, sockets: Sockets) -> dict[int, socket.socket]:
        made = (sockets.udp(ADDRESS, PORT) for _ in range(self.COUNT))
        return {cookie_of(client): client for client in made}

    def test_a_dump_is_whole(self, clients: dict[int, socket.socket]) -> None:
        assert sorted(found.cookie for found in find_sockets(UDP)) == sorted(clients)

    def test_destroys_that_succeed_need_one_answer_a_batch(self, clients: dict[int, socket.socket]) -> None:
        assert verdicts(destroy_sockets(UDP)) == dict.fromkeys(clients, "destroyed")
        assert {pending_error(client) for client in clients.values()} == {"ECONNABORTED"}

    def test_many_that_fail_end_the_run_with_everybody_in_the_report(self, clients: dict[int, socket.socket]) -> None:
        """All answer EPERM, and there is no room for 64 such answers."""
        cookies = list(clients)

        def run() -> tuple[End, dict[int, str]]:
            with pytest.raises(SocklbError) as caught:
                destroy_sockets(UDP)
            assert caught.value.report is not None
            return End.of(caught.value), verdicts(caught.value.report)

        end, told = without_privilege(run)
        assert end == End(KernelError, errno.ENOBUFS)
        assert told == dict.fromkeys(cookies, "failed")
        assert {pending_error(client) for client in clients.values()} == {""}

    def test_many_that_are_gone(self, clients: dict[int, socket.socket]) -> None:
        """They answer ENOENT, and the living among them are destroyed: nobody is called so who is not."""
        leaving = set(list(clients)[::2])

        def leave(row: Any) -> bool:
            if row.cookie in leaving:
                clients[row.cookie].close()
            return True

        report: DestroyReport | None
        try:
            report = destroy_sockets(SocketFilter("udp", dst(ADDRESS, PORT), predicate=leave))
        except KernelError as error:
            report = error.report if error.errno == errno.ENOBUFS else None
        assert report is not None
        told = verdicts(report)
        assert told.keys() == clients.keys()
        for cookie in clients.keys() - leaving:
            assert told[cookie] != "destroyed" or pending_error(clients[cookie]) == "ECONNABORTED"
        assert not {told[cookie] for cookie in leaving} & {"destroyed", "skipped"}


class Deaf(socket.socket):
    """A netlink socket whose questions nobody hears."""

    def send(self, data: Any, flags: int = 0) -> int:
        return len(data)


class TestNobodyAnswers:
    """A timeout, not a hang: KernelError(ETIMEDOUT)."""

    @pytest.fixture(autouse=True)
    def _deaf(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(diag, "_TIMEOUT_SECONDS", 0.05)
        monkeypatch.setattr(
            diag, "open_netlink", lambda: Deaf(socket.AF_NETLINK, socket.SOCK_RAW, diag.NETLINK_SOCK_DIAG)
        )

    @EACH
    def test_at_all(self, here: list[NetworkNamespace], sockets: Sockets, name: str) -> None:
        client, server = sockets.tcp(ADDRESS, PORT)
        assert ending(lambda: CALLS[name](here)) == Ending(End(KernelError, errno.ETIMEDOUT), 0, as_before=True)
        talk(client, server)

    def test_to_a_destroy(self, sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
        def hears_dumps(made: Deaf, data: Any, flags: int = 0) -> int:
            is_dump = int.from_bytes(data[4:6], sys.byteorder) != SOCK_DESTROY
            return socket.socket.send(made, data, flags) if is_dump else len(data)

        monkeypatch.setattr(Deaf, "send", hears_dumps)
        client, server = sockets.tcp(ADDRESS, PORT)
        with pytest.raises(KernelError) as caught:
            destroy_sockets(TCP)
        assert caught.value.errno == errno.ETIMEDOUT
        assert caught.value.report is not None
        ((failed, *told),) = caught.value.report.outcomes
        assert failed.cookie == cookie_of(client)
        assert told == ["failed", f"{os.strerror(errno.ETIMEDOUT)}, and perhaps destroyed", errno.ETIMEDOUT]
        talk(client, server)
