"""How the tests run: in a world of their own (`world`), with a hypothesis profile, on the package under test."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from . import coverage_threads, package_under_test, world

coverage_threads.trace_all()
package_under_test.bind()

# Only now does `socklb` mean the package under test.
from .nat import node as node  # noqa: E402
from .reverse_nat.balancer.fixture import balancer as balancer  # noqa: E402
from .reverse_nat.balancer.fixture import clients as clients  # noqa: E402
from .reverse_nat.bpf_maps import maps as maps  # noqa: E402
from .sockets import Sockets  # noqa: E402
from .xdist_worker import RunInFork  # noqa: E402

# No deadline: no test of this project asserts a time. derandomize in CI: a failure there is everybody's.
_COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
# Where an example follows from the test alone, a memory of those that failed is of no use.
settings.register_profile("quick", max_examples=20, derandomize=True, database=None, **_COMMON)
settings.register_profile("full", max_examples=50, derandomize="CI" in os.environ, **_COMMON)
settings.register_profile("deep", max_examples=5000, **_COMMON)
settings.load_profile(os.environ.get("SOCKLB_PROFILE", "quick"))

# Here and not in a pytest.ini: beside a vendored copy that file is the host project's.
_MARKERS = (
    "kernel: needs a network namespace of its own, and talks to the real kernel",
    "load: loads the machine for minutes; skipped unless SOCKLB_LOAD=1 (tox -e load)",
)
_SEEN_AT_THE_END = (
    ResourceWarning,
    pytest.PytestUnraisableExceptionWarning,
    pytest.PytestUnhandledThreadExceptionWarning,
)
_HARMLESS = (
    # Where libcst is installed, hypothesis imports it to report a failure, and that imports this.
    "ignore:mypy_extensions:DeprecationWarning",
    # CPython 3.14 counts no reference for a local variable: hypothesis takes its own registered one for garbage.
    "ignore:It looks like `register_random`:hypothesis.errors.HypothesisWarning",
)
_SHOWN_BY_DEFAULT = "fE"  # pytest's `-r`

# A run in the background of a shell ignores Ctrl-C, one under nohup SIGHUP, and so would every process of a test.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)


def pytest_configure(config: pytest.Config) -> None:
    """Move the whole run into its world, and set pytest up."""
    _enter_world(config)
    for line in _MARKERS:
        config.addinivalue_line("markers", line)
    if config.option.reportchars == _SHOWN_BY_DEFAULT:
        config.option.reportchars = "a"  # above all what was skipped, and why
    if not config.getini("filterwarnings"):
        _make_warnings_errors(config)


def _enter_world(config: pytest.Config) -> None:
    if os.environ.get("SOCKLB_NO_WORLD"):
        world.why_none = "SOCKLB_NO_WORLD is set"
    elif hasattr(config, "workerinput"):
        config.pluginmanager.register(RunInFork())
    elif not (world.is_inside() or config.option.collectonly or config.getoption("dist", "no") != "no"):
        world.enter()


def _make_warnings_errors(config: pytest.Config) -> None:
    """A socket that is not closed, a thread that died: for each test, and for the whole run until its end."""
    config.addinivalue_line("filterwarnings", "error")
    for category in _SEEN_AT_THE_END:
        warnings.filterwarnings("error", category=category)
    for line in _HARMLESS:
        config.addinivalue_line("filterwarnings", line)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A kernel test without a world is skipped, or fails where the kernel is required."""
    if item.get_closest_marker("kernel") is not None and not world.is_inside():
        world.cannot(f"the tests are in no namespaces of their own: {world.why_none}")


@pytest.fixture
def network() -> None:
    """A fresh network namespace for one test, loopback up, with nothing in it."""
    world.new_network()


@pytest.fixture
def sockets(network: None) -> Iterator[Sockets]:
    """A maker of sockets in a fresh network namespace."""
    with Sockets() as made:
        yield made


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was collected stays to the end, and need not be looked at again by every collection of garbage."""
    gc.collect()
    gc.freeze()
