"""The one place that says which package is tested: `socklb`, or a vendored copy named by SOCKLB_UNDER_TEST.

Tests import `socklb`; under another name the very same modules of the copy answer to it.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from importlib import import_module

NAME = os.environ.get("SOCKLB_UNDER_TEST", "socklb")


def bind() -> None:
    """Let `import socklb` mean the package under test."""
    if NAME == "socklb":
        return
    package = import_module(NAME)
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{NAME}.")]
    for name in (NAME, *names):
        if not name.endswith(".__main__"):
            sys.modules["socklb" + name[len(NAME) :]] = import_module(name)
