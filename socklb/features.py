# SPDX-License-Identifier: MIT
"""The folders that a copy of the package may leave out, and what is missing then."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

_PACKAGE = __name__.rpartition(".")[0]

_NAMES = {
    **dict.fromkeys(("BackendState", "BackendTable", "TerminationLoop", "terminate_connections"), "termination"),
    **dict.fromkeys(("RevNatEntry", "RevNatMaps"), "reverse_nat"),
}


def has(folder: str) -> bool:
    """Whether this copy has a folder."""
    return find_spec(f"{_PACKAGE}.{folder}") is not None


def missing(what: str, folder: str) -> str:
    """The message for something that this copy cannot do."""
    return f"{what} needs the folder {folder.replace('.', '/')}/, which this copy of the package leaves out"


def import_name(name: str) -> object:
    """A public name from its folder. Raises AttributeError for an unknown one, ImportError if the folder is missing."""
    folder = _NAMES.get(name)
    if folder is None:
        raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
    if not has(folder):
        raise ImportError(missing(f"{_PACKAGE}.{name}", folder), name=f"{_PACKAGE}.{folder}")
    return getattr(import_module(f"{_PACKAGE}.{folder}"), name)
