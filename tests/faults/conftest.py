"""Whatever a test here does to a call, descriptors and threads are as before."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    descriptors, threads = open_files(), set(threading.enumerate())
    yield
    assert open_files() == descriptors
    assert set(threading.enumerate()) == threads


def open_files() -> dict[str, str]:
    """What each descriptor of this process leads to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one that listed them
    return found
