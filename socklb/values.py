# SPDX-License-Identifier: MIT
"""The base of immutable values: set once by the constructor, comparable, hashable, printable, picklable. Durations."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


class Value:
    """Its fields are the `__slots__` of the class without a leading underscore; the constructor takes them by name.

    Slots with an underscore hold what is derived from the fields. Two values are equal, and of equal hash, if they are
    of one type and their fields are equal. Copying and unpickling call the constructor, with its checks.
    """

    __slots__: tuple[str, ...] = ()

    def _set(self, **slots: object) -> None:
        """For the constructor: assignment raises."""
        assign = object.__setattr__
        for name, value in slots.items():
            assign(self, name, value)

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name[0] != "_"}

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot assign or delete {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _construct, (type(self), self._fields())

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), *self._fields().values()))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={_shown(value)}' for name, value in self._fields().items())})"
        )


def _shown(value: object) -> str:
    """Equal sets look alike."""
    return f"frozenset({sorted(value)!r})" if isinstance(value, frozenset) else repr(value)


def _construct(kind: type[Value], fields: dict[str, Any]) -> Value:
    return kind(**fields)


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_A_YEAR = 366 * 86400


def duration(text: str) -> float:
    """The seconds of "500ms", "30s", "1.5m", "2h". Raises ValueError for what is no number with such a unit."""
    unit = text.lstrip("0123456789.")
    try:
        seconds = float(text[: len(text) - len(unit)]) * _UNITS[unit]
    except (KeyError, ValueError):
        raise ValueError(f"{text!r} is no duration: it is a number with ms, s, m or h, as in 30s") from None
    if seconds > _A_YEAR:
        raise ValueError(f"{text} is longer than a year")
    return seconds
