"""Whatever a test here does to a call, descriptors and threads are as before."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = open_files(), set(threading.enumerate())
    yield
    assert (open_files(), set(threading.enumerate())) == before


def open_files() -> dict[str, str]:
    """By descriptor."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists them
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found
