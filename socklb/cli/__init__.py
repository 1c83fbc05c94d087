# SPDX-License-Identifier: MIT
"""The command line: `socklb COMMAND`, one module for each. Exit codes: see `_EXIT_CODES`."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from .. import __version__
from ..errors import SocklbError
from .arguments import spelled_out
from .help import HelpFormatter
from .output import DONE, complain, error_text, exit_code, flush_stdout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_COMMANDS = ("list", "destroy", "terminate", "watch", "probe", "rev-nat", "demo")

_EXIT_CODES = """\
exit codes:
  0    done, also when there was nothing to do
  1    some sockets or namespaces failed, the audit could not go on, or the run failed
  2    usage, bad input, an unknown namespace, an audit file that cannot be opened; nothing died
  3    the kernel or the interpreter cannot; the message names what is missing
  4    not permitted; the message names the capability
  130  interrupted

Each command has a help text with examples: socklb COMMAND --help
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


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What the words of a command line mean. Bad usage leaves through SystemExit(2), as argparse does."""
    # Building a parser takes longer than using it: where the command is plain, the others need none.
    chosen = words[:1] if words and words[0] in _COMMANDS else _COMMANDS
    return _parser(chosen).parse_args(spelled_out(words))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Bad usage leaves through SystemExit(2), as argparse does."""
    try:
        try:
            options = parse(sys.argv[1:] if arguments is None else arguments)
            code: int = options.run(options)
        finally:
            flush_stdout()
    except BrokenPipeError:
        return DONE
    except (SocklbError, ValueError, OSError, KeyboardInterrupt) as error:
        complain(error_text(error))
        return exit_code(error)
    return code
