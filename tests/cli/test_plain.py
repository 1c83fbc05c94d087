"""Words that need no message are read without argparse: as argparse reads them, or not at all."""

from __future__ import annotations

import argparse
import contextlib
import io
from importlib import import_module

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socklb.cli import parsers, plain

from .runner import run

COMMANDS = ("list", "destroy")


def arguments_of(command: str) -> list[argparse.Action]:
    """All that the parser of a command knows, what it refuses included."""
    choices = parsers.parser_of([command])._actions[-1].choices
    assert isinstance(choices, dict)
    parser = choices[command]
    import_module(f"socklb.cli.{command}").add_arguments(parser)
    return [action for action in parser._actions if action.option_strings]


FLAGS = sorted({flag for command in COMMANDS for action in arguments_of(command) for flag in action.option_strings})
LETTERS = "".join(flag[1] for flag in FLAGS if len(flag) == 2)
VALUES = st.sampled_from(
    ("established", "syn-sent,bucket", "nonsense", "3", "0", "all", "/x", "", "-", "-1", "=", "x=y")
)
OTHERS = st.sampled_from(("dst", "10.0.0.1", "!", "dst 10.0.0.1", "--", "--dry", "--stat", "-t u", "---", "\u00e9"))
WORDS = (
    st.sampled_from(FLAGS)
    | VALUES
    | OTHERS
    | st.builds("{}={}".format, st.sampled_from(FLAGS), VALUES)
    | st.builds("-{}".format, st.text(LETTERS + "=1", min_size=2, max_size=4))
)


@given(st.sampled_from(COMMANDS), st.lists(WORDS, max_size=7))
@example("list", ["-tn", "dst", "10.0.0.1", "-e"])
@example("destroy", ["--limit", "3", "--state", "all", "--state=big,listen", "--netns=a", "--netns", "b", "dst ::"])
@example("destroy", ["--netns", "-t"])
@example("destroy", ["-46", "--limit=", "3"])
def test_whatever_the_words_argparse_reads_the_same(command: str, words: list[str]) -> None:
    read = plain.read([command, *words])
    if read is None:
        return
    with contextlib.redirect_stderr(io.StringIO()):
        asked = parsers.parse([command, *words])
    assert {**vars(read), "fail": None} == {**vars(asked), "fail": None}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_read_but_those_that_get_a_message(command: str) -> None:
    given = [action for action in arguments_of(command) if action.help != argparse.SUPPRESS and action.dest != "help"]
    assert len(given) > 10
    for action in given:
        value = [] if action.nargs == 0 else ["3" if action.dest == "limit" else "all"]
        for flag in action.option_strings:
            assert plain.read([command, flag, *value]) is not None, flag


def test_what_was_read_can_still_fail_with_the_usage() -> None:
    code, out, err = run("list", "--summary", "-p")
    assert (code, out) == (2, "")
    assert err.startswith("usage: socklb list ")
