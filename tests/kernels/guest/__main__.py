"""Everything that is checked in a guest: commands, tests of the project, and at last a kernel without its modules."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter

from . import modules
from .report import Report

# One kill of each kind, and what went wrong on one kernel or another.
TESTS = (
    "tests/engine/test_destroy.py::TestWhoDies",
    "tests/engine/test_destroy.py::TestNamed",
    "tests/engine/test_destroy.py::TestUdp",
    "tests/engine/test_destroy_rounds.py",
    "tests/engine/test_find.py::TestDeviceCgroupAndMark",
    "tests/engine/test_other_kernels.py",
    "tests/engine/test_tcp_states.py::TestEachState",
    "tests/engine/test_tcp_states.py::TestListen",
    "tests/kernel/test_diag_real.py::TestDestroys",
    "tests/cli/test_terminate.py::test_several_backends_at_once_in_several_namespaces",
    "tests/cli/test_watch.py::TestChurn",
    "tests/test_ss_agreement.py::TestEverySocket",
    "tests/reverse_nat/test_maps.py::TestContains",
    "tests/cli/test_rev_nat.py::TestStale",
)

# All that talk to the kernel, and what depends on the order of bytes, each with a limit of its own: a slow guest then
# still says something of the others.
SUITES = (
    ("tests/engine",),
    ("tests/reverse_nat",),
    ("tests/termination",),
    ("tests/test_ss_agreement.py", "tests/test_differential.py", "tests/wire", "tests/filters"),
    ("tests/kernel",),
    ("tests/cli",),
    ("tests/faults",),
)
_SUITE_SECONDS = 2400

_COUNT = re.compile(r"(\d+) (passed|failed|error)")
_SKIPPED = re.compile(r"SKIPPED \[(\d+)\] \S+: (.*)")


def main() -> int:
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for command in ("probe", "demo"):
        code = subprocess.run([sys.executable, "-m", "socklb", command], stdin=subprocess.DEVNULL).returncode
        counts["failed" if code else "passed"] += 1
    for paths in SUITES if os.environ.get("SOCKLB_SUITES") else [TESTS]:
        _pytest(paths, counts, skipped)
    for ok in modules.checks(skipped):
        counts["passed" if ok else "failed"] += 1
    Report.of(counts["passed"], counts["failed"] + counts["error"], skipped).show()
    return 0


def _pytest(paths: tuple[str, ...], counts: Counter[str], skipped: Counter[str]) -> None:
    """Add what has passed, failed (a run that does not come to its end, too) and been skipped, by the reason."""
    begin = time.monotonic()
    options = ("-p", "no:cacheprovider", "-rfEs", "--tb=short", "--color=no", "--durations=20")
    command = [sys.executable, "-m", "pytest", *options, *paths]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        last = ""
        for last in process.stdout:
            print(last, end="", flush=True)
            skip = _SKIPPED.match(last)
            if skip:
                skipped[skip[2]] += int(skip[1])
        code = process.wait(_SUITE_SECONDS)
    print(f"-- {' '.join(paths)}: exit code {code} after {time.monotonic() - begin:.0f} s", flush=True)
    counts.update({word: int(number) for number, word in _COUNT.findall(last)})
    if code not in (0, 1):  # pytest's: all passed, some failed
        counts["failed"] += 1


if __name__ == "__main__":
    sys.exit(main())
