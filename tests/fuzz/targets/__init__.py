"""What is fuzzed: a module each, with a `check(data)` that takes any bytes and raises if the law above it is broken.

To add one, put a module here, inputs to start from into `seeds`, and a fault that it sees into test_targets. A module
may have `WORDS` that inputs are made of, and `LONGEST`, where longer inputs would tell nothing new.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

Check = Callable[[bytes], None]

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))

_FOLDER = Path(__file__).resolve().parents[1]
CORPUS = _FOLDER / "corpus"
"""Inputs to start from, a folder for each target."""
FOUND = _FOLDER / "found"
"""Inputs that once broke a law, likewise."""


def check_of(name: str) -> Check:
    """The law of a target as a function; what that is about is imported now."""
    check: Check = _module(name).check
    return check


def words_of(name: str) -> tuple[str, ...]:
    return tuple(getattr(_module(name), "WORDS", ()))


def longest_of(name: str) -> int:
    return int(getattr(_module(name), "LONGEST", 2048))


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{name}")


def files(name: str) -> list[Path]:
    """Every input that is kept for a target."""
    return sorted(path for folder in (CORPUS, FOUND) for path in (folder / name).glob("*") if path.is_file())


def package() -> Path:
    """Where the package under test is."""
    return Path(str(import_module("socklb").__file__)).resolve().parent


def again(name: str, path: Path) -> str:
    """How to run one input again."""
    return f"python -m {__name__.rpartition('.')[0]} {name} --again {path}"
