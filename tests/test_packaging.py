"""What is packaged, and how: metadata in setup.cfg, nothing needed at run time, types for those who check them."""

from __future__ import annotations

import configparser
import importlib
import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import socklb

from .project import ROOT, only_in_checkout

PACKAGE = Path(socklb.__file__).resolve().parent

pytestmark = only_in_checkout

# What stands at the top of the repository: DESIGN, "The layers".
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    ".ruff.toml",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "setup.cfg",
    "socklb",
    "tests",
    "tox.ini",
}


@pytest.fixture
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


class TestMetadata:
    def test_nothing_is_needed_at_run_time(self, setup_cfg: configparser.ConfigParser) -> None:
        assert "install_requires" not in setup_cfg["options"]
        assert set(setup_cfg["options.extras_require"]) == {"test"}

    def test_cpython_3_9_and_newer(self, setup_cfg: configparser.ConfigParser) -> None:
        assert setup_cfg["options"]["python_requires"] == ">=3.9"

    def test_the_command_is_the_main_of_cli(self, setup_cfg: configparser.ConfigParser) -> None:
        (script,) = setup_cfg["options.entry_points"]["console_scripts"].split("\n")[1:]
        name, target = (part.strip() for part in script.split("="))
        module, function = target.split(":")
        assert name == "socklb"
        assert getattr(importlib.import_module(module), function) is importlib.import_module("socklb.cli").main

    def test_every_package_and_the_mark_of_types_is_packed(self, setup_cfg: configparser.ConfigParser) -> None:
        assert setup_cfg["options.package_data"]["socklb"].split() == ["py.typed"]
        assert setup_cfg["options.packages.find"]["include"].split() == ["socklb", "socklb.*"]
        assert (PACKAGE / "py.typed").read_bytes() == b""
        folders = {path.parent for path in PACKAGE.rglob("*.py")}
        assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []

    def test_files_that_it_names_are_there(self, setup_cfg: configparser.ConfigParser) -> None:
        readme = setup_cfg["metadata"]["long_description"].split("file:")[1].strip()
        licenses = setup_cfg["metadata"]["license_files"].split()
        assert [name for name in (readme, *licenses) if not (ROOT / name).is_file()] == []

    def test_pyproject_holds_the_build_system_alone(self) -> None:
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert re.findall(r"^\s*\[+([^\]]*)\]+\s*$", text, re.MULTILINE) == ["build-system"]


class TestVersion:
    """It stands in one place, version.py; all else reads it from there."""

    def test_setup_cfg_reads_it(self, setup_cfg: configparser.ConfigParser) -> None:
        assert setup_cfg["metadata"]["version"] == "attr: socklb.version.__version__"

    def test_it_is_a_version(self) -> None:
        assert re.fullmatch(r"\d+\.\d+\.\d+", socklb.__version__)

    def test_no_other_module_spells_it(self) -> None:
        spelling = [
            path for path in PACKAGE.rglob("*.py") if f'"{socklb.__version__}"' in path.read_text(encoding="utf-8")
        ]
        assert [path.name for path in spelling] == ["version.py"]

    def test_packaging_can_read_it_without_importing_anything(self) -> None:
        names: dict[str, object] = {}
        source = (PACKAGE / "version.py").read_text(encoding="utf-8")
        assert "import" not in source.replace("importing", "")
        exec(source, names)
        assert names["__version__"] == socklb.__version__


def test_the_top_level_holds_what_the_design_says() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git here to tell which files belong to the project")
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        encoding="utf-8",
    ).stdout.split("\0")
    assert {name.partition("/")[0] for name in listed if name} == TOP_LEVEL


class TestInstalled:
    """What pip put there has the command, and py.typed."""

    @pytest.fixture
    def installed(self) -> importlib.metadata.Distribution:
        for found in importlib.metadata.distributions(name="socklb"):
            if found.read_text("RECORD"):  # what a build leaves in the checkout has none
                if '"editable": true' in (found.read_text("direct_url.json") or ""):
                    pytest.skip("the distribution socklb is installed as a link to its checkout")
                return found
        pytest.skip("the distribution socklb is not installed in this interpreter")

    @pytest.fixture
    def files(self, installed: importlib.metadata.Distribution) -> set[str]:
        return {file.as_posix() for file in installed.files or ()}

    def test_types_are_among_its_files(self, files: set[str]) -> None:
        modules = {f"socklb/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*.py")}
        assert files >= modules | {"socklb/py.typed"}
        assert not [name for name in files if name.startswith("tests/")]

    def test_the_command_is(self, files: set[str]) -> None:
        (command,) = (name for name in files if name.endswith("bin/socklb"))
        assert command.startswith("../")

    def test_its_metadata_say_what_setup_cfg_says(self, installed: importlib.metadata.Distribution) -> None:
        metadata = installed.metadata
        assert metadata["Version"] == socklb.__version__
        assert metadata["Requires-Python"] == ">=3.9"
        required = metadata.get_all("Requires-Dist") or []
        assert [line for line in required if "extra ==" not in line] == []
