"""Boot Linux kernels that were never installed, and run the package on them as root.

python -m tests.kernels [NAME ...]      (or tox -e kernels -- NAME ...)

Without a name the kernel of Debian 11 is booted. `all` is every one, with the longer suites of the tests too. A line
each says how it went; what failed is shown. Exit codes: 0; 1, a check failed; 2, a wrong name; 3, a program that is
needed is not installed; 4, a root cannot be made, for want of a mirror perhaps.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from . import boot, root
from .guest.report import Report
from .targets import ALL, DEFAULT, PACKAGES, TARGETS, Target

_NOT_INSTALLED, _NO_ROOT = 3, 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help=f"{', '.join(TARGETS)}, or {ALL}: {DEFAULT} by default"
    )
    parser.add_argument("--missing", action="store_true", help="only print what has to be installed for that")
    parser.add_argument("--make", action="store_true", help="only make the roots")
    options = parser.parse_args()
    names = options.names or [DEFAULT]
    if not {ALL, *TARGETS} >= {*names}:
        parser.error(f"a name is one of {', '.join(TARGETS)}, or {ALL}")
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # a user's has no depmod
    targets = [target for name, target in TARGETS.items() if ALL in names or name in names]
    missing = _missing(targets)
    if options.missing:
        print(*missing)
        return 0
    if missing:
        print(f"Kernels cannot be booted here: apt-get install {' '.join(missing)}", file=sys.stderr)
        return _NOT_INSTALLED
    try:
        for target in targets:
            root.cached(target)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"A root cannot be made here: {error}", file=sys.stderr)
        return _NO_ROOT
    if options.make:
        return 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return 0 if all(list(pool.map(partial(_check, with_suites=ALL in names), targets))) else 1


def _missing(targets: list[Target]) -> list[str]:
    """The packages to install."""
    programs = ["mmdebstrap", "cpio", "depmod", *(target.emulator[0] for target in targets if target.emulator)]
    return sorted({PACKAGES[program] for program in programs if not shutil.which(program)})


def _check(target: Target, with_suites: bool) -> bool:
    """Print a line, and what failed; whether all went well."""
    begin = time.monotonic()
    made = root.cached(target)
    output = made.archive.with_name("output")
    why = boot.run(target, made, output, with_suites)
    text = output.read_text(encoding="utf-8", errors="replace")
    report = Report.read(text)
    ok = report is not None and report.ok and not why
    result = f"{report}" if ok else f"FAILED: {why or report or 'it did not come to its end'}"
    print(f"{'' if ok else text}{target.name}: {result}; {time.monotonic() - begin:.0f} s", flush=True)
    return ok


if __name__ == "__main__":
    sys.exit(main())
