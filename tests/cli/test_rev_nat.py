"""`socklb rev-nat`: the entries of the balancer's maps, and which of them are stale."""

from __future__ import annotations

import os
import tracemalloc
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from types import SimpleNamespace

import pytest

from socklb import discover_namespaces
from socklb.cli import rev_nat
from socklb.reverse_nat.maps import DEFAULT_DIRECTORY, RevNatEntry

from ..networks import pinned_networks
from ..reverse_nat.bpf_maps import Maps
from ..reverse_nat.test_maps import ONE, SIX, TWO, V4, both, record
from ..sockets import Sockets, cookie_of
from .runner import Preexec, drop_privilege, run
from .test_main import OUT_OF_MEMORY, TERMINATED_EARLY
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
    def test_json_and_a_table(self, directory: str) -> None:
        result, table = run("rev-nat", "--rev-nat-dir", directory, "--json"), run("rev-nat", "--rev-nat-dir", directory)
        assert (result.code, result.err, set(result.json)) == (0, "", {"entries"})
        entries = sorted(result.json["entries"], key=lambda entry: int(entry["cookie"]))
        assert entries == [as_json(entry) for entry in (SIX, TWO, ONE)]
        assert (table.code, table.err) == (0, "")
        header, *rows = (line.split() for line in table.out.splitlines())
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
        words = ["rev-nat", "--rev-nat-dir", both(maps), *stale]
        assert run(*words, "--json").json == {"entries": []}
        assert len(run(*words).out.splitlines()) == 1


class TestStale:
    """Those whose socket exists in no namespace of the host any more."""

    def test_a_socket_that_exists_anywhere_is_not_stale(self, directory: str, maps: Maps, sockets: Sockets) -> None:
        with pinned_networks("web") as (web,):
            near, far = sockets.tcp("127.0.0.2", 9000)[0], web.make(lambda s: s.udp("127.0.0.2", 9000))
            living = [ONE._replace(cookie=cookie_of(client)) for client in (near, far)]
            for entry in living:
                record(maps, entry)
            words = ("rev-nat", "--rev-nat-dir", directory, "--json")
            assert len(run(*words).json["entries"]) == 5
            result = run(*words, "--stale")
            assert (result.code, result.err) == (0, "")
            assert {entry["cookie"] for entry in result.json["entries"]} == {ONE.cookie, TWO.cookie, SIX.cookie}

    @JSON
    def test_a_namespace_that_cannot_be_looked_at_is_1(self, directory: str, json: list[str]) -> None:
        """What lives there counts as stale, so it is said."""
        with pinned_networks("web"), loop_among_the_pins():
            result = run("rev-nat", "--rev-nat-dir", directory, "--stale", *json)
            assert run("rev-nat", "--rev-nat-dir", directory, *json)[::2] == (0, "")
        text = "namespaces not searched: /run/netns/loop: Too many levels of symbolic links"
        assert (result.code, result.err) == (1, f"socklb: {text}\n")
        if json:
            assert (len(result.json["entries"]), result.json["error"]) == (3, text)
        else:
            assert len(result.out.splitlines()) == 4


class TestMemory:
    """What is printed is not kept, and the sockets are looked at so many entries at a time."""

    @STALE
    @JSON
    def test_it_does_not_grow_with_the_number_of_entries(
        self, network: None, monkeypatch: pytest.MonkeyPatch, json: list[str], stale: list[str]
    ) -> None:
        monkeypatch.setattr(rev_nat, "_AT_ONCE", 100)
        monkeypatch.setattr(rev_nat, "discover_namespaces", lambda: discover_namespaces(threads=False))

        def peak(count: int) -> int:
            entries = (ONE._replace(cookie=1 << 60 | number) for number in range(count))
            maps = nullcontext(SimpleNamespace(entries=lambda: entries))
            monkeypatch.setattr(rev_nat, "open_rev_nat", lambda directory: maps)
            options = Namespace(rev_nat_dir=None, json=bool(json), stale=bool(stale))
            with open(os.devnull, "w", encoding="ascii") as nowhere, redirect_stdout(nowhere):
                tracemalloc.start()
                try:
                    assert rev_nat.run(options) == 0
                    return tracemalloc.get_traced_memory()[1]
                finally:
                    tracemalloc.stop()

        peak(1)  # which imports what it needs
        assert peak(5_000) < peak(1_000) + 200_000  # bytes; 4,000 entries more would take ten times as much

    def test_each_entry_is_there_once(self, network: None, directory: str) -> None:
        at_once = "module('.cli.rev_nat')._AT_ONCE = 2"
        entries = run("rev-nat", "--rev-nat-dir", directory, "--stale", "--json", patch=at_once).json["entries"]
        assert sorted(entry["cookie"] for entry in entries) == sorted(one.cookie for one in (ONE, TWO, SIX))


class TestExitCodes:
    """2 where there are no maps, 3 for maps of another layout, 4 without privilege, 130 and 143 ended by a signal."""

    @STALE
    @JSON
    def test_nothing_in_the_default_directory(self, network: None, json: list[str], stale: list[str]) -> None:
        result = run("rev-nat", *stale, *json, preexec=no_maps)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(f"socklb: no directory {DEFAULT_DIRECTORY}: reverse-NAT maps are where")

    @pytest.mark.parametrize(
        ("damage", "preexec", "patch", "stale", "code", "error"),
        [
            (lambda maps: maps.make(V4, 1, 16, 8), None, "", [], 3, "unknown layout"),
            (lambda maps: os.chmod(maps.directory, 0), drop_privilege, "", ["--stale"], 4, "CAP_"),
            (lambda maps: None, None, INTERRUPTED, [], 130, "interrupted"),
            (lambda maps: None, None, INTERRUPTED_WHILE_LOOKING, ["--stale"], 130, "interrupted"),
            (lambda maps: None, None, OUT_OF_MEMORY, ["--stale"], 1, "out of memory"),
            (lambda maps: None, None, TERMINATED_EARLY, [], 143, "terminated"),
        ],
        ids=[
            "another layout",
            "no privilege",
            "interrupted",
            "interrupted while it looks for sockets",
            "no memory",
            "terminated while it reads its words",
        ],
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
        words = ("rev-nat", "--rev-nat-dir", directory, *stale)
        result = run(*words, "--json", preexec=preexec, patch=patch)
        assert (result.code, result.json["entries"], set(result.json)) == (code, [], {"entries", "error"})
        assert error in result.json["error"]
        assert result.err == f"socklb: {result.json['error']}\n"
        assert run(*words, preexec=preexec, patch=patch) == (code, "", result.err)
