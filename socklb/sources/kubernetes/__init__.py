# SPDX-License-Identifier: MIT
"""Where backends come from in a cluster: the EndpointSlices of a Kubernetes API server."""

from .config import Access, AccessProblem, from_kubeconfig, in_cluster
from .source import KubernetesSource

__all__ = ["Access", "AccessProblem", "KubernetesSource", "from_kubeconfig", "in_cluster"]
