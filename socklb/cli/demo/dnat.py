# SPDX-License-Identifier: MIT
"""Destination NAT as kube-proxy's, without nft(8): nf_tables messages by hand (linux/netfilter/nf_tables.h).

    set_services({Backend.parse("10.96.0.10:80/TCP"): Backend.parse("127.0.0.2:8080/TCP")})

Numbers in attributes are big-endian. A rule is a row of expressions, which load a register, compare one, or act on the
packet; it ends at the first comparison that fails.
"""

from __future__ import annotations

import errno
import socket
from collections import namedtuple

from ...errors import NotSupported
from ...kernel.netlink_socket import NetlinkSocket
from ...wire.netlink import NLM_F_ACK, NLM_F_REQUEST, decode_ack, encode_attribute, encode_message, iter_messages
from ...wire.request import PROTOCOLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...errors import KernelError
    from ...filters.backend import Backend

_NETLINK_NETFILTER = 12
_NFNL_SUBSYS_NFTABLES = 10
_NFNL_MSG_BATCH_BEGIN, _NFNL_MSG_BATCH_END = 16, 17
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = (_NFNL_SUBSYS_NFTABLES << 8 | number for number in (0, 2, 3, 6))
_NLM_F_CREATE, _NLM_F_APPEND = 0x400, 0x800
_NLA_F_NESTED = 0x8000

NFPROTO = {4: 2, 6: 10}
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
DNAT_PRIORITY, SNAT_PRIORITY = -100, 100
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
DESTINATION = {4: 16, 6: 24}  # in the header
META_L4PROTO = 16
REGISTER, OTHER_REGISTER = 1, 2  # of 16 bytes each

Message = namedtuple("Message", "type family payload")


