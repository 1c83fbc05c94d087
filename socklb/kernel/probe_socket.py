# SPDX-License-Identifier: MIT
"""Sockets made to be destroyed: what destroying does is tried on them alone."""

from __future__ import annotations

import errno
import os
import socket

from ..wire.request import IPPROTO_TCP
from ..wire.socket_id import AF_INET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class ProbeSocket:
    """A listening TCP or a bound UDP socket on loopback, at a port of the kernel's choice. A context manager.

    Where loopback has no address (v6, while it is down) it is bound to all addresses. Raises OSError if the family is
    missing.
    """

    def __init__(self, family: int, protocol: int) -> None:
        self._socket = socket.socket(family, socket.SOCK_STREAM if protocol == IPPROTO_TCP else socket.SOCK_DGRAM)
        try:
            self._bind("127.0.0.1" if family == AF_INET else "::1", "0.0.0.0" if family == AF_INET else "::")
            if protocol == IPPROTO_TCP:
                self._socket.listen(1)
            self.port: int = self._socket.getsockname()[1]
            self.inode = os.fstat(self._socket.fileno()).st_ino
        except BaseException:
            self._socket.close()
            raise

    def _bind(self, loopback: str, wildcard: str) -> None:
        try:
            self._socket.bind((loopback, 0))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            self._socket.bind((wildcard, 0))

    def __enter__(self) -> ProbeSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


class OrphanSocket:
    """A TCP connection over loopback whose one end was closed while its peer reads nothing: it is in FIN_WAIT1, and
    nobody holds it. A context manager; at its end the peer is closed, which resets what is left. Raises OSError.
    """

    address = bytes((127, 0, 0, 1))

    def __init__(self) -> None:
        text = socket.inet_ntoa(self.address)
        with socket.socket() as listener, socket.socket() as closing:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            closing.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            listener.bind((text, 0))
            listener.listen(1)
            closing.connect(listener.getsockname())
            self.ports = closing.getsockname()[1], listener.getsockname()[1]
            self._peer, _ = listener.accept()
            closing.setblocking(False)
            try:
                while True:
                    closing.send(bytes(4096))
            except BlockingIOError:
                return

    def __enter__(self) -> OrphanSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._peer.close()
