# SPDX-License-Identifier: MIT
"""What is not imported with the package: folders that a copy may leave out, and modules that few programs need."""

from __future__ import annotations

import errno
import sys

from .errors import NotSupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INSTALL = "install its whole standard library (Debian: the package python3, not python3-minimal alone)"
_PACKAGE = __name__.rpartition(".")[0]

_NAMES = {
    **dict.fromkeys(("UnsearchedNamespace", "discover_namespaces"), "kernel.discovery"),
    **dict.fromkeys(("Support", "probe"), "engine.probe"),
    "Backend": "filters.backend",
    **dict.fromkeys(("BackendState", "BackendTable", "Instance", "Pass", "TerminationLoop"), "termination"),
    "terminate_connections": "termination",
    **dict.fromkeys(("RevNatEntry", "RevNatMaps"), "reverse_nat"),
    **dict.fromkeys(("Flow", "find_flows"), "conntrack"),
}


def has(folder: str) -> bool:
    """Whether this copy has a folder."""
    name, places = _PACKAGE, sys.modules[_PACKAGE].__path__
    for part in folder.split("."):
        name += f".{part}"  # as importlib.util.find_spec, which takes as long to import as half of the package
        spec = next(filter(None, (finder.find_spec(name, places) for finder in sys.meta_path)), None)
        if spec is None or spec.origin is None:  # an empty directory has a spec without an origin
            return False
        places = spec.submodule_search_locations or ()  # type: ignore[assignment]
    return True


def names_left(names: list[str]) -> list[str]:
    """Those of the public names whose folders this copy has."""
    left_out = {folder for folder in {*_NAMES.values()} if "." not in folder and not has(folder)}
    return [name for name in names if _NAMES.get(name) not in left_out]


def missing(what: str, folder: str) -> str:
    """The message for something that this copy cannot do."""
    return f"{what} needs the folder {folder.replace('.', '/')}/, which this copy of the package leaves out"


def standard_module(name: str, wanted_by: str) -> Any:
    """A module that small copies of the standard library lack. Raises NotSupported, which says what to install."""
    try:
        return __import__(name)
    except ImportError as error:  # without its module, or the library that this needs
        text = f"{wanted_by} needs the module {error.name or name}, which this Python lacks: {INSTALL}"
        raise NotSupported(errno.ENOSYS, text) from None


def import_name(name: str) -> object:
    """A public name from its module. Raises AttributeError for an unknown one, and if its folder is missing."""
    module = _NAMES.get(name)
    if module is None:
        raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
    if not has(module):
        raise AttributeError(missing(f"{_PACKAGE}.{name}", module))
    from importlib import import_module

    return getattr(import_module(f"{_PACKAGE}.{module}"), name)
