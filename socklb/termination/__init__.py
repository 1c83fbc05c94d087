# SPDX-License-Identifier: MIT
"""Backends that are gone, in every namespace of a host: cut once, or as a loop that is told what changes."""

from .loop import TerminationLoop
from .terminate import TerminationReport, terminate_connections

__all__ = ["TerminationLoop", "TerminationReport", "terminate_connections"]
