"""docs/api.md says what the code says: every public name, with its signature and docstring."""

from __future__ import annotations

import subprocess
import sys

import socklb

from .project import ROOT, only_in_checkout


@only_in_checkout
def test_the_reference_is_what_the_sources_make() -> None:
    command = [sys.executable, str(ROOT / "docs" / "make_api.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_every_public_name_is_listed_and_says_at_run_time_what_it_is() -> None:
    names = {*socklb.__all__}
    assert names <= {*dir(socklb)}
    assert [name for name in names if callable(getattr(socklb, name)) and not getattr(socklb, name).__doc__] == []
