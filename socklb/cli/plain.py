# SPDX-License-Identifier: MIT
"""Reads a command line that needs no help text and no error: argparse takes longer to import than a command to run.

The arguments are those that the command declares, by the very calls that declare them to argparse. `read` gives what
argparse would, or nothing: then argparse reads the words, and says what there is to say.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

_COMMANDS = ("list", "destroy")
"""Those that end sooner than argparse begins."""

_DEFAULTS = {"store_true": False, "store": None, "append": None, "extend": None, "refuse": None}


class _Declared:
    """The arguments of a command, as far as plain words need them: it is called as an ArgumentParser would be."""

    description = epilog = error = None

    def __init__(self) -> None:
        self.defaults: dict[str, Any] = {}
        self.switches: dict[str, str] = {}  # by flag: the name of what it sets
        self.options: dict[str, tuple[str, str, Callable[[str], Any]]] = {}  # the same, the action, the type of a value
        self.positional = ""

    def set_defaults(self, **defaults: object) -> None:
        self.defaults.update(defaults)

    def add_argument(self, *flags: str, action: str = "store", type: Callable[[str], Any] = str, **_: object) -> None:
        name = next((flag for flag in flags if flag.startswith("--")), flags[0]).lstrip("-").replace("-", "_")
        self.defaults[name] = _DEFAULTS[action]
        for flag in flags:
            if not flag.startswith("-"):
                self.positional = name
            elif action == "store_true":
                self.switches[flag] = name
            elif action != "refuse":
                self.options[flag] = name, action, type

    def values(self, words: Iterable[str]) -> dict[str, Any] | None:
        """What the words set, by name; None where one of them is not plain."""
        values = {**self.defaults, self.positional: []}
        rest = iter(words)
        for word in rest:
            flag, has_value, value = word.partition("=")
            if not word.startswith("-"):
                values[self.positional].append(word)
            elif flag in self.options:
                name, action, type = self.options[flag]
                value = value if has_value else next(rest, "")
                if not value or value.startswith("-"):
                    return None
                try:
                    converted = type(value)
                except ValueError:
                    return None
                if action != "store":
                    converted = (values[name] or []) + (converted if action == "extend" else [converted])
                values[name] = converted
            else:
                flags = [word] if word in self.switches else [f"-{letter}" for letter in word[1:]]
                if not flags or not self.switches.keys() >= {*flags}:
                    return None
                values.update((self.switches[flag], True) for flag in flags)
        return values


def read(words: Sequence[str]) -> SimpleNamespace | None:
    """What argparse makes of the words of a command line; None if it has to be asked."""
    if not words or words[0] not in _COMMANDS:
        return None
    declared = _Declared()
    import_module(f".{words[0]}", __package__).add_arguments(declared)
    values = declared.values(words[1:])
    return None if values is None else SimpleNamespace(**{**values, "fail": lambda message: _fail(words, message)})


def _fail(words: Sequence[str], message: str) -> None:
    """As argparse does it, with the usage."""
    from .parsers import parse

    parse(words).fail(message)
