# SPDX-License-Identifier: MIT
"""Conditions on properties of a socket other than its addresses and ports: device, cgroup, mark, autobound."""

from __future__ import annotations

from ..errors import mark_hidden
from ..wire.bytecode import (
    INET_DIAG_BC_AUTO,
    INET_DIAG_BC_CGROUP_COND,
    INET_DIAG_BC_DEV_COND,
    INET_DIAG_BC_MARK_COND,
    MarkCond,
)
from .conditions import Condition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..wire.bytecode import Assembler, Label
    from ..wire.reply import InetSocket
    from .conditions import Names


class Device(Condition):
    """Bound to an interface (SO_BINDTODEVICE), by index or by name; index 0: bound to none."""

    __slots__ = ("interface",)
    interface: int | str

    def __init__(self, interface: int | str) -> None:
        self._set(interface=interface)

    def matches(self, socket: InetSocket) -> bool:
        return socket.interface == _number(self, self.interface)

    def emit(self, program: Assembler, no: Label) -> None:
        program.test(INET_DIAG_BC_DEV_COND, _number(self, self.interface), no)

    @property
    def is_resolved(self) -> bool:
        return not isinstance(self.interface, str)

    def resolved(self, names: Names) -> Condition:
        return Device(names.interface_index(self.interface)) if isinstance(self.interface, str) else self

    def __str__(self) -> str:
        return f"dev = {self.interface}"


class Cgroup(Condition):
    """In a cgroup v2, by id or by path; a socket whose row has no cgroup id counts as in 0. Needs Linux 5.9."""

    __slots__ = ("cgroup",)
    cgroup: int | str

    def __init__(self, cgroup: int | str) -> None:
        self._set(cgroup=cgroup)

    def matches(self, socket: InetSocket) -> bool:
        return bool(socket.attributes.get("cgroup_id", 0) == _number(self, self.cgroup))

    def emit(self, program: Assembler, no: Label) -> None:
        program.test(INET_DIAG_BC_CGROUP_COND, _number(self, self.cgroup), no)

    def supported(self, missing_ops: frozenset[int]) -> bool:
        return INET_DIAG_BC_CGROUP_COND not in missing_ops

    @property
    def is_resolved(self) -> bool:
        return not isinstance(self.cgroup, str)

    def resolved(self, names: Names) -> Condition:
        return Cgroup(names.cgroup_id(self.cgroup)) if isinstance(self.cgroup, str) else self

    def __str__(self) -> str:
        return f"cgroup = {self.cgroup}"


class Mark(Condition):
    """SO_MARK: the bits under the mask have this value. The kernel reports marks only to CAP_NET_ADMIN."""

    __slots__ = ("mask", "value")
    value: int
    mask: int

    def __init__(self, value: int, mask: int) -> None:
        self._set(value=value, mask=mask)

    def matches(self, socket: InetSocket) -> bool:
        mark = socket.attributes.get("mark")
        if not isinstance(mark, int):
            raise mark_hidden("match a mark")
        return bool(mark & self.mask == self.value)

    def emit(self, program: Assembler, no: Label) -> None:
        program.test(INET_DIAG_BC_MARK_COND, MarkCond(self.value, self.mask), no)

    def __str__(self) -> str:
        return f"fwmark = {self.value:#x}/{self.mask:#x}"


class Autobound(Condition):
    """The kernel chose the local port. No row says so; for time-wait and request sockets the kernel does not know."""

    __slots__ = ()

    def matches(self, socket: InetSocket) -> bool:
        raise ValueError("autobound cannot be matched in Python: only the kernel knows whether it chose the port")

    def emit(self, program: Assembler, no: Label) -> None:
        program.test(INET_DIAG_BC_AUTO, None, no)

    def __str__(self) -> str:
        return "autobound"


def _number(condition: Condition, given: int | str) -> int:
    if isinstance(given, str):
        raise ValueError(f"'{condition}' is not resolved: which number the name stands for depends on the namespace")
    return given
