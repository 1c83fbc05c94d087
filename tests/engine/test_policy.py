"""Who is spared on the real kernel, and why: each is `skipped` with its reason, and lives on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from socklb import (
    STATE_FILTER_TCP,
    Outcome,
    Report,
    SocketFilter,
    TcpState,
    UnboundedFilter,
    destroy_sockets,
    dport,
    dst,
    find_sockets,
    mark,
    sport,
    src,
    state_mask,
)

from .. import package_under_test
from ..sockets import Sockets, add_v6_address, cookie_of, in_child, pending_error, socket_of, talk

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
TCP, UDP = SocketFilter("tcp", dst(ADDRESS, PORT)), SocketFilter("udp", dst(ADDRESS, PORT))
BOTH_ENDS = dport(PORT) | sport(PORT)


def reasons(report: Report) -> list[str]:
    """Of every outcome, in order: why it was skipped, or else what became of it."""
    return [outcome.reason if outcome.verdict == "skipped" else outcome.verdict for outcome in report.outcomes]


class TestListening:
    """`listening`: a listening TCP socket, unless states name LISTEN."""

    SPARED = (None, "all", ["all"], "big", ["connected", "big"], STATE_FILTER_TCP)
    NAMED = (
        *("listening", ["LISTEN"], ["all", "listening"], [TcpState.LISTEN], [10, TcpState.ESTABLISHED]),
        state_mask(TcpState.LISTEN, TcpState.ESTABLISHED),
    )

    @pytest.mark.parametrize(
        ("states", "reason"),
        [*((states, "listening") for states in SPARED), *((states, "destroyed") for states in NAMED)],
        ids=str,
    )
    def test_only_a_name_lifts_it(self, sockets: Sockets, states: Any, reason: str) -> None:
        sockets.listen(ADDRESS, PORT)
        report = destroy_sockets(
            SocketFilter("tcp", src(ADDRESS, PORT), states=states), unconnected=True, allow_unbounded=True
        )
        assert reasons(report) == [reason]

    def test_its_connections_die_and_it_goes_on(self, sockets: Sockets) -> None:
        sockets.tcp(ADDRESS, PORT)
        report = destroy_sockets(SocketFilter("tcp", BOTH_ENDS))
        assert sorted(reasons(report)) in (["destroyed", "destroyed", "listening"], ["destroyed", "gone", "listening"])
        talk(*sockets.tcp(ADDRESS, PORT))


class TestNotConnected:
    """`not connected`: a UDP socket without a peer, unless `unconnected`."""

    @pytest.mark.parametrize("states", [None, "all", "unconnected", [TcpState.CLOSE]], ids=str)
    def test_no_state_lifts_it(self, sockets: Sockets, states: Any) -> None:
        bound = sockets.udp_bound(ADDRESS, PORT)
        filter = SocketFilter("udp", src(ADDRESS, PORT), states=states)
        assert reasons(destroy_sockets(filter)) == ["not connected"]
        talk(sockets.udp(ADDRESS, PORT), bound)
        assert reasons(destroy_sockets(filter, unconnected=True)) == ["destroyed"]

    def test_one_that_is_bound_and_connected_is_not_spared(self, sockets: Sockets) -> None:
        sockets.udp_bound("127.0.0.1", 7000).connect((ADDRESS, PORT))
        assert reasons(destroy_sockets(UDP)) == ["destroyed"]


# ------------------------------------------------------------------------------------------ own session


def connection_text(client: socket.socket, form: str = "{}") -> str:
    """What sshd would say about a connection, in SSH_CONNECTION; `form` writes the addresses in another way."""
    (near, near_port), (far, far_port) = client.getsockname()[:2], client.getpeername()[:2]
    return f"{form.format(near)} {near_port} {form.format(far)} {far_port}"


class TestSessionOfOnesEnvironment:
    """`own session`: the tuple of SSH_CONNECTION (mapped addresses made v4). Nothing lifts that."""

    @pytest.mark.parametrize("address", [ADDRESS, "::1", "fd00::1", f"::ffff:{ADDRESS}"])
    def test_both_ends_are_spared_and_nobody_else(
        self, sockets: Sockets, monkeypatch: pytest.MonkeyPatch, address: str
    ) -> None:
        add_v6_address("fd00::1")
        session, other = sockets.tcp(address, PORT), sockets.tcp(address, PORT)
        monkeypatch.setenv("SSH_CONNECTION", connection_text(session[0]))
        report = destroy_sockets(SocketFilter("tcp", BOTH_ENDS))
        assert {socket_of(o).cookie for o in report.outcomes if o.reason == "own session"} == set(
            map(cookie_of, session)
        )
        assert pending_error(other[0])
        talk(*session)

    @pytest.mark.parametrize(
        ("address", "form"), [(ADDRESS, "::ffff:{}"), (f"::ffff:{ADDRESS}", "{}"), ("::1", "{}%lo")]
    )
    def test_however_the_addresses_are_written(
        self, sockets: Sockets, monkeypatch: pytest.MonkeyPatch, address: str, form: str
    ) -> None:
        client, server = sockets.tcp(address, PORT)
        monkeypatch.setenv("SSH_CONNECTION", connection_text(client, form).replace("::ffff:::ffff:", "::ffff:"))
        assert reasons(destroy_sockets(SocketFilter("tcp", dst(address, PORT)))) == ["own session"]
        talk(client, server)

    @pytest.mark.parametrize("states", [None, "all", ["established", "listening"]], ids=str)
    def test_nothing_lifts_it(self, sockets: Sockets, monkeypatch: pytest.MonkeyPatch, states: Any) -> None:
        client, server = sockets.tcp(ADDRESS, PORT)
        monkeypatch.setenv("SSH_CONNECTION", connection_text(client))
        filter = SocketFilter("tcp", dst(ADDRESS), states=states)
        report = destroy_sockets(filter, unconnected=True, allow_unbounded=True, limit=1)
        assert reasons(report) == ["own session"]
        talk(client, server)


class TestSessionOfAnAncestor:
    """An ancestor's environment counts like that of this process, and so do the sockets of an sshd among them."""

    def test_an_ancestors_environment(self, sockets: Sockets) -> None:
        """A shell that knows the session runs socklb in a cleaned environment, as sudo does."""
        session, other = sockets.tcp(ADDRESS, PORT), sockets.tcp(ADDRESS, PORT)
        script = (
            f"from {package_under_test.NAME} import *\n"
            f"report = destroy_sockets(SocketFilter('tcp', dst('{ADDRESS}', {PORT})))\n"
            "print({outcome.socket.cookie: outcome.reason or outcome.verdict for outcome in report.outcomes})"
        )
        shell = subprocess.run(
            ["sh", "-c", 'unset SSH_CONNECTION; "$0" -c "$1"; exit $?', sys.executable, script],
            env={**os.environ, "SSH_CONNECTION": connection_text(session[0]), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            check=True,
        )
        assert eval(shell.stdout) == {cookie_of(session[0]): "own session", cookie_of(other[0]): "destroyed"}
        talk(*session)

    @pytest.mark.parametrize(
        ("name", "spared", "generations"), [("sshd", True, 1), ("sshd-session", True, 2), ("ssh", False, 1)]
    )
    def test_what_an_sshd_holds_is_spared(self, sockets: Sockets, name: str, spared: bool, generations: int) -> None:
        session, other = sockets.tcp(ADDRESS, PORT), sockets.tcp("127.0.0.3", PORT)

        def call_it(name: str) -> None:
            Path("/proc/self/comm").write_text(name)

        def become_sshd() -> None:
            call_it(name)
            for made in other:
                made.close()

        def run() -> list[str]:
            return reasons(destroy_sockets([TCP, SocketFilter("tcp", dst("127.0.0.3", PORT))]))

        def descend() -> list[str]:
            return in_child(run if generations == 1 else lambda: in_child(run), lambda: call_it("bash"))

        assert in_child(descend, become_sshd) == ["own session" if spared else "destroyed", "destroyed"]
        assert pending_error(other[0]) == "ECONNABORTED"
        if spared:
            talk(*session)


# --------------------------------------------------------------------------------- limit, dry run, order


@pytest.fixture
def nine(sockets: Sockets) -> list[socket.socket]:
    """Clients of every family and protocol."""
    made = [sockets.tcp(address, PORT)[0] for address in (ADDRESS, ADDRESS, ADDRESS, "::1", f"::ffff:{ADDRESS}")]
    return made + [sockets.udp(address, PORT) for address in (ADDRESS, ADDRESS, "::1", f"::ffff:{ADDRESS}")]


EACH = (SocketFilter("tcp", dport(PORT)), SocketFilter("udp", dport(PORT)))


class TestLimitAndDryRun:
    """At most `limit` are destroyed, families and protocols together, and the rest is skipped; in a dry run as well."""

    @pytest.mark.parametrize("limit", [1, 5, 6, 9, 10, None], ids=str)
    def test_a_dry_run_says_what_would_be_destroyed(self, nine: list[socket.socket], limit: int | None) -> None:
        def cookies(outcomes: list[Outcome], word: str) -> set[int]:
            return {socket_of(outcome).cookie for outcome in outcomes if word in (outcome.verdict, outcome.reason)}

        dry = destroy_sockets(EACH, limit=limit, dry_run=True).outcomes
        assert [pending_error(client) for client in nine] == [""] * 9
        real = destroy_sockets(EACH, limit=limit).outcomes
        died = {cookie_of(client) for client in nine if pending_error(client) == "ECONNABORTED"}
        assert died == cookies(real, "destroyed") == cookies(dry, "would_destroy")
        assert len(died) == min(limit or 9, 9)
        assert cookies(real, "limit") == cookies(dry, "limit") == set(map(cookie_of, nine)) - died


class TestOrder:
    """A socket has one reason; what is spared anyhow does not count towards the limit."""

    def test_the_own_session_comes_first(self, sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
        listener = sockets.listen(ADDRESS, PORT)
        monkeypatch.setenv("SSH_CONNECTION", f"0.0.0.0 0 {ADDRESS} {PORT}")  # a listener's own tuple
        report = destroy_sockets(SocketFilter("tcp", src(ADDRESS, PORT)), dry_run=True, limit=1)
        assert [(socket_of(o).cookie, o.reason) for o in report.outcomes] == [(cookie_of(listener), "own session")]

    @pytest.mark.parametrize(("dry_run", "verdict"), [(False, "destroyed"), (True, "would_destroy")])
    def test_then_what_is_not_connected_then_the_limit(
        self, sockets: Sockets, monkeypatch: pytest.MonkeyPatch, dry_run: bool, verdict: str
    ) -> None:
        session, _ = [sockets.tcp(ADDRESS, PORT)[0] for _ in range(2)]
        sockets.udp_pair(ADDRESS, PORT)
        monkeypatch.setenv("SSH_CONNECTION", connection_text(session))
        conditions = [("udp", dst(ADDRESS)), ("udp", src(ADDRESS)), ("tcp", src(ADDRESS, PORT)), ("tcp", dst(ADDRESS))]
        report = destroy_sockets([SocketFilter(*condition) for condition in conditions], limit=1, dry_run=dry_run)
        assert reasons(report)[:2] == [verdict, "not connected"]
        assert sorted(reasons(report)[2:]) == ["limit", "limit", "listening", "own session", "own session"]


class TestBounded:
    """A filter has to name what it matches to destroy by it, and neither states nor family nor predicate do."""

    @pytest.mark.parametrize(
        "unbounded",
        [
            SocketFilter("udp"),
            SocketFilter("udp", dst("127.0.0.0/15")),
            SocketFilter("udp", dport(1, 65535)),
            SocketFilter("udp", ~dst("127.0.0.9")),
            SocketFilter("udp", mark(0) | dst(ADDRESS)),
            SocketFilter("udp", states=["established"]),
            SocketFilter("udp", family=socket.AF_INET),
            SocketFilter("udp", predicate=lambda row: row.dport == PORT),
        ],
        ids=str,
    )
    def test_an_unbounded_one_hits_nobody(self, nine: list[socket.socket], unbounded: SocketFilter) -> None:
        with pytest.raises(UnboundedFilter):
            destroy_sockets([*EACH, unbounded])
        assert [pending_error(client) for client in nine] == [""] * 9

    def test_allow_unbounded_allows_it(self, nine: list[socket.socket]) -> None:
        report = destroy_sockets(SocketFilter("udp"), allow_unbounded=True)
        assert reasons(report) == ["destroyed"] * 4
        assert list(find_sockets(SocketFilter("udp"))) == []
