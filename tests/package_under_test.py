"""The one place that says which package is tested: `socklb`, or a vendored copy named by SOCKLB_UNDER_TEST.

Tests import `socklb`; under another name the very same modules of the copy answer to it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType

NAME = os.environ.get("SOCKLB_UNDER_TEST", "socklb")


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "socklb" or fullname.startswith("socklb."):
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(NAME + spec.name[len("socklb") :])
        self._original = module.__spec__, module.__loader__
        _answer_for_what_is_loaded()
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__, module.__loader__ = self._original


def _answer_for_what_is_loaded() -> None:
    """An import of the alias would bind the module in its package anew, over what the package itself calls so since."""
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{NAME}."):
            sys.modules.setdefault("socklb" + name[len(NAME) :], module)


def bind() -> None:
    """Let `import socklb` mean the package under test."""
    if NAME != "socklb":
        sys.meta_path.insert(0, _Alias())
