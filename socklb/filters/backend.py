# SPDX-License-Identifier: MIT
"""Backend: an address, a port and a protocol, its text form, and the filters that find what is connected to several."""

from __future__ import annotations

from collections import namedtuple
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..wire.address import format_endpoint, unmapped
from ..wire.request import PROTOCOL_NAMES
from .constructors import on_link
from .socket_filter import SocketFilter, protocol_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ..wire.address import IPAddress
    from ..wire.reply import InetSocket
    from .socket_filter import Protocol

_PORT_MAX = 0xFFFF


class Backend(namedtuple("Backend", "address port protocol")):
    """One address (an ipaddress object; a v4-mapped one becomes the v4 one), one port, and "tcp" or "udp".

    A link-local address, of fe80::/10, has its link for a zone: an interface's name or index.
    Raises ValueError for an address, port or protocol that a backend cannot have, TypeError for one of another type.
    """

    __slots__ = ()
    address: IPAddress
    port: int
    protocol: str

    def __new__(cls, address: IPAddress | str, port: int, protocol: Protocol) -> Backend:
        if not isinstance(address, (str, IPv4Address, IPv6Address)):
            raise TypeError(f"the address of a backend must be a str or an ipaddress object, not {address!r}")
        given = ip_address(address)
        on_link(given)  # or ValueError
        plain = unmapped(given)
        if plain.is_unspecified:
            raise ValueError(f"{given} is the unspecified address")
        if isinstance(port, bool) or not isinstance(port, int):
            raise TypeError(f"the port of a backend must be an int, not {port!r}")
        if not 1 <= port <= _PORT_MAX:
            raise ValueError(f"port {port} is outside 1..{_PORT_MAX}")
        return super().__new__(cls, plain, port, PROTOCOL_NAMES[protocol_number(protocol)])

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Backend:  # type: ignore[override] # no subclass returns another type
        """With the checks above, unlike that of a named tuple; `_replace` calls this."""
        return cls(*iterable)

    @classmethod
    def parse(cls, text: str) -> Backend:
        """From "10.0.0.1:80/TCP", "[::1]:53/UDP" or "[fe80::1%eth0]:80/TCP". Raises ValueError that quotes the text and
        says what is wrong.
        """
        if not isinstance(text, str):
            raise TypeError(f"a backend is parsed from a str, not from {text!r}")
        endpoint, _, protocol = text.rpartition("/")
        if not endpoint:
            raise ValueError(f"backend {text!r} names no protocol: it must end with /TCP or /UDP")
        host, _, port = endpoint.rpartition(":")
        if not (host and port.isascii() and port.isdigit() and len(port) <= len(str(_PORT_MAX))):
            raise ValueError(f"backend {text!r} has no port: write it like 10.0.0.1:80/TCP")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed != (":" in host):
            raise ValueError(
                f"backend {text!r}: a v6 address, and no other, must be in brackets, like [2001:db8::1]:{port}/TCP"
            )
        try:
            return cls(host[1:-1] if bracketed else host, int(port), protocol.lower())
        except ValueError as error:
            raise ValueError(f"backend {text!r}: {error}") from None

    @property
    def link(self) -> str:
        """The interface of a link-local address, by name or index; "" for another address."""
        return getattr(self.address, "scope_id", None) or ""

    @property
    def is_local(self) -> bool:
        """Whether the address is another one in each network namespace: loopback, or link-local."""
        return self.address.is_loopback or bool(self.link)

    def __reduce__(self) -> tuple[Any, ...]:
        """The address as text: before Python 3.11 an IPv6Address is pickled and copied without its zone."""
        return type(self), (str(self.address), self.port, self.protocol)

    def __str__(self) -> str:
        return f"{format_endpoint(self.address, self.port)}/{self.protocol.upper()}"


def filters_to(
    backends: Iterable[Backend], predicate: Callable[[InetSocket], bool] | None = None
) -> list[SocketFilter]:
    """One for each protocol, and for each link of link-local addresses: where there is no such link, nothing matches
    that one alone.
    """
    groups: dict[tuple[str, str], list[Backend]] = {}
    for backend in backends:
        groups.setdefault((backend.protocol, backend.link), []).append(backend)
    return [SocketFilter.to_backends(group, predicate=predicate) for _, group in sorted(groups.items())]


def check_backend(backend: Backend) -> None:
    """Raises TypeError for what is not a Backend: a text or a plain tuple would never match."""
    if not isinstance(backend, Backend):
        raise TypeError(f"a backend must be a Backend, as made by Backend.parse(), not {backend!r}")
