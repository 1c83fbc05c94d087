"""The layers of the package: who imports whom, read from the sources."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import socklb

PACKAGE = Path(socklb.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))
}  # "wire.reply", "wire.__init__"

# From the bottom up. An arrow goes down, never up, nor across: what is on one line does not know its neighbours.
LAYERS = (
    {"errors", "states"},
    {"wire"},
    {"filters", "kernel"},
    {"report", "ledger", "backends", "spare", "find", "destroy", "probe", "rev_nat"},
    {"sources", "audit"},
    {"termination"},
    {"cli"},
)
SIDE_BY_SIDE = {  # the exceptions: destroying is built on finding, and on its own verdicts
    ("destroy", "find"),
    ("destroy", "ledger"),
    ("destroy", "report"),
    ("destroy", "spare"),
    ("ledger", "report"),
}
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}


class Import(NamedTuple):
    """One import statement: of a module of the package ("wire.reply") or of another ("socket")."""

    importer: str
    imported: str
    names: tuple[str, ...]
    inside: bool  # of this package
    relative: bool
    lazy: bool  # in a function
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported} {', '.join(self.names)}"


def statements(node: ast.AST, lazy: bool = False) -> list[tuple[ast.stmt, bool]]:
    """Every import statement that can run, and whether it waits for a call; what only type checkers read cannot."""
    found: list[tuple[ast.stmt, bool]] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            found.append((child, lazy))
        elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            found += statements(ast.Module(child.orelse, []), lazy)
        else:
            found += statements(child, lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return found


def imports_of(module: str) -> list[Import]:
    found = []
    for node, lazy in statements(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                inside = alias.name.partition(".")[0] == socklb.__name__.partition(".")[0]
                found.append(Import(module, alias.name, (), inside, False, lazy, node.lineno))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            inside = str(node.module).partition(".")[0] == socklb.__name__.partition(".")[0]
            names = tuple(alias.name for alias in node.names)
            found.append(Import(module, str(node.module), names, inside, False, lazy, node.lineno))
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                target = next(
                    name
                    for name in (".".join([*base, alias.name]), ".".join(base), ".".join([*base, "__init__"]))
                    if name in MODULES
                )
                found.append(Import(module, target, (alias.name,), True, True, lazy, node.lineno))
    return found


IMPORTS = [statement for module in MODULES for statement in imports_of(module)]


def part_of(module: str) -> str:
    """ "wire" of "wire.reply", "find" of "find", "__init__" of the package's own."""
    return module.partition(".")[0]


def outside(importers: str) -> set[str]:
    """The modules from elsewhere that this part of the package imports."""
    return {i.imported for i in IMPORTS if not i.inside and part_of(i.importer) == importers}


def importers_of(*modules: str) -> set[str]:
    return {i.importer for i in IMPORTS if not i.inside and i.imported.partition(".")[0] in modules}


def test_this_reader_sees_the_imports() -> None:
    """Or nothing below could fail."""
    assert {"__init__", "wire.reply", "kernel.diag", "filters.language", "cli.__init__"} <= set(MODULES)
    seen = {(i.importer, i.imported, i.lazy) for i in IMPORTS}
    assert {
        ("__init__", "find", False),
        ("find", "kernel.names", False),
        ("wire.reply", "wire.attributes", True),
        ("filters.language", "filters.conditions", False),
        ("filters.language", "socket", True),
        ("cli.destroy", "destroy", False),
        ("kernel.diag", "socket", False),
    } <= seen
    assert ("errors", "report", False) not in seen  # read by type checkers alone


