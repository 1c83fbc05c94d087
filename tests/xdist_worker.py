"""A worker of pytest-xdist runs its tests in a fork, which is in a world of its own.

The worker itself has a thread that waits for the controller. It would stay behind in each network namespace that a test
leaves, where tests that look for namespaces would find it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest

from . import world
from .children import Child, questions


class RunInFork:
    """A plugin: the tests of the session are run in one fork, which reports to the controller itself."""

    def __init__(self) -> None:
        self._fork: Child | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        items = item.session.items
        if self._fork is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12: the other thread may hold a lock
                self._fork = Child(lambda pipe: self._run(item.session, pipe))
        self._fork.ask((items.index(item), None if nextitem is None else items.index(nextitem)))
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Iterator[None]:
        if self._fork is not None:
            with self._fork:
                pass
        return (yield)

    def _run(self, session: pytest.Session, pipe: Connection) -> None:
        plugins = session.config.pluginmanager
        plugins.unregister(self)
        worker: Any = next(plugin for plugin in plugins.get_plugins() if hasattr(plugin, "item_index"))
        world.enter()
        for index, next_index in questions(pipe):
            worker.item_index = index  # which goes with each report
            nextitem = None if next_index is None else session.items[next_index]
            session.config.hook.pytest_runtest_protocol(item=session.items[index], nextitem=nextitem)
            pipe.send(None)
