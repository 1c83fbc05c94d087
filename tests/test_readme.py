"""Every command line in README.md is one that the parser takes."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator

import pytest

from socklb.cli import parse
from socklb.cli.arguments import filters_from

from .cli.runner import COMMANDS
from .project import IS_CHECKOUT, README, only_in_checkout


def blocks(text: str) -> Iterator[list[str]]:
    """What is indented or fenced, as lines; a line that ends with a backslash goes on in the next."""
    block: list[str] = []
    fence = False
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            fence = not fence
        elif fence or line.startswith("    "):
            block.append(line.strip())
            continue
        if block:
            yield re.sub(r"\\\n", " ", "\n".join(block)).splitlines()
        block = []


def commands(text: str) -> list[list[str]]:
    """The words behind `socklb`, `python3 -m socklb` or an IMAGE whose entry point that is, of each command line."""
    return [words for block in blocks(text) for command in _lines(block) for words in _calls(command)]


def _lines(block: list[str]) -> Iterator[list[str]]:
    """The command lines of a block, as words; of a container file, its entry point with its command behind it."""
    entry: list[str] = []
    for line in block:
        keyword, _, rest = line.partition(" ")
        if keyword == "ENTRYPOINT":
            entry = json.loads(rest)
        elif keyword == "CMD":
            yield entry + json.loads(rest)
        elif re.match(r"(ExecStart=|docker |socklb |python3 |.* \| socklb )", line):
            words = shlex.split(line.partition("ExecStart=")[2] or line, comments=True)
            while "&&" in words or "|" in words:
                cut = min(words.index(sign) for sign in ("&&", "|") if sign in words)
                yield words[:cut]
                words = words[cut + 1 :]
            yield words


def _calls(words: list[str]) -> Iterator[list[str]]:
    """What of the words is for socklb, if they call it."""
    if words[0] == "docker":
        yield words[words.index("IMAGE") + 1 :]
    elif words[0] == "socklb":
        yield words[1:]
    elif words[0].rpartition("/")[2].startswith("python3") and "socklb" in words:
        yield words[words.index("socklb") + 1 :]


def check(words: list[str]) -> argparse.Namespace:
    """What they mean. Bad usage ends with SystemExit, as it does for who types them, a bad filter with ValueError."""
    options = parse(words)
    if words[0] in ("list", "destroy"):
        filters_from(options)
    return options


@only_in_checkout
class TestREADME:
    FOUND = commands(README.read_text(encoding="utf-8")) if IS_CHECKOUT else []

    def test_the_command_lines_are_found(self) -> None:
        """Each kind of them: a change of the text that hides them from here is told."""
        shown = [" ".join(words) for words in self.FOUND]
        assert len(shown) >= 16
        assert "demo" in shown
        assert "probe" in shown
        assert "terminate --dry-run 10.0.0.5:80/TCP" in shown
        assert "watch --source -" in shown  # behind a controller
        assert (
            sum(line.startswith("watch --source /run/socklb/backends.json") for line in shown) >= 4
        )  # unit, container

    @pytest.mark.parametrize("words", FOUND or [pytest.param([], id="none")], ids=" ".join)
    def test_each_is_taken(self, words: list[str]) -> None:
        check(words)

    def test_no_line_is_passed_over(self) -> None:
        """Each that speaks of socklb as a program, wherever in the line."""
        text = README.read_text(encoding="utf-8")
        lines = [line for block in blocks(text) for line in block]
        program = rf"(?:^|[\s=])(?:socklb|python3 -m socklb|IMAGE) +(?:{'|'.join(COMMANDS)})(?:\s|$)"
        spoken = [line for line in lines if re.search(program, line)]
        assert len(spoken) >= 15
        for line in spoken:
            assert commands(f"    {line}"), line


class TestTheCheck:
    """It has to be able to fail."""

    @pytest.mark.parametrize(
        "line",
        [
            "    socklb list --nosuch",
            "    socklb terminate --forse 10.0.0.5:80/TCP",
            "    python3 -m socklb watch --source - --interval 5",
            "    my-controller | socklb watch --sauce -",
            "```ini\nExecStart=/usr/bin/python3 -m socklb watch --source /x --audit\n```",
            '```dockerfile\nENTRYPOINT ["python3", "-m", "socklb"]\nCMD ["watch", "--sorce", "/x"]\n```',
            "    docker run --pid=host \\\n        -v /x:/x IMAGE watch --source /x --revnat",
            "    socklb demo --json && socklb probe --yaml",
        ],
    )
    def test_an_unknown_option_is_found(self, line: str) -> None:
        *_, words = commands(f"# socklb\n\ntext\n\n{line}\n\ntext\n")
        with pytest.raises(SystemExit) as caught:
            check(words)
        assert caught.value.code == 2

    def test_a_bad_filter_is_found(self) -> None:
        (words,) = commands("    socklb destroy --tcp 'dts 10.0.0.5'")
        with pytest.raises(ValueError, match="'dts'"):
            check(words)

    def test_prose_and_other_programs_are_not_meant(self) -> None:
        assert commands("socklb list --nosuch\n\n    python3 -m venv .venv && .venv/bin/tox\n") == []
