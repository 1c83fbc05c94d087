"""How the tests run: in a world of their own (`world`), with a hypothesis profile, on the package under test."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from . import package_under_test, world

package_under_test.bind()

# Only now does `socklb` mean the package under test.
from .balancer.fixture import balancer as balancer  # noqa: E402
from .balancer.fixture import clients as clients  # noqa: E402
from .bpf_maps import maps as maps  # noqa: E402
from .sockets import Sockets  # noqa: E402

# No deadline: no test of this project asserts a time. derandomize in CI: a failure there is everybody's.
_COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("quick", max_examples=20, derandomize=True, **_COMMON)
settings.register_profile("full", max_examples=50, derandomize="CI" in os.environ, **_COMMON)
settings.register_profile("deep", max_examples=5000, **_COMMON)
settings.load_profile(os.environ.get("SOCKLB_PROFILE", "quick"))

# A run in the background of a shell ignores Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_why_no_world = ""


def pytest_configure(config: pytest.Config) -> None:
    """Move the whole run into its world, unless it is there already or only collects."""
    global _why_no_world
    if world.is_inside() or config.option.collectonly or config.option.help:
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(in_=True)
    status, _why_no_world = world.run_inside(config.invocation_params.args)
    if status is not None:
        sys.stdout.flush()
        os._exit(status)
    if capture is not None:
        capture.resume_global_capture()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A kernel test without a world is skipped, or fails where the kernel is required."""
    if item.get_closest_marker("kernel") is not None and not world.is_inside():
        world.cannot(f"no namespaces of one's own here: {_why_no_world}")


@pytest.fixture
def network() -> None:
    """A fresh network namespace for one test, loopback up, with nothing in it."""
    world.new_network()


@pytest.fixture
def sockets(network: None) -> Iterator[Sockets]:
    """A maker of sockets in a fresh network namespace."""
    with Sockets() as made:
        yield made
