"""Fuzz the properties of some test modules, guided by what of the package an input reaches. Needs atheris.

python -m tests.fuzz [TARGET ...]       SOCKLB_FUZZ_SECONDS for each target, else 20

A property is fuzzed if it needs neither a fixture nor the kernel. The first input that breaks one ends the run with 1.
It is shrunk, and shown with the decorator that lets the ordinary test repeat it.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from functools import wraps
from random import Random
from types import ModuleType
from typing import Any

from hypothesis import given, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from .. import package_under_test

TARGETS = {
    "bytecode": ("fuzz.test_bytecode", "wire.test_bytecode"),
    "compiler": ("filters.test_compiler",),
    "conntrack": ("conntrack.test_layout", "conntrack.test_scan", "conntrack.test_describe"),
    "conntrack-table": ("conntrack.test_table",),
    "datagram": ("wire.test_netlink", "wire.test_reply", "wire.test_attributes"),
    "language": ("filters.test_language",),
    "replies": ("faults.test_damaged_replies",),
    "watch": ("sources.test_protocol",),
}
_PACKAGE, _, _ = str(__package__).rpartition(".")  # tests, or what the folder is called beside a vendored copy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", metavar="TARGET", nargs="*", choices=[*TARGETS, []], default=[])
    names = parser.parse_args().targets or list(TARGETS)
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed (CPython 3.11 to 3.13: pip install atheris)")
    return max([run(name) for name in names])


def run(name: str) -> int:
    """0 if every property held, else 1. The fuzzer ends its process: each target has one of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {__package__}.__main__ import fuzz; fuzz({name!r})"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    runs = re.search(r"Done (\d+) runs in (\d+) second", done.stdout)
    if done.returncode or not runs:
        print("\n".join(line for line in done.stdout.splitlines() if not line.startswith(("#", "INFO:", "WARNING:"))))
        return 1
    (properties,) = re.findall(r"^\d+ properties$", done.stdout, re.MULTILINE)
    *_, coverage = re.findall(r"cov: \d+", done.stdout)
    print(f"{name}: {properties}, {int(runs[1]):,} runs in {runs[2]} s, {coverage}", flush=True)
    return 0


def fuzz(name: str) -> None:
    """Does not return."""
    atheris: Any = importlib.import_module("atheris")  # by name: type checkers run where it is not installed
    settings.register_profile("fuzz", database=DirectoryBasedExampleDatabase(".hypothesis/examples"), print_blob=True)
    settings.load_profile("fuzz")
    package_under_test.bind()
    with atheris.instrument_imports(include=[each.partition(".")[0] for each in (package_under_test.NAME, _PACKAGE)]):
        modules = [importlib.import_module(f"{_PACKAGE}.{module}") for module in TARGETS[name]]
    properties = [each for module in modules for each in properties_of(module)]
    print(f"{len(properties)} properties", flush=True)

    def check(data: bytes) -> None:
        """The first byte chooses the property."""
        test = properties[data[0] % len(properties) if data else 0]
        try:
            test.hypothesis.fuzz_one_input(data[1:])
        except Exception:
            signal.alarm(0)  # which would end an input that takes too long
            try:
                test()  # repeats it from the database, and shrinks it
            except Exception:
                traceback.print_exc()
                os._exit(1)
            raise

    options = {
        "max_total_time": os.environ.get("SOCKLB_FUZZ_SECONDS") or 20,
        "timeout": 10,
        "len_control": 0,
        "seed_inputs": ",".join(map(_seed, range(20))),
        "exact_artifact_path": os.devnull,
    }
    atheris.Setup([name, *(f"-{option}={value}" for option, value in options.items())], check)
    atheris.Fuzz()


def _seed(number: int) -> str:
    """A file of any bytes: with fewer than it draws no property is run at all."""
    descriptor = os.memfd_create("seed")
    os.write(descriptor, Random(number).randbytes(200 * (number + 1)))
    return f"/proc/self/fd/{descriptor}"


def properties_of(module: ModuleType) -> Iterator[Any]:
    """As functions that need no argument. Who has the kernel's mark is left out."""
    for owner in vars(module).values():
        if getattr(owner, "__module__", "") == module.__name__ and not hasattr(owner, "pytestmark"):
            for test in vars(owner).values() if isinstance(owner, type) else [owner]:
                if hasattr(test, "hypothesis") and set(inspect.signature(test).parameters) <= {"self"}:
                    yield _as_function(test, owner()) if isinstance(owner, type) else test


def _as_function(method: Any, instance: object) -> Any:
    inner, drawn = method.hypothesis.inner_test, method.hypothesis._given_kwargs

    @wraps(inner)
    def function(**arguments: object) -> None:
        inner(instance, **arguments)

    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in drawn]
    )
    return given(**drawn)(function)


if __name__ == "__main__":
    sys.exit(main())
