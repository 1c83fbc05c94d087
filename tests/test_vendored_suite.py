"""The tests run beside a vendored copy, whatever it is called there, in a repository that has nothing else of socklb.

What stands there of the files that a checkout has, README.md for one, is the host project's.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .runs import copy_tests, run
from .test_vendoring import vendor

NAME = "app._vendor.socklb"
FOLDER = "socklb_tests"  # any name will do

# Those that look at what a checkout has, and then some that look at what is run as a process, and at names.
OF_A_CHECKOUT = ("test_readme.py", "test_packaging.py")
FILES = (*OF_A_CHECKOUT, "test_states.py", "test_world.py", "fuzz/test_targets.py")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A repository with a vendored copy, and the tests beside it."""
    vendor(tmp_path / "host", NAME)
    copy_tests(tmp_path / "host" / FOLDER)
    return tmp_path / "host"


def add_test(host: Path, text: str) -> str:
    """A test among the others; its path."""
    (host / FOLDER / "test_added.py").write_text(text)
    return f"{FOLDER}/test_added.py"


def test_every_test_is_collected(host: Path) -> None:
    done = run(host, "--collect-only", "-q", "--strict-markers", FOLDER, SOCKLB_UNDER_TEST=NAME)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "arning" not in done.stdout.splitlines()[-1]
    collected = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert collected == {str(path.relative_to(host)) for path in (host / FOLDER).rglob("test_*.py")}


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("readme", "names"),
    [("", FILES), ("# a host\n\n    socklb --nosuch\n", OF_A_CHECKOUT)],
    ids=["no README", "a README"],
)
def test_they_pass_and_what_is_skipped_is_told(host: Path, readme: str, names: tuple[str, ...]) -> None:
    if readme:
        (host / "README.md").write_text(readme)
        (host / "setup.cfg").write_text("[metadata]\nname = host\n")
    files = [f"{FOLDER}/{name}" for name in names]
    done = run(host, *files, SOCKLB_UNDER_TEST=NAME, SOCKLB_REQUIRE_KERNEL="1")
    assert done.returncode == 0, done.stdout[-5000:]
    told = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert [line for line in told if "this is no checkout of socklb" in line]
    assert "test_an_unknown_option_is_found" not in done.stdout  # which needs no README


WARNS = """
import warnings

def test_warns():
    warnings.warn("old", DeprecationWarning)
"""

# Nobody sees this before the run ends, and collects what is left.
LEAVES = """
import gc, socket

class Knot:
    def __init__(self):
        self.knot, self.socket = self, socket.socket()

def test_leaves_a_socket():
    gc.disable()
    Knot()
"""


class TestWarnings:
    @pytest.mark.parametrize("text", [WARNS, LEAVES], ids=["warned", "left"])
    def test_are_errors(self, host: Path, text: str) -> None:
        done = run(host, add_test(host, text), SOCKLB_UNDER_TEST=NAME)
        assert done.returncode == 1, done.stdout

    def test_unless_the_host_has_chosen(self, host: Path) -> None:
        (host / "pytest.ini").write_text("[pytest]\nfilterwarnings = ignore::DeprecationWarning\n")
        done = run(host, add_test(host, WARNS), SOCKLB_UNDER_TEST=NAME)
        assert done.returncode == 0, done.stdout


class TestTheSummary:
    SKIPS = "import pytest\n\ndef test_skips():\n    pytest.skip('no moon')\n"

    @pytest.mark.parametrize(("chosen", "is_told"), [((), True), (("-rf",), False)], ids=["", "chosen"])
    def test_tells_reasons_unless_the_host_has_chosen(self, host: Path, chosen: tuple[str, ...], is_told: bool) -> None:
        done = run(host, *chosen, add_test(host, self.SKIPS), SOCKLB_UNDER_TEST=NAME)
        assert ("no moon" in done.stdout) == is_told
