"""README and docs: every command line is one that the parser takes, every Python block one that imports what exists."""

from __future__ import annotations

import ast
import re
import shlex

import pytest

import socklb
from socklb.cli import parse
from socklb.cli.arguments import filters_from

from .project import ROOT, only_in_checkout

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CALL = re.compile(
    r"(?:^|[ =/])(?:socklb|python3 -m socklb|IMAGE) ((?:list|destroy|terminate|watch|flows|rev-nat|probe|demo)\b.*)"
)


def code(text: str) -> list[str]:
    """The lines of blocks that are indented or fenced; a line that ends with a backslash goes on in the next."""
    joined = re.sub(r" *\\\n *", " ", text)
    fenced = re.findall(r"^```\w*\n(.*?)^```", joined, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4,}(?! )(.*)$", re.sub(r"^```\w*\n.*?^```", "", joined, flags=re.M | re.S), re.MULTILINE)
    return [*indented, *(line for block in fenced for line in block.splitlines())]


def calls(text: str) -> list[str]:
    """What follows the name of the command, in each line of code that calls it."""
    found = [CALL.search(line) for line in code(text)]
    return [match[1] for match in found if match is not None]


CALLS = [call for page in PAGES if page.exists() for call in calls(page.read_text(encoding="utf-8"))]


@only_in_checkout
class TestPages:
    def test_the_command_lines_are_found(self) -> None:
        """In blocks of each kind, behind a prompt, a pipe, and the image of a container."""
        assert {"demo", "terminate --dry-run 10.0.0.5:5432/TCP", "watch --source -"} <= {*CALLS}
        assert sum(call.startswith("watch --source /run/socklb/backends.json --") for call in CALLS) == 2

    @pytest.mark.parametrize("call", CALLS)
    def test_each_is_taken(self, call: str) -> None:
        words = shlex.split(call, comments=True)
        options = parse(words)
        if words[0] in ("list", "destroy"):
            filters_from(options)

    def test_root_does_not_run_what_lies_in_the_working_directory(self) -> None:
        """Which `python3 -m` imports first, unless it has -P. The demo needs no root."""
        lines = [line for page in PAGES for line in code(page.read_text(encoding="utf-8"))]
        shown = [line for line in lines if re.search(r"python.*-m\W+socklb", line)]
        assert [line for line in shown if "-P" not in line] == ["python3 -m socklb demo"]

    def test_python_imports_what_exists(self) -> None:
        (block,) = re.findall(r"^```python\n(.*?)^```", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        (imported,) = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
        assert {alias.name for alias in imported.names} <= {*socklb.__all__}

    def test_links_lead_somewhere(self) -> None:
        for page in PAGES:
            for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
                assert (page.parent / target).exists(), (page.name, target)


@pytest.mark.parametrize("line", ["list --nosuch", "watch --sauce -", "destroy --tcp 'dts 10.0.0.5'"])
def test_a_wrong_line_would_be_seen(line: str) -> None:
    (call,) = calls(f"text\n\n    $ my-controller | socklb {line}\n")
    with pytest.raises((SystemExit, ValueError)):
        TestPages().test_each_is_taken(call)
