# SPDX-License-Identifier: MIT
"""Conditions on what a socket has beside addresses and ports: device, cgroup, mark, autobound, user, process."""

from __future__ import annotations

from ..wire.bytecode import (
    INET_DIAG_BC_AUTO,
    INET_DIAG_BC_CGROUP_COND,
    INET_DIAG_BC_DEV_COND,
    INET_DIAG_BC_MARK_COND,
    Label,
    MarkCond,
)
from .conditions import Condition, Port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..wire.bytecode import Assembler
    from ..wire.reply import InetSocket
    from .conditions import Names


_MANY = 100  # cgroups, which the kernel would compare one after another: a set takes no longer


class _Numbered(Condition):
    """One whose number may be given as a name."""

    __slots__ = ()

    def _number(self, given: int | str) -> int:
        if isinstance(given, str):
            raise self._unresolved()
        return given


class Device(_Numbered):
    """Bound to an interface (SO_BINDTODEVICE), by index or by name; index 0: bound to none."""

    __slots__ = ("interface",)
    interface: int | str

    def __init__(self, interface: int | str) -> None:
        self._set(interface=interface)

    def evaluate(self, socket: InetSocket) -> bool:
        return socket.interface == self._number(self.interface)

    def emit(self, program: Assembler, no: Label) -> None:
        program.test(INET_DIAG_BC_DEV_COND, self._number(self.interface), no)

    @property
    def is_resolved(self) -> bool:
        return not isinstance(self.interface, str)

    def resolved(self, names: Names) -> Condition:
        return Device(names.interface_index(self.interface)) if isinstance(self.interface, str) else self

    def __str__(self) -> str:
        return f"dev = {self.interface}"


class Cgroup(_Numbered):
    """In a cgroup v2, by id or by path, or in one of several by their ids; a path that ends with / is for all below it
    too. The kernel evaluates it since Linux 5.9, and reports cgroups since 5.7.

    A mini-socket has none: the kernel takes 0 for its id, and so would match the negation.
    """

    __slots__ = ("cgroup",)
    cgroup: int | str | frozenset[int]

    def __init__(self, cgroup: int | str | frozenset[int]) -> None:
        self._set(cgroup=cgroup)

    def evaluate(self, socket: InetSocket) -> bool | None:
        wanted, cgroup = self._ids(), socket.attributes.get("cgroup_id")
        return cgroup in wanted if isinstance(cgroup, int) else None

    def _ids(self) -> frozenset[int]:
        return self.cgroup if isinstance(self.cgroup, frozenset) else frozenset({self._number(self.cgroup)})

    def emit(self, program: Assembler, no: Label) -> None:
        *others, last = sorted(self._ids())
        end = Label()
        for one in others:
            following = Label()
            program.test(INET_DIAG_BC_CGROUP_COND, one, following)
            program.jump(end)
            program.place(following)
        program.test(INET_DIAG_BC_CGROUP_COND, last, no)
        program.place(end)

    def supported(self, missing_ops: frozenset[int]) -> bool:
        is_many = isinstance(self.cgroup, frozenset) and len(self.cgroup) > _MANY
        return not is_many and INET_DIAG_BC_CGROUP_COND not in missing_ops

    @property
    def is_resolved(self) -> bool:
        return not isinstance(self.cgroup, str)

    def resolved(self, names: Names) -> Condition:
        if not isinstance(self.cgroup, str):
            return self
        return Cgroup((names.cgroup_ids_below if self.cgroup.endswith("/") else names.cgroup_id)(self.cgroup))

    def __str__(self) -> str:
        if isinstance(self.cgroup, frozenset):
            return f"( {' or '.join(f'cgroup = {one}' for one in sorted(self.cgroup))} )"
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
            raise self._unresolved()
        program.test(INET_DIAG_BC_AUTO, None, no)
        self.ports.emit(program, no)

    @property
    def is_resolved(self) -> bool:
        return self.ports is not None

    def resolved(self, names: Names) -> Condition:
        return self if self.is_resolved else Autobound(Port("src", *names.local_ports()))

    def __str__(self) -> str:
        return "autobound"


class MatchedInPython(Condition):
    """The base of those that no bytecode is for: the kernel lets through whatever matches the rest."""

    __slots__ = ()

    def supported(self, missing_ops: frozenset[int]) -> bool:
        return False


class Uid(MatchedInPython):
    """Owned by a user. Rows of mini-sockets and request sockets have uid 0 and no inode, for nobody owns them; so have,
    on some kernels, those of sockets that were closed or not yet accepted.
    """

    __slots__ = ("uid",)
    uid: int

    def __init__(self, uid: int) -> None:
        self._set(uid=uid)

    def evaluate(self, socket: InetSocket) -> bool | None:
        uid = socket.uid
        return uid == self.uid if uid or socket.inode else None

    def __str__(self) -> str:
        return f"uid = {self.uid}"


class Pid(MatchedInPython):
    """Held open by a process (its children hold their own): the one that had this number when it was named, as the time
    tells when it began. `inodes`, of the sockets that it holds, says nothing until it is resolved; then None means that
    one may not look.
    """

    __slots__ = ("inodes", "is_resolved", "pid", "start")
    pid: int
    start: int
    inodes: frozenset[int] | None
    is_resolved: bool

    def __init__(
        self, pid: int, start: int = 0, inodes: frozenset[int] | None = None, is_resolved: bool = False
    ) -> None:
        self._set(pid=pid, start=start, inodes=inodes, is_resolved=is_resolved)

    def evaluate(self, socket: InetSocket) -> bool | None:
        if not self.is_resolved:
            raise self._unresolved()
        return None if self.inodes is None else socket.inode in self.inodes

    def resolved(self, names: Names) -> Condition:
        if self.is_resolved:
            return self
        return Pid(self.pid, self.start, names.process_sockets(self.pid, self.start), is_resolved=True)

    def __str__(self) -> str:
        return f"pid = {self.pid}"
