# SPDX-License-Identifier: MIT
"""The parsers of the command line: all that help texts and errors need. What needs neither is read by `plain`."""

from __future__ import annotations

import argparse
from importlib import import_module

from .. import __version__
from ..features import has, missing
from .help import HelpFormatter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TypeVar

    T = TypeVar("T")

COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {  # what each does, and the folders that it needs
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
        self.register("action", "refuse", _Refusal)
        self._module, self._is_ready = module, False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._is_ready:
            return super().parse_known_args(args, namespace)
        import_module(self._module, __package__).add_arguments(self)
        for action in self._actions:  # those in groups too
            if callable(action.type):
                action.type = _saying_why(action.type)
        self._is_ready = True
        if self.get_default("filter") is None:
            return super().parse_known_args(args, namespace)
        return self.parse_known_intermixed_args(args, namespace)  # options may come between its words


class _Refusal(argparse.Action):
    """Answers an option with advice."""

    def __init__(self, *, advice: str, **settings: Any) -> None:
        super().__init__(nargs="?", help=argparse.SUPPRESS, **settings)
        self._advice = advice

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(f"{'/'.join(self.option_strings)}: {self._advice}")


def _saying_why(convert: Callable[[str], T]) -> Callable[[str], T]:
    """argparse shows the text of this error alone."""

    def converted(text: str) -> T:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


def parser_of(chosen: Iterable[str]) -> argparse.ArgumentParser:
    """A parser that knows these commands."""
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
        text, _ = COMMANDS[command]
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
    _, folders = COMMANDS[command]
    return next((folder for folder in folders if not has(folder)), "")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What the words of a command line ask for. Bad usage leaves through SystemExit(2), as argparse does."""
    # Building a parser takes longer than using it: where the command is plain, the others need none.
    if not words or words[0] not in COMMANDS:
        parser = parser_of(command for command in COMMANDS if not _missing_folder(command))
    else:
        folder = _missing_folder(words[0])
        if folder:
            raise ValueError(missing(f"the command {words[0]}", folder))
        parser = parser_of(words[:1])
    options, unknown = parser.parse_known_args(words)
    if unknown:  # parse_args would show the usage of socklb, and not that of the command
        options.fail(f"unrecognized arguments: {' '.join(unknown)}")
    return options
