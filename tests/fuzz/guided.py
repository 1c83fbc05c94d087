"""One target under atheris, as a process of its own: python -m tests.fuzz.guided TARGET [OPTIONS of libFuzzer ...]"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from .. import package_under_test


def main() -> None:
    atheris: Any = importlib.import_module("atheris")  # by name: type checkers run where it is not installed
    name = sys.argv.pop(1)
    package_under_test.bind()
    tests, package = (name.partition(".")[0] for name in (__package__, package_under_test.NAME))
    with atheris.instrument_imports(include=[package, tests]):
        from . import targets

        check = targets.check_of(name)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
