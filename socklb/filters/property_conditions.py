# SPDX-License-Identifier: MIT
"""Conditions on what is not an endpoint: the device, the mark, the cgroup, and who chose the port."""

from __future__ import annotations

from ..errors import mark_not_told
from ..wire import bytecode as bc
from ..wire.bytecode import MarkCond
from .conditions import Condition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..wire.bytecode import Assembler, Label
    from ..wire.reply import InetSocket
    from .conditions import Names


class _Named(Condition):
    """A number, or a name until that is resolved."""

    __slots__ = ()

    @property
    def is_resolved(self) -> bool:
        return not isinstance(self._arguments()[0], str)

    def emit(self, program: Assembler, no: Label) -> None:
        program.test(self.code, self._number(), no)

    def _number(self) -> int:
        (number,) = self._arguments()
        if isinstance(number, str):
            raise ValueError(f"'{self}' is not resolved: what number the name stands for depends on where one looks")
        return int(number)


class Device(_Named):
    """Bound to an interface (SO_BINDTODEVICE): by index, or by name until that is resolved. 0 is "to none"."""

    __slots__ = ("interface",)
    code = bc.INET_DIAG_BC_DEV_COND

    def __init__(self, interface: int | str) -> None:
        self.interface = interface

    def matches(self, socket: InetSocket) -> bool:
        return socket.interface == self._number()

    def resolved(self, names: Names) -> Condition:
        return Device(names.interface_index(self.interface)) if isinstance(self.interface, str) else self

    def __str__(self) -> str:
        return f"dev = {self.interface}"


class Mark(Condition):
    """SO_MARK: the bits under the mask have this value. The kernel tells marks to CAP_NET_ADMIN alone."""

    __slots__ = ("mask", "value")
    code = bc.INET_DIAG_BC_MARK_COND

    def __init__(self, value: int, mask: int) -> None:
        self.value, self.mask = value, mask

    def matches(self, socket: InetSocket) -> bool:
        mark = socket.attributes.get("mark")
        if not isinstance(mark, int):
            raise mark_not_told("match a mark")
        return bool(mark & self.mask == self.value)

    def emit(self, program: Assembler, no: Label) -> None:
        program.test(self.code, MarkCond(self.value, self.mask), no)

    def __str__(self) -> str:
        return f"fwmark = {self.value:#x}/{self.mask:#x}"


class Cgroup(_Named):
    """In one cgroup v2: by id, or by path until that is resolved. A socket that tells none is in 0."""

    __slots__ = ("cgroup",)
    code = bc.INET_DIAG_BC_CGROUP_COND

    def __init__(self, cgroup: int | str) -> None:
        self.cgroup = cgroup

    def matches(self, socket: InetSocket) -> bool:
        return bool(socket.attributes.get("cgroup_id", 0) == self._number())

    def resolved(self, names: Names) -> Condition:
        return Cgroup(names.cgroup_id(self.cgroup)) if isinstance(self.cgroup, str) else self

    def __str__(self) -> str:
        return f"cgroup = {self.cgroup}"


class Autobound(Condition):
    """The system chose the local port. No row tells; of mini-sockets (time-wait, request) the kernel does not know."""

    __slots__ = ()

    def matches(self, socket: InetSocket) -> bool:
        raise ValueError("autobound cannot be matched in Python: only the kernel knows who chose a port")

    def emit(self, program: Assembler, no: Label) -> None:
        program.test(bc.INET_DIAG_BC_AUTO, None, no)

    def __str__(self) -> str:
        return "autobound"
