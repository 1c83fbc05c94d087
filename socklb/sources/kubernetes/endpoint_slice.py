# SPDX-License-Identifier: MIT
"""An EndpointSlice (discovery.k8s.io/v1) as an API server has it in JSON, read into few bytes an endpoint."""

from __future__ import annotations

from collections import namedtuple
from socket import AF_INET, AF_INET6, inet_pton  # ipaddress takes ten times as long

from ...termination.table import pack
from ...wire.address import V4_MAPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Key = tuple[str, str]  # namespace and name of a slice
    Note = Callable[[str, str], object]  # takes the kind of what is left out, and which it is

_SERVICE_NAME = "kubernetes.io/service-name"
_PROTOCOLS = {"TCP": 6, "UDP": 17}
_PORT_MAX = 0xFFFF
_PORT_MEMBERS = ("name", "protocol", "port", "appProtocol")
_FAMILIES = {"IPv4": (AF_INET, 4), "IPv6": (AF_INET6, 16)}

FQDN, SCTP, NO_PORT, BAD_ADDRESS, MALFORMED = "fqdn", "sctp", "no_port", "bad_address", "malformed"
KINDS = {
    FQDN: "slices of host names",
    SCTP: "ports of SCTP",
    NO_PORT: "ports without a number",
    BAD_ADDRESS: "addresses that no endpoint can have",
    MALFORMED: "slices that are not as discovery.k8s.io/v1 has them",
}
"""What may be left out."""


class Port(namedtuple("Port", "protocol number name")):
    """`protocol`: IPPROTO_TCP or IPPROTO_UDP."""

    __slots__ = ()
    protocol: int
    number: int
    name: str


class EndpointSlice(namedtuple("EndpointSlice", "service width ports port_map serving others")):
    """`service`: namespace/name. `width`: bytes of an address. `port_map`: a number that changes with the ports, those
    that are left out among them. `serving`: the packed addresses that serve and do not terminate, one behind the other.
    `others`: each other one, and whether it serves. Of an address that is in there twice the better one counts.
    """

    __slots__ = ()
    service: str
    width: int
    ports: tuple[Port, ...]
    port_map: int
    serving: bytes
    others: dict[bytes, bool]

    @classmethod
    def read(cls, value: Any, note: Note) -> EndpointSlice:
        """Raises ValueError for what is none."""
        try:
            return cls._read(value, note)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{type(error).__name__} {error}") from None

    @classmethod
    def _read(cls, value: Any, note: Note) -> EndpointSlice:
        namespace, name = key_of(value)
        where = f"{namespace}/{name}"
        service = f"{namespace}/{(value['metadata'].get('labels') or {}).get(_SERVICE_NAME) or name}"
        if value["addressType"] == "FQDN":
            note(FQDN, where)
            return cls(service, 0, (), 0, b"", {})
        family, width = _FAMILIES[value["addressType"]]
        serving: set[bytes] = set()
        others: dict[bytes, bool] = {}
        for endpoint in _list(value.get("endpoints")):
            serves, is_terminating = _conditions(endpoint.get("conditions") or {})
            for text in _list(endpoint["addresses"]):
                address = _packed(text, family)
                if address is None:
                    note(BAD_ADDRESS, f"{text!r} of {where}")
                elif serves and not is_terminating:
                    serving.add(address)
                else:
                    others[address] = serves or others.get(address, False)
        others = {address: serves for address, serves in others.items() if address not in serving}
        values = _list(value.get("ports"))
        ports = tuple(_ports(values, where, note))
        # What endpoints are grouped by into slices: util.NewPortMapKey of k8s.io/endpointslice.
        port_map = hash(frozenset(tuple(map(port.get, _PORT_MEMBERS)) for port in values))
        return cls(service, width, ports, port_map, b"".join(sorted(serving)), others)

    def addresses(self) -> Iterator[bytes]:
        for place in range(0, len(self.serving), self.width or 1):
            yield self.serving[place : place + self.width]
        yield from self.others

    def serving_addresses(self) -> Iterator[bytes]:
        """Those that terminate among them."""
        yield from (address for address in self.addresses() if self.others.get(address, True))


def key_of(value: Any) -> Key:
    """Raises ValueError for what has no namespace and name."""
    metadata = value["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    if not (isinstance(namespace, str) and isinstance(name, str)):
        raise TypeError("namespace and name are strings")
    return namespace, name


def _list(value: Any) -> list[Any]:
    """null is an empty one."""
    if value is not None and not isinstance(value, list):
        raise TypeError(f"a list is expected, not {type(value).__name__}")
    return value or []


def _conditions(value: Any) -> tuple[bool, bool]:
    """Whether an endpoint serves (unset: what `ready` says; that unset: yes), and whether it is terminating."""
    ready, serving, terminating = value.get("ready"), value.get("serving"), value.get("terminating")
    for one in (ready, serving, terminating):
        if one is not None and not isinstance(one, bool):
            raise TypeError(f"a condition is true or false, not {one!r}")
    if serving is None:
        serving = ready is not False
    return serving, terminating is True


def _packed(text: Any, family: int) -> bytes | None:
    """None for what is no address, or one that is not the same wherever it is looked at from."""
    try:
        packed = inet_pton(family, text)
    except (OSError, ValueError):
        return None
    is_special = len(packed) == 16 and (packed[:12] == V4_MAPPED or (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80))
    return None if is_special or not any(packed) else packed


def _ports(values: Iterable[Any], where: str, note: Note) -> Iterator[Port]:
    for value in values:
        name, number, protocol = value.get("name") or "", value.get("port"), value.get("protocol") or "TCP"
        if protocol == "SCTP":
            note(SCTP, f"{name or number} of {where}")
        elif number is None:
            note(NO_PORT, f"{name or 'the port'} of {where}")
        elif isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= _PORT_MAX:
            raise TypeError(f"a port is a number of 1 to {_PORT_MAX}, not {number!r}")
        else:
            yield Port(_PROTOCOLS[protocol], number, name)


def packed_backend(port: Port, address: bytes) -> bytes:
    """As the table has it."""
    return pack(port.protocol, port.number, address)


def unpacked_backend(key: bytes) -> tuple[tuple[int, int], bytes]:
    """Protocol and port number, and the address."""
    return (key[0], int.from_bytes(key[1:3], "big")), key[3:]
