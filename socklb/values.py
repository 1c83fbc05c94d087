# SPDX-License-Identifier: MIT
"""What every value of the package is: set once by its constructor, comparable, hashable, printable, picklable."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


class Value:
    """The base of immutable values. The constructor takes the `__slots__` in order and sets them with `_set`.

    Equal, and of equal hash, when of one type with equal arguments; a copy or an unpickled value goes through the
    constructor and its checks again.
    """

    __slots__: tuple[str, ...] = ()

    def _set(self, **fields: object) -> None:
        for name, field in fields.items():
            object.__setattr__(self, name, field)

    def _arguments(self) -> tuple[Any, ...]:
        """What the constructor takes to make this value again."""
        return tuple(getattr(self, slot) for slot in self.__slots__)

    def __setattr__(self, name: str, field: object) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed: make another one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a {type(self).__name__} cannot be changed: make another one")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._arguments() == other._arguments()

    def __hash__(self) -> int:
        return hash((type(self), self._arguments()))

    def __repr__(self) -> str:
        arguments = (f"{slot}={getattr(self, slot)!r}" for slot in self.__slots__)
        return f"{type(self).__name__}({', '.join(arguments)})"
