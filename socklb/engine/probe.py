# SPDX-License-Identifier: MIT
"""Can this kernel, and this caller, list and destroy sockets? Tried on sockets made for it."""

from __future__ import annotations

import errno
from collections import namedtuple
from functools import cache

from ..errors import KernelError, NotSupported, kernel_error
from ..kernel.diag import DiagSocket
from ..kernel.probe_socket import OrphanSocket, ProbeSocket
from ..wire.reply import InetSocket
from ..wire.request import (
    IPPROTO_TCP,
    PROTOCOL_NAMES,
    PROTOCOLS,
    SOCK_DIAG_BY_FAMILY,
    InetDiagReqV2,
    destroy_request,
    look_up_request,
)
from ..wire.socket_id import AF_INET, AF_INET6, ANY, NO_COOKIE, SocketId, encode_id

SUPPORTED = "supported"
NO_FAMILY = "no_family"
NO_DIAG = "no_diag"
NO_DESTROY = "no_destroy"
NOT_PERMITTED = "not_permitted"

_ANY_STATE = 0xFFFFFFFF


class Support(namedtuple("Support", "status missing", defaults=("",))):
    """Whether sockets of one protocol and family can be destroyed.

    `status`: "supported", "no_family", "no_diag", "no_destroy" or "not_permitted"; `missing`: what would help, or "".
    """

    __slots__ = ()
    status: str
    missing: str


def probe() -> dict[tuple[str, int], Support]:
    """Whether sockets can be found and destroyed in this namespace, keyed by ("tcp" or "udp", AF_INET or AF_INET6).

    Makes a socket of its own for each and destroys that one; no other socket is touched. Raises KernelError for an
    answer that fits none of the five statuses.
    """
    return {
        (name, family): _probe_one(name, protocol, family)
        for name, protocol in PROTOCOLS.items()
        for family in (AF_INET, AF_INET6)
    }


def can_destroy(protocol: int, family: int) -> bool:
    """False if this kernel was built without SOCK_DESTROY, as far as can be tried."""
    try:
        return _probe_one(PROTOCOL_NAMES[protocol], protocol, family).status != NO_DESTROY
    except KernelError:
        return True


@cache
def keeps_orphans() -> bool:
    """Whether destroying a closing TCP connection that nobody holds stops its timer and keeps it for good, as Linux did
    until "tcp: fix forever orphan socket caused by tcp_abort" (6.11, and back to 6.1): tried on one of its own, over
    loopback. True where it cannot be tried. Without privilege False: then nothing is destroyed anyway.
    """
    doing = "destroy a closing tcp socket of its own"
    try:
        with OrphanSocket() as own, DiagSocket() as diag:
            id_bytes = encode_id(SocketId(*own.ports, own.address, own.address, 0, NO_COOKIE))
            request = look_up_request(IPPROTO_TCP, AF_INET, id_bytes, 0)
            (row,) = diag.look_up([request], doing)
            if row is None:
                return True
            doomed = destroy_request(IPPROTO_TCP, AF_INET, InetSocket(row, IPPROTO_TCP).id_bytes)
            (code,) = diag.destroy([doomed], doing)
            return code == 0 and diag.look_up([request], doing) != [None]
    except OSError:
        return True


def _probe_one(name: str, protocol: int, family: int) -> Support:
    try:
        own = ProbeSocket(family, protocol)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL):
            raise KernelError(error.errno or 0, f"make a {name} socket to try: {error.strerror}") from None
        return Support(NO_FAMILY, "CONFIG_IPV6, or IPv6 is disabled" if family == AF_INET6 else "CONFIG_INET")
    with own:
        return _try_to_destroy(own, name, protocol, family)


def _try_to_destroy(own: ProbeSocket, name: str, protocol: int, family: int) -> Support:
    doing = f"destroy a {name} socket of its own"
    try:
        with DiagSocket() as diag:
            id_bytes = _find_own(diag, own, protocol, family, doing)
            (code,) = diag.destroy([destroy_request(protocol, family, id_bytes)], doing)
    except NotSupported as error:
        if error.errno == errno.ENOSYS:  # Python's fault, and not the kernel's
            raise
        return Support(NO_DIAG, f"CONFIG_INET_DIAG and its {name}_diag part")
    if code == 0:
        return Support(SUPPORTED)
    if code == errno.EPERM:
        return Support(NOT_PERMITTED, "CAP_NET_ADMIN in the user namespace that owns the network namespace")
    if code == errno.EOPNOTSUPP:
        return Support(NO_DESTROY, "CONFIG_INET_DIAG_DESTROY")
    raise kernel_error(code, doing)


def _find_own(diag: DiagSocket, own: ProbeSocket, protocol: int, family: int, doing: str) -> bytes:
    """struct inet_diag_sockid of the probe's socket. A dump looks at nothing but the ports of its request's id."""
    request = InetDiagReqV2(family, protocol, 0, _ANY_STATE, ANY._replace(sport=own.port)).encode()
    found = [
        socket
        for rows in diag.dump(SOCK_DIAG_BY_FAMILY, request, doing, may_repeat_rows=True)
        for socket in (InetSocket(row, protocol) for row in rows)
        if socket.inode == own.inode
    ]
    if not found:
        raise KernelError(errno.ENOENT, f"{doing}: the kernel does not list it")
    return found[0].id_bytes
