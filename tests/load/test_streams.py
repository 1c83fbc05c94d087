"""Lists of very many are written as they come: the memory that it takes does not grow with them."""

from __future__ import annotations

import subprocess
import sys
from ipaddress import IPv4Address

import pytest

from socklb import Flow
from socklb.conntrack.layout import IPS_DST_NAT, FlowTuple
from socklb.reverse_nat.maps import RevNatEntry
from socklb.wire.request import IPPROTO_TCP

from ..cli.runner import NAME, ROOT
from ..conntrack.ctnetlink import Entry, inverse, make
from ..reverse_nat.bpf_maps import Maps
from ..reverse_nat.test_maps import V4, record
from .holders import holders

pytestmark = [pytest.mark.kernel, pytest.mark.load]

AT_MOST = 1 << 20
"""Bytes that it may grow by."""

_COMMAND = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from {NAME}.cli import main

code = main(sys.argv[1:])
with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:")), file=sys.stderr)
sys.exit(code)
"""


def peak(*arguments: str) -> tuple[int, int]:
    """Lines that a command writes, and the most bytes that it had in memory."""
    command = [sys.executable, "-S", "-c", _COMMAND, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        lines = sum(1 for _ in process.stdout)
        said = process.stderr.read()
    assert process.returncode == 0, said
    return lines, int(said)


def test_reverse_nat_entries(maps: Maps) -> None:
    maps.lru(V4, 16, 8, 1 << 20)
    service = IPv4Address("10.96.0.10")

    def add(first: int, last: int) -> None:
        for cookie in range(first, last):
            record(maps, RevNatEntry(cookie, IPv4Address("10.0.1.5"), 8080, service, 80, 7))

    command = "rev-nat", "--json", "--rev-nat-dir", maps.directory
    add(1, 1000)
    _, few = peak(*command)
    add(1000, 500_000)
    lines, many = peak(*command)
    assert lines > 400_000, "the kernel has evicted too many"
    assert many - few < AT_MOST


def test_sockets(network: None) -> None:
    command = "list", "--json", "-t"
    _, few = peak(*command)
    with holders(40_000, ("127.1.0.1",), 7000) as made:
        for holder in made:
            holder.reconnect()
        lines, many = peak(*command)
    assert lines > 80_000
    assert many - few < AT_MOST


def test_flows(network: None) -> None:
    backend, service = (IPv4Address(text).packed for text in ("10.244.0.1", "10.96.0.10"))

    def add(first: int, last: int) -> None:
        entries = []
        for number in range(first, last):
            client = (0x0A010000 + number).to_bytes(4, "big")
            original = FlowTuple(IPPROTO_TCP, client, 1024, service, 80)
            reply = inverse(original)._replace(src=backend, sport=8080)
            entries.append(Entry(Flow(original, reply, 0xE | IPS_DST_NAT, 3, 3600, 0, 0)))
        make(*entries)

    command = "flows", "--json", "--netns", "current", "10.244.0.1:8080/TCP"
    add(0, 1000)
    lines, few = peak(*command)
    add(1000, 100_000)
    many_lines, many = peak(*command)
    assert (lines > 1_000, many_lines > 100_000) == (True, True)
    assert many - few < AT_MOST
