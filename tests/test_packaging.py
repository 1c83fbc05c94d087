"""What is packaged, and how: metadata in setup.cfg, nothing needed at run time, types for those who check them."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
from pathlib import Path

import pytest

import socklb
from socklb.cli import main

from .project import ROOT, only_in_checkout

PACKAGE = Path(socklb.__file__).resolve().parent

pytestmark = only_in_checkout


class TestSource:
    @pytest.fixture
    def setup_cfg(self) -> configparser.ConfigParser:
        parser = configparser.ConfigParser()
        parser.read(ROOT / "setup.cfg", encoding="utf-8")
        return parser

    def test_the_command_is_the_main_of_cli(self, setup_cfg: configparser.ConfigParser) -> None:
        scripts = setup_cfg["options.entry_points"]["console_scripts"].split("\n")[1:]
        name, target = (part.strip() for part in "".join(scripts).split("="))
        assert name == "socklb"
        assert importlib.metadata.EntryPoint(name, target, "console_scripts").load() is main

    def test_every_folder_is_a_package(self) -> None:
        folders = {path.parent for path in PACKAGE.rglob("*.py")}
        assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []

    def test_the_version_can_be_read_without_an_import(self, setup_cfg: configparser.ConfigParser) -> None:
        """setuptools imports the package where it is no literal."""
        assert setup_cfg["metadata"]["version"] == "attr: socklb.__version__"
        for node in ast.parse((PACKAGE / "__init__.py").read_bytes()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
                assert re.fullmatch(r"\d+\.\d+\.\d+", ast.literal_eval(node.value))
                return
        pytest.fail("it is not assigned")

    def test_a_copy_of_the_package_carries_the_licence(self) -> None:
        assert (PACKAGE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()

    def test_pyproject_holds_the_build_system_alone(self) -> None:
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert re.findall(r"^\s*\[+([^\]]*)\]+\s*$", text, re.MULTILINE) == ["build-system"]


class TestInstalled:
    """What pip put there, of a wheel for one: tox tests one."""

    @pytest.fixture
    def installed(self) -> importlib.metadata.Distribution:
        for found in importlib.metadata.distributions(name="socklb"):
            if found.read_text("RECORD"):  # what a build leaves in the checkout has none
                if '"editable": true' in (found.read_text("direct_url.json") or ""):
                    pytest.skip("the distribution socklb is installed as a link to its checkout")
                return found
        pytest.skip("the distribution socklb is not installed in this interpreter")

    def test_every_module_the_licence_and_the_mark_of_types(self, installed: importlib.metadata.Distribution) -> None:
        files = {file.as_posix() for file in installed.files or () if file.suffix != ".pyc"}
        modules = {f"socklb/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*.py")}
        assert {name for name in files if name.startswith("socklb/")} == modules | {"socklb/py.typed", "socklb/LICENSE"}
        assert not [name for name in files if name.startswith("tests/")]
        assert [name for name in files if name.endswith("bin/socklb")]

    def test_nothing_is_needed_at_run_time(self, installed: importlib.metadata.Distribution) -> None:
        metadata = installed.metadata
        assert metadata["Version"] == socklb.__version__
        assert metadata["Requires-Python"] == ">=3.9"
        assert [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line] == []
