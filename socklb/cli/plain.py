# SPDX-License-Identifier: MIT
"""Reads a command line that needs neither help nor an error, for argparse takes longer to import than a command to run.

The arguments are those that the command declares, by the same calls that declare them to argparse. `read` gives what
argparse would, or nothing: then argparse reads the words, and says what there is to say.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_COMMANDS = ("list", "destroy")
"""Those that end sooner than argparse begins."""

_DEFAULTS = {"store_true": False, "store": None, "append": None, "extend": None, "refuse": None}


class _Declared:
    """The arguments of a command, as far as plain words need them: it is called as an ArgumentParser would be."""

    description = epilog = error = None

    def __init__(self) -> None:
        self.defaults: dict[str, Any] = {}
        self.switches: dict[str, str] = {}
        """The name of what each flag sets."""
        self.options: dict[str, tuple[str, str, Callable[[str], Any]]] = {}
        """By flag: the name of what it sets, how, and the type of its value."""
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


def read(words: Sequence[str]) -> SimpleNamespace | None:
    """What argparse makes of the words, but for `fail`; None if it has to be asked."""
    if not words or words[0] not in _COMMANDS:
        return None
    declared = _Declared()
    import_module(f".{words[0]}", __package__).add_arguments(declared)
    found = SimpleNamespace(**{**declared.defaults, declared.positional: []})
    values = vars(found)
    rest = iter(words[1:])
    for word in rest:
        flag, has_value, value = word.partition("=")
        if not word.startswith("-"):
            values[declared.positional].append(word)
        elif word in declared.switches:
            values[declared.switches[word]] = True
        elif flag in declared.options:
            if not has_value:
                value = next(rest, "")
            if not value or value.startswith("-"):
                return None
            name, action, type = declared.options[flag]
            try:
                converted = type(value)
            except ValueError:
                return None
            if action == "store":
                values[name] = converted
            else:
                values[name] = (values[name] or []) + ([converted] if action == "append" else converted)
        else:
            letters = [f"-{letter}" for letter in word[1:]]
            if not letters or not declared.switches.keys() >= {*letters}:
                return None
            values.update(dict.fromkeys([declared.switches[letter] for letter in letters], True))
    found.fail = lambda message: _fail(words, message)
    return found


def _fail(words: Sequence[str], message: str) -> None:
    from .parsers import parse

    parse(words).fail(message)
