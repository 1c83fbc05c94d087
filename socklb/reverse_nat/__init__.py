# SPDX-License-Identifier: MIT
"""Cilium's reverse-NAT socket maps: which backend the balancer sent a socket to, and which service it had asked for."""

from .maps import RevNatEntry, RevNatMaps

__all__ = ["RevNatEntry", "RevNatMaps"]
