"""Fuzz the targets one after another, guided by what of the package an input reaches (that needs atheris).

python -m tests.fuzz [TARGET ...] [--seconds N]         N seconds each; SOCKLB_FUZZ_SECONDS, else 20
python -m tests.fuzz TARGET --again FILE ...            only these inputs; needs nothing

Ends with 1 if a law was broken. The input is then in found/TARGET: keep it there, and the tests run it from now on.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from .. import package_under_test

package_under_test.bind()

from . import targets  # noqa: E402 - only now does `socklb` mean the package under test

_PACKAGE = str(__package__)  # tests.fuzz, or what the folder is called beside a vendored copy
_ROOT = Path(__file__).resolve().parents[_PACKAGE.count(".") + 1]
_SECONDS_PER_INPUT = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", metavar="TARGET", nargs="*", choices=[*targets.NAMES, []])
    parser.add_argument("--seconds", type=int, default=int(os.environ.get("SOCKLB_FUZZ_SECONDS") or 20))
    parser.add_argument("--again", metavar="FILE", type=Path, nargs="+", default=[])
    options = parser.parse_args()
    print(f"package under test: {targets.package()}", flush=True)
    if options.again:
        if len(options.targets) != 1:
            parser.error("--again wants one TARGET")
        for path in options.again:
            targets.check_of(options.targets[0])(path.read_bytes())
            print(f"{path}: the law holds")
        return 0
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed (CPython 3.11 to 3.13: pip install atheris)")
    return max([fuzz(name, options.seconds) for name in options.targets or targets.NAMES])


def fuzz(name: str, seconds: int) -> int:
    """0 if the law held for so many seconds, else 1. The fuzzer ends its process, so it gets one of its own."""
    found, before = targets.FOUND / name, set(targets.files(name))
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="socklb-fuzz-") as scratch:
        reached = Path(scratch) / "reached"  # new inputs go into the first of the folders
        reached.mkdir()
        words = Path(scratch) / "words"
        words.write_text("".join(f'word{n}="{word}"\n' for n, word in enumerate(targets.words_of(name))))
        options = {
            "max_total_time": seconds,
            "max_len": targets.longest_of(name),
            "timeout": _SECONDS_PER_INPUT,
            "artifact_prefix": f"{found}/",
            **({"dict": words} if targets.words_of(name) else {}),
        }
        done = subprocess.run(
            [
                *(sys.executable, "-m", f"{_PACKAGE}.guided", name),
                *(f"-{option}={value}" for option, value in options.items()),
                *map(str, (reached, targets.CORPUS / name, found)),
            ],
            cwd=_ROOT,
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    new = sorted(set(targets.files(name)) - before)
    with contextlib.suppress(OSError):  # unless there is something in it
        found.rmdir()
    return _report(name, done, new)


def _report(name: str, done: subprocess.CompletedProcess[str], new: list[Path]) -> int:
    runs = re.search(r"Done (\d+) runs in (\d+) second", done.stdout)
    if not done.returncode and runs and not new:
        reached = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", done.stdout)[-1]
        instrumented = len(re.findall(rf"Instrumenting {re.escape(package_under_test.NAME)}\b", done.stdout))
        print(
            f"{name}: {int(runs[1]):,} runs in {runs[2]} s, coverage {reached[0]}, features {reached[1]}, "
            f"{reached[2]} inputs; {instrumented} modules instrumented",
            flush=True,
        )
        return 0
    print("\n".join(line for line in done.stdout.splitlines() if not line.startswith(("#", "INFO:"))))
    print(f"{name}: the law was broken, or the fuzzer was ({done.returncode})")
    for path in new:
        print(f"  {path}\n    base64: {base64.b64encode(path.read_bytes()).decode()}")
        print(f"    again: {targets.again(name, path)}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
