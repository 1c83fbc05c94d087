"""docs/socklb.service, and the timer of a recipe: systemd reads all of it, and says how much the services could do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from . import world
from .project import document, only_in_checkout

pytestmark = only_in_checkout


@pytest.fixture(params=["socklb.service", "examples/socklb-stalled.service"])
def unit(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    if not shutil.which("systemd-analyze"):
        world.cannot("there is no systemd-analyze", "SOCKLB_REQUIRE_PLACES")
    # As root, `verify` of systemd 247 moves processes into a cgroup where systemd is not the first process.
    if "--offline" not in analyze("--help")[1]:
        pytest.skip("this systemd-analyze has neither --offline nor --threshold, which systemd 250 has")
    return copy(request.param, tmp_path)


def copy(name: str, directory: Path) -> Path:
    """Systemd looks for the command, and for the unit that a timer starts."""
    path = directory / Path(name).name
    path.write_text(document(name).replace("/usr/local/bin/socklb", "/bin/true"), encoding="utf-8")
    return path


def analyze(*words: str) -> tuple[int, str]:
    command = ["systemd-analyze", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=60)
    return done.returncode, done.stdout


def test_systemd_understands_it(unit: Path) -> None:
    assert analyze("verify", "--man=no", str(unit)) == (0, "")


@pytest.mark.parametrize("unit", ["examples/socklb-stalled.service"], indirect=True)
def test_systemd_understands_the_timer(unit: Path) -> None:
    timer = copy("examples/socklb-stalled.timer", unit.parent)
    assert analyze("verify", "--man=no", str(timer)) == (0, "")


def test_it_can_do_little_else(unit: Path) -> None:
    """Of 10; 40 is 4.0. An option that systemd knows not is ignored, and what it would shut is open."""
    code, text = analyze("security", "--offline=yes", "--threshold=40", str(unit))
    assert code == 0, text
