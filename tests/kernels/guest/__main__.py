"""Everything that is checked in a guest: commands, tests of the project, and at last a kernel without its modules."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from . import modules
from .report import Report

# What is to work on each kernel, and what has gone wrong on one or another.
CHECKS = (
    "tests/engine/test_destroy.py::TestWhoDies",  # v4, v6, mapped; TCP, UDP
    "tests/engine/test_destroy.py::TestNamed",  # device, mark, cgroup
    "tests/engine/test_destroy.py::TestUdp",
    "tests/engine/test_destroy_rounds.py",  # twins; owners that close or reconnect in between
    "tests/engine/test_find.py::TestDeviceCgroupAndMark",
    "tests/engine/test_other_kernels.py",  # mini-sockets, orphans
    "tests/engine/test_stuck.py",
    "tests/engine/test_tcp_states.py",
    "tests/kernel/test_diag_real.py::TestDestroys",
    "tests/cli/test_terminate.py::test_several_backends_at_once_in_several_namespaces",
    "tests/cli/test_watch.py::TestChurn",
    "tests/cli/test_list.py::TestWhichSocketsAreShown::test_without_a_filter_all_and_privilege_makes_no_difference",
    "tests/test_ss_agreement.py::TestEverySocket",
    "tests/reverse_nat/test_maps.py::TestContains",
    "tests/cli/test_rev_nat.py::TestWhatIsPrinted",
    "tests/cli/test_rev_nat.py::TestStale",
    "tests/conntrack/test_setups.py",  # NAT
    "tests/conntrack/test_table_real.py",
    "tests/termination/test_conntrack_join.py::TestClients",
)

# All that talk to the kernel, and what depends on the order of bytes. Of the command line those of the commands:
# words, help and output are the same on each kernel, and a process takes a second or two to start there.
_COMMANDS = ("destroy", "list", "netns", "probe", "rev_nat", "terminate", "watch")
SUITES = (
    *("tests/engine", "tests/reverse_nat", "tests/termination", "tests/wire", "tests/filters", "tests/kernel"),
    *("tests/conntrack", "tests/faults", "tests/test_nat.py"),
    *("tests/test_ss_agreement.py", "tests/test_differential.py"),
    *(f"tests/cli/test_{command}.py" for command in _COMMANDS),
)


class Count:
    """A plugin of pytest's: how many have passed, failed, and been skipped, by the reason."""

    def __init__(self) -> None:
        self.passed = self.failed = 0
        self.skipped: Counter[str] = Counter()

    def add(self, ok: bool) -> None:
        self.passed += ok
        self.failed += not ok

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped[report.longrepr[2].replace("Skipped: ", "", 1)] += 1  # type: ignore[index]
        elif report.failed or report.when == "call":
            self.add(report.passed)
        if report.failed:  # at once: a guest may not come to its end
            print(f"\nFAILED {report.nodeid} ({report.when})\n{report.longreprtext}", flush=True)


def main() -> None:
    count = Count()
    for command in ("probe", "demo"):
        code = subprocess.run([sys.executable, "-m", "socklb", command], stdin=subprocess.DEVNULL).returncode
        count.add(code == 0)
    os.environ["SOCKLB_REQUIRE_KERNEL"] = "1"
    options = ("-p", "no:cacheprovider", "--no-summary", "--tb=short", "--color=no")
    code = pytest.main([*options, *(SUITES if "SOCKLB_SUITES" in os.environ else CHECKS)], [count])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        count.add(False)
    for ok in modules.checks(count.skipped):
        count.add(ok)
    Report.of(count.passed, count.failed, count.skipped).show()


if __name__ == "__main__":
    main()
