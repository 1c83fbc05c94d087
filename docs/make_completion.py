"""Write docs/completion/socklb.bash and _socklb (for zsh) from the parsers; with --check, only compare them."""

from __future__ import annotations

import argparse
import re
import sys
from importlib import import_module
from pathlib import Path
from textwrap import indent

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from socklb.cli.parsers import COMMANDS, parser_of
from socklb.filters.language import _TESTS
from socklb.states import _GROUPS, TcpState

_DIRECTORY = Path(__file__).resolve().parent / "completion"
_STATES = " ".join([*(state.name.lower().replace("_", "-") for state in TcpState), *_GROUPS])
_FILTER = " ".join([*_TESTS, "and", "or", "not", "state", "exclude"])
_WITH_VALUE = " | ".join(test for test in _TESTS if test not in ("autobound", "dev", "uid"))

_VALUES = {
    "state": "states", "netns": "netns", "source": "source", "rev_nat_dir": "directory",
    "audit": "file", "kubeconfig": "file", "remember": "file",
    "limit": "", "metrics": "", "kube_namespace": "", "kube_selector": "", "not_serving": "", "terminating": "",
    "remember_for": "", "remember_as": "", "filter": "filter", "backends": "",
}  # fmt: skip
"""What can be the value of each argument that has one."""

_BASH = """\
# Completion of socklb for bash. Made from its parsers by `python3 docs/make_completion.py`.
# `source` it, or copy it to /usr/share/bash-completion/completions/socklb.

_socklb() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} options= words= typed=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "{commands}" -- "$word")
        return
    fi
    # In --option=value the = is a word.
    if [[ $word == = ]]; then
        word=
    elif [[ $before == = ]]; then
        before=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    case ${{COMP_WORDS[1]}} in
{options}
    esac
    case $before in
        {states} | state | exclude)
            if [[ $word == *,* ]]; then typed=${{word%,*}},; fi
            mapfile -t COMPREPLY < <(compgen -P "$typed" -W "{state_words}" -- "${{word##*,}}")
            ;;
        {netns})
            if [[ $word == */* ]]; then
                _socklb_files -f
            else
                mapfile -t COMPREPLY < <(compgen -W "current all" -- "$word")
                _socklb_names /run/netns
            fi
            ;;
        {source})
            _socklb_files -f -W "- kubernetes"
            ;;
        {file})
            _socklb_files -f
            ;;
        {directory})
            _socklb_files -d
            ;;
        {none}) ;;
        {tests}) ;;
        dev)
            _socklb_names /sys/class/net
            ;;
        uid)
            mapfile -t COMPREPLY < <(compgen -u -- "$word")
            ;;
        *)
            if [[ $word == -* ]]; then words=$options; fi
            mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
            ;;
    esac
}}

_socklb_files() {{
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen "$@" -- "$word")
}}

# Of what lies in a directory; not by -W, which would run a name such as $(...).
_socklb_names() {{
    local path name
    for path in "$1"/*; do
        printf -v name %q "${{path##*/}}"
        if [[ -e $path && $name == "$word"* ]]; then COMPREPLY+=("$name"); fi
    done
}}

complete -F _socklb socklb
"""

_ZSH = """\
#compdef socklb
# Completion of socklb for zsh. Made from its parsers by `python3 docs/make_completion.py`.
# Copy it to a directory of $fpath, such as /usr/local/share/zsh/site-functions.

_socklb_states() {{
    _values -s , state {state_words}
}}

_socklb_netns() {{
    if [[ $PREFIX == */* ]]; then
        _files
    else
        compadd - current all /run/netns/*(N:t)
    fi
}}

_socklb_source() {{
    compadd - - kubernetes
    _files
}}

_socklb_filter() {{
    case $words[CURRENT-1] in
        state | exclude) _socklb_states ;;
        dev) compadd - /sys/class/net/*(N:t) ;;
        uid) _users ;;
        {tests}) _message value ;;
        *) compadd - {filter} ;;
    esac
}}

_socklb() {{
    if ((CURRENT == 2)); then
        local -a commands=(
{commands}
        )
        _describe command commands
        _arguments {top}
        return
    fi
    shift words
    ((CURRENT--))
    case $words[1] in
{options}
    esac
}}

_socklb "$@"
"""
_ZSH_VALUES = {
    "states": "_socklb_states", "netns": "_socklb_netns", "source": "_socklb_source", "filter": "_socklb_filter",
    "file": "_files", "directory": "_files -/", "": " ",
}  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Those that its help text shows."""
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]


def commands() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of `socklb`, and that of each command."""
    top = parser_of(COMMANDS)
    (choice,) = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    for parser in choice.choices.values():
        import_module(parser._module, "socklb.cli").add_arguments(parser)
    return top, dict(choice.choices)


