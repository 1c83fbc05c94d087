# SPDX-License-Identifier: MIT
"""From a condition to bytecode for the kernel, and to what is left to match in Python."""

from __future__ import annotations

from collections import namedtuple
from errno import EOPNOTSUPP

from ..errors import NotSupported
from ..wire.bytecode import ANY_PORT, Assembler
from .conditions import EVERYTHING, And, Condition, Host, Not, Or, Port, endpoint_of, leaves
from .property_conditions import Autobound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Optional

    from ..wire.reply import InetSocket


class Plan(namedtuple("Plan", "programs ops residual disjoint recheck")):
    """How to find the sockets that a condition matches.

    `programs`: bytecode, one dump each; an empty one accepts every socket.
    `ops`: the bytecode ops in them.
    `residual`: what is left to match in Python. None if the programs are exact; otherwise they let through more, never
    less.
    `disjoint`: whether no socket can pass two of the programs.
    `recheck`: the tests of addresses and ports (None if there are none), to be repeated on each row: the kernel fills
    a row after the program has run, and a UDP socket may have been connected elsewhere in between.
    """

    __slots__ = ()
    programs: tuple[bytes, ...]
    ops: frozenset[int]
    residual: Optional[Condition]
    disjoint: bool
    recheck: Optional[Condition]

    def lets_through(self, socket: InetSocket) -> bool:
        """Whether a socket that one of the programs accepted matches, as its row says now."""
        return (self.recheck is None or self.recheck.matches(socket)) and (
            self.residual is None or self.residual.matches(socket)
        )


def compile_condition(condition: Condition, missing_ops: frozenset[int] = frozenset()) -> Plan:
    """The plan for a kernel without these bytecode ops. The condition must be resolved.

    Raises NotSupported if a part that only the kernel can evaluate would be left to Python.
    """

    def is_supported(part: Condition) -> bool:
        return all(leaf.supported(missing_ops) for leaf in leaves(part))

    compiled = condition if is_supported(condition) else _relaxed(condition, is_supported)
    residual = None if compiled is condition else _residual(condition, is_supported)
    recheck = _recheck(condition)
    whole = _assemble(compiled)
    if whole is not None:
        return Plan((whole.program,), whole.ops, residual, True, recheck)
    pieces, complete = _split(_relaxed(compiled, lambda test: True))
    programs = tuple(piece.program for piece in pieces)
    ops = frozenset().union(*(piece.ops for piece in pieces))
    if not complete:  # _split() keeps what Python cannot match, so the rest can be matched again
        residual = _residual(condition, lambda part: isinstance(condition, And) and not _is_matchable(part))
    return Plan(programs, ops, residual, _are_distinct_endpoints(compiled), recheck)


def _residual(condition: Condition, is_compiled: Callable[[Condition], bool]) -> Condition:
    """What is left to match in Python: of an `and` the parts that are not compiled, otherwise the whole condition."""
    parts = condition.parts if isinstance(condition, And) else (condition,)
    left = [part for part in parts if not is_compiled(part)]
    residual = left[0] if len(left) == 1 else And(*left)
    if not _is_matchable(residual):
        raise NotSupported(
            EOPNOTSUPP,
            f"'{condition}': this kernel cannot evaluate all of it, and Python cannot evaluate 'autobound'",
        )
    return residual


def _is_matchable(condition: Condition) -> bool:
    """Whether Python can evaluate it."""
    return not any(isinstance(leaf, Autobound) for leaf in leaves(condition))


def _recheck(condition: Condition) -> Condition | None:
    kinds = set(map(_is_of_endpoint, leaves(condition)))
    if True not in kinds:
        return None
    return _relaxed(condition, _is_of_endpoint) if False in kinds else condition


def _is_of_endpoint(test: Condition) -> bool:
    return isinstance(test, (Host, Port))


class _Assembled(namedtuple("_Assembled", "program ops")):
    __slots__ = ()
    program: bytes
    ops: frozenset[int]


def _assemble(condition: Condition) -> _Assembled | None:
    """None if the program does not fit into an attribute."""
    assembler = Assembler()
    condition.emit(assembler, assembler.reject)
    program = assembler.assemble()
    return None if program is None else _Assembled(program, frozenset(assembler.used))


def _relaxed(condition: Condition, is_kept: Callable[[Condition], bool], negated: bool = False) -> Condition:
    """The condition (or its negation) with each `not` pushed inward, and each test that is not kept made EVERYTHING.

    No `and` or `or` is negated then, so that relaxing a part can only let through more.
    """
    if isinstance(condition, Not):
        return _relaxed(condition.part, is_kept, not negated)
    if isinstance(condition, (And, Or)):
        kind = And if isinstance(condition, And) is not negated else Or
        return kind(*(_relaxed(part, is_kept, negated) for part in condition.parts))
    if not is_kept(condition):
        return EVERYTHING
    return Not(condition) if negated else condition


def _split(condition: Condition) -> tuple[list[_Assembled], bool]:
    """Programs that each fit into an attribute and together match the same.

    With False they match more: a part without an `or` was too long, and some of its tests were left out.
    """
    whole = _assemble(condition)
    if whole is not None:
        return [whole], True
    halves = _halves(condition)
    if halves is None:
        parts = sorted(condition.parts, key=_is_matchable)  # type: ignore[attr-defined]
        return _split(And(*parts[: len(parts) // 2]))[0], False
    (left, left_complete), (right, right_complete) = map(_split, halves)
    return left + right, left_complete and right_complete


def _halves(condition: Condition) -> tuple[Condition, Condition] | None:
    """Two conditions that match the same when joined by `or`; None if there is no `or` to divide."""
    if isinstance(condition, Or) and len(condition.parts) > 1:
        middle = len(condition.parts) // 2
        return Or(*condition.parts[:middle]), Or(*condition.parts[middle:])
    if isinstance(condition, (And, Or)):
        sizes = [sum(1 for _ in leaves(part)) for part in condition.parts]
        for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            halves = _halves(condition.parts[index])
            if halves is not None:
                before, after = condition.parts[:index], condition.parts[index + 1 :]
                first, second = (type(condition)(*before, half, *after) for half in halves)
                return first, second
    return None


def _are_distinct_endpoints(condition: Condition) -> bool:
    """Whether it is an `or` of endpoints of one side of which no two can match the same socket."""
    if not isinstance(condition, Or):
        return False
    found = [endpoint_of(part) for part in condition.parts]
    endpoints = {endpoint for _, endpoint in found if endpoint is not None}
    with_any_port = {endpoint.address for endpoint in endpoints if endpoint.port == ANY_PORT}
    return (
        len({side for side, _ in found}) == 1
        and len(endpoints) == len(found)
        and not any(endpoint.port != ANY_PORT and endpoint.address in with_any_port for endpoint in endpoints)
    )
