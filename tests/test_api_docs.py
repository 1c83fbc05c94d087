"""docs/api.md says what the code says: every public name, with its signature and docstring."""

from __future__ import annotations

import subprocess
import sys

from .project import ROOT, only_in_checkout


@only_in_checkout
def test_the_reference_is_what_the_sources_make() -> None:
    command = [sys.executable, str(ROOT / "docs" / "make_api.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
