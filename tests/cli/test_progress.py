"""How far a command is: a line on a terminal, gone in the end; nothing where standard error is no terminal."""

from __future__ import annotations

import os
import pty
import re
import termios
from collections.abc import Iterator
from subprocess import DEVNULL, Popen

import pytest

from ..networks import Network, pinned_networks
from ..sockets import error_of, eventually
from .runner import ROOT, SECONDS, Result, command, environment, run, run_on_terminal

pytestmark = pytest.mark.kernel

COMMANDS = pytest.mark.parametrize(
    "words",
    [["terminate", "10.9.0.2:9000/UDP"], ["destroy", "--netns", "all", "dst 10.9.0.2"]],
    ids=["terminate", "destroy"],
)
THEN = "looking for clients of service addresses, and again where there are any"
CLEAR = "\r\x1b[K"
LONG = "a-name-that-a-terminal-of-twenty-columns-cannot-show"


@pytest.fixture(autouse=True)
def nets(network: None) -> Iterator[list[Network]]:
    with pinned_networks("web", LONG) as made:
        yield made


def on_terminal(*words: str, columns: int = 0, patch: str = "") -> Result:
    return run_on_terminal(*words, stream="stderr", columns=columns, patch=patch)


@COMMANDS
class TestOnATerminal:
    def test_the_namespaces_are_counted_and_the_line_is_gone_in_the_end(self, words: list[str]) -> None:
        result = on_terminal(*words)
        before, *shown, after = result.err.split(CLEAR)
        assert (result.code, before, after) == (0, "", "")
        if words[0] == "terminate":
            assert shown.pop() == THEN
        assert [text.partition(": ")[0] for text in shown] == [f"{n} of 3 namespaces" for n in (1, 2, 3)]
        assert {text.partition(": ")[2] for text in shown} == {"current", "web", LONG}
        assert result.out == "0 matched: 0 destroyed, 0 gone, 0 skipped, 0 failed\n"

    def test_it_takes_one_row_of_a_narrow_one(self, words: list[str]) -> None:
        shown = on_terminal(*words, columns=20).err.split(CLEAR)
        rows = [f"{n} of 3 namespaces:" for n in (1, 2, 3)] + [THEN[:19]] * (words[0] == "terminate")
        assert [text.rstrip() for text in shown if text] == rows

    @pytest.mark.parametrize(
        ("error", "code", "last"), [("KeyboardInterrupt", 130, "interrupted"), ("ValueError('x')", 1, "in .*: x")]
    )
    def test_it_is_gone_before_anything_else_is_printed(
        self, words: list[str], error: str, code: int, last: str
    ) -> None:
        """What ended the run, and namespaces that failed."""
        patch = f"def fail(*_): raise {error}\nmodule('.engine.find').SocketTable.search_all = fail"
        result = on_terminal(*words, patch=patch)
        assert result.code == code
        *shown, after = result.err.split(CLEAR)
        assert all("socklb" not in text and "\n" not in text for text in shown)
        *others, end = after.splitlines()
        assert all(line.startswith("socklb: in ") for line in others)
        assert re.fullmatch(f"socklb: {last}", end)


def test_a_stopped_terminal_holds_up_no_cut(nets: list[Network]) -> None:
    clients = [net.make(lambda sockets: sockets.udp("10.9.0.2", 9000)) for net in nets]
    screen, terminal = pty.openpty()
    termios.tcflow(terminal, termios.TCOOFF)
    words = ["destroy", "--netns", "all", "--limit", "9", "dst 10.9.0.2"]  # with a limit, one after another
    with Popen(command(words), cwd=ROOT, env=environment(), stdout=DEVNULL, stderr=terminal) as process:
        try:
            eventually(lambda: all(error_of(client.getpeername) == "ENOTCONN" for client in clients), "the cuts")
            termios.tcflow(terminal, termios.TCOON)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
            os.close(terminal)
            os.close(screen)


def test_none_elsewhere() -> None:
    """Neither where there is no terminal, nor for the current namespace alone, which takes no time."""
    assert run("terminate", "10.9.0.2:9000/UDP")[::2] == (0, "")
    assert on_terminal("destroy", "dst 10.9.0.2")[::2] == (0, "")
