"""How far a command is: a line on a terminal, gone in the end; nothing where standard error is no terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from ..networks import pinned_networks
from .runner import Result, run, run_on_terminal

pytestmark = pytest.mark.kernel

COMMANDS = pytest.mark.parametrize(
    "words",
    [["terminate", "10.9.0.2:9000/UDP"], ["destroy", "--netns", "all", "dst 10.9.0.2"]],
    ids=["terminate", "destroy"],
)
CLEAR = "\r\x1b[K"
LONG = "a-name-that-a-terminal-of-twenty-columns-cannot-show"


@pytest.fixture(autouse=True)
def _nets(network: None) -> Iterator[None]:
    with pinned_networks("web", LONG):
        yield


def on_terminal(*words: str, columns: int = 0, patch: str = "") -> Result:
    return run_on_terminal(*words, stream="stderr", columns=columns, patch=patch)


@COMMANDS
class TestOnATerminal:
    def test_the_namespaces_are_counted_and_the_line_is_gone_in_the_end(self, words: list[str]) -> None:
        result = on_terminal(*words)
        before, *shown, after = result.err.split(CLEAR)
        assert (result.code, before, after) == (0, "", "")
        assert [text.partition(": ")[0] for text in shown] == [f"{n} of 3 namespaces" for n in (1, 2, 3)]
        assert {text.partition(": ")[2] for text in shown} == {"current", "web", LONG}
        assert result.out == "0 matched: 0 destroyed, 0 gone, 0 skipped, 0 failed\n"

    def test_it_takes_one_row_of_a_narrow_one(self, words: list[str]) -> None:
        shown = on_terminal(*words, columns=20).err.split(CLEAR)
        assert [text.rstrip() for text in shown if text] == [f"{n} of 3 namespaces:" for n in (1, 2, 3)]

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


def test_none_elsewhere() -> None:
    """Neither where there is no terminal, nor for the current namespace alone, which takes no time."""
    assert run("terminate", "10.9.0.2:9000/UDP")[::2] == (0, "")
    assert on_terminal("destroy", "dst 10.9.0.2")[::2] == (0, "")
