# SPDX-License-Identifier: MIT
"""The command line: `socklb COMMAND`, one module for each. Exit codes: see `_EXIT_CODES`."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from .. import __version__
from ..features import has, missing
from .arguments import check_json
from .help import HelpFormatter
from .output import DONE, ENDS, error_text, exit_code, flush_stdout, prepare_stdout, silence_stuck, warn
from .signals import ending_on_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

_COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {  # what each does, and the folders that it needs
    "list": ("show the sockets that a filter matches", ()),
    "destroy": ("destroy the sockets that a filter matches", ()),
    "terminate": ("destroy what is still connected to backends that are gone", ("termination",)),
    "watch": (
        "follow a list of backends, and destroy the connections to those that go down",
        ("termination", "sources"),
    ),
    "flows": ("show which clients conntrack has balanced to a backend", ("conntrack",)),
    "probe": ("say whether this kernel, and this caller, can destroy sockets", ()),
    "rev-nat": ("show the balancer's reverse-NAT entries: which socket it sent where", ("reverse_nat",)),
    "demo": ("show what it does, in a network of its own", ("cli.demo",)),
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
  5    nothing matched, and --require-match asks for a match
  130, 143, 129   ended by SIGINT, SIGTERM or SIGHUP

Each command has a help text with examples: socklb COMMAND --help
With SOCKLB_DEBUG=1 in the environment each request to the kernel and its answer
are shown on standard error.
"""


class _Command(argparse.ArgumentParser):
    """The parser of one command, whose module is imported when it is asked to parse, once."""

    def __init__(self, *, module: str, **options: Any) -> None:
        super().__init__(**options)
        self._module, self._is_ready = module, False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._is_ready:
            return super().parse_known_args(args, namespace)
        import_module(self._module, __package__).add_arguments(self)
        self._is_ready = True
        if self.get_default("filter") is None:
            return super().parse_known_args(args, namespace)
        return self.parse_known_intermixed_args(args, namespace)  # options may come between its words


def _parser(chosen: Iterable[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="socklb",
        description="Find the sockets that are pinned to a backend that is gone, and destroy them.",
        epilog=_EXIT_CODES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"socklb {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, prog=parser.prog, parser_class=_Command
    )
    for command in chosen:
        text, _ = _COMMANDS[command]
        commands.add_parser(
            command,
            module=f".{command.replace('-', '_')}",
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
    return parser


def _missing_folder(command: str) -> str:
    """The folder that a command needs and this copy of the package leaves out, or ""."""
    _, folders = _COMMANDS[command]
    return next((folder for folder in folders if not has(folder)), "")


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
