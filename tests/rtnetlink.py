"""Links, addresses and routes without ip(8): rtnetlink messages by hand, in the calling thread's network namespace."""

from __future__ import annotations

import os
import socket
import struct
from ipaddress import ip_interface, ip_network

from socklb.wire.netlink import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    decode_ack,
    encode_attribute,
    encode_attributes,
    iter_attributes,
    iter_messages,
)
from socklb.wire.netlink import encode_message as encode

from . import world
from .sockets import eventually

_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_NEWROUTE, _RTM_NEWRULE = 16, 18, 20, 24, 32
_RTM_NEWLINKPROP = 108
NEW = NLM_F_ACK | 0x600  # NLM_F_CREATE and NLM_F_EXCL
_NESTED = 0x8000
_INET, _INET6 = int(socket.AF_INET), int(socket.AF_INET6)
_FAMILY = {4: _INET, 6: _INET6}


def order(type: int, flags: int, request: bytes, *, subsystem: int = socket.NETLINK_ROUTE) -> bytes:
    """What the kernel answers, b"" if it only acknowledges. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, subsystem) as route:
        route.send(encode(type, NLM_F_REQUEST | flags, 1, request))
        reply = route.recv(65536)
    ((kind, flags, _, _, start, end),) = iter_messages(reply, len(reply))
    if kind != NLMSG_ERROR:
        return reply[start:end]
    code = decode_ack(reply, start, end, flags).errno
    if code:
        raise OSError(code, os.strerror(code))
    return b""


def _ifinfomsg(index: int = 0, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, flags)


def _number(number: int) -> bytes:
    return struct.pack("=I", number)


def add_veth(name: str, peer: str, peer_namespace: int) -> None:
    """A pair of links: one here, its peer in the network namespace of a descriptor."""
    there = encode_attributes([(3, peer.encode() + b"\0"), (28, _number(peer_namespace))])  # IFLA_IFNAME, _NET_NS_FD
    data = encode_attribute(1 | _NESTED, _ifinfomsg() + there)  # VETH_INFO_PEER
    info = encode_attributes([(1, b"veth\0"), (2 | _NESTED, data)])  # IFLA_INFO_KIND, _DATA
    order(_RTM_NEWLINK, NEW, _ifinfomsg() + encode_attributes([(3, name.encode() + b"\0"), (18 | _NESTED, info)]))


def bring_up(name: str) -> None:
    order(_RTM_NEWLINK, NLM_F_ACK, _ifinfomsg(socket.if_nametoindex(name), 1))  # IFF_UP


def wait_until_up(name: str) -> None:
    """A work queue makes a link ready once both ends are up; as long, whatever is sent there is dropped."""

    def operstate() -> int:
        reply = order(_RTM_GETLINK, 0, _ifinfomsg(socket.if_nametoindex(name)))
        return dict(iter_attributes(reply, 16, len(reply)))[16][0]  # IFLA_OPERSTATE

    eventually(lambda: operstate() == 6, f"{name} up")  # IF_OPER_UP


def add_address(name: str, address: str) -> None:
    """With the prefix of its network; usable at once."""
    given = ip_interface(address)
    nodad = 0x02  # IFA_F_NODAD
    request = struct.pack(
        "=BBBBI", _FAMILY[given.version], given.network.prefixlen, nodad, 0, socket.if_nametoindex(name)
    )
    order(_RTM_NEWADDR, NEW, request + encode_attributes([(1, given.ip.packed), (2, given.ip.packed)]))


def add_route(destination: str, *, via: str = "", link: str = "", table: int = 254) -> None:
    """To a network, through a gateway or a link (or both)."""
    network = ip_network(destination)
    scope = 0 if via else 253  # RT_SCOPE_UNIVERSE, RT_SCOPE_LINK
    request = struct.pack("=BBBBBBBBI", _FAMILY[network.version], network.prefixlen, 0, 0, table, 4, scope, 1, 0)
    attributes = [(1, network.network_address.packed)]  # RTA_DST
    attributes += [(5, ip_interface(via).ip.packed)] if via else []  # RTA_GATEWAY
    attributes += [(4, _number(socket.if_nametoindex(link)))] if link else []  # RTA_OIF
    order(_RTM_NEWROUTE, NEW, request + encode_attributes(attributes))


def add_rule(mark: int, table: int) -> None:
    """v4 packets of this mark are routed by this table."""
    request = struct.pack("=BBBBBBBBI", _INET, 0, 0, 0, table, 0, 0, 1, 0)  # FR_ACT_TO_TBL
    order(_RTM_NEWRULE, NEW, request + encode_attribute(10, _number(mark)))  # FRA_FWMARK


def add_alternative_name(index: int, name: str) -> None:
    """One more name for a link."""
    names = encode_attribute(53, name.encode() + b"\0")  # IFLA_ALT_IFNAME, in IFLA_PROP_LIST
    try:
        order(_RTM_NEWLINKPROP, NEW, _ifinfomsg(index) + encode_attribute(52 | _NESTED, names))
    except OSError as error:
        world.cannot(f"this kernel gives no alternative names: {error.strerror}")
