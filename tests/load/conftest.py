"""These tests load a machine for minutes: they run where that is asked for, once, on one CPython."""

from __future__ import annotations

import os

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skipped, with the reason in the summary, unless asked for."""
    if item.get_closest_marker("load") is not None and os.environ.get("SOCKLB_LOAD") != "1":
        pytest.skip("takes minutes: `tox -e load`, or SOCKLB_LOAD=1")
