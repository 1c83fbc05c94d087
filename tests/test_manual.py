"""docs/socklb.8: the manual page has every command, option and exit code, and no others."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
from functools import cache
from typing import Any

import pytest

from socklb.cli import parse
from socklb.cli.arguments import filters_from
from socklb.filters.language import _TESTS

from .cli.runner import run
from .project import ROOT, document, only_in_checkout

PAGE = ROOT / "docs" / "socklb.8"

pytestmark = only_in_checkout


@cache
def parsers() -> tuple[Any, dict[str, Any], Any]:
    """The parser of `socklb`, that of each command, and what tells the arguments in their help texts."""
    spec = importlib.util.spec_from_file_location("make_completion", ROOT / "docs" / "make_completion.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return (*module.commands(), module.arguments)


def section(title: str) -> str:
    return document("socklb.8").partition(f"\n.Sh {title}\n")[2].partition("\n.Sh ")[0]


def flags(text: str) -> set[str]:
    """What `Fl` marks as options, a stack of letters (`Fl tu4`) one by one."""
    found = set()
    for words in re.findall(r"\bFl ((?:-?\w[\w-]*(?: [,|] )?)+)", text):
        for word in re.split(r" [,|] ", words):
            found |= {f"-{word}"} if word.startswith("-") else {f"-{letter}" for letter in word}
    return found


def options_of(command: str) -> list[list[str]]:
    """The ways to write each option of a command, but for --help."""
    _, commands, arguments = parsers()
    return [action.option_strings for action in arguments(commands[command]) if action.option_strings][1:]


class TestCommands:
    def test_the_synopsis_has_each_command_with_its_options(self) -> None:
        *lines, others = re.split(r"(?:^|\n)\.Nm\n", section("SYNOPSIS"))[1:]
        shown = {text.split()[1]: flags(text) for text in lines}
        assert [*shown] == [*parsers()[1]]
        assert flags(others) == {"-h", "-V"}
        for command, found in shown.items():
            ways = options_of(command)
            assert [way for way in ways if not found & {*way}] == []
            assert found - {option for way in ways for option in way} == set()

    def test_every_option_is_described_and_no_other(self) -> None:
        top, commands, arguments = parsers()
        there = {word for parser in (top, *commands.values()) for a in arguments(parser) for word in a.option_strings}
        items = "\n".join(re.findall(r"^\.It (Fl .*)$", section("DESCRIPTION"), re.MULTILINE))
        assert there - flags(items) == {"-h", "--help", "-V", "--version"}
        assert flags(document("socklb.8")) == there

    def test_every_command_is_described(self) -> None:
        first = section("DESCRIPTION").partition(".El")[0]
        assert re.findall(r"^\.It Cm (\S+)$", first, re.MULTILINE) == [*parsers()[1]]

    def test_every_test_of_the_filter_language_is_described(self) -> None:
        items = re.findall(r"^\.It (Cm .*)$", section("FILTER LANGUAGE"), re.MULTILINE)
        assert {*re.findall(r"Cm (\w+)", "\n".join(items))} == {*_TESTS}

    def test_the_examples_are_taken(self) -> None:
        lines = re.findall(r"^\.Dl [#$] socklb (.*)$", section("EXAMPLES"), re.MULTILINE)
        assert len(lines) > 3
        for words in map(shlex.split, lines):
            options = parse(words)
            if words[0] in ("list", "destroy"):
                filters_from(options)

    def test_exit_codes(self) -> None:
        def codes(lines: list[str]) -> list[str]:
            return re.findall(r"\d+", " ".join(lines))

        told = codes(re.findall(r"^\.It (.*)$", section("EXIT STATUS"), re.MULTILINE))
        assert told == codes(re.findall(r"^  (\d[\d, ]*)  ", run("--help").out.partition("exit codes:")[2], re.M))
        assert told == codes(re.findall(r"^\| (\d[\d, ]*) \|", (ROOT / "README.md").read_text("utf-8"), re.M))


@pytest.mark.parametrize("command", [["mandoc", "-T", "lint"], ["groff", "-mandoc", "-ww", "-z"]], ids=" ".join)
def test_the_page_is_well_formed(command: list[str]) -> None:
    if not shutil.which(command[0]):
        pytest.skip(f"there is no {command[0]}")
    done = subprocess.run([*command, str(PAGE)], stdout=-1, stderr=subprocess.STDOUT, encoding="utf-8", timeout=60)
    about_others = ("referenced manual not found", "outdated mandoc.db")
    assert [line for line in done.stdout.splitlines() if not any(what in line for what in about_others)] == []
