# SPDX-License-Identifier: MIT
"""What is not imported with the package: folders that a copy may leave out, and modules that few programs need."""

from __future__ import annotations

from importlib import import_module

_PACKAGE = __name__.rpartition(".")[0]

_NAMES = {
    **dict.fromkeys(("UnsearchedNamespace", "discover_namespaces"), "kernel.discovery"),
    **dict.fromkeys(("Support", "probe"), "engine.probe"),
    "Backend": "filters.backend",
    **dict.fromkeys(("BackendState", "BackendTable", "TerminationLoop", "terminate_connections"), "termination"),
    **dict.fromkeys(("RevNatEntry", "RevNatMaps"), "reverse_nat"),
}


def has(folder: str) -> bool:
    """Whether this copy has a folder."""
    from importlib.util import find_spec  # takes as long to import as half of the package

    spec = find_spec(f"{_PACKAGE}.{folder}")
    return spec is not None and spec.origin is not None  # an empty directory has a spec without an origin


def missing(what: str, folder: str) -> str:
    """The message for something that this copy cannot do."""
    return f"{what} needs the folder {folder.replace('.', '/')}/, which this copy of the package leaves out"


def import_name(name: str) -> object:
    """A public name from its module. Raises AttributeError for an unknown one, ImportError if its folder is missing."""
    module = _NAMES.get(name)
    if module is None:
        raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
    path = f"{_PACKAGE}.{module}"
    try:
        found = import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        found = None
    if found is None or found.__file__ is None:  # an empty directory is a module without a file
        raise ImportError(missing(f"{_PACKAGE}.{name}", module), name=path)
    return getattr(found, name)
