"""Help texts exist for every command, with examples, and every example works."""

from __future__ import annotations

import os
import re
import shlex
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


def examples(name: str) -> list[list[str]]:
    """Those of a command's help text, as words behind `socklb`; of a pipeline the last part."""
    shown = run(name, "--help").out.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    found = [shlex.split(re.split(r"\s{3,}", line.strip())[0].rpartition("| ")[2]) for line in shown]
    assert len(found) >= 2
    assert {tuple(words[:2]) for words in found} == {("socklb", name)}
    return [words for _, *words in found]


class Host:
    """What the examples speak of: a namespace that is pinned as "web", a /var/log, and maps where Cilium pins them."""

    def __init__(self, bpffs: str) -> None:
        self._bpffs = bpffs

    def enter(self) -> None:
        """For `preexec`: the machine's own /var/log and /sys/fs/bpf are out of sight."""
        world.unshare(world.CLONE_NEWNS)
        world.mount("tmpfs", "/var/log")
        if self._bpffs:
            world.bind(self._bpffs, "/sys/fs/bpf")
        elif os.path.isdir("/sys/fs/bpf"):
            world.mount("tmpfs", "/sys/fs/bpf")

    def lacks_what_it_needs(self, words: list[str]) -> bool:
        """Whether it needs maps, or a cluster, and there are none, and then it says so."""
        if "kubernetes" in words:
            code, _, err = run(*words, preexec=self.enter)
            assert (code, err.startswith("socklb: this is no pod of a Kubernetes cluster ")) == (2, True)
            return True
        if self._bpffs or not {"rev-nat", "--rev-nat"} & {*words}:
            return False
        code, out, err = run(*words, preexec=self.enter)
        assert (code, out) == (2, ""), words
        assert err.startswith(f"socklb: no directory {DEFAULT_DIRECTORY}: ")
        return True


@pytest.fixture
def host(network: None) -> Iterator[Host]:
    with ExitStack() as stack:
        stack.enter_context(pinned_networks("web"))
        balancer = None if why_not() else stack.enter_context(Balancer())
        yield Host(balancer.directory[: -len("/tc/globals")] if balancer else "")


class TestTexts:
    def test_version(self) -> None:
        assert run("--version") == Result(0, f"socklb {__version__}\n", "")

    def test_names_every_command_and_every_exit_code(self) -> None:
        commands, _, codes = run("--help").out.partition("commands:")[2].partition("exit codes:")
        assert re.findall(r"^    (\w[\w-]*) ", commands, re.MULTILINE) == list(COMMANDS)
        assert re.findall(r"^  (\d+)[, ]", codes, re.MULTILINE) == ["0", "1", "2", "3", "4", "5", "130"]

    @pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=" ".join)
    def test_fits_80_columns(self, words: list[str]) -> None:
        code, out, err = run(*words, "--help")
        assert (code, err, [line for line in out.splitlines() if len(line) > 80]) == (0, "", [])

    @pytest.mark.parametrize("name", ["list", "destroy"])
    def test_every_filter_shown_can_be_read(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("_socket.getservbyname", lambda *_: 443)  # not every image has /etc/services
        shown = run(name, "--help").out.partition("language of ss(8):\n")[2].partition("\nA v4")[0]
        cells = [cell for line in shown.splitlines() for cell in re.split(r"\s{3,}", line.strip())]
        filters = [cell for cell in cells if re.match(r"\(|(dst|src|dport|sport|dev|fwmark|cgroup) ", cell)]
        assert len(filters) >= 8
        for text in filters:
            assert str(SocketFilter.parse(text, "tcp")) != str(SocketFilter.parse("", "tcp"))


@pytest.mark.kernel
class TestExamples:
    """In empty namespaces: whoever takes one of them as it is gets no error."""

    @pytest.mark.parametrize("name", [name for name in COMMANDS if name != "watch"])
    def test_every_example_works(self, host: Host, name: str) -> None:
        for words in examples(name):
            assert host.lacks_what_it_needs(words) or run(*words, preexec=host.enter)[::2] == (0, ""), words

    def test_every_example_of_watch_works(self, host: Host) -> None:
        """With the file that it names, or a controller before it, until SIGTERM."""
        changes = re.findall(r"^  (\{.*\})$", run("watch", "--help").out, re.MULTILINE)
        assert len(changes) == 4
        for words in examples("watch"):
            source, *others = words[words.index("--source") + 1 :]
            if host.lacks_what_it_needs(words):
                continue
            if source != "-":
                Path(source).write_text(changes[-1], encoding="utf-8")
            with watching(*others, source=source, preexec=host.enter) as agent:
                if source == "-":
                    agent.send(*changes)
                code, _, err = agent.stop()
            assert (code, err) == (0, ""), words