class TestArrows:
    """An arrow goes down, never up; relative imports alone; standard library only."""

    def test_every_module_has_a_layer(self) -> None:
        assert {part_of(module) for module in MODULES} <= {*LAYER, "__init__", "__main__"}

    def test_no_import_goes_up_or_across(self) -> None:
        wrong = []
        for statement in IMPORTS:
            above, below = part_of(statement.importer), part_of(statement.imported)
            if not statement.inside or above in ("__init__", "__main__", below):
                continue
            downward = LAYER[below] < LAYER[above] if below in LAYER else False
            if not downward and (above, below) not in SIDE_BY_SIDE:
                wrong.append(str(statement))
        assert wrong == []

    def test_the_package_itself_knows_nothing_of_the_command_line(self) -> None:
        assert {part_of(i.imported) for i in IMPORTS if i.importer == "__init__" and i.inside} <= {*LAYER} - {"cli"}
        assert {i.imported for i in IMPORTS if i.importer == "__main__" and i.inside} == {"cli.__init__"}

    def test_no_two_modules_import_each_other(self) -> None:
        graph: dict[str, set[str]] = {module: set() for module in MODULES}
        for statement in IMPORTS:
            if statement.inside and not statement.lazy:
                graph[statement.importer].add(statement.imported)
        graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the cycle

    def test_imports_within_the_package_are_relative(self) -> None:
        assert [str(i) for i in IMPORTS if i.inside and not i.relative] == []

    @pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names came with Python 3.10")
    def test_all_others_are_of_the_standard_library(self) -> None:
        if sys.version_info >= (3, 10):
            tops = {i.imported.partition(".")[0] for i in IMPORTS if not i.inside}
            assert tops <= sys.stdlib_module_names


class TestReach:
    """wire opens nothing and imports nothing that can; sockets, processes and C calls are the business of kernel."""

    def test_wire_imports_what_cannot_open_anything(self) -> None:
        assert outside("wire") <= {
            "__future__",
            "bisect",
            "collections",
            "enum",
            "functools",
            "ipaddress",
            "struct",
            "sys",
        }
        assert {part_of(i.imported) for i in IMPORTS if i.inside and part_of(i.importer) == "wire"} == {
            "errors", "states", "wire"
        }  # fmt: skip

    @pytest.mark.parametrize("module", [module for module in MODULES if part_of(module) in ("wire", "states")])
    def test_wire_calls_no_builtin_that_opens_or_imports(self, module: str) -> None:
        tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert used & {"open", "exec", "eval", "compile", "__import__", "input", "print", "breakpoint"} == set()

    def test_only_kernel_opens_sockets(self) -> None:
        """But for the demo's ordinary ones. The filter language looks up service names, and no more."""
        users = {module for module in importers_of("socket", "_socket") if part_of(module) != "kernel"}
        assert users <= {"cli.demo_world", "filters.language"}
        names = [i.names for i in IMPORTS if i.importer == "filters.language" and i.imported == "socket"]
        assert names == [("getservbyname",)]

    def test_only_kernel_reaches_for_c_ioctls_and_processes(self) -> None:
        reaching = importers_of("ctypes", "fcntl", "mmap", "multiprocessing", "resource", "subprocess")
        assert {part_of(module) for module in reaching} <= {"kernel"}

    def test_argparse_lives_in_cli_alone(self) -> None:
        assert {part_of(module) for module in importers_of("argparse")} == {"cli"}


class TestBudget:
    """What `import socklb` costs: no module of the standard library that is slow to import."""

    SLOW = ("argparse", "ctypes", "dataclasses", "inspect", "json", "logging", "typing")

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
        assert f"{socklb.__name__}.find" in loaded
        assert loaded & {*self.SLOW} == set()

    def test_reading_maps_loads_ctypes_only_when_there_is_a_map_to_read(self) -> None:
        loaded = self.imported_by(f"import {socklb.__name__}.rev_nat")
        assert f"{socklb.__name__}.kernel.bpf" in loaded
        assert loaded & {*self.SLOW} == set()

    def test_a_slow_module_would_be_seen(self) -> None:
        assert {*self.SLOW} <= self.imported_by(f"import {', '.join(self.SLOW)}")

    def test_importing_the_package_loads_neither_the_command_line_nor_the_codecs_of_attributes(self) -> None:
        inside = {name[len(socklb.__name__) + 1 :] for name in self.imported_by(f"import {socklb.__name__}")}
        assert not {name for name in inside if part_of(name) == "cli"}
        assert "wire.attributes" not in inside


class TestSize:
    """A reader finds the file by the name of the thing, and can read it in one go."""

    @pytest.mark.parametrize("module", MODULES)
    def test_no_module_is_too_long(self, module: str) -> None:
        lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
        assert lines <= (60 if module == "__init__" else 400)

    def test_no_module_is_named_after_nothing(self) -> None:
        names = {path.stem for path in MODULES.values()}
        assert names & {"utils", "util", "helpers", "misc", "common", "tools"} == set()

    @pytest.mark.parametrize("module", MODULES)
    def test_every_module_says_what_it_is(self, module: str) -> None:
        assert ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))
