# SPDX-License-Identifier: MIT
"""How help texts are laid out."""

from __future__ import annotations

import argparse
import os
import sys


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps examples as they are, and fits the terminal.

    The width is found out here, for argparse imports shutil to do it, which costs a tenth of a whole `destroy`.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_terminal_width() - 2)

    def format_help(self) -> str:
        """argparse has no name for an option whose value is behind a "=" or not there."""
        text = super().format_help().replace("--rev-nat [=DIR]]", "--rev-nat[=DIR]]")
        return text.replace("--rev-nat [=DIR] ", "--rev-nat[=DIR]  ")  # what stands beside it stays where it is


def _terminal_width() -> int:
    """COLUMNS, the width of standard output's terminal, or 80: as shutil.get_terminal_size() has it."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return 80
