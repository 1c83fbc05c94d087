# SPDX-License-Identifier: MIT
"""The command line: `socklb COMMAND`, one module for each. Exit codes: see `parsers._EXIT_CODES`."""

from __future__ import annotations

import gc
import os
import sys

from .arguments import check_json
from .output import DONE, ENDS, error_text, exit_code, flush_stdout, prepare_stdout, silence_stuck, warn
from .plain import read
from .signals import ending_on_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def parse(words: Sequence[str]) -> Any:
    """What the words of a command line ask for. Bad usage leaves through SystemExit(2), as argparse does."""
    options = read(words)
    if options is not None:
        return options
    from .parsers import parse

    return parse(words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Bad usage leaves through SystemExit(2), as argparse does."""
    if os.environ.get("SOCKLB_DEBUG") == "1":
        import logging  # takes longer to import than a command to run

        logging.basicConfig(level=logging.DEBUG, format="%(relativeCreated)8.1f ms %(name)s: %(message)s")
    try:
        prepare_stdout()
        with ending_on_signals(silence_stuck):
            try:
                options = parse(sys.argv[1:] if arguments is None else arguments)
                if arguments is None and hasattr(gc, "freeze"):
                    gc.freeze()  # or at its end the process looks for garbage among all that was imported, for 2 ms
                check_json(options)
                code: int = options.run(options)
            finally:
                flush_stdout()
    except BrokenPipeError:
        return DONE
    except ENDS as error:
        warn(error_text(error))
        return exit_code(error)
    return code
