"""`socklb terminate`: what is connected to backends that are gone is cut, and the exit code says how it went."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from socklb import NetworkNamespace
from socklb.cli import parse
from socklb.reverse_nat.maps import DEFAULT_DIRECTORY, RevNatEntry

from .. import world
from ..networks import Network, pinned_networks
from ..reverse_nat.bpf_maps import Maps
from ..reverse_nat.test_maps import V4, both, record
from ..sockets import Sockets, add_v6_address, cookie_of, pending_error, talk
from .runner import Preexec, drop_privilege, run

pytestmark = pytest.mark.kernel

TCP, UDP = "127.0.0.2:9000/TCP", "127.0.0.2:9000/UDP"
TCP6 = "[fd00::2]:9000/TCP"
SUMS = ("matched", "destroyed", "gone", "skipped", "failed")
INTERRUPTED = """
DiagSocket = module(".kernel.diag").DiagSocket
destroy = DiagSocket.destroy
def interrupted(self, requests, doing):
    if "udp" in doing:
        raise KeyboardInterrupt
    return destroy(self, requests, doing)
DiagSocket.destroy = interrupted
"""


def answers(code: int) -> str:
    """A kernel that answers so to each destroy."""
    return f"module('.kernel.diag').DiagSocket.destroy = lambda self, requests, doing: [{code}] * len(requests)"


def sums(said: dict[str, Any]) -> dict[str, int]:
    """The sums that are not 0, after a look at whether sockets, namespaces and backends add up to them."""
    assert said["matched"] == sum(said[name] for name in SUMS[1:]) == len(said["sockets"])
    for name in SUMS:
        assert said[name] == sum(row[name] for row in said["backends"])
    for name in SUMS[1:]:
        assert said[name] == sum(row["outcome"] == name for row in said["sockets"])
    return {name: said[name] for name in SUMS if said[name]}


class TestThoseMeantAreCutAndNobodyElse:
    def test_several_backends_at_once_in_several_namespaces(self, sockets: Sockets) -> None:
        def connect(made: Sockets) -> tuple[list[socket.socket], list[tuple[socket.socket, socket.socket]]]:
            add_v6_address("fd00::2")
            doomed = [made.udp("127.0.0.2", 9000), made.udp("::ffff:127.0.0.2", 9000)]
            doomed += [made.tcp(address, 9000)[0] for address in ("127.0.0.2", "::ffff:127.0.0.2", "fd00::2")]
            others = [made.tcp("127.0.0.3", 9000), made.tcp("127.0.0.2", 9001), made.udp_pair("127.0.0.3", 9000)]
            return doomed, others

        with pinned_networks("web") as (web,):
            (near, safe), (far, also_safe) = connect(sockets), web.make(connect)
            result = run("terminate", "--json", TCP, UDP, TCP6)
            assert (result.code, result.err, sums(result.json)) == (0, "", {"matched": 10, "destroyed": 10})
            assert {pending_error(client) for client in near + far} == {"ECONNABORTED"}
            for client, server in safe + also_safe:
                talk(client, server)
            second = run("terminate", "--json", TCP, UDP, TCP6)
            assert (second.code, second.err, sums(second.json)) == (0, "", {})


class TestExitCodes:
    """0 done, 1 some failed, 2 bad input, 3 the kernel cannot, 4 not permitted, 130 interrupted."""

    @pytest.mark.parametrize(
        ("code", "preexec", "patch", "error"),
        [
            (3, None, answers(95), "CONFIG_INET_DIAG_DESTROY"),
            (4, drop_privilege, "", "CAP_NET_ADMIN"),
            (4, None, answers(1), "CAP_NET_ADMIN"),
            (130, None, INTERRUPTED, "interrupted"),
        ],
        ids=["no destroy", "no privilege", "EPERM", "interrupted"],
    )
    def test_what_ends_the_run(self, sockets: Sockets, code: int, preexec: Preexec, patch: str, error: str) -> None:
        client = sockets.udp("127.0.0.2", 9000)
        result = run("terminate", UDP, "--json", preexec=preexec, patch=patch)
        assert (result.code, sums(result.json)) == (code, {"matched": 1, "failed": 1})
        assert error in result.json["error"]
        assert f"socklb: {result.json['error']}" in result.err.splitlines()
        assert pending_error(client) == ""
        lines = run("terminate", UDP, preexec=preexec, patch=patch)
        assert (lines.code, lines.err) == (code, result.err)
        assert lines.out.endswith("1 matched: 0 destroyed, 0 gone, 0 skipped, 1 failed\n")

    def test_an_interrupt_keeps_the_account_of_what_was_done(self, sockets: Sockets) -> None:
        client, later = sockets.tcp("127.0.0.2", 9000)[0], sockets.udp("127.0.0.2", 9000)
        result = run("terminate", TCP, UDP, "--json", patch=INTERRUPTED)
        assert (result.code, result.err) == (130, "socklb: interrupted\n")
        assert sums(result.json) == {"matched": 2, "destroyed": 1, "failed": 1}
        assert (pending_error(client), pending_error(later)) == ("ECONNABORTED", "")

    def test_some_that_failed_are_1(self, sockets: Sockets) -> None:
        sockets.udp("127.0.0.2", 9000)
        result = run("terminate", UDP, "--json", patch=answers(5))
        assert (result.code, result.err, sums(result.json)) == (1, "", {"matched": 1, "failed": 1})
        (row,) = result.json["sockets"]
        assert (row["reason"], row["error"]) == ("Input/output error", 5)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ([], "BACKEND"),
            ([UDP, "127.0.0.2:9000"], "'127.0.0.2:9000' names no protocol"),
            ([UDP, "127.0.0.2/TCP"], "'127.0.0.2/TCP' has no port"),
            (["127.0.0.2:http/TCP"], "'127.0.0.2:http/TCP'"),
            (["127.0.0.2:0/TCP"], "'127.0.0.2:0/TCP'"),
            (["127.0.0.2:65536/UDP"], "'127.0.0.2:65536/UDP'"),
            (["127.0.0.300:80/TCP"], "'127.0.0.300:80/TCP'"),
            (["example.org:80/TCP"], "'example.org:80/TCP'"),
            (["fd00::2:80/TCP"], "'fd00::2:80/TCP'"),
            (["[fe80::1%lo]:80/TCP"], "'[fe80::1%lo]:80/TCP'"),
            (["[127.0.0.2]:80/TCP"], "'[127.0.0.2]:80/TCP'"),
            (["127.0.0.2:80/SCTP"], "'127.0.0.2:80/SCTP'"),
            (["0.0.0.0:80/TCP"], "'0.0.0.0:80/TCP'"),
            ([""], "''"),
            (["--rev-nat", "/sys/fs/bpf", UDP], "'/sys/fs/bpf' is no backend; a directory of maps is given as --rev-"),
            (["--rev-nat=/nonexistent", UDP], "no directory /nonexistent"),
            (["--rev-nat=/proc/self/net", UDP], "no reverse-NAT map in /proc/self/net"),
            (["--limit=1", UDP], "--limit=1"),
            (["--net", "host", UDP], "--net"),
            (["--audit"], "--audit"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )  # fmt: skip
    @pytest.mark.parametrize("json", [[], ["--json"]], ids=["lines", "json"])
    def test_bad_input_names_the_word_and_nothing_dies(
        self, sockets: Sockets, json: list[str], words: list[str], said: str
    ) -> None:
        client = sockets.udp("127.0.0.2", 9000)
        result = run("terminate", *json, *words)
        assert (result.code, result.out, pending_error(client)) == (2, "", "")
        assert said in result.err
        assert "Traceback" not in result.err

    @pytest.mark.parametrize("preexec", [None, drop_privilege], ids=["privileged", "unprivileged"])
    def test_a_dry_run_is_0_and_cuts_nothing(self, sockets: Sockets, preexec: Preexec) -> None:
        client, server = sockets.tcp("127.0.0.2", 9000)
        result = run("terminate", "--netns", "host", "--dry-run", "--json", TCP, preexec=preexec)
        assert (result.code, result.err, sums(result.json)) == (0, "", {"matched": 1, "skipped": 1})
        assert [(row["reason"], row["dry_run"]) for row in result.json["sockets"]] == [("dry run", True)]
        talk(client, server)

    def test_nothing_matched_needs_no_privilege(self, network: None) -> None:
        assert run("terminate", "--netns", "host", UDP, preexec=drop_privilege)[::2] == (0, "")


class TestWhatIsPrinted:
    """`--json`: a socket is an audit record without time, operation and actor; and sums by namespace and backend."""

    def test_json(self, sockets: Sockets) -> None:
        client, _ = sockets.tcp("::ffff:127.0.0.2", 9000)
        here = NetworkNamespace.current()
        with pinned_networks("web") as (web,):
            said = run("terminate", "--netns", "host", "--netns", "web", "--json", TCP, TCP, UDP).json
        assert said.pop("sockets") == [
            {
                "namespace": "host",
                "backend": TCP,
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
        ]
        none = dict.fromkeys(SUMS, 0)
        one = {**none, "matched": 1, "destroyed": 1}
        namespaces = sorted(said.pop("namespaces"), key=lambda row: str(row["namespace"]))
        assert [row.pop("path").startswith("/") for row in namespaces] == [True, True]
        assert namespaces == [
            {"namespace": "host", "inode": here.inode, **one, "error": None},
            {"namespace": "web", "inode": web.namespace.inode, **none, "error": None},
        ]
        assert said.pop("backends") == [{"backend": TCP, **one}, {"backend": UDP, **none}]
        assert said == {**one, "skipped_namespaces": []}

    def test_lines(self, sockets: Sockets) -> None:
        with pinned_networks("web") as (web,):
            near, far = sockets.udp("127.0.0.2", 9000), web.make(lambda s: s.udp("127.0.0.2", 9000))
            result = run("terminate", "--dry-run", UDP)
            ports = [client.getsockname()[1] for client in (near, far)]
        *lines, last = result.out.splitlines()
        start = "skipped   udp ESTABLISHED 127.0.0.1"
        assert sorted(lines) == sorted(
            [
                f"{start}:{ports[0]} -> 127.0.0.2:9000 (dry run)",
                f"{start}:{ports[1]} -> 127.0.0.2:9000 in web (dry run)",
            ]
        )
        assert last == "2 matched: 0 destroyed, 0 gone, 2 skipped, 0 failed"


class TestABareRevNat:
    """It stands for the default directory, and does not swallow the next word."""

    @pytest.mark.parametrize(
        ("words", "directory", "backends"),
        [
            ([TCP], None, [TCP]),
            (["--rev-nat", TCP], "", [TCP]),
            ([TCP, "--rev-nat"], "", [TCP]),
            (["--rev-nat", "--json", TCP, UDP], "", [TCP, UDP]),
            (["--rev-nat=/x", TCP], "/x", [TCP]),
            (["--rev-nat", "--", TCP], "", [TCP]),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_is_parsed(self, words: list[str], directory: str | None, backends: list[str]) -> None:
        options = parse(["terminate", *words])
        assert (options.rev_nat, [str(backend) for backend in options.backends]) == (directory, backends)

    def test_behind_two_dashes_it_is_no_option(self) -> None:
        result = run("terminate", "--", "--rev-nat")
        assert result.code == 2
        assert "backend '--rev-nat' names no protocol" in result.err

    @pytest.mark.parametrize("json", [[], ["--json"]], ids=["lines", "json"])
    def test_without_maps_there_is_2(self, sockets: Sockets, json: list[str]) -> None:
        client = sockets.udp("127.0.0.2", 9000)
        result = run("terminate", "--rev-nat", UDP, *json, preexec=no_maps)
        assert (result.code, result.out, pending_error(client)) == (2, "", "")
        assert result.err.startswith(f"socklb: no directory {DEFAULT_DIRECTORY}: ")


def no_maps() -> None:
    """For `preexec`: nothing is at the default directory, whatever the host has there."""
    world.unshare(world.CLONE_NEWNS)
    if os.path.isdir("/sys/fs/bpf"):
        world.mount("tmpfs", "/sys/fs/bpf")


class TestRevNat:
    """With `--rev-nat` only what the balancer itself sent there."""

    @pytest.fixture
    def nets(self, network: None) -> Iterator[list[Network]]:
        with pinned_networks("web") as made:
            yield made

    def test_who_went_there_by_himself_is_spared(self, sockets: Sockets, nets: list[Network], maps: Maps) -> None:
        def connect(made: Sockets) -> tuple[socket.socket, socket.socket]:
            return made.udp("127.0.0.2", 9000), made.udp("::ffff:127.0.0.2", 9000)

        pairs = [connect(sockets), nets[0].make(connect)]
        directory = both(maps)
        for _, balanced in pairs:
            record(maps, entry(balanced))
        result = run("terminate", f"--rev-nat={directory}", UDP, "--json")
        assert (result.code, result.err) == (0, "")
        assert sums(result.json) == {"matched": 4, "destroyed": 2, "skipped": 2}
        assert {row["reason"] for row in result.json["sockets"]} == {"", "no reverse-NAT entry"}
        assert [(pending_error(direct), pending_error(sent)) for direct, sent in pairs] == [("", "ECONNABORTED")] * 2

    @pytest.mark.parametrize(
        ("damage", "preexec", "code", "error"),
        [
            (lambda maps: maps.make(V4, 1, 16, 8), None, 3, "layout is not known"),
            (lambda maps: maps.lru(V4, 16, 12), None, 3, "layout is not known"),
            (lambda maps: os.chmod(maps.directory, 0), drop_privilege, 4, "CAP_DAC_READ_SEARCH"),
        ],
        ids=["a plain hash", "longer values", "no privilege"],
    )
    def test_maps_that_cannot_be_used(
        self, sockets: Sockets, maps: Maps, damage: Any, preexec: Preexec, code: int, error: str
    ) -> None:
        client, directory = sockets.udp("127.0.0.2", 9000), both(maps)
        damage(maps)
        result = run("terminate", f"--rev-nat={directory}", UDP, "--json", preexec=preexec)
        assert (result.code, sums(result.json), pending_error(client)) == (code, {}, "")
        assert error in result.json["error"]
        assert result.err == f"socklb: {result.json['error']}\n"


def entry(client: socket.socket) -> RevNatEntry:
    """What a balancer records when it sends a client of a service to this backend."""
    backend = ip_address("127.0.0.2")
    return RevNatEntry(cookie_of(client), backend, 9000, ip_address("10.96.0.10"), 53, 1)
