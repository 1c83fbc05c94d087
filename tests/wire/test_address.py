"""Addresses: the same text on every Python, and the v4 address in a v4-mapped one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import given
from hypothesis import strategies as st

from socklb.wire.address import (
    V4_MAPPED,
    format_address,
    format_endpoint,
    from_packed,
    packed_v4,
    unmapped,
    unmapped_packed,
)

from ..strategies import IPAddress, addresses, mapped_addresses, ports, v4_addresses


@given(addresses | st.lists(st.sampled_from(("0", "10", "abc")), min_size=8, max_size=8).map(":".join).map(IPv6Address))
def test_an_address_reads_back(address: IPAddress) -> None:
    assert from_packed(address.packed) == ip_address(format_address(address)) == address
    assert format_address(address.packed) == format_address(address)
    assert packed_v4(format_address(address)) == (address.packed if address.version == 4 else None)


@given(st.lists(st.sampled_from(["0", "00", "1", "010", "255", "256", "+1", "1_0", "-1"]), max_size=5).map(".".join))
def test_a_v4_address_is_what_ipaddress_takes_for_one(text: str) -> None:
    packed = packed_v4(text)
    assert packed is None or packed == IPv4Address(text).packed


@given(v4_addresses)
def test_a_mapped_address_is_the_v4_one_and_no_other_is(address: IPv4Address) -> None:
    mapped, compatible = IPv6Address(f"::ffff:{address}"), IPv6Address(f"::{address}")
    assert format_address(mapped) == f"::ffff:{address}"
    assert mapped.packed == V4_MAPPED + address.packed
    assert unmapped(mapped) == unmapped(address) == address
    assert unmapped_packed(mapped.packed) == unmapped_packed(address.packed) == address.packed
    assert (unmapped(compatible), unmapped_packed(compatible.packed)) == (compatible, compatible.packed)


@given(addresses | mapped_addresses, ports)
def test_an_endpoint_is_address_colon_port_with_brackets_around_a_v6_address(address: IPAddress, port: int) -> None:
    host, _, tail = format_endpoint(address, port).rpartition(":")
    assert tail == str(port)
    assert host == (f"[{format_address(address)}]" if address.version == 6 else str(address))