class Nftables(NetlinkSocket):
    """A netlink socket to nf_tables, in the network namespace of the calling thread."""

    lacks = "NETLINK_NETFILTER: CONFIG_NF_TABLES"

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        super().__init__(lambda: socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER))

    def commit(self, messages: Sequence[Message], doing: str) -> None:
        """All of it at once, or nothing and an error; after one, more may be on the way: close the socket."""
        begin, end = (Message(kind, 0, b"") for kind in (_NFNL_MSG_BATCH_BEGIN, _NFNL_MSG_BATCH_END))
        first = self._next_sequence(len(messages) + 2)
        last = first + len(messages)
        batch = b""
        for sequence, (type_, family, payload) in enumerate((begin, *messages, end), first):
            flags = NLM_F_REQUEST | _NLM_F_CREATE | _NLM_F_APPEND | (NLM_F_ACK if sequence == last else 0)
            nfgenmsg = bytes((family, 0, 0, 0 if first < sequence <= last else _NFNL_SUBSYS_NFTABLES))
            batch += encode_message(type_, flags, sequence, nfgenmsg + payload)
        self._send(batch, doing)
        answered = first
        while answered != last:
            reply = self._receive(doing)
            for _, flags, sequence, _, at, to in iter_messages(reply, len(reply)):
                ack, answered = decode_ack(reply, at, to, flags), sequence
                if ack.errno:
                    raise self._error(ack.errno, doing, ack.text)

    def _describe(self, data: bytes) -> str:
        return f"nf_tables, {len(data)} bytes"

    def _error(self, code: int, doing: str, text: str = "") -> KernelError:
        if code in (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
            return NotSupported(code, f"{doing}: this kernel lacks CONFIG_NF_TABLES, or CONFIG_NFT_NAT")
        return super()._error(code, doing, text)


def numbers(*values: int, first: int = 1) -> bytes:
    """Attributes that are numbers, of the types from the first on."""
    signed = [value.to_bytes(4, "big", signed=value < 0) for value in values]
    return b"".join(map(encode_attribute, range(first, first + len(values)), signed))


def text(type: int, value: str) -> bytes:
    return encode_attribute(type, value.encode() + b"\0")


def nest(type: int, *attributes: bytes) -> bytes:
    return encode_attribute(type | _NLA_F_NESTED, b"".join(attributes))


class Table(namedtuple("Table", "family name")):
    """A table of nf_tables, and the messages that are about it."""

    __slots__ = ()

    def made_anew(self) -> list[Message]:
        """Made, for one that is not there cannot be deleted; deleted; and made again."""
        return [Message(kind, self.family, text(1, self.name)) for kind in (_NEWTABLE, _DELTABLE, _NEWTABLE)]

    def chain(self, name: str, hook: int, priority: int, *, type: str = "nat") -> Message:
        """NFTA_CHAIN_TABLE, _NAME, _HOOK, _TYPE."""
        payload = text(1, self.name) + text(3, name) + nest(4, numbers(hook, priority)) + text(7, type)
        return Message(_NEWCHAIN, self.family, payload)

    def rule(self, chain: str, *expressions: bytes) -> Message:
        payload = text(1, self.name) + text(2, chain) + nest(4, *expressions)  # NFTA_RULE_TABLE, _CHAIN, _EXPRESSIONS
        return Message(_NEWRULE, self.family, payload)


def expression(name: str, *attributes: bytes) -> bytes:
    return nest(1, text(1, name), nest(2, *attributes))  # NFTA_EXPR_NAME, _DATA


def compare(value: bytes, operator: int = 0) -> bytes:
    """NFTA_CMP_SREG, _OP, _DATA; 0 is equal, 1 unequal."""
    return expression("cmp", numbers(REGISTER, operator), nest(3, encode_attribute(1, value)))


def immediate(register: int, value: bytes) -> bytes:
    return expression("immediate", numbers(register), nest(2, encode_attribute(1, value)))  # NFTA_IMMEDIATE_DREG, _DATA


def header(base: int, offset: int, value: bytes, operator: int = 0) -> bytes:
    """What the packet has there: NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN."""
    return expression("payload", numbers(REGISTER, base, offset, len(value))) + compare(value, operator)


def is_for(service: Backend) -> bytes:
    """The packet has this destination."""
    address_is = header(NETWORK_HEADER, DESTINATION[service.address.version], service.address.packed)
    protocol_is = expression("meta", numbers(REGISTER, META_L4PROTO)) + compare(bytes([PROTOCOLS[service.protocol]]))
    return address_is + protocol_is + header(TRANSPORT_HEADER, 2, service.port.to_bytes(2, "big"))


def dnat(backend: Backend) -> bytes:
    """NFTA_NAT_TYPE, _FAMILY, _REG_ADDR_MIN, _REG_PROTO_MIN."""
    to = immediate(REGISTER, backend.address.packed) + immediate(OTHER_REGISTER, backend.port.to_bytes(2, "big"))
    nat = numbers(1, NFPROTO[backend.address.version], REGISTER), numbers(OTHER_REGISTER, first=5)
    return to + expression("nat", *nat)


def set_services(services: Mapping[Backend, Backend]) -> None:
    """From now on new connections to each service get to its backend, and none to a service of before.

    All of that happens at once, in the network namespace of the calling thread. Raises KernelError.
    """
    messages = []
    for version, family in NFPROTO.items():
        of_family = [pair for pair in services.items() if pair[0].address.version == version]
        if of_family:
            table = Table(family, "socklb-demo")
            # Before Linux 4.18 answers need a chain for what leaves.
            messages += [*table.made_anew(), table.chain("postrouting", POSTROUTING, SNAT_PRIORITY)]
            for name, hook in (("prerouting", PREROUTING), ("output", OUTPUT)):
                messages.append(table.chain(name, hook, DNAT_PRIORITY))
                messages += [table.rule(name, is_for(service), dnat(backend)) for service, backend in of_family]
    with Nftables() as nftables:
        nftables.commit(messages, "set NAT rules")
