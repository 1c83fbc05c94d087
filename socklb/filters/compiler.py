# SPDX-License-Identifier: MIT
"""From a condition to the programs that tell the kernel, and what is left to be matched in Python."""

from __future__ import annotations

from collections import namedtuple
from errno import EOPNOTSUPP

from ..errors import NotSupported
from ..wire.bytecode import Assembler
from .conditions import EVERYTHING, And, Condition, Host, Not, Or, Port, endpoint_of
from .traits import Autobound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional


class Plan(namedtuple("Plan", "programs codes rest disjoint again")):
    """How to ask the kernel for what a condition means.

    `programs`: one dump each; an empty one takes everything. `codes`: the bytecodes in them. `rest`: what is still to
    be matched in Python, None if the programs say it all; then they let through too much and never too little.
    `disjoint`: whether no socket can come through two of them. `again`: what a row has to be asked again, for the
    kernel fills it after the program has run, and a UDP socket may have been connected elsewhere in between.
    """

    __slots__ = ()
    programs: tuple[bytes, ...]
    codes: frozenset[int]
    rest: Optional[Condition]
    disjoint: bool
    again: Optional[Condition]


def compile_condition(where: Condition, lacks: frozenset[int] = frozenset()) -> Plan:
    """The plan for a kernel that lacks these bytecodes. Conditions must be resolved."""
    again = _relaxed(where, _is_of_endpoint) if _has_endpoint(where) else None
    told = where if _is_expressible(where, lacks) else _relaxed(where, lambda part: part.expressible(lacks))
    rest = None if told is where else _in_python(where, lambda part: _is_expressible(part, lacks))
    whole = _assemble(told, lacks)
    if whole is not None:
        return Plan((whole.program,), whole.codes, rest, True, again)
    pieces, complete = _split(_relaxed(told, lambda part: True), lacks)
    programs = tuple(piece.program for piece in pieces)
    codes = frozenset().union(*(piece.codes for piece in pieces))
    if not complete:  # what Python cannot match was told first, and the rest is matched again
        rest = _in_python(where, lambda part: isinstance(where, And) and not _is_matchable(part))
    return Plan(programs, codes, rest, _are_distinct_endpoints(told), again)


def _in_python(where: Condition, was_told: Callable[[Condition], bool]) -> Condition:
    """What is left to be matched in Python: of an `and` the parts that were not told, else the whole.

    Raises NotSupported if only the kernel can evaluate what is left.
    """
    parts = where.parts if isinstance(where, And) else (where,)
    left = [part for part in parts if not was_told(part)]
    rest = left[0] if len(left) == 1 else And(*left)
    if not _is_matchable(rest):
        raise NotSupported(EOPNOTSUPP, f"'{where}': this kernel cannot take it as a whole, and 'autobound' needs that")
    return rest


def _is_matchable(condition: Condition) -> bool:
    """Whether Python can evaluate it."""
    if isinstance(condition, Not):
        return _is_matchable(condition.part)
    if isinstance(condition, (And, Or)):
        return all(map(_is_matchable, condition.parts))
    return not isinstance(condition, Autobound)


class _Assembled(namedtuple("_Assembled", "program codes")):
    __slots__ = ()
    program: bytes
    codes: frozenset[int]


def _assemble(condition: Condition, lacks: frozenset[int]) -> _Assembled | None:
    assembler = Assembler(lacks)
    condition.emit(assembler, assembler.reject)
    program = assembler.assemble()
    return None if program is None else _Assembled(program, frozenset(assembler.used))


def _is_expressible(condition: Condition, lacks: frozenset[int]) -> bool:
    if isinstance(condition, Not):
        return _is_expressible(condition.part, lacks)
    if isinstance(condition, (And, Or)):
        return all(_is_expressible(part, lacks) for part in condition.parts)
    return condition.expressible(lacks)


def _is_of_endpoint(condition: Condition) -> bool:
    return isinstance(condition, (Host, Port))


def _has_endpoint(condition: Condition) -> bool:
    if isinstance(condition, Not):
        return _has_endpoint(condition.part)
    if isinstance(condition, (And, Or)):
        return any(map(_has_endpoint, condition.parts))
    return _is_of_endpoint(condition)


def _relaxed(condition: Condition, is_kept: Callable[[Condition], bool], negated: bool = False) -> Condition:
    """The condition (or its negation) with every `not` pushed inward, and tests that are not kept made "anything".

    No `not` stands above an `and` or `or` then, so that whatever is let through by one part is let through by all.
    """
    if isinstance(condition, Not):
        return _relaxed(condition.part, is_kept, not negated)
    if isinstance(condition, (And, Or)):
        kind = And if isinstance(condition, And) is not negated else Or
        return kind(*(_relaxed(part, is_kept, negated) for part in condition.parts))
    if not is_kept(condition):
        return EVERYTHING
    return Not(condition) if negated else condition


def _split(condition: Condition, lacks: frozenset[int]) -> tuple[list[_Assembled], bool]:
    """Pieces that fit into an attribute each and together mean the same (False: more, for want of an `or` to cut)."""
    whole = _assemble(condition, lacks)
    if whole is not None:
        return [whole], True
    halves = _halves(condition)
    if halves is None:
        parts = sorted(condition.parts, key=_is_matchable)  # type: ignore[attr-defined]
        return _split(And(*parts[: len(parts) // 2]), lacks)[0], False
    pieces: list[_Assembled] = []
    complete = True
    for half in halves:
        its_pieces, its_complete = _split(half, lacks)
        pieces += its_pieces
        complete = complete and its_complete
    return pieces, complete


def _halves(condition: Condition) -> tuple[Condition, Condition] | None:
    """Two conditions that come to the same when joined by `or`; None if there is no `or` to be cut."""
    if isinstance(condition, Or) and len(condition.parts) > 1:
        middle = len(condition.parts) // 2
        return Or(*condition.parts[:middle]), Or(*condition.parts[middle:])
    if isinstance(condition, (And, Or)):
        for index in sorted(range(len(condition.parts)), key=lambda i: -_size(condition.parts[i])):
            halves = _halves(condition.parts[index])
            if halves is not None:
                before, behind = condition.parts[:index], condition.parts[index + 1 :]
                first, second = (type(condition)(*before, half, *behind) for half in halves)
                return first, second
    return None


def _size(condition: Condition) -> int:
    """How many tests it has."""
    return sum(map(_size, condition.parts)) if isinstance(condition, (And, Or)) else 1


def _are_distinct_endpoints(condition: Condition) -> bool:
    """Whether it is an `or` of endpoints of one side of which no two can match the same socket."""
    if not isinstance(condition, Or):
        return False
    found = [endpoint_of(part) for part in condition.parts]
    endpoints = {endpoint for _, endpoint in found if endpoint is not None}
    with_any_port = {endpoint[:2] for endpoint in endpoints if endpoint.port < 0}
    return (
        len({side for side, _ in found}) == 1
        and len(endpoints) == len(found)
        and not any(endpoint.port >= 0 and endpoint[:2] in with_any_port for endpoint in endpoints)
    )
