"""Boot Linux kernels that were never installed, and run the package on them as root.

python -m tests.kernels [NAME ...]      (or tox -e kernels -- NAME ...)

Without a name the kernel of Debian 11 is booted. `all` is every one, with the longer suites of the tests too. A line
each says how it went; what failed is shown. Exit codes: 0; 1, a check failed; 2, a wrong name; 3, a program that is
needed is not installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import boot, root
from .guest.report import Report
from .targets import DEFAULT, PACKAGES, TARGETS, Target

_ALL = "all"
_CHECKS_SECONDS, _SUITES_SECONDS = 900, 7200  # no check asserts a time: these only end what hangs
_NOT_INSTALLED = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"{', '.join(TARGETS)}, or {_ALL}: {DEFAULT} by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="so many at a time")
    options = parser.parse_args()
    names = options.names or [DEFAULT]
    with_suites = _ALL in names
    if with_suites:
        names = list(TARGETS)
    if not TARGETS.keys() >= {*names}:
        parser.error(f"a name is one of {', '.join(TARGETS)}, or {_ALL}")
    targets = [TARGETS[name] for name in names]
    missing = _missing(targets)
    if missing:
        print(f"Kernels cannot be booted here: apt-get install {' '.join(missing)}", file=sys.stderr)
        return _NOT_INSTALLED
    with ThreadPoolExecutor(options.jobs) as pool:
        went_well = list(pool.map(lambda target: _check(target, with_suites), targets))
    return 0 if all(went_well) else 1


def _missing(targets: list[Target]) -> list[str]:
    """The packages to install."""
    programs = ["mmdebstrap", "cpio", "depmod", *(target.emulator[0] for target in targets if target.emulator)]
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return sorted({PACKAGES[program] for program in programs if not shutil.which(program, path=path)})


def _check(target: Target, with_suites: bool) -> bool:
    """Print a line, and what failed; whether all went well."""
    begin = time.monotonic()
    made = root.cached(target)
    output = made.archive.with_name("output")
    environment = {"SOCKLB_SUITES": "1"} if with_suites else {}
    seconds = _SUITES_SECONDS if with_suites else _CHECKS_SECONDS
    why = boot.run(target, made, environment, output, seconds)
    report = Report.read(output)
    took = f"{time.monotonic() - begin:.0f} s"
    if report is not None and report.ok and not why:
        print(f"{target.name}: {report}; {took}", flush=True)
        return True
    print(f"{Path(output).read_text(encoding='utf-8', errors='replace')}\n{target.name}: FAILED: {report or why}; {took}")
    sys.stdout.flush()
    return False


if __name__ == "__main__":
    sys.exit(main())
