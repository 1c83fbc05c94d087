"""EndpointSlices as a request of the Kubernetes API sees them: made for tests, selected, told in a watch."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Optional

API = "/apis/discovery.k8s.io/v1"
KIND = {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1"}

Object = dict[str, Any]


class Request(NamedTuple):
    """What was asked; the names of headers are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") in ("1", "true")


class Change(NamedTuple):
    """Of one object: None before it was there, and after."""

    version: int
    old: Optional[Object]
    new: Optional[Object]


def endpoint(address: str, **conditions: bool) -> Object:
    """One that serves, or is in these conditions: ready, serving, terminating."""
    return {"addresses": [address], "conditions": conditions or {"ready": True, "serving": True, "terminating": False}}


def endpoint_slice(
    name: str, *endpoints: Object, namespace: str = "demo", service: str = "web", port: int = 80, **others: Any
) -> Object:
    """Of one TCP port that is named http; `others`: members that are to be otherwise (addressType, ports, metadata)."""
    labels = {"kubernetes.io/service-name": service}
    metadata = {"name": name, "namespace": namespace, "labels": labels, **others.pop("metadata", {})}
    ports = [{"name": "http", "protocol": "TCP", "port": port}]
    return {"metadata": metadata, "addressType": "IPv4", "endpoints": [*endpoints], "ports": ports, **others}


def key_of(slice_: Object) -> tuple[str, str]:
    return slice_["metadata"]["namespace"], slice_["metadata"]["name"]


def encode(value: Object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def wants(request: Request, slice_: Object) -> bool:
    """Whether a request is about an object: by the namespace in its path and by its labelSelector (equality, !KEY)."""
    if request.path not in (f"{API}/endpointslices", f"{API}/namespaces/{key_of(slice_)[0]}/endpointslices"):
        return False
    labels = slice_["metadata"].get("labels", {})
    for term in filter(None, request.query.get("labelSelector", "").split(",")):
        name, _, value = term.replace("==", "=").replace("!=", "=").partition("=")
        found = labels.get(name.lstrip("!")) == value if "=" in term else name.lstrip("!") in labels
        if found == ("!" in term):
            return False
    return True


def event(change: Change, request: Request) -> bytes:
    """What a watch is told of a change, if anything. What it wants no longer is DELETED: as it was, but the version."""
    was, now = (one is not None and wants(request, one) for one in (change.old, change.new))
    if not was and not now:
        return b""
    shown = dict((change.new if now else change.old) or {})
    shown["metadata"] = {**shown["metadata"], "resourceVersion": str(change.version)}
    return encode({"type": "ADDED" if not was else "MODIFIED" if now else "DELETED", "object": {**KIND, **shown}})


def bookmark(version: int) -> bytes:
    nothing = {"metadata": {"resourceVersion": str(version)}, "addressType": "", "endpoints": None, "ports": None}
    return encode({"type": "BOOKMARK", "object": {**KIND, **nothing}})
