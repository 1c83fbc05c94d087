"""Find the sockets that a filter means."""

from __future__ import annotations

from .filters import SocketFilter
from .kernel import names
from .kernel.diag import DiagSocket
from .kernel.namespaces import HOST_NAME, NetworkNamespace, inside
from .wire.reply import InetSocket
from .wire.request import PROTOCOL_NAMES, SOCK_DIAG_BY_FAMILY, InetDiagReqV2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def find_sockets(
    filter: SocketFilter, *, namespace: NetworkNamespace | None = None, extensions: Iterable[str] = ()
) -> Iterator[InetSocket]:
    """The sockets that the filter means, streamed: memory does not grow with their number.

    `namespace` None is the caller's. `extensions` names response attributes to ask for ("info", "cong", "meminfo",
    "skmeminfo", ...); some come without being asked for. Raises ValueError for a name that is unknown there,
    KernelError for what the kernel answers. A dump that is interrupted after its first row raises, for what was given
    out cannot be taken back.
    """
    return _find(resolve(filter, namespace), namespace, _extension_bits(extensions))


def _extension_bits(names: Iterable[str]) -> int:
    if not names:
        return 0
    from .wire.attributes import extension_bits  # the codecs of attributes take a while to import

    return extension_bits(names)


def _find(filter: SocketFilter, namespace: NetworkNamespace | None, bits: int) -> Iterator[InetSocket]:
    with inside(namespace, DiagSocket) as diag:
        for socket in dump(diag, filter, filter.request_states, place(namespace), bits=bits):
            if filter.matches(socket):
                yield socket


def collect(diag: DiagSocket, filter: SocketFilter, where: str) -> list[InetSocket]:
    """What the filter means, each socket once, however often an interrupted dump had to be repeated."""
    rows = dump(diag, filter, filter.request_states, where, may_repeat_rows=True)
    return list({socket.cookie: socket for socket in rows if filter.matches(socket)}.values())


def dump(
    diag: DiagSocket, filter: SocketFilter, states: int, where: str, *, bits: int = 0, may_repeat_rows: bool = False
) -> Iterator[InetSocket]:
    """Every row that the kernel has of the filter's protocol and families in these states; `where` is for errors."""
    protocol = filter.protocol
    doing = f"list {PROTOCOL_NAMES[protocol]} sockets in {where}"
    for family in filter.families:
        request = InetDiagReqV2(family, protocol, bits, states).encode()
        for rows in diag.dump(SOCK_DIAG_BY_FAMILY, request, doing, may_repeat_rows=may_repeat_rows):
            for row in rows:
                yield InetSocket(row, protocol)


def resolve(filter: SocketFilter, namespace: NetworkNamespace | None) -> SocketFilter:
    """The filter with the names of interfaces and cgroups looked up in the namespace that is to be searched."""
    if not isinstance(filter, SocketFilter):
        raise TypeError(f"filter is a SocketFilter, not {filter!r}")
    return filter if filter.is_resolved else inside(namespace, lambda: filter.resolved(names))


def place(namespace: NetworkNamespace | None) -> str:
    """What reports and errors call a namespace."""
    return HOST_NAME if namespace is None else namespace.name
