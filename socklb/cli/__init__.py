# SPDX-License-Identifier: MIT
"""The command line: `socklb COMMAND`, one module for each. Exit codes: see `_EXIT_CODES`."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from .. import __version__
from ..features import has, missing
from .help import HelpFormatter
from .output import DONE, ENDS, error_text, exit_code, flush_stdout, prepare_stdout, silence_stuck, warn
from .signals import ending_on_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_COMMANDS: dict[str, tuple[str, ...]] = {  # and the folders that each needs
    "list": (),
    "destroy": (),
    "terminate": ("termination",),
    "watch": ("termination", "sources"),
    "probe": (),
    "rev-nat": ("reverse_nat",),
    "demo": ("cli.demo",),
}

_EXIT_CODES = """\
exit codes:
  0    done, also when there was nothing to do
  1    some sockets or namespaces failed or could not be searched, the audit
       could not go on, or the run failed
  2    usage, bad input, an unknown namespace, an audit file that cannot be
       opened; nothing was destroyed
  3    the kernel or the interpreter cannot; the message names what is missing
  4    not permitted; the message names the capability
  130, 143, 129   ended by SIGINT, SIGTERM or SIGHUP

Each command has a help text with examples: socklb COMMAND --help
With SOCKLB_DEBUG=1 in the environment each request to the kernel and its answer
are shown on standard error.
"""


def _parser(chosen: Iterable[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="socklb",
        description="Find the sockets that are pinned to a backend that is gone, and destroy them.",
        epilog=_EXIT_CODES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"socklb {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, prog=parser.prog)
    for command in chosen:
        import_module(f".{command.replace('-', '_')}", __package__).add_parser(commands)
    return parser


def _missing_folder(command: str) -> str:
    """The folder that a command needs and this copy of the package leaves out, or ""."""
    return next((folder for folder in _COMMANDS[command] if not has(folder)), "")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What the words of a command line ask for. Bad usage leaves through SystemExit(2), as argparse does."""
    # Building a parser takes longer than using it: where the command is plain, the others need none.
    if not words or words[0] not in _COMMANDS:
        parser = _parser(command for command in _COMMANDS if not _missing_folder(command))
    else:
        folder = _missing_folder(words[0])
        if folder:
            raise ValueError(missing(f"the command {words[0]}", folder))
        parser = _parser(words[:1])
    options, unknown = parser.parse_known_args(words)
    if unknown:  # parse_args would show the usage of socklb, and not that of the command
        options.fail(f"unrecognized arguments: {' '.join(unknown)}")
    return options


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
                code: int = options.run(options)
            finally:
                flush_stdout()
    except BrokenPipeError:
        return DONE
    except ENDS as error:
        warn(error_text(error))
        return exit_code(error)
    return code
