"""Who is spared on the real kernel, and why: each is `skipped` with its reason, and lives on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from socklb import (
    STATE_FILTER_TCP,
    DestroyReport,
    Outcome,
    SocketFilter,
    TcpState,
    UnboundedFilter,
    cgroup,
    destroy_sockets,
    device,
    dport,
    dst,
    find_sockets,
    mark,
    sport,
    src,
    state_mask,
)
from socklb.engine.destroy import destroy_each
from socklb.engine.session import OwnSession, own_session
from socklb.filters import Condition

from .. import package_under_test
from ..sockets import Sockets, add_v6_address, cookie_of, in_child, pending_error, talk

pytestmark = pytest.mark.kernel

ADDRESS, PORT = "127.0.0.2", 9000
TCP, UDP = SocketFilter("tcp", dst(ADDRESS, PORT)), SocketFilter("udp", dst(ADDRESS, PORT))
BOTH_ENDS = dport(PORT) | sport(PORT)


def reasons(report: DestroyReport) -> list[str]:
    """Of every outcome, in order: why it was skipped, or else what became of it."""
    return [outcome.reason if outcome.verdict == "skipped" else outcome.verdict for outcome in report.outcomes]


class TestListening:
    """`listening`: a listening TCP socket, unless states name LISTEN explicitly."""

    @pytest.mark.parametrize(
        ("states", "spared"),
        [
            (None, True),
            ("all", True),
            (["all"], True),
            ("big", True),
            (["connected", "big"], True),
            (STATE_FILTER_TCP, True),
            ("listening", False),
            (["LISTEN"], False),
            (["all", "listening"], False),
            ([TcpState.LISTEN], False),
            ([10, TcpState.ESTABLISHED], False),
            (state_mask(TcpState.LISTEN, TcpState.ESTABLISHED), False),
        ],
        ids=str,
    )
    def test_only_a_name_condemns_it(self, sockets: Sockets, states: Any, spared: bool) -> None:
        sockets.listen(ADDRESS, PORT)
        report = destroy_sockets(SocketFilter("tcp", src(ADDRESS, PORT), states=states))
        assert reasons(report) == ["listening" if spared else "destroyed"]

    @pytest.mark.parametrize("options", [{"unconnected": True}, {"allow_unbounded": True}], ids=str)
    def test_nothing_else_does(self, sockets: Sockets, options: dict[str, Any]) -> None:
        sockets.listen(ADDRESS, PORT)
        assert reasons(destroy_sockets(SocketFilter("tcp", src(ADDRESS, PORT)), **options)) == ["listening"]

    def test_its_connections_die_and_it_goes_on(self, sockets: Sockets) -> None:
        sockets.tcp(ADDRESS, PORT)
        report = destroy_sockets(SocketFilter("tcp", BOTH_ENDS))
        assert sorted(reasons(report)) in (["destroyed", "destroyed", "listening"], ["destroyed", "gone", "listening"])
        talk(*sockets.tcp(ADDRESS, PORT))


class TestNotConnected:
    """`not connected`: a UDP socket without a peer, unless `unconnected`."""

    @pytest.mark.parametrize("states", [None, "all", "unconnected", [TcpState.CLOSE]], ids=str)
    def test_no_state_condemns_it(self, sockets: Sockets, states: Any) -> None:
        bound = sockets.udp_bound(ADDRESS, PORT)
        report = destroy_sockets(SocketFilter("udp", src(ADDRESS, PORT), states=states))
        assert reasons(report) == ["not connected"]
        talk(sockets.udp(ADDRESS, PORT), bound)

    def test_unconnected_does(self, sockets: Sockets) -> None:
        sockets.udp_bound(ADDRESS, PORT)
        assert reasons(destroy_sockets(SocketFilter("udp", src(ADDRESS, PORT)), unconnected=True)) == ["destroyed"]

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
        assert {o.socket.cookie for o in report.outcomes if o.reason == "own session"} == set(map(cookie_of, session))
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

    @pytest.mark.parametrize(
        "options",
        [
            {"unconnected": True},
            {"allow_unbounded": True},
            {"limit": 5},
            {"unconnected": True, "allow_unbounded": True, "limit": 1},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("states", [None, "all", ["established", "listening"]], ids=str)
    def test_nothing_lifts_it(
        self, sockets: Sockets, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], states: Any
    ) -> None:
        client, server = sockets.tcp(ADDRESS, PORT)
        monkeypatch.setenv("SSH_CONNECTION", connection_text(client))
        assert reasons(destroy_sockets(SocketFilter("tcp", dst(ADDRESS), states=states), **options)) == ["own session"]
        talk(client, server)

    @pytest.mark.parametrize("text", ["", "x", "1 2 3", "a 1 b 2", "127.0.0.1 x 127.0.0.2 9000", "127.0.0.1 1 ::1%% 2"])
    def test_what_is_no_connection_spares_nobody(
        self, sockets: Sockets, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        sockets.tcp(ADDRESS, PORT)
        monkeypatch.setenv("SSH_CONNECTION", text)
        assert reasons(destroy_sockets(TCP)) == ["destroyed"]


class TestSessionOfAnAncestor:
    """One's own or an ancestor's environment, or a socket held by an sshd among the ancestors."""

    def test_an_ancestors_environment(self, sockets: Sockets) -> None:
        """A shell that knows the session runs socklb in a cleaned environment, as sudo does."""
        session, other = sockets.tcp(ADDRESS, PORT), sockets.tcp(ADDRESS, PORT)
        command = f'unset SSH_CONNECTION; "$0" -m {package_under_test.NAME} "$@"; exit $?'
        shell = subprocess.run(
            ["sh", "-c", command, sys.executable, "destroy", f"dst {ADDRESS}:{PORT}", "--tcp", "--json"],
            env={**os.environ, "SSH_CONNECTION": connection_text(session[0]), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            check=True,
        )
        verdicts = {row["cookie"]: row["reason"] or row["outcome"] for row in json.loads(shell.stdout)["sockets"]}
        assert verdicts == {cookie_of(session[0]): "own session", cookie_of(other[0]): "destroyed"}
        talk(*session)

    @pytest.mark.parametrize(
        ("name", "spared"), [("sshd", True), ("sshd-session", True), ("ssh", False), ("bash", False)]
    )
    @pytest.mark.parametrize("generations", [1, 2])
    def test_what_an_sshd_holds_is_spared(self, sockets: Sockets, name: str, spared: bool, generations: int) -> None:
        session, other = sockets.tcp(ADDRESS, PORT), sockets.tcp("127.0.0.3", PORT)

        def call_it(name: str) -> None:
            Path("/proc/self/comm").write_text(name)

        def become_sshd() -> None:
            call_it(name)
            for made in other:
                made.close()

        def run() -> list[str]:
            return reasons(destroy_each([TCP, SocketFilter("tcp", dst("127.0.0.3", PORT))]))

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


class TestLimit:
    """`limit=N`: at most N are destroyed, families and protocols together; the rest skipped("limit")."""

    EACH = (SocketFilter("tcp", dport(PORT)), SocketFilter("udp", dport(PORT)))

    @pytest.mark.parametrize("limit", [1, 3, 4, 5, 6, 8, 9, 10, None], ids=str)
    def test_so_many_die(self, nine: list[socket.socket], limit: int | None) -> None:
        report = destroy_each(self.EACH, limit=limit)
        dying = 9 if limit is None else min(limit, 9)
        assert sorted(reasons(report)) == ["destroyed"] * dying + ["limit"] * (9 - dying)
        died = {cookie_of(client) for client in nine if pending_error(client) == "ECONNABORTED"}
        assert died == {o.socket.cookie for o in report.outcomes if o.verdict == "destroyed"}

    @pytest.mark.parametrize("limit", [0, -1, -(1 << 70)], ids=str)
    def test_below_1_is_a_value_error(self, nine: list[socket.socket], limit: int) -> None:
        with pytest.raises(ValueError, match="below 1"):
            destroy_each(self.EACH, limit=limit)
        assert [pending_error(client) for client in nine] == [""] * 9

    @pytest.mark.parametrize("limit", [True, False, 1.0, "1"], ids=repr)
    def test_what_is_no_int_is_a_type_error(self, nine: list[socket.socket], limit: Any) -> None:
        with pytest.raises(TypeError, match="limit"):
            destroy_each(self.EACH, limit=limit)
        assert [pending_error(client) for client in nine] == [""] * 9


class TestDryRun:
    """`dry run`: nothing dies."""

    def test_everything_is_skipped_and_lives(self, nine: list[socket.socket]) -> None:
        report = destroy_each(TestLimit.EACH, dry_run=True)
        assert reasons(report) == ["dry run"] * 9
        assert {o.socket.cookie for o in report.outcomes} == set(map(cookie_of, nine))
        assert [pending_error(client) for client in nine] == [""] * 9

    def test_it_says_what_would_be_destroyed(self, nine: list[socket.socket]) -> None:
        def split(outcomes: list[Outcome], reason: str) -> list[int]:
            return [outcome.socket.cookie for outcome in outcomes if outcome.reason == reason]

        dry = destroy_each(TestLimit.EACH, limit=4, dry_run=True).outcomes
        real = destroy_each(TestLimit.EACH, limit=4).outcomes
        assert sorted(split(dry, "dry run")) == sorted(split(real, ""))
        assert sorted(split(dry, "limit")) == sorted(split(real, "limit"))


class TestOrder:
    """A socket has one reason; what is spared anyhow does not count towards the limit."""

    def test_the_own_session_comes_first(self, sockets: Sockets, monkeypatch: pytest.MonkeyPatch) -> None:
        listener = sockets.listen(ADDRESS, PORT)
        monkeypatch.setenv("SSH_CONNECTION", f"0.0.0.0 0 {ADDRESS} {PORT}")  # a listener's own tuple
        report = destroy_sockets(SocketFilter("tcp", src(ADDRESS, PORT)), dry_run=True, limit=1)
        assert [(o.socket.cookie, o.reason) for o in report.outcomes] == [(cookie_of(listener), "own session")]

    @pytest.mark.parametrize(("dry_run", "verdict"), [(False, "destroyed"), (True, "dry run")])
    def test_then_what_is_not_connected_then_the_limit_then_the_dry_run(
        self, sockets: Sockets, monkeypatch: pytest.MonkeyPatch, dry_run: bool, verdict: str
    ) -> None:
        session, _ = [sockets.tcp(ADDRESS, PORT)[0] for _ in range(2)]
        sockets.udp_pair(ADDRESS, PORT)
        monkeypatch.setenv("SSH_CONNECTION", connection_text(session))
        wheres = [
            ("udp", dst(ADDRESS)),
            ("udp", src(ADDRESS)),
            ("tcp", src(ADDRESS, PORT)),
            ("tcp", dst(ADDRESS, PORT)),
        ]
        report = destroy_each([SocketFilter(*where) for where in wheres], limit=1, dry_run=dry_run)
        assert reasons(report)[:2] == [verdict, "not connected"]
        assert sorted(reasons(report)[2:]) == ["limit", "limit", "listening", "own session", "own session"]


class TestBounded:
    """`destroy_sockets` wants a condition that bounds the endpoint, else UnboundedFilter."""

    @pytest.mark.parametrize(
        "where",
        [
            None,
            dst("0.0.0.0/0"),
            dst("::/0"),
            dport(0, 65535),
            ~dst("127.0.0.9"),
            ~dport(1),
            ~~dst("0.0.0.0/0"),
            device("lo"),
            mark(0),
            cgroup(1),
            dst(ADDRESS) | device("lo"),
            dst(ADDRESS) | ~dst(ADDRESS),
            ~(dst("127.0.0.8") | dst("127.0.0.9")),
            ~(dst("127.0.0.8") & dst("127.0.0.9")),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("dry_run", [False, True], ids=["", "dry run"])
    def test_an_unbounded_one_hits_nobody(
        self, nine: list[socket.socket], where: Condition | None, dry_run: bool
    ) -> None:
        with pytest.raises(UnboundedFilter):
            destroy_each([SocketFilter("tcp", dport(PORT)), SocketFilter("udp", where)], dry_run=dry_run)
        assert [pending_error(client) for client in nine] == [""] * 9

    @pytest.mark.parametrize(
        "options",
        [
            {"states": ["established"]},
            {"family": socket.AF_INET},
            {"predicate": lambda row: row.dport == PORT},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_neither_states_nor_family_nor_predicate_bound(
        self, nine: list[socket.socket], options: dict[str, Any]
    ) -> None:
        with pytest.raises(UnboundedFilter):
            destroy_sockets(SocketFilter("tcp", **options))
        assert [pending_error(client) for client in nine] == [""] * 9

    def test_allow_unbounded_allows_it(self, nine: list[socket.socket]) -> None:
        report = destroy_sockets(SocketFilter("udp"), allow_unbounded=True)
        assert reasons(report) == ["destroyed"] * 4
        assert list(find_sockets(SocketFilter("udp"))) == []


def test_without_a_session_there_is_none_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert own_session() == OwnSession(frozenset(), frozenset())
