# SPDX-License-Identifier: MIT
"""Whether a condition names what it matches, so that a destroy by it cannot hit everything by mistake; and what
it hinges on.

Un-negated, these bound: an address of a prefix that is long enough, the port tests of one side that are and-ed
together if they leave few ports, a device, a cgroup other than the root, a process other than 1, a user other than 0.
An `and` bounds if a part does, an `or` if every part does; each `not` is pushed inward first. Nothing else bounds.
"""

from __future__ import annotations

from ..errors import UnboundedFilter
from ..kernel.names import is_root_cgroup
from .conditions import PORT_MAX, And, Condition, Host, Not, Or, Port, joined, pushed_inward
from .peers import Peers
from .property_conditions import Cgroup, Device, Pid, Uid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FEWEST_BITS = {4: 16, 16: 32}  # of a prefix, by the size of its address
_MOST_PORTS = 4096
_V4_IN_V6 = (0xFFFF, 0x64FF9B << 64)  # ::ffff:0:0/96 and 64:ff9b::/96: what precedes a v4 address there


def bounds(condition: Condition) -> bool:
    """Whether a filter with this condition may destroy without a further word."""
    return _bounds(pushed_inward(condition, _literal))


def unbounded(text: str, way_out: str) -> UnboundedFilter:
    """The error for a filter that bounds nothing."""
    return UnboundedFilter(
        f"{text} could match everything: name an address (with a prefix of at least /16, v6: /32), at most 4096 ports, "
        f"a device, a cgroup, a process or a user, or {way_out}"
    )


def hinges_on(condition: Condition, is_unknown: Callable[[Condition], bool]) -> bool:
    """Whether no socket can match because nobody knows what these tests would say."""

    def may_be_true(part: Condition, is_left: Callable[[Condition], bool]) -> bool:
        if isinstance(part, (And, Or)):
            return (all if isinstance(part, And) else any)(may_be_true(each, is_left) for each in part.parts)
        return not is_left(part.part if isinstance(part, Not) else part)

    inward = pushed_inward(condition, lambda test, negated: Not(test) if negated else test)
    return may_be_true(inward, lambda test: False) and not may_be_true(inward, is_unknown)


def _literal(test: Condition, negated: bool) -> Condition:
    """A test or its negation; a negated range of ports is what lies below and above it."""
    if not (negated and isinstance(test, Port)):
        return Not(test) if negated else test
    ends = (0, test.low - 1), (test.high + 1, PORT_MAX)
    return joined(Or, (Port(test.side, low, high) for low, high in ends if low <= high))


def _bounds(condition: Condition) -> bool:
    if isinstance(condition, Or):
        return all(map(_bounds, condition.parts))
    if isinstance(condition, And):
        return any(map(_bounds, condition.parts)) or any(_leaves_few_ports(condition, side) for side in ("src", "dst"))
    if isinstance(condition, Host):
        return _is_narrow(condition)
    if isinstance(condition, Port):
        return condition.high - condition.low < _MOST_PORTS
    if isinstance(condition, Device):  # 0 is no device
        return str(condition.interface).strip("0") != ""
    if isinstance(condition, Peers):
        return True
    if isinstance(condition, Cgroup):
        ids = condition.cgroup if isinstance(condition.cgroup, frozenset) else [condition.cgroup]
        return not any(map(is_root_cgroup, ids))
    return (isinstance(condition, Pid) and condition.pid != 1) or (isinstance(condition, Uid) and condition.uid != 0)


def _leaves_few_ports(condition: And, side: str) -> bool:
    ports = [part for part in condition.parts if isinstance(part, Port) and part.side == side]
    low = max((port.low for port in ports), default=0)
    return min((port.high for port in ports), default=PORT_MAX) - low < _MOST_PORTS


def _is_narrow(host: Host) -> bool:
    """A v6 prefix that holds v4 addresses alone counts as the v4 one; one that holds all of them is too wide."""
    size, length, number = len(host.address), host.length, int.from_bytes(host.address, "big")
    if size == 16 and length >= 96 and number >> 32 in _V4_IN_V6:
        return length - 96 >= _FEWEST_BITS[4]
    free = max(size * 8 - length, 32)
    holds_all_v4 = size == 16 and any(above << 32 >> free == number >> free for above in _V4_IN_V6)
    return length >= _FEWEST_BITS[size] and not holds_all_v4
