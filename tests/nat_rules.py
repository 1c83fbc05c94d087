"""Rules of NAT and around it, made by nf_tables messages in the network namespace of the calling thread."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from socklb import Backend
from socklb.cli.demo.dnat import (
    DESTINATION,
    DNAT_PRIORITY,
    FORWARD,
    INPUT,
    NETWORK_HEADER,
    NFPROTO,
    OUTPUT,
    POSTROUTING,
    PREROUTING,
    REGISTER,
    SNAT_PRIORITY,
    Message,
    Nftables,
    Table,
    compare,
    dnat,
    expression,
    header,
    immediate,
    is_for,
    numbers,
)
from socklb.wire.netlink import encode_attribute

POD_PREFIXES = {4: bytes([10, 244]), 6: bytes.fromhex("fd000244")}
"""10.244.0.0/16 and fd00:244::/32: whoever is outside is a stranger."""

# linux/netfilter/nf_tables.h
_NFPROTO_INET = 1
_RAW_PRIORITY, _MANGLE_PRIORITY, _FILTER_PRIORITY = -300, -150, 0
_META_MARK, _META_IIFNAME, _META_OIFNAME = 3, 6, 7
_CT_STATE, _CT_MARK, _CT_ZONE = 0, 3, 17
_SOURCE = {4: 12, 6: 8}
_MASQUERADED = 0x4000  # kube-proxy's mark
_FULLY_RANDOM = 16  # NF_NAT_RANGE_PROTO_RANDOM_FULLY
_DROP = 0
_UNEQUAL = 1
_PORT_UNREACHABLE = {4: 3, 6: 4}  # the codes of ICMP


def _commit(messages: Iterable[Message]) -> None:
    with Nftables() as nftables:
        nftables.commit(list(messages), "set NAT rules")


def _native(number: int) -> bytes:
    """In the byte order of the machine: marks, and what numgen gives."""
    return number.to_bytes(4, sys.byteorder)


def _meta(key: int) -> bytes:
    return expression("meta", numbers(REGISTER, key))  # NFTA_META_DREG, _KEY


def _set_meta(key: int) -> bytes:
    return expression("meta", numbers(key, REGISTER, first=2))  # NFTA_META_KEY, _SREG


def _link_is(key: int, name: str) -> bytes:
    return _meta(key) + compare(name.encode().ljust(16, b"\0"))


def _ct(key: int) -> bytes:
    return expression("ct", numbers(REGISTER, key))  # NFTA_CT_DREG, _KEY


def _set_ct(key: int, *more: bytes) -> bytes:
    return expression("ct", numbers(key, first=2), *more, numbers(REGISTER, first=4))  # NFTA_CT_KEY, _SREG


_MASQUERADE = expression("masq", numbers(_FULLY_RANDOM))  # NFTA_MASQ_FLAGS


class Service(NamedTuple):
    """Where clients connect to, and where their flows get to; for whom it is masqueraded."""

    endpoint: Backend
    backends: tuple[Backend, ...]
    masquerade: str = "nobody"
    """Or "all", or "strangers": those who are no pods."""


def set_rules(services: Iterable[Service]) -> None:
    """From now on these services are there, and no others."""
    services = list(services)
    messages = []
    for version, family in NFPROTO.items():
        table = Table(family, "services")
        messages += [
            *table.made_anew(),
            table.chain("prerouting", PREROUTING, DNAT_PRIORITY),
            table.chain("output", OUTPUT, DNAT_PRIORITY),
            table.chain("postrouting", POSTROUTING, SNAT_PRIORITY),
            table.chain("reject-forward", FORWARD, _FILTER_PRIORITY, type="filter"),
            table.chain("reject-output", OUTPUT, _FILTER_PRIORITY, type="filter"),
            table.rule("postrouting", _meta(_META_MARK), compare(_native(_MASQUERADED)), _MASQUERADE),
        ]
        of_family = [service for service in services if service.endpoint.address.version == version]
        for service in of_family:
            messages += [table.rule(at, rule) for at in ("prerouting", "output") for rule in _rules_of(service)]
            if not service.backends:
                reject = expression("reject", numbers(0), encode_attribute(2, bytes([_PORT_UNREACHABLE[version]])))
                for chain in ("reject-forward", "reject-output"):
                    messages.append(table.rule(chain, is_for(service.endpoint), reject))
        for address in {backend.address.packed for service in of_family for backend in service.backends}:
            itself = [header(NETWORK_HEADER, at[version], address) for at in (_SOURCE, DESTINATION)]
            messages.append(table.rule("postrouting", *itself, _MASQUERADE))
    _commit(messages)


def _rules_of(service: Service) -> Iterator[bytes]:
    """For whom it is masqueraded; then one backend after the other, that is tried if those before did not take it."""
    version = service.endpoint.address.version
    here = is_for(service.endpoint)
    mark = here + immediate(REGISTER, _native(_MASQUERADED)) + _set_meta(_META_MARK)
    if service.masquerade == "all":
        yield mark
    elif service.masquerade == "strangers":
        yield header(NETWORK_HEADER, _SOURCE[version], POD_PREFIXES[version], _UNEQUAL) + mark
    for left, backend in zip(range(len(service.backends), 0, -1), service.backends):
        numgen = expression("numgen", numbers(REGISTER, left, 0))  # NFTA_NG_DREG, _MODULUS, _TYPE: each in turn
        yield here + numgen + compare(_native(0)) + dnat(backend)


def no_services() -> None:
    """What `set_services` of the demo has made is gone: conntrack is off again, if nothing else needs it."""
    _commit(message for family in NFPROTO.values() for message in Table(family, "socklb-demo").made_anew())


def masquerade(prefix: bytes, link: str) -> None:
    """What comes from v4 addresses that begin so gets the address of the link through which it leaves."""
    table = Table(NFPROTO[4], "masquerade")
    here = [header(NETWORK_HEADER, _SOURCE[4], prefix), _link_is(_META_OIFNAME, link)]
    chain = table.chain("postrouting", POSTROUTING, SNAT_PRIORITY + 10)
    _commit([*table.made_anew(), chain, table.rule("postrouting", *here, _MASQUERADE)])


def redirect(endpoint: Backend, port: int) -> None:
    """What this network namespace sends to an endpoint gets to a port of its own, as to a sidecar."""
    table = Table(NFPROTO[endpoint.address.version], "redirect")
    redirected = immediate(REGISTER, port.to_bytes(2, "big")) + expression("redir", numbers(REGISTER))
    chain = table.chain("output", OUTPUT, DNAT_PRIORITY)
    _commit([*table.made_anew(), chain, table.rule("output", is_for(endpoint), redirected)])


_DROP_TABLE = Table(_NFPROTO_INET, "drop")


def drop_all() -> None:
    """Nothing leaves this network namespace, and nothing enters it."""
    chains = [_DROP_TABLE.chain(f"hook-{hook}", hook, _FILTER_PRIORITY, type="filter") for hook in (INPUT, OUTPUT)]
    policy = numbers(_DROP, first=5)  # NFTA_CHAIN_POLICY
    _commit([*_DROP_TABLE.made_anew(), *(chain._replace(payload=chain.payload + policy) for chain in chains)])


def drop_nothing() -> None:
    _commit(_DROP_TABLE.made_anew())


def track() -> None:
    """Switch conntrack on, and do nothing else to the packets."""
    messages = []
    for family in NFPROTO.values():
        table = Table(family, "track")
        chain = table.chain("output", OUTPUT, _MANGLE_PRIORITY, type="filter")
        messages += [*table.made_anew(), chain, table.rule("output", _ct(_CT_STATE))]
    _commit(messages)


class Tenant(NamedTuple):
    """Who comes in through a link is of a zone of its own, and gets an address of its own towards the pods."""

    link: str
    zone: int
    address: bytes


def set_tenants(tenants: Iterable[Tenant], pod_links: Iterable[str]) -> None:
    """The zone is that of the original direction, for answers come by links of others. They carry it as a mark."""
    table = Table(NFPROTO[4], "tenants")
    messages = [
        *table.made_anew(),
        table.chain("raw", PREROUTING, _RAW_PRIORITY, type="filter"),
        table.chain("marks", PREROUTING, _MANGLE_PRIORITY, type="filter"),
        table.chain("postrouting", POSTROUTING, SNAT_PRIORITY - 10),
    ]
    of_original = encode_attribute(3, b"\0")  # NFTA_CT_DIRECTION
    for link, zone, address in tenants:
        enters = _link_is(_META_IIFNAME, link)
        to_zone = immediate(REGISTER, zone.to_bytes(2, sys.byteorder)), _set_ct(_CT_ZONE, of_original)
        to_mark = immediate(REGISTER, _native(zone)), _set_ct(_CT_MARK)
        # NFTA_NAT_TYPE, _FAMILY, _REG_ADDR_MIN
        snat = immediate(REGISTER, address), expression("nat", numbers(0, NFPROTO[4], REGISTER))
        messages += [
            table.rule("raw", enters, *to_zone),
            table.rule("marks", enters, *to_mark),
            table.rule("postrouting", _ct(_CT_MARK), compare(_native(zone)), *snat),
        ]
    for link in pod_links:
        messages.append(table.rule("marks", _link_is(_META_IIFNAME, link), _ct(_CT_MARK), _set_meta(_META_MARK)))
    _commit(messages)
