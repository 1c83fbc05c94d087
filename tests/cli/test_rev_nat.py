"""`socklb rev-nat`: what the balancer's maps say, and which of it is stale."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from socklb.cli import parse
from socklb.reverse_nat.maps import DEFAULT_DIRECTORY, RevNatEntry

from ..networks import pinned_networks
from ..reverse_nat.bpf_maps import Maps
from ..reverse_nat.test_maps import ONE, SIX, TWO, V4, both, record
from ..sockets import Sockets, cookie_of
from .runner import Preexec, drop_privilege, run
from .test_netns import loop_among_the_pins
from .test_terminate import no_maps

pytestmark = pytest.mark.kernel

STALE = pytest.mark.parametrize("stale", [[], ["--stale"]], ids=["all", "stale"])
JSON = pytest.mark.parametrize("json", [[], ["--json"]], ids=["table", "json"])
INTERRUPTED = "def fail(*_): raise KeyboardInterrupt\nmodule('.cli.rev_nat').open_rev_nat = fail"
INTERRUPTED_WHILE_LOOKING = "def fail(*_): raise KeyboardInterrupt\nmodule('.cli.rev_nat').live_cookies = fail"


def as_json(entry: RevNatEntry) -> dict[str, object]:
    return {
        **entry._asdict(),
        "backend_address": str(entry.backend_address),
        "service_address": str(entry.service_address),
    }


@pytest.fixture
def directory(network: None, maps: Maps) -> str:
    """Both maps, with entries of sockets that are nobody's."""
    directory = both(maps)
    for entry in (ONE, TWO, SIX):
        record(maps, entry)
    return directory


class TestWhatIsPrinted:
    def test_json(self, directory: str) -> None:
        result = run("rev-nat", f"--rev-nat={directory}", "--json")
        assert (result.code, result.err, set(result.json)) == (0, "", {"entries"})
        entries = sorted(result.json["entries"], key=lambda entry: int(entry["cookie"]))
        assert entries == [as_json(entry) for entry in (SIX, TWO, ONE)]

    def test_a_table(self, directory: str) -> None:
        result = run("rev-nat", f"--rev-nat={directory}")
        assert (result.code, result.err) == (0, "")
        header, *rows = (line.split() for line in result.out.splitlines())
        assert header == ["Cookie", "Backend:Port", "Service:Port", "Index"]
        assert sorted(rows) == sorted(
            [
                [str(ONE.cookie), "10.0.1.5:8080", "10.96.0.10:80", "7"],
                [str(TWO.cookie), "10.0.1.5:65535", "10.96.0.10:443", "65535"],
                [str(SIX.cookie), "[fd00::1:5]:8080", "[fd00::600a]:80", "8"],
            ]
        )

    @STALE
    def test_no_entry(self, network: None, maps: Maps, stale: list[str]) -> None:
        words = ["rev-nat", f"--rev-nat={both(maps)}", *stale]
        assert run(*words, "--json").json == {"entries": []}
        assert len(run(*words).out.splitlines()) == 1


