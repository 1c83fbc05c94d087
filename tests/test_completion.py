"""docs/completion: what the parsers take, and what bash and zsh make of it."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .networks import pinned_networks
from .project import ROOT, only_in_checkout

Complete = Callable[[str, Path], "list[str]"]
DIRECTORY = ROOT / "docs" / "completion"

pytestmark = only_in_checkout

_BASH = """
source "$1"
compopt() { :; } # there is no command line here
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_socklb
printf '%s\\n' "${COMPREPLY[@]}"
"""

# As a shell on a terminal has it, but that each candidate is written down, and that it ends then.
_ZSH = """
fpath=($DIRECTORY $fpath)
autoload -Uz compinit && compinit -u -D
zstyle ':completion:*' matcher-list ''
compadd() {
    if [[ -z ${(M)@:#-[OAD]} ]]; then
        local -a found
        builtin compadd -O found "$@"
        print -rl -- $found >>$CANDIDATES
    fi
    builtin compadd "$@"
}
zle-line-init() {
    BUFFER=$LINE CURSOR=$#LINE
    zle list-choices
    exit
}
zle -N zle-line-init
"""


def by_bash(line: str, _: Path) -> list[str]:
    words = line.replace("=", " = ").split(" ")
    command = ["bash", "--norc", "-c", _BASH, "bash", str(DIRECTORY / "socklb.bash"), *words]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def by_zsh(line: str, directory: Path) -> list[str]:
    (directory / ".zshrc").write_text(_ZSH, encoding="utf-8")
    candidates = directory / "candidates"
    candidates.write_text("", encoding="utf-8")
    there = {"ZDOTDIR": directory, "DIRECTORY": DIRECTORY, "CANDIDATES": candidates, "LINE": line, "TERM": "dumb"}
    environment = {**os.environ, **{name: str(value) for name, value in there.items()}}
    screen, terminal = pty.openpty()
    try:
        subprocess.run(
            ["zsh", "-d", "-i"], env=environment, stdin=terminal, stdout=terminal, stderr=terminal, timeout=60
        )
    finally:
        os.close(terminal)
        os.close(screen)
    return candidates.read_text(encoding="utf-8").split()


@pytest.mark.parametrize("complete", [by_bash, by_zsh])
@pytest.mark.kernel
class TestShells:
    @pytest.fixture(autouse=True)
    def _is_installed(self, complete: Complete) -> None:
        shell = "bash" if complete is by_bash else "zsh"
        if not shutil.which(shell):
            pytest.skip(f"there is no {shell}")

    @pytest.mark.parametrize(
        ("line", "candidates"),
        [
            ("socklb ter", "terminate"),
            ("socklb destroy --un", "--unbounded --unconnected"),
            ("socklb list --state fin", "fin-wait1 fin-wait2"),
            ("socklb list --state=fin", "fin-wait1 fin-wait2"),
            ("socklb list dst 10.0.0.5 and d", "dst dport dev"),
            ("socklb list dst ", ""),
            ("socklb list dev l", "lo"),
            ("socklb list --netns ", "current all web w$(exit)"),
            ("socklb watch --remember-for ", ""),
            ("socklb terminate ", ""),
            ("socklb destroy --al", ""),  # refused, and in no help text
        ],
    )
    def test_candidates(self, complete: Complete, line: str, candidates: str, tmp_path: Path) -> None:
        with pinned_networks("web", "w$(exit)"):
            found = complete(line, tmp_path)
        assert sorted(word.replace("\\", "") for word in found) == sorted(candidates.split())

    def test_files(self, complete: Complete, tmp_path: Path) -> None:
        (tmp_path / "kept").touch()
        assert complete(f"socklb watch --audit {tmp_path}/k", tmp_path)[-1].endswith("kept")

    def test_the_second_of_two_states(self, complete: Complete, tmp_path: Path) -> None:
        (found,) = complete("socklb list --state established,close-", tmp_path)
        assert found.endswith("close-wait")


def test_the_files_are_what_the_parsers_make() -> None:
    command = [sys.executable, str(ROOT / "docs" / "make_completion.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
