# SPDX-License-Identifier: MIT
"""Conditions on properties of a socket other than its addresses and ports: device, cgroup, mark, autobound."""

from __future__ import annotations

from ..wire.bytecode import (
    INET_DIAG_BC_AUTO,
    INET_DIAG_BC_CGROUP_COND,
    INET_DIAG_BC_DEV_COND,
    INET_DIAG_BC_MARK_COND,
    MarkCond,
)
from .conditions import Condition, Port

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

    def evaluate(self, socket: InetSocket) -> bool:
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
    """In a cgroup v2, by id or by path. The kernel evaluates it since Linux 5.9, and reports cgroups since 5.7.

    A mini-socket has none: the kernel takes 0 for its id, and so would match the negation.
    """

    __slots__ = ("cgroup",)
    cgroup: int | str

    def __init__(self, cgroup: int | str) -> None:
        self._set(cgroup=cgroup)

    def evaluate(self, socket: InetSocket) -> bool | None:
        wanted, cgroup = _number(self, self.cgroup), socket.attributes.get("cgroup_id")
        return cgroup == wanted if isinstance(cgroup, int) else None

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

    def evaluate(self, socket: InetSocket) -> bool | None:
        mark = socket.attributes.get("mark")
        return mark & self.mask == self.value if isinstance(mark, int) else None

    def emit(self, program: Assembler, no: Label) -> None:
        program.test(INET_DIAG_BC_MARK_COND, MarkCond(self.value, self.mask), no)

    def __str__(self) -> str:
        return f"fwmark = {self.value:#x}/{self.mask:#x}"


class Autobound(Condition):
    """The kernel chose the local port, and from its range: `ports` says which, once it is resolved.

    No row says whether the kernel chose it. It takes the port of each accepted connection and mini-socket for chosen,
    so the range is tested as well, as ss(8) does.
    """

    __slots__ = ("ports",)
    ports: Port | None

    def __init__(self, ports: Port | None = None) -> None:
        self._set(ports=ports)

    def evaluate(self, socket: InetSocket) -> bool:
        raise ValueError("autobound cannot be matched in Python: only the kernel knows whether it chose the port")

    def emit(self, program: Assembler, no: Label) -> None:
        if self.ports is None:
            raise _unresolved(self)
        program.test(INET_DIAG_BC_AUTO, None, no)
        self.ports.emit(program, no)

    @property
    def is_resolved(self) -> bool:
        return self.ports is not None

    def resolved(self, names: Names) -> Condition:
        return self if self.is_resolved else Autobound(Port("src", *names.local_ports()))

    def __str__(self) -> str:
        return "autobound"


def _number(condition: Condition, given: int | str) -> int:
    if isinstance(given, str):
        raise _unresolved(condition)
    return given


def _unresolved(condition: Condition) -> ValueError:
    return ValueError(f"'{condition}' is not resolved: which number it stands for depends on the namespace")
