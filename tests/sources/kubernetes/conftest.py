"""An API server for the tests of the Kubernetes source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .api_server import ApiServer
from .kubeconfigs import kubeconfig, written


@pytest.fixture
def api(network: None, tmp_path: Path) -> Iterator[ApiServer]:
    """One that runs in a fresh network namespace; `api.kubeconfig` is the path of a file that leads to it."""
    server = ApiServer()
    server.start()
    server.kubeconfig = written(tmp_path, kubeconfig(server.url))
    yield server
    server.stop()