def make_completion() -> dict[str, str]:
    """The text of each file, by its name. Raises KeyError for an argument whose values are not in `_VALUES`."""
    top, parsers = commands()
    flags: dict[str, dict[str, None]] = {kind: {} for kind in _VALUES.values()}
    for parser in parsers.values():
        for action in arguments(parser):
            if action.option_strings and action.nargs != 0:
                flags[_VALUES[action.dest]].update(dict.fromkeys(action.option_strings))
    patterns = {kind or "none": " | ".join(found) for kind, found in flags.items()}
    bash = _BASH.format(
        **patterns,
        commands=" ".join([*parsers, *_options(top)]),
        options=indent("\n".join(map(_bash_options, parsers, parsers.values())), " " * 8),
        state_words=_STATES,
        tests=_WITH_VALUE,
    )
    zsh = _ZSH.format(
        commands=indent("\n".join(_quoted(f"{name}:{COMMANDS[name][0]}") for name in parsers), " " * 12),
        options=indent("\n".join(map(_zsh_options, parsers, parsers.values())), " " * 8),
        top=" ".join(map(_zsh_argument, filter(_is_option, arguments(top)))),
        filter=_FILTER,
        state_words=_STATES,
        tests=_WITH_VALUE,
    )
    return {"socklb.bash": bash, "_socklb": zsh}


def _is_option(action: argparse.Action) -> bool:
    return bool(action.option_strings)


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in arguments(parser) for option in action.option_strings]


def _bash_options(name: str, parser: argparse.ArgumentParser) -> str:
    has_filter = any(_VALUES.get(action.dest) == "filter" for action in arguments(parser))
    words = f'\n    words="{_FILTER}"' if has_filter else ""
    return f'{name})\n    options="{" ".join(_options(parser))}"{words}\n    ;;'


def _zsh_options(name: str, parser: argparse.ArgumentParser) -> str:
    specs = indent(" \\\n".join(map(_zsh_argument, arguments(parser))), " " * 8)
    return f"{name})\n    _arguments -s \\\n{specs}\n    ;;"


def _zsh_argument(action: argparse.Action) -> str:
    """What `_arguments` of zsh takes for one."""
    value = ""
    if action.nargs != 0:
        value = f":{_escaped(str(action.metavar))}:{_ZSH_VALUES[_VALUES[action.dest]]}"
    if not action.option_strings:
        return _quoted(f"*{value}")
    again = isinstance(action, (argparse._AppendAction, argparse._ExtendAction))
    others = "*" if again else f"({' '.join(action.option_strings)})"
    text = _quoted(f"{'=' if value else ''}[{_escaped(_first_clause(action))}]{value}")
    if len(action.option_strings) == 1:
        return _quoted(f"{others}{action.option_strings[0]}")[:-1] + text[1:]
    return f"{_quoted(others)}{{{','.join(action.option_strings)}}}{text}"


def _escaped(text: str) -> str:
    return re.sub(r"([][:\\])", r"\\\1", text)


def _first_clause(action: argparse.Action) -> str:
    """A help text up to its first stop, for a line in a list of choices."""
    return re.split(r"[;:(]", (action.help or "") % {"prog": "socklb"})[0].strip()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def main() -> None:
    for name, made in make_completion().items():
        path = _DIRECTORY / name
        if "--check" not in sys.argv[1:]:
            path.write_text(made, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != made:
            sys.exit(f"docs/completion/{name} differs from the parsers: run python3 docs/make_completion.py")


if __name__ == "__main__":
    main()
