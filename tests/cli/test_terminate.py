"""`socklb terminate`: what is connected to backends that are gone is cut, and the exit code says how it went."""

from __future__ import annotations

import os
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from socklb.reverse_nat.maps import DEFAULT_DIRECTORY, RevNatEntry

from .. import world
from ..networks import pinned_networks
from ..reverse_nat.bpf_maps import Maps
from ..reverse_nat.test_maps import V4, both, record
from ..sockets import Sockets, add_v6_address, cookie_of, pending_error, talk
from .runner import INTERRUPTED_AT_UDP, Preexec, answers, drop_privilege, run
from .test_destroy import COUNTS, counts

pytestmark = pytest.mark.kernel

TCP, UDP = "10.9.0.2:9000/TCP", "10.9.0.2:9000/UDP"
TCP6 = "[fd00::2]:9000/TCP"


def test_several_backends_at_once_in_several_namespaces(sockets: Sockets) -> None:
    """Their clients are cut, and nobody else is."""

    def connect(made: Sockets) -> tuple[list[socket.socket], list[tuple[socket.socket, socket.socket]]]:
        add_v6_address("fd00::2")
        doomed = [made.udp("10.9.0.2", 9000), made.udp("::ffff:10.9.0.2", 9000)]
        doomed += [made.tcp(address, 9000)[0] for address in ("10.9.0.2", "::ffff:10.9.0.2", "fd00::2")]
        others = [made.tcp("10.9.0.3", 9000), made.tcp("10.9.0.2", 9001), made.udp_pair("10.9.0.3", 9000)]
        return doomed, others

    with pinned_networks("web") as (web,):
        (near, safe), (far, also_safe) = connect(sockets), web.make(connect)
        result = run("terminate", "--json", TCP, UDP, TCP6)
        assert (result.code, result.err, counts(result)) == (0, "", {"matched": 10, "destroyed": 10})
        assert {pending_error(client) for client in near + far} == {"ECONNABORTED"}
        for client, server in safe + also_safe:
            talk(client, server)
        second = run("terminate", "--json", TCP, UDP, TCP6)
        assert (second.code, second.err, counts(second)) == (0, "", {})


class TestExitCodes:
    """0 done, 1 some failed, 3 the kernel cannot, 4 not permitted, 130 interrupted."""

    @pytest.mark.parametrize(
        ("code", "preexec", "patch", "error"),
        [
            (3, None, answers(95), "CONFIG_INET_DIAG_DESTROY"),
            (4, drop_privilege, "", "CAP_NET_ADMIN"),
            (4, None, answers(1), "CAP_NET_ADMIN"),
            (130, None, INTERRUPTED_AT_UDP, "interrupted"),
        ],
        ids=["no destroy", "no privilege", "EPERM", "interrupted"],
    )
    def test_what_ends_the_run(self, sockets: Sockets, code: int, preexec: Preexec, patch: str, error: str) -> None:
        client = sockets.udp("10.9.0.2", 9000)
        result = run("terminate", UDP, "--json", preexec=preexec, patch=patch)
        assert (result.code, counts(result)) == (code, {"matched": 1, "failed": 1})
        assert error in result.json["error"]
        assert f"socklb: {result.json['error']}" in result.err.splitlines()
        assert pending_error(client) == ""
        lines = run("terminate", UDP, preexec=preexec, patch=patch)
        assert (lines.code, lines.err) == (code, result.err)
        assert lines.out.endswith("1 matched: 0 destroyed, 0 gone, 0 skipped, 1 failed\n")

    def test_an_interrupt_keeps_the_account_of_what_was_done(self, sockets: Sockets) -> None:
        client, later = sockets.tcp("10.9.0.2", 9000)[0], sockets.udp("10.9.0.2", 9000)
        result = run("terminate", TCP, UDP, "--json", patch=INTERRUPTED_AT_UDP)
        assert (result.code, result.err) == (130, "socklb: interrupted\n")
        assert counts(result) == {"matched": 2, "destroyed": 1, "failed": 1}
        assert (pending_error(client), pending_error(later)) == ("ECONNABORTED", "")

    def test_some_that_failed_are_1(self, sockets: Sockets) -> None:
        sockets.udp("10.9.0.2", 9000)
        result = run("terminate", UDP, "--json", patch=answers(5))
        assert (result.code, result.err, counts(result)) == (1, "", {"matched": 1, "failed": 1})
        (row,) = result.json["sockets"]
        assert (row["reason"], row["error"]) == ("Input/output error", 5)

    @pytest.mark.parametrize("preexec", [None, drop_privilege], ids=["privileged", "unprivileged"])
    def test_a_dry_run_is_0_and_cuts_nothing(self, sockets: Sockets, preexec: Preexec) -> None:
        client, server = sockets.tcp("10.9.0.2", 9000)
        result = run("terminate", "--no-conntrack", "--netns", "current", "--dry-run", "--json", TCP, preexec=preexec)
        assert (result.code, result.err, counts(result)) == (0, "", {"matched": 1, "would_destroy": 1})
        assert [(row["outcome"], row["dry_run"]) for row in result.json["sockets"]] == [("would_destroy", True)]
        talk(client, server)

    def test_nothing_matched_needs_no_privilege(self, network: None) -> None:
        assert run("terminate", "--no-conntrack", "--netns", "current", UDP, preexec=drop_privilege)[::2] == (0, "")


