# SPDX-License-Identifier: MIT
"""Conntrack: which backend a connection was balanced to whose peer is a service address (NAT: kube-proxy, Docker)."""

from .flows import find_flows
from .layout import Flow

__all__ = ["Flow", "find_flows"]
