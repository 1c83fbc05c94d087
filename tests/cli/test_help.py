"""Help texts exist for every command, with examples, and every example works."""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from socklb import SocketFilter, __version__
from socklb.reverse_nat.maps import DEFAULT_DIRECTORY

from .. import world
from ..networks import pinned_networks
from ..reverse_nat.balancer import Balancer
from ..reverse_nat.balancer.fixture import why_not
from .agent import watching
from .runner import COMMANDS, Result, run

NOT_PINNED = "reverse-NAT maps are where a balancer pins them, on a mounted bpffs"


def examples(name: str) -> list[list[str]]:
    """Those of a command's help text, as words behind `socklb`; of a pipeline the last part."""
    shown = run(name, "--help").out.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    found = [shlex.split(re.split(r"\s{3,}", line.strip())[0].rpartition("| ")[2]) for line in shown]
    assert len(found) >= 2
    assert {tuple(words[:2]) for words in found} == {("socklb", name)}
    return [words for _, *words in found]


class Place:
    """What the examples speak of: a namespace that is pinned as "web", a /var/log, and maps where Cilium pins them."""

    def __init__(self, bpffs: str) -> None:
        self.has_maps, self._bpffs = bool(bpffs), bpffs

    def enter(self) -> None:
        """For `preexec`: the /var/log and /sys/fs/bpf of the host are not to be seen."""
        world.unshare(world.CLONE_NEWNS)
        world.mount("tmpfs", "/var/log")
        if self.has_maps:
            world.bind(self._bpffs, "/sys/fs/bpf")
        elif os.path.isdir("/sys/fs/bpf"):
            world.mount("tmpfs", "/sys/fs/bpf")

    def assert_misses_maps(self, words: list[str]) -> None:
        code, out, err = run(*words, preexec=self.enter)
        assert (code, out) == (2, ""), words
        assert err == f"socklb: no directory {DEFAULT_DIRECTORY}: {NOT_PINNED}\n"


@pytest.fixture
def place(network: None) -> Iterator[Place]:
    with ExitStack() as stack:
        stack.enter_context(pinned_networks("web"))
        balancer = None if why_not() else stack.enter_context(Balancer())
        yield Place(balancer.directory[: -len("/tc/globals")] if balancer else "")


class TestTexts:
    def test_version(self) -> None:
        assert run("--version") == Result(0, f"socklb {__version__}\n", "")

    def test_names_every_command_and_every_exit_code(self) -> None:
        text = run("--help").out
        commands, _, codes = text.partition("commands:")[2].partition("exit codes:")
        assert re.findall(r"^    (\w[\w-]*) ", commands, re.MULTILINE) == list(COMMANDS)
        assert re.findall(r"^  (\d+) ", codes, re.MULTILINE) == ["0", "1", "2", "3", "4", "130"]

    def test_a_directory_of_maps_is_behind_an_equals_sign(self) -> None:
        """`--rev-nat DIR` would be a bare one, and a backend."""
        for name in ("terminate", "watch", "rev-nat"):
            text = run(name, "--help").out
            assert text.count("--rev-nat[=DIR]") == 2  # in the usage and in the options
            assert "--rev-nat DIR" not in text

    @pytest.mark.parametrize("name", ["list", "destroy"])
    def test_every_filter_shown_can_be_read(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "getservbyname", lambda *_: 443)  # not every image has /etc/services
        shown = run(name, "--help").out.partition("language of ss(8):\n")[2].partition("\nA v4")[0]
        cells = [cell for line in shown.splitlines() for cell in re.split(r"\s{3,}", line.strip())]
        filters = [cell for cell in cells if re.match(r"\(|(dst|src|dport|sport|dev|fwmark|cgroup) ", cell)]
        assert len(filters) >= 8
        for text in filters:
            assert SocketFilter.parse(text, "tcp").where != SocketFilter.parse("", "tcp").where


@pytest.mark.kernel
class TestExamples:
    @pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("watch", "rev-nat")])
    def test_every_example_works(self, place: Place, name: str) -> None:
        """In empty namespaces: whoever takes one of them as it is gets no error."""
        for words in examples(name):
            if "--rev-nat" in words and not place.has_maps:
                place.assert_misses_maps(words)
            else:
                assert run(*words, preexec=place.enter)[::2] == (0, ""), words

    def test_every_example_of_watch_works(self, place: Place) -> None:
        """With the file that it names, or a controller before it, until SIGTERM."""
        changes = re.findall(r"^  (\{.*\})$", run("watch", "--help").out, re.MULTILINE)
        assert len(changes) == 3
        for words in examples("watch"):
            source, *others = words[words.index("--source") + 1 :]
            if source != "-":
                Path(source).write_text(changes[-1], encoding="utf-8")
            if "--rev-nat" in words and not place.has_maps:
                place.assert_misses_maps(words)
                continue
            with watching(*others, source=source, preexec=place.enter) as agent:
                if source == "-":
                    agent.tell(*changes)
                code, _, err = agent.stop()
            assert (code, err) == (0, ""), words

    def test_every_example_of_rev_nat_works(self, place: Place) -> None:
        for words in examples("rev-nat"):
            if place.has_maps:
                assert run(*words, preexec=place.enter)[::2] == (0, ""), words
            else:
                place.assert_misses_maps(words)
