"""Conntrack with many entries: what it costs to find those of some backends, and to delete them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from random import Random

from socklb import Backend, Flow, find_flows
from socklb.conntrack.flows import endpoints_of
from socklb.conntrack.layout import IPS_DST_NAT, FlowTuple
from socklb.conntrack.scan import Dnated
from socklb.conntrack.table import ConntrackTable
from socklb.wire.netlink import encode_attribute
from socklb.wire.request import IPPROTO_TCP

from ..conntrack.ctnetlink import Entry, inverse, make
from ..networks import networks
from .timing import Ratio, Subject, best_times, ratios_of

ENTRIES, BACKENDS, VICTIMS = 100_000, 2_000, 100
_VICTIM = Backend("10.245.0.1", 5353, "udp")
_PORTS = {"tcp": (6, 80, 8080), "udp": (17, 53, 5353)}

_CTA_MARK = 8
_RECEIVER = b"""
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <sys/socket.h>
static char data[65536];
int main(void) {
  struct { struct nlmsghdr header; struct nfgenmsg body; } request = {
      {sizeof request, NFNL_SUBSYS_CTNETLINK << 8 | 1, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {0, 0, 0}};
  int netlink = socket(AF_NETLINK, SOCK_RAW, 12), entries = 0;
  if (send(netlink, &request, sizeof request, 0) < 0) return 1;
  for (;;) {
    int size = recv(netlink, data, sizeof data, 0);
    if (size <= 0) return 1;
    for (struct nlmsghdr *one = (void *)data; NLMSG_OK(one, size); one = NLMSG_NEXT(one, size)) {
      if (one->nlmsg_type == NLMSG_DONE) return entries < 1000;
      if (one->nlmsg_type == NLMSG_ERROR) return 1;
      entries++;
    }
  }
}
"""

_WALK = f"conntrack: one kernel walk of {ENTRIES:,} entries"
_V4 = "conntrack: flows of one v4 backend"
_BOTH = "conntrack: flows of one backend, v4 and v6, TCP and UDP"
_MANY = "conntrack: flows of 1,000 backends, of many ports"
_ALIKE = "conntrack: flows of 1,000 backends, of the ports of all"
_HALF = "conntrack: flows of 1,000 backends that have half of all"
_RECEIVE = "a C program that only receives conntrack's table"
_DELETE = f"conntrack: find and delete {VICTIMS} UDP entries"
_TOOL = "conntrack -D --reply-src, whole process"


def measure_tracked(rounds: int) -> tuple[dict[str, float], list[Ratio]]:
    with networks(1) as (net,), _compiled() as receiver:
        best = net.run(lambda: _measure(rounds, receiver))
    wanted = [
        *((_V4, _WALK, 1.3), (_BOTH, _WALK, 4.0)),
        *((_MANY, _RECEIVE, 1.6), (_ALIKE, _RECEIVE, 1.6)),
        (_DELETE, _TOOL, 0.15),
    ]
    return best, ratios_of(best, wanted)


def _measure(rounds: int, receiver: str) -> dict[str, float]:
    """In the network namespace of the thread."""
    random = Random(1)
    make(*(_entry(number, random) for number in range(ENTRIES)))
    of_one = [_backend(version, 7, protocol) for version in (4, 6) for protocol in _PORTS]
    many = [Backend(f"172.16.{n >> 8}.{n & 255}", 1024 + n, "tcp") for n in range(1000)]
    alike = [_backend(version, BACKENDS + n, protocol) for n in range(250) for version in (4, 6) for protocol in _PORTS]
    half = [_backend(version, n, protocol) for n in range(1000) for version in (4, 6) for protocol in _PORTS]
    subjects = {
        _WALK: Subject(_walk),
        _V4: Subject(lambda: _expect(1, find_flows(of_one[:1]))),
        _BOTH: Subject(lambda: _expect(1, find_flows(of_one))),
        _MANY: Subject(lambda: _expect(0, find_flows(many))),
        _ALIKE: Subject(lambda: _expect(0, find_flows(alike))),
        _HALF: Subject(lambda: _expect(1, find_flows(half)), every=max(1, rounds // 3)),
        _DELETE: Subject(_delete, _make_victims),
    }
    if receiver:
        subjects[_RECEIVE] = Subject(lambda: subprocess.run([receiver], check=True))
    if shutil.which("conntrack"):
        tool = ["conntrack", "-D", "-p", "udp", "--reply-src", str(_VICTIM.address)]
        subjects[_TOOL] = Subject(lambda: subprocess.run(tool, check=True, capture_output=True), _make_victims)
    return best_times(subjects, rounds)


@contextmanager
def _compiled() -> Iterator[str]:
    """The path of the C program, "" where there is no compiler."""
    if not shutil.which("gcc"):
        print("no gcc: nothing is compared with a C program", file=sys.stderr)
        yield ""
        return
    with tempfile.TemporaryDirectory() as directory:
        program = os.path.join(directory, "receive")
        subprocess.run(["gcc", "-O2", "-o", program, "-x", "c", "-"], input=_RECEIVER, check=True)
        yield program


def _backend(version: int, number: int, protocol: str) -> Backend:
    address = f"10.244.{number >> 8}.{number & 255}" if version == 4 else f"fd00:244::{number:x}"
    return Backend(address, _PORTS[protocol][2], protocol)


def _entry(number: int, random: Random) -> Entry:
    """Half are of TCP, a tenth of v6, and a fifth is not translated."""
    version, protocol = 6 if number % 10 == 9 else 4, "tcp" if number % 2 else "udp"
    client = ip_address(f"10.1.{number >> 16}.2" if version == 4 else f"fd00:1::{number >> 16:x}:2")
    service = ip_address("10.96.0.10" if version == 4 else "fd00:96::10")
    protocol_number, port, _ = _PORTS[protocol]
    original = FlowTuple(protocol_number, client.packed, number & 0xFFFF, service.packed, port)
    return _balanced(original, _backend(version, random.randrange(BACKENDS), protocol) if number % 5 else None)


def _balanced(original: FlowTuple, backend: Backend | None) -> Entry:
    reply, status = inverse(original), 0xE  # SEEN_REPLY, ASSURED, CONFIRMED
    if backend is not None:
        reply, status = reply._replace(src=backend.address.packed, sport=backend.port), status | IPS_DST_NAT
    return Entry(Flow(original, reply, status, 3 if original.protocol == IPPROTO_TCP else None, 3600, 0, 0))


def _make_victims() -> None:
    source, service = ip_address("10.2.0.2").packed, ip_address("10.96.0.10").packed
    make(*(_balanced(FlowTuple(17, source, 1024 + n, service, 53), _VICTIM) for n in range(VICTIMS)))


def _walk() -> None:
    """Of a mark that no entry has: the kernel rejects them all."""
    with ConntrackTable() as table:
        _expect(0, table._flows(0, encode_attribute(_CTA_MARK, b"\x7f\xff\xff\xff"), Dnated()))


def _expect(at_least: int, flows: Iterable[Flow]) -> None:
    found = sum(1 for _ in flows)
    assert found >= at_least, found


def _delete() -> None:
    with ConntrackTable() as table:
        flows = table.flows_to(endpoints_of([_VICTIM]))
        assert table.delete(flows) == [0] * VICTIMS
