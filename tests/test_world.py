"""A test that works in all namespaces sees those of the test run alone."""

from __future__ import annotations

import pytest

from socklb import NetworkNamespace, discover_namespaces

pytestmark = pytest.mark.kernel


def test_no_namespace_but_this_run_s_own_can_be_discovered() -> None:
    found = discover_namespaces()
    assert list(found) == [NetworkNamespace.current()]
    assert found.refused == ()
