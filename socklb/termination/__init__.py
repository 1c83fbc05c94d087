# SPDX-License-Identifier: MIT
"""Backends that are gone, in every namespace of a host: terminated once, or by a loop that follows a table of them."""

from .loop import Pass, TerminationLoop
from .table import BackendState, BackendTable, Instance
from .terminate import terminate_connections

__all__ = ["BackendState", "BackendTable", "Instance", "Pass", "TerminationLoop", "terminate_connections"]
