# SPDX-License-Identifier: MIT
"""The layout of help texts."""

from __future__ import annotations

import argparse
import sys

from .output import DEFAULT_WIDTH, terminal_width


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fits the terminal: wraps a paragraph, and keeps a text of several lines (examples) as it is.

    The width is passed in, for argparse imports shutil to find it, which costs a tenth of a whole `probe`.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=(terminal_width(sys.__stdout__) or DEFAULT_WIDTH) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        kind = argparse.RawDescriptionHelpFormatter if "\n" in text else argparse.HelpFormatter
        return kind._fill_text(self, text, width, indent)
