"""The house: which module imports which, read from the sources, imports in functions and for type checkers included."""

from __future__ import annotations

import ast
import graphlib
import io
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

import pytest

import socklb

from .cli.runner import COMMANDS

PACKAGE = Path(socklb.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))
}  # "wire.reply", "wire.__init__"

BASE = ("states", "errors", "values", "features")
FLOORS = ("wire", "kernel", "filters", "engine", "reverse_nat", "conntrack", "termination", "sources", "cli")
"""The folders from the ground up: each imports only those before it, and the modules of BASE."""
FEATURES = FLOORS[FLOORS.index("engine") + 1 :]
CORE = {module: path for module, path in MODULES.items() if module.partition(".")[0] not in FEATURES}


class Import(NamedTuple):
    """One import statement: of a module of the package ("wire.reply") or of another ("socket")."""

    importer: str
    imported: str
    relative: bool

    def __str__(self) -> str:
        return f"{self.importer} imports {self.imported}"


def imports_of(module: str) -> list[Import]:
    found = []
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [Import(module, alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(Import(module, str(node.module), False))
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                names = (".".join([*base, alias.name]), ".".join(base), ".".join([*base, "__init__"]))
                found.append(Import(module, next(name for name in names if name in MODULES), True))
    return found


IMPORTS = [statement for module in MODULES for statement in imports_of(module)]


def folder_of(module: str) -> str:
    """ "wire" of "wire.reply", "errors" of "errors", "__init__" of the package's own."""
    return module.partition(".")[0]


def importers_of(*modules: str) -> set[str]:
    return {i.importer for i in IMPORTS if not i.relative and i.imported.partition(".")[0] in modules}


def test_this_reader_sees_the_imports() -> None:
    """Or nothing below could fail."""
    assert {folder_of(module) for module in MODULES} == {*BASE, *FLOORS, "__init__", "__main__"}
    assert {
        Import("engine.run", "engine.destroy", True),
        Import("wire.reply", "wire.attributes", True),  # in a function
        Import("termination.table", "filters.backend", True),
        Import("termination.terminate", "reverse_nat.maps", True),  # for type checkers
        Import("kernel.diag", "_socket", False),
    } <= set(IMPORTS)


class TestArrows:
    """An import goes down, never up, and never in a circle; relative imports alone; standard library only."""

    def test_each_folder_imports_only_those_below_it(self) -> None:
        floor = {**dict.fromkeys(BASE, -1), **{name: number for number, name in enumerate(FLOORS)}}
        wrong = []
        for statement in IMPORTS:
            above, below = folder_of(statement.importer), folder_of(statement.imported)
            is_ours = statement.relative and above in floor and above != below and below in floor
            if is_ours and floor[below] >= floor[above] > -1:
                wrong.append(str(statement))
            if is_ours and above in BASE and below not in BASE:
                wrong.append(str(statement))
        assert wrong == []

    def test_no_circle(self) -> None:
        graph: dict[str, set[str]] = {module: set() for module in MODULES}
        for statement in IMPORTS:
            if statement.relative:
                graph[statement.importer].add(statement.imported)
        graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the circle

    def test_the_core_does_not_know_the_features(self) -> None:
        assert {str(i) for i in IMPORTS if i.importer in CORE and folder_of(i.imported) in FEATURES} == {
            "__init__ imports conntrack.__init__",  # for type checkers
            "__init__ imports reverse_nat.__init__",
            "__init__ imports termination.__init__",
            "__main__ imports cli.__init__",
        }

    def test_imports_within_the_package_are_relative(self) -> None:
        own = socklb.__name__.partition(".")[0]
        assert [str(i) for i in IMPORTS if not i.relative and i.imported.partition(".")[0] in (own, "socklb")] == []

    @pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names came with Python 3.10")
    def test_all_others_are_of_the_standard_library(self) -> None:
        if sys.version_info >= (3, 10):
            assert {i.imported.partition(".")[0] for i in IMPORTS if not i.relative} <= sys.stdlib_module_names


class TestReach:
    """wire opens nothing and imports nothing that can; sockets, /proc and C calls are the business of few."""

    @pytest.mark.parametrize(
        "module", [name for name in MODULES if folder_of(name) in ("wire", *BASE[:3]) or name.endswith("layout")]
    )
    def test_layouts_import_and_call_nothing_that_opens(self, module: str) -> None:
        harmless = "__future__ collections enum errno functools ipaddress itertools os struct sys typing"
        outside = {i.imported.partition(".")[0] for i in imports_of(module) if not i.relative}
        assert outside <= {*harmless.split()}
        names = {node.id for node in ast.walk(tree_of(module)) if isinstance(node, ast.Name)}
        assert names & {"open", "exec", "eval", "compile", "__import__", "input", "print", "breakpoint"} == set()
        used = {
            node.attr
            for node in ast.walk(tree_of(module))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        }
        assert used <= {"strerror"}

    def test_sockets(self) -> None:
        """The demo has ordinary ones and one to nf_tables, --metrics is served over HTTP, the filter language looks up
        service names, and endpoints are many addresses to parse.
        """
        users = {module for module in importers_of("socket", "_socket") if folder_of(module) != "kernel"}
        assert users == {
            *(
                "cli.demo.dnat",
                "cli.demo.services",
                "cli.demo.world",
                "cli.metrics_server",
                "conntrack.table",
                "filters.language",
            ),
            "sources.kubernetes.endpoint_slice",
        }

    def test_c_calls_and_ioctls(self) -> None:
        users = importers_of("ctypes", "fcntl", "mmap", "multiprocessing", "resource", "subprocess")
        assert {module for module in users if folder_of(module) != "kernel"} == {"reverse_nat.bpf"}

    def test_proc_and_sys(self) -> None:
        """Paths, not help texts: strings of one line that begin so."""
        users = {
            module
            for module in MODULES
            for node in ast.walk(tree_of(module))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value
            if node.value.startswith(("/proc", "/sys"))
        }
        assert {module for module in users if folder_of(module) != "kernel"} == {
            "conntrack.table",
            "reverse_nat.bpf",
            "reverse_nat.maps",  # where Cilium pins them
            "sources.kubernetes.memory_file",
        }

    def test_argparse_lives_in_cli_alone(self) -> None:
        assert {folder_of(module) for module in importers_of("argparse")} == {"cli"}

    def test_the_core_does_without_threading(self) -> None:
        users = importers_of("threading", "queue", "concurrent", "multiprocessing")
        assert {module for module in users if module in CORE} == set()


class TestBudget:
    """What `import socklb` costs: no module of the standard library that is slow to import."""

    SLOW = (
        "argparse",
        "ctypes",
        "dataclasses",
        "inspect",
        "ipaddress",
        "json",
        "logging",
        "socket",
        "threading",
        "typing",
    )

    def imported_by(self, statement: str) -> set[str]:
        """The modules that a fresh interpreter has loaded after a statement."""
        root = PACKAGE.parents[socklb.__name__.count(".")]
        program = f"import sys; sys.path.insert(0, {str(root)!r}); {statement}; print(*sys.modules)"
        run = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program], stdout=subprocess.PIPE, check=True, encoding="utf-8"
        )
        return set(run.stdout.split())

    def test_importing_the_package_loads_no_slow_module(self) -> None:
        loaded = self.imported_by(f"import {socklb.__name__}")
        assert f"{socklb.__name__}.engine.run" in loaded
        assert loaded & {*self.SLOW} == set()
        inside = {name[len(socklb.__name__) + 1 :] for name in loaded if name.startswith(f"{socklb.__name__}.")}
        assert {name for name in inside if folder_of(name) in FEATURES or name == "wire.attributes"} == set()

    def test_reading_maps_loads_ctypes_only_when_there_is_a_map_to_read(self) -> None:
        loaded = self.imported_by(f"import {socklb.__name__}.reverse_nat")
        assert f"{socklb.__name__}.reverse_nat.bpf" in loaded
        assert loaded & {"argparse", "ctypes", "json", "logging", "typing"} == set()

    def test_the_sources_load_no_tls_until_one_needs_it(self) -> None:
        loaded = self.imported_by(f"import {socklb.__name__}.sources.kubernetes.config")
        assert f"{socklb.__name__}.sources.file" in loaded
        assert loaded & {"argparse", "base64", "hashlib", "http", "json", "logging", "ssl", "typing"} == set()

    @pytest.mark.parametrize("words", [["--help"], ["--version"], ["list", "--help"]], ids=" ".join)
    def test_a_command_is_imported_only_for_its_own_words(self, words: list[str]) -> None:
        cli = f"{socklb.__name__}.cli"
        at_exit = "atexit.register(lambda: print(*sys.modules))"
        loaded = self.imported_by(f"import atexit, sys, {cli}; {at_exit}; {cli}.main({words})")
        assert f"{cli}.help" in loaded
        commands = {f"{cli}.{name.replace('-', '_')}" for name in COMMANDS}
        assert loaded & commands == {f"{cli}.{word}" for word in words if not word.startswith("-")}

    @pytest.mark.kernel
    @pytest.mark.parametrize("words", [["list", "-tn", "dst 10.0.0.1"], ["destroy", "--dry-run", "dst 10.0.0.1"]])
    def test_a_command_without_help_or_error_does_without_argparse(self, words: list[str]) -> None:
        cli = f"{socklb.__name__}.cli"
        at_exit = "atexit.register(lambda: print(*sys.modules))"
        loaded = self.imported_by(f"import atexit, sys, {cli}; {at_exit}; {cli}.main({words})")
        assert f"{cli}.{words[0]}" in loaded
        assert loaded & {"argparse", "gettext", "ipaddress", "logging", "socket"} == set()

    def test_a_slow_module_would_be_seen(self) -> None:
        assert {*self.SLOW} <= self.imported_by(f"import {', '.join(self.SLOW)}")


class TestSize:
    """A reader finds the file by the name of the thing, and can read it in one go."""

    @pytest.mark.parametrize("module", MODULES)
    def test_a_module_says_whose_and_what_it_is_and_is_not_too_long(self, module: str) -> None:
        text = MODULES[module].read_text(encoding="utf-8")
        assert text.startswith("# SPDX-License-Identifier: MIT\n")
        assert ast.get_docstring(tree_of(module))
        assert text.count("\n") <= (80 if module == "__init__" else 400)

    def test_the_core_is_small(self) -> None:
        assert sum(map(lines_of_code, CORE)) <= 5600

    def test_no_module_is_named_after_nothing(self) -> None:
        names = {path.stem for path in MODULES.values()}
        assert names & {"utils", "util", "helpers", "misc", "common", "tools"} == set()


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def lines_of_code(module: str) -> int:
    """Without blank lines, comments and docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings: set[int] = set()
    for node in ast.walk(tree_of(module)):
        for child in getattr(node, "body", []) if isinstance(node, documented) else []:
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                docstrings.update(range(child.lineno, (child.end_lineno or 0) + 1))
    passed_over = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(MODULES[module].read_text(encoding="utf-8")).readline):
        if token.type not in (*passed_over, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)
