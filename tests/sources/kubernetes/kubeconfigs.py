"""Kubeconfig files, as `kubectl config view --raw --flatten --minify -o json` prints them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from .api_server import PKI, TOKEN
from .endpoint_slices import Object


def data_of(name: str) -> str:
    """A PEM file of the tests, as the data that a kubeconfig holds."""
    return base64.b64encode((PKI / name).read_bytes()).decode()


def kubeconfig(server: str, user: Object | None = None, **cluster: object) -> Object:
    """Of one context. `user`: by default the token; `cluster`: members beside the CA (None: without), with _ for -."""
    members = {"server": server, "certificate-authority-data": data_of("ca.pem")}
    members.update((name.replace("_", "-"), value) for name, value in cluster.items())  # type: ignore[misc]
    return {
        "kind": "Config",
        "apiVersion": "v1",
        "clusters": [{"name": "a-cluster", "cluster": members}],
        "users": [{"name": "a-user", "user": {"token": TOKEN} if user is None else user}],
        "contexts": [{"name": "a-context", "context": {"cluster": "a-cluster", "user": "a-user"}}],
        "current-context": "a-context",
    }


def written(directory: Path, config: Object) -> Path:
    path = directory / "kubeconfig.json"
    path.write_text(json.dumps(config, indent=4), encoding="utf-8")
    return path
