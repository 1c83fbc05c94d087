"""Roots are built once a session, in its temporary directory; mounts are made by the processes that live in one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .. import world
from ..sockets import in_child
from .roots import Roots, interpreter, system_python


@pytest.fixture(scope="session")
def user_namespaces() -> None:
    """Skips, or fails where the kernel is required, if there can be none."""
    try:
        in_child(lambda: None, lambda: world.become(0, world.CLONE_NEWNS))
    except AssertionError as error:
        world.cannot(f"there can be no user namespace: {str(error).splitlines()[-1]}")


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the roots are; pytest would keep those of its last sessions, 100 MB each."""
    made = tmp_path_factory.mktemp("roots")
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def ours(user_namespaces: None, directory: Path) -> Roots:
    """Roots of the interpreter that runs the tests."""
    return Roots(directory / "ours", interpreter(sys.executable))


@pytest.fixture(scope="session")
def system(user_namespaces: None, directory: Path) -> Roots:
    """Roots of the distribution's interpreter."""
    found = system_python()
    if isinstance(found, str):
        pytest.skip(found)
    return Roots(directory / "system", found)
