# SPDX-License-Identifier: MIT
"""The layout of help texts, and the width of the terminal."""

from __future__ import annotations

import argparse
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

_DEFAULT_WIDTH = 80


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fits the terminal: wraps a paragraph, and keeps a text of several lines (examples) as it is.

    The width is passed in, for argparse imports shutil to find it, which costs a tenth of a whole `destroy`.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=(terminal_width(sys.__stdout__) or _DEFAULT_WIDTH) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        kind = argparse.RawDescriptionHelpFormatter if "\n" in text else argparse.HelpFormatter
        return kind._fill_text(self, text, width, indent)


def terminal_width(stream: TextIO | None) -> int | None:
    """COLUMNS, else the width of the terminal that a stream is; None if it is not a terminal."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or _DEFAULT_WIDTH  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return None
