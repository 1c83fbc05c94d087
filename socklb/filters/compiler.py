# SPDX-License-Identifier: MIT
"""From a condition to bytecode for the kernel, and to what is left to match in Python."""

from __future__ import annotations

from collections import namedtuple
from errno import EOPNOTSUPP

from ..errors import NotSupported
from ..wire.bytecode import ANY_PORT, INET_DIAG_BC_JMP, Assembler, either, except_for
from .conditions import EVERYTHING, And, Condition, Not, Or, endpoint_of, leaves, pushed_inward
from .peers import Peers
from .property_conditions import Autobound, Cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..wire.reply import InetSocket
    from .endpoints import Endpoint


_NOTHING = Or()
_MOST_PROGRAMS = 4
"""A program costs a walk of the kernel's table, and takes as long to make. Five take longer than one dump of 90,000
sockets that is matched in Python (tests/benchmarks).
"""
_KEPT = 4  # sets of endpoints whose programs are kept: the next pass is often about almost the same backends
_WORTH_KEEPING = 256  # fewer endpoints are compiled in less than 2 ms
_FEW = 16  # a set of which no more than a sixteenth is different has the programs of the other, if these have room


class Plan(namedtuple("Plan", "programs ops disjoint checks needs_info")):
    """How to find the sockets that a condition matches.

    `programs`: bytecode, one dump each; an empty one accepts every socket. They let through more, never less.
    `ops`: the bytecode ops in them.
    `disjoint`: whether no socket can pass two of the programs.
    `checks`: what each row is matched with again, for the programs may let through more, the kernel fills a row after
    the program has run (a UDP socket may have been connected elsewhere in between), and what it takes for the cgroup of
    a mini-socket is none. Two where `autobound` is in the condition: as if it were true, and as if it were false.
    `needs_info`: whether these read struct tcp_info.
    """

    __slots__ = ()
    programs: tuple[bytes, ...]
    ops: frozenset[int]
    disjoint: bool
    checks: tuple[Condition, ...]
    needs_info: bool

    def lets_through(self, socket: InetSocket) -> bool:
        """Whether a socket that one of the programs accepted matches, as far as its row says.

        Raises NotSupported for a condition on cgroups where the kernel reports none of any socket.
        """
        matches = not self.checks
        for check in self.checks:  # a loop: each row of a dump comes here
            value = check.evaluate(socket)
            if value is None:
                self._raise_if_never_reported(socket)
                return False
            matches = matches or value
        return matches

    def may_let_through(self, socket: InetSocket) -> bool:
        """Whether the row does not rule it out."""
        return not self.checks or any(check.evaluate(socket) is not False for check in self.checks)

    def _raise_if_never_reported(self, socket: InetSocket) -> None:
        """A socket that a process holds is no mini-socket: where it has no cgroup in its row, no socket has."""
        names_cgroup = any(isinstance(leaf, Cgroup) for leaf in leaves(self.checks[0]))
        if names_cgroup and socket.inode and "cgroup_id" not in socket.attributes:
            raise NotSupported(
                EOPNOTSUPP,
                "'cgroup': this kernel does not report the cgroups of sockets; Linux 5.7 and newer do, with "
                "CONFIG_SOCK_CGROUP_DATA",
            )


def compile_condition(condition: Condition, missing_ops: frozenset[int] = frozenset()) -> Plan:
    """The plan for a kernel without these bytecode ops. The condition must be resolved.

    Raises NotSupported if a part that only the kernel can evaluate would be left to Python.
    """

    def is_supported(part: Condition) -> bool:
        return all(leaf.supported(missing_ops) for leaf in leaves(part))

    compiled = condition
    if not is_supported(condition):
        _raise_if_left_to_python(condition, is_supported)
        compiled = _relaxed(condition, is_supported)
    if isinstance(compiled, Peers):
        pieces = _pieces(compiled)
    elif (whole := _assemble(compiled)) is not None:
        pieces = [whole]
    else:
        pieces, complete = _split(_relaxed(compiled, lambda test: True))
        if not complete:  # _split() keeps what Python cannot match, so the rest can be matched again
            _raise_if_left_to_python(condition, lambda part: isinstance(condition, And))
    ops = frozenset().union(*(piece.ops for piece in pieces))
    disjoint = len(pieces) == 1 or _are_distinct_endpoints(compiled)
    needs_info = any(leaf.needs_info for leaf in leaves(condition))
    return Plan(tuple(piece.program for piece in pieces), ops, disjoint, _checks(condition), needs_info)


def _raise_if_left_to_python(condition: Condition, is_compiled: Callable[[Condition], bool]) -> None:
    """Unless what only the kernel can evaluate is compiled: of an `and` part by part, else the whole condition."""
    parts = condition.parts if isinstance(condition, And) else (condition,)
    if not all(is_compiled(part) or _is_matchable(part) for part in parts):
        raise NotSupported(
            EOPNOTSUPP,
            f"'{condition}': the kernel cannot evaluate all of it, nor Python 'autobound': join that to the rest with "
            "'and'",
        )


