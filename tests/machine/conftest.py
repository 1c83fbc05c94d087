"""Shows what the machine has done."""

from __future__ import annotations

import pytest

from .counters import counters


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if counters["steps"]:
        done = ", ".join(f"{count} {what}" for what, count in counters.items())
        terminalreporter.write_line(f"state machine: {done}")