class TestStale:
    """Those whose socket lives in no namespace of the host any more."""

    def test_a_socket_that_lives_anywhere_is_not_stale(self, directory: str, maps: Maps, sockets: Sockets) -> None:
        with pinned_networks("web") as (web,):
            near, far = sockets.tcp("127.0.0.2", 9000)[0], web.make(lambda s: s.udp("127.0.0.2", 9000))
            living = [ONE._replace(cookie=cookie_of(client)) for client in (near, far)]
            for entry in living:
                record(maps, entry)
            words = ("rev-nat", f"--rev-nat={directory}", "--json")
            assert len(run(*words).json["entries"]) == 5
            result = run(*words, "--stale")
            assert (result.code, result.err) == (0, "")
            assert {entry["cookie"] for entry in result.json["entries"]} == {ONE.cookie, TWO.cookie, SIX.cookie}
            near.close()
            cookies = {entry["cookie"] for entry in run(*words, "--stale").json["entries"]}
            assert cookies - {ONE.cookie, TWO.cookie, SIX.cookie} <= {living[0].cookie}

    @JSON
    def test_a_namespace_that_cannot_be_looked_at_is_1(self, directory: str, json: list[str]) -> None:
        """What lives there counts as stale, so it is said."""
        with pinned_networks("web"), loop_among_the_pins():
            result = run("rev-nat", f"--rev-nat={directory}", "--stale", *json)
            assert run("rev-nat", f"--rev-nat={directory}", *json)[::2] == (0, "")
        said = "namespaces not looked at: /run/netns/loop: Too many levels of symbolic links"
        assert (result.code, result.err) == (1, f"socklb: {said}\n")
        if json:
            assert (len(result.json["entries"]), result.json["error"]) == (3, said)
        else:
            assert len(result.out.splitlines()) == 4


class TestExitCodes:
    """2 where there are no maps, 3 for maps of another layout, 4 without privilege, 130 interrupted."""

    @STALE
    @JSON
    @pytest.mark.parametrize("bare", [[], ["--rev-nat"]], ids=["without", "bare"])
    def test_nothing_in_the_default_directory(
        self, network: None, bare: list[str], json: list[str], stale: list[str]
    ) -> None:
        result = run("rev-nat", *bare, *stale, *json, preexec=no_maps)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(f"socklb: no directory {DEFAULT_DIRECTORY}: reverse-NAT maps are where")

    @JSON
    def test_a_directory_without_maps(self, network: None, tmp_path: Path, json: list[str]) -> None:
        result = run("rev-nat", f"--rev-nat={tmp_path}", *json)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(f"socklb: no reverse-NAT map in {tmp_path}: ")

    @STALE
    @pytest.mark.parametrize(
        ("damage", "preexec", "patch", "code", "error"),
        [
            (lambda maps: maps.make(V4, 1, 16, 8), None, "", 3, "layout is not known"),
            (lambda maps: os.chmod(maps.directory, 0), drop_privilege, "", 4, "CAP_DAC_READ_SEARCH"),
            (lambda maps: None, None, INTERRUPTED, 130, "interrupted"),
        ],
        ids=["another layout", "no privilege", "interrupted"],
    )
    def test_with_json_it_is_one_object_with_the_error(
        self,
        directory: str,
        maps: Maps,
        stale: list[str],
        damage: Callable[[Maps], object],
        preexec: Preexec,
        patch: str,
        code: int,
        error: str,
    ) -> None:
        damage(maps)
        result = run("rev-nat", f"--rev-nat={directory}", *stale, "--json", preexec=preexec, patch=patch)
        assert (result.code, result.json["entries"], set(result.json)) == (code, [], {"entries", "error"})
        assert error in result.json["error"]
        assert result.err == f"socklb: {result.json['error']}\n"
        table = run("rev-nat", f"--rev-nat={directory}", *stale, preexec=preexec, patch=patch)
        assert table == (code, "", result.err)

    def test_interrupted_while_it_looks_for_sockets(self, directory: str) -> None:
        result = run("rev-nat", f"--rev-nat={directory}", "--stale", "--json", patch=INTERRUPTED_WHILE_LOOKING)
        assert (result.code, result.json) == (130, {"entries": [], "error": "interrupted"})

    @pytest.mark.parametrize("words", [["x"], ["--rev-nat", "/sys"], ["--stale=1"], ["--netns", "host"]], ids=" ".join)
    def test_usage(self, words: list[str]) -> None:
        result = run("rev-nat", *words)
        assert (result.code, result.out) == (2, "")
        assert words[-1].partition("=")[0] in result.err


def test_a_bare_rev_nat_swallows_no_option() -> None:
    options = parse(["rev-nat", "--rev-nat", "--stale"])
    assert (options.rev_nat, options.stale) == ("", True)
