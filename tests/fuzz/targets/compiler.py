"""Trees of conditions, chosen by the bytes, for a kernel that may lack some of the later bytecodes.

Every program is one that the kernel accepts, without what it lacks. Together with what is left to be matched in Python
it lets through what the tree matches, no more and no less; and a tree is written as a text that means the same.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from socklb import SocketFilter, cgroup, device, dport, dst, mark, sport, src
from socklb.filters import Condition
from socklb.filters.conditions import And, Or
from socklb.wire import bytecode as bc

from ...choices import Choices
from ..sockets import CGROUPS, INTERFACES, MARKS, PACKED, PORTS, check_plan, chosen_socket

_LATER = (bc.INET_DIAG_BC_CGROUP_COND,)
_MOST_LEVELS = 6
LONGEST = 200


def check(data: bytes) -> None:
    choices = Choices(data)
    lacks = choices.number()
    socket = chosen_socket(choices)
    tree = _tree(choices, 0)
    lacked = frozenset(code for bit, code in enumerate(_LATER) if lacks >> bit & 1)
    check_plan(tree, lacked, (socket,))
    back = SocketFilter.parse(str(tree), "tcp").where
    assert back.matches(socket) == tree.matches(socket), "written as something else"
    assert back.bounds() == tree.bounds()


def _tree(choices: Choices, depth: int) -> Condition:
    kind = choices.below(8)
    if depth < _MOST_LEVELS and kind < 4:
        if kind == 0:
            return ~_tree(choices, depth + 1)
        parts = [_tree(choices, depth + 1) for _ in range(choices.below(9) if choices.left else 0)]
        return (And, Or, Or)[kind - 1](*parts)
    return _leaf(choices)


def _leaf(choices: Choices) -> Condition:
    kind = choices.below(8)
    if kind < 4:
        packed = choices.of(PACKED) if choices.below(4) else choices.number(4).to_bytes(4, "big")
        length = len(packed) * 8
        prefix = length - choices.of((0, 0, 0, 1, 8, 32, length))
        port = _port(choices) if choices.below(2) else None
        return (src, dst)[kind & 1](ip_network((ip_address(packed), prefix), strict=False), port)
    if kind < 6:
        low, high = sorted((_port(choices), choices.of((0, 65535, _port(choices)))))
        return (sport, dport)[kind & 1](low, high)
    if kind == 6:
        mask = choices.of((0, 1, 0xFF, 0xFFFFFFFF))
        return mark(choices.of(MARKS) & mask, mask)
    return device(choices.of(INTERFACES)) if choices.below(2) else cgroup(choices.of(CGROUPS))


def _port(choices: Choices) -> int:
    return choices.of(PORTS) if choices.below(4) else choices.number(2)
