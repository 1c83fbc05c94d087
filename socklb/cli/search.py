# SPDX-License-Identifier: MIT
"""What is found in the namespaces of --netns, shown while it comes: for the commands that only look."""

from __future__ import annotations

from ..engine.choice import chosen, raise_if_all_failed
from ..errors import NotSupported, SocklbError
from ..kernel.namespaces import CannotEnter, NamespaceVanished, NetworkNamespace
from .netns import namespace_problems, namespaces_from
from .output import DONE, SOME_FAILED, error_text, ignore_broken_pipe, json_dumps, warn
from .signals import ended_by_signals, showing

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from typing import Any, TypeVar

    from ..kernel.discovery import UnsearchedNamespace

    Row = TypeVar("Row")

_ROWS_A_WRITE = 256


class Search:
    """Where a command looks, and what of that failed. `errors`, `unsearched`, `hidden`: as in a Report."""

    def __init__(self, options: argparse.Namespace, default: str) -> None:
        self._words, self._default, self._readable_only = options.netns, default, options.readable_only
        self.namespaces: Sequence[NetworkNamespace] = ()
        self.errors: dict[NetworkNamespace, BaseException] = {}
        self.unsearched: list[UnsearchedNamespace] = []
        self.hidden = ""

    def rows(self, look: Callable[[NetworkNamespace], Iterable[Row]]) -> Generator[Row, None, None]:
        """What `look` finds in each. One of several namespaces that fails does not stop the others, but for a kernel
        that cannot, being the same everywhere; if none could be searched, the first error is raised.
        """
        namespaces = self.namespaces = chosen(namespaces_from(self._words, self._default))
        self.hidden = getattr(namespaces, "hidden", "")
        for namespace in namespaces:
            try:
                yield from look(namespace)
            except (SocklbError, ValueError) as error:
                is_of_kernel = isinstance(error, NotSupported) and not isinstance(error, CannotEnter)
                if is_of_kernel or len(namespaces) == 1:
                    raise
                self.note_failure(namespace, error)
        raise_if_all_failed(self.errors, len(namespaces))
        refused = getattr(namespaces, "refused", ())
        if refused:
            from ..kernel.discovery import unsearched

            self.unsearched = unsearched(refused, [n for n in namespaces if n not in self.errors])

    def note_failure(self, namespace: NetworkNamespace, error: BaseException) -> None:
        if not isinstance(error, NamespaceVanished):
            self.errors.setdefault(namespace, error)

    def _problems(self) -> tuple[list[str], list[str]]:
        return namespace_problems(self.errors, self.unsearched, self._readable_only)

    def say_what_failed(self) -> int:
        """On standard error; the exit code."""
        problems, expected = self._problems()
        for text in filter(None, [*problems, *expected, self.hidden]):
            warn(text)
        return SOME_FAILED if problems else DONE

    def ended(self, error: BaseException | None) -> dict[str, Any]:
        """What JSON has behind all else: what was not searched, and what ended it, each absent where there is none."""
        text = "; ".join(self._problems()[0]) if error is None else error_text(error)
        more: dict[str, Any] = {}
        if self.unsearched:
            more["unsearched"] = [one._asdict() for one in self.unsearched]
        if text:
            more["error"] = text
        return more


def stream_json(
    name: str, records: Iterator[dict[str, Any]], ended: Callable[[BaseException | None], dict[str, Any]]
) -> None:
    """One object with the records under this name, written while they come, and complete however it ends, with what
    `ended` says then behind them; nothing at all for bad input.
    """
    dumps = json_dumps()
    waiting: list[str] = []
    begun = False

    def write(end: str = "") -> None:
        """Print the rows that wait. An interrupt comes before or after it: no row is lost or printed twice."""
        nonlocal begun
        with showing():
            start = ("," if waiting else "") if begun else f'{{"{name}": ['
            text = start + ",".join(waiting) + end
            waiting.clear()
            begun = True
            print(text, end="", flush=True)  # a pipe shows them as they come, whatever this Python holds back

    def finish(error: BaseException | None) -> None:
        with ignore_broken_pipe():
            write("]" + "".join(f', "{key}": {dumps(value)}' for key, value in ended(error).items()) + "}\n")

    try:
        with ended_by_signals():
            for record in records:
                waiting.append("\n  " + dumps(record))
                if len(waiting) == _ROWS_A_WRITE:
                    write()
    except BaseException as error:
        if isinstance(error, ValueError) and not (waiting or begun):
            raise
        finish(error)
        if isinstance(error, ValueError):
            raise SocklbError(f"ended by {type(error).__name__}: {error}") from error
        raise
    finish(None)
