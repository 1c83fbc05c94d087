"""How far a command is: a line on a terminal, gone in the end; nothing where standard error is no terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Iterator

import pytest

from ..networks import pinned_networks
from .runner import ROOT, SECONDS, command, environment, run

pytestmark = pytest.mark.kernel

COMMANDS = pytest.mark.parametrize(
    "words",
    [["terminate", "127.0.0.2:9000/UDP"], ["destroy", "--netns", "all", "dst 127.0.0.2"]],
    ids=["terminate", "destroy"],
)
CLEAR = "\r\x1b[K"
LONG = "a-name-that-a-terminal-of-twenty-columns-cannot-show"


@pytest.fixture(autouse=True)
def _nets(network: None) -> Iterator[None]:
    with pinned_networks("web", LONG):
        yield


def on_a_terminal(*words: str, columns: int = 0, patch: str = "") -> tuple[int, str, str]:
    """The exit code, what is on standard output, and what a terminal as standard error got."""
    terminal, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        try:
            with subprocess.Popen(
                command(words, patch=patch),
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=slave,
                encoding="utf-8",
            ) as process:
                out, _ = process.communicate(timeout=SECONDS)
            got = screen.read(1 << 16) if _has_input(slave, terminal) else b""
        finally:
            os.close(slave)
    return process.returncode, out, got.decode()


def _has_input(slave: int, terminal: int) -> bool:
    """Whether the terminal got anything: a read would wait for it."""
    termios.tcdrain(slave)
    return bool(struct.unpack("i", fcntl.ioctl(terminal, termios.FIONREAD, bytes(4)))[0])


def texts(got: str) -> list[str]:
    """What the line showed, one after another."""
    return got.split(CLEAR)


@COMMANDS
class TestOnATerminal:
    def test_the_namespaces_are_counted_and_the_line_is_gone_in_the_end(self, words: list[str]) -> None:
        code, out, got = on_a_terminal(*words)
        before, *shown, after = texts(got)
        assert (code, before, after) == (0, "", "")
        assert [text.partition(": ")[0] for text in shown] == [f"{n} of 3 namespaces" for n in (1, 2, 3)]
        assert {text.partition(": ")[2] for text in shown} == {"host", "web", LONG}
        assert out == "0 matched: 0 destroyed, 0 gone, 0 skipped, 0 failed\n"

    def test_it_takes_one_row_of_a_narrow_one(self, words: list[str]) -> None:
        _, _, got = on_a_terminal(*words, columns=20)
        assert [text.rstrip() for text in texts(got) if text] == [f"{n} of 3 namespaces:" for n in (1, 2, 3)]

    def test_an_error_has_a_row_of_its_own(self, words: list[str]) -> None:
        patch = "def fail(*_): raise KeyboardInterrupt\nmodule('.find').SocketTable.collect = fail"
        code, _, got = on_a_terminal(*words, patch=patch)
        assert code == 130
        *others, last = texts(got)[-1].splitlines()
        assert last == "socklb: interrupted"
        assert all(line.startswith("socklb: in ") for line in others)  # those that were at work, too


@COMMANDS
def test_none_elsewhere(words: list[str]) -> None:
    assert run(*words)[::2] == (0, "")


def test_none_for_one_s_own_namespace() -> None:
    """That is done at once."""
    assert on_a_terminal("destroy", "dst 127.0.0.2")[::2] == (0, "")