class TestWhatIsPrinted:
    """`--json`: a socket is as `destroy` has it, but for the backend; and sums by namespace and backend."""

    def test_json(self, sockets: Sockets) -> None:
        client, _ = sockets.tcp("::ffff:10.9.0.2", 9000)
        with pinned_networks("web"):
            said = run("terminate", "--netns", "current", "--netns", "web", "--json", TCP, TCP, UDP).json
        (row,) = said.pop("sockets")
        assert (row["namespace"], row["backend"], row["cookie"]) == ("current", TCP, cookie_of(client))
        assert "filter" not in row
        none = dict.fromkeys(COUNTS, 0)
        one = {**none, "matched": 1, "destroyed": 1}
        here, web = sorted(said.pop("namespaces"), key=lambda row: str(row["name"]))
        assert here.pop("path").endswith("/ns/net")
        assert here == {"name": "current", **one, "error": None}
        assert web == {"name": "web", "path": "/run/netns/web", **none, "error": None}
        assert said.pop("conntrack") in ("done", "absent")
        assert said == {"dry_run": False, **one, "unsearched": [], "left_alone": [], "backends": {TCP: one, UDP: none}}

    def test_lines(self, sockets: Sockets) -> None:
        with pinned_networks("web") as (web,):
            near, far = sockets.udp("10.9.0.2", 9000), web.make(lambda s: s.udp("10.9.0.2", 9000))
            result = run("terminate", "--dry-run", UDP)
            ports = [client.getsockname()[1] for client in (near, far)]
        *lines, last = result.out.splitlines()
        start = "would destroy udp ESTABLISHED 10.9.0.1"
        assert {*lines} == {
            f"{start}:{ports[0]} -> 10.9.0.2:9000",
            f"{start}:{ports[1]} -> 10.9.0.2:9000 in web",
        }
        assert last == "2 matched: 2 would be destroyed, 0 skipped, 0 failed (dry run)"


def no_maps() -> None:
    """For `preexec`: nothing is at the default directory, whatever the machine has there."""
    world.unshare(world.CLONE_NEWNS)
    if os.path.isdir("/sys/fs/bpf"):
        world.mount("tmpfs", "/sys/fs/bpf")


class TestRevNat:
    """With `--rev-nat` only what the balancer itself sent there; `--rev-nat-dir` says where its maps are."""

    @pytest.mark.parametrize("json", [[], ["--json"]], ids=["lines", "json"])
    def test_without_maps_it_is_2(self, sockets: Sockets, json: list[str]) -> None:
        client = sockets.udp("10.9.0.2", 9000)
        result = run("terminate", "--rev-nat", UDP, *json, preexec=no_maps)
        assert (result.code, result.out, pending_error(client)) == (2, "", "")
        assert result.err.startswith(f"socklb: no directory {DEFAULT_DIRECTORY}: ")

    def test_who_went_there_by_himself_is_spared(self, sockets: Sockets, maps: Maps) -> None:
        def connect(made: Sockets) -> tuple[socket.socket, socket.socket]:
            return made.udp("10.9.0.2", 9000), made.udp("::ffff:10.9.0.2", 9000)

        with pinned_networks("web") as (web,):
            pairs = [connect(sockets), web.make(connect)]
            directory = both(maps)
            for _, balanced in pairs:
                record(maps, entry(balanced))
            result = run("terminate", "--rev-nat", "--rev-nat-dir", directory, UDP, "--json")
            assert (result.code, result.err) == (0, "")
            assert counts(result) == {"matched": 4, "destroyed": 2, "skipped": 2}
            assert {row["reason"] for row in result.json["sockets"]} == {"", "no reverse-NAT entry"}
            errors = [(pending_error(direct), pending_error(sent)) for direct, sent in pairs]
            assert errors == [("", "ECONNABORTED")] * 2

    @pytest.mark.parametrize(
        ("damage", "preexec", "code", "error"),
        [
            (lambda maps: maps.make(V4, 1, 16, 8), None, 3, "unknown layout"),
            (lambda maps: os.chmod(maps.directory, 0), drop_privilege, 4, "CAP_"),
        ],
        ids=["another layout", "no privilege"],
    )
    def test_maps_that_cannot_be_used(
        self, sockets: Sockets, maps: Maps, damage: Any, preexec: Preexec, code: int, error: str
    ) -> None:
        client, directory = sockets.udp("10.9.0.2", 9000), both(maps)
        damage(maps)
        words = ("terminate", "--rev-nat", "--rev-nat-dir", directory, UDP)
        result = run(*words, "--json", preexec=preexec)
        assert (result.code, counts(result), pending_error(client)) == (code, {}, "")
        assert error in result.json["error"]
        assert list(result.json["backends"]) == [UDP]
        assert result.err == f"socklb: {result.json['error']}\n"
        lines = run(*words, preexec=preexec)
        assert lines == (code, "0 matched: 0 destroyed, 0 gone, 0 skipped, 0 failed\n", result.err)


def entry(client: socket.socket) -> RevNatEntry:
    """What a balancer records when it sends a client of a service to this backend."""
    backend = ip_address("10.9.0.2")
    return RevNatEntry(cookie_of(client), backend, 9000, ip_address("10.96.0.10"), 53, 1)
