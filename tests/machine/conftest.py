"""Says how far the machine went."""

from __future__ import annotations

import pytest

from .tallies import tally


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tally["steps"]:
        terminalreporter.write_line("state machine: " + ", ".join(f"{count} {what}" for what, count in tally.items()))