def _is_matchable(condition: Condition) -> bool:
    """Whether Python can evaluate it."""
    return not any(isinstance(leaf, Autobound) for leaf in leaves(condition))


def _checks(condition: Condition) -> tuple[Condition, ...]:
    if _is_matchable(condition):
        return () if next(leaves(condition), None) is None else (condition,)

    def assuming(is_chosen: bool) -> Condition:
        def literal(test: Condition, negated: bool) -> Condition:
            if isinstance(test, Autobound):
                test = test.ports if is_chosen and test.ports is not None else _NOTHING
            return Not(test) if negated else test

        return pushed_inward(condition, literal)

    return assuming(True), assuming(False)


class _Assembled(namedtuple("_Assembled", "program ops")):
    __slots__ = ()
    program: bytes
    ops: frozenset[int]


_EMPTY = _Assembled(b"", frozenset())


def _assemble(condition: Condition) -> _Assembled | None:
    """None if the program does not fit into an attribute."""
    assembler = Assembler()
    condition.emit(assembler, assembler.reject)
    program = assembler.assemble()
    return None if program is None else _Assembled(program, frozenset(assembler.used))


class _Made(namedtuple("_Made", "endpoints pieces")):
    __slots__ = ()
    endpoints: frozenset[Endpoint]
    pieces: list[_Assembled]


_recent: list[_Made] = []  # the last used first


def _pieces(peers: Peers) -> list[_Assembled]:
    """A program for each part, or one that lets through too much where these would cost more than what it does."""
    if peers.number_of_pieces > _MOST_PROGRAMS:
        assembler = Assembler()
        peers.emit_guard(assembler, assembler.reject)
        return [_Assembled(assembler.assemble() or b"", frozenset(assembler.used))]
    if len(peers.endpoints) < _WORTH_KEEPING:
        return _pieces_anew(peers)
    for made in _recent:
        pieces = _pieces_from(made, peers)
        if pieces is not None:
            break
    else:
        pieces = _pieces_anew(peers)
        made = _Made(peers.endpoints, pieces)
    _recent[:] = [made, *(one for one in _recent if one is not made)][:_KEPT]
    return pieces


def _pieces_anew(peers: Peers) -> list[_Assembled]:
    return [piece for part in peers.pieces() for piece in _split(part)[0]]


def _pieces_from(made: _Made, peers: Peers) -> list[_Assembled] | None:
    """The programs of another set, with tests in front of what is different; None if that is much, or has no room."""
    new, left_out = peers.endpoints - made.endpoints, made.endpoints - peers.endpoints
    if (len(new) + len(left_out)) * _FEW > len(made.endpoints):
        return None
    let_in, keep_out = (_assemble(Peers(few)) if few else _EMPTY for few in (new, left_out))
    shortest, *others = sorted(made.pieces, key=lambda piece: len(piece.program))
    pieces = [_with_in_front(except_for, keep_out, piece) for piece in (shortest, *others)]
    pieces[0] = _with_in_front(either, let_in, pieces[0])
    whole = [piece for piece in pieces if piece is not None]
    return whole if len(whole) == len(pieces) else None


def _with_in_front(
    join: Callable[[bytes, bytes], bytes | None], in_front: _Assembled | None, piece: _Assembled | None
) -> _Assembled | None:
    if in_front is _EMPTY or piece is None:
        return piece
    program = in_front and join(in_front.program, piece.program)
    return _Assembled(program, piece.ops | in_front.ops | {INET_DIAG_BC_JMP}) if in_front and program else None


def _relaxed(condition: Condition, is_kept: Callable[[Condition], bool]) -> Condition:
    """The condition with each `not` pushed inward, and each test that is not kept made EVERYTHING.

    No `and` or `or` is negated then, so that relaxing a part can only let through more.
    """

    def literal(test: Condition, negated: bool) -> Condition:
        if not is_kept(test):
            return EVERYTHING
        return Not(test) if negated else test

    return pushed_inward(condition, literal)


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
    if isinstance(condition, Peers) and len(condition.endpoints) > 1:
        return condition.halves()
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
        return isinstance(condition, Peers)
    found = [endpoint_of(part) for part in condition.parts]
    endpoints = {endpoint for _, endpoint in found if endpoint is not None}
    with_any_port = {endpoint.address for endpoint in endpoints if endpoint.port == ANY_PORT}
    return (
        len({side for side, _ in found}) == 1
        and len(endpoints) == len(found)
        and not any(endpoint.port != ANY_PORT and endpoint.address in with_any_port for endpoint in endpoints)
    )
