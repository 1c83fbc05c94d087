"""80,000 connections destroyed in one call: all gone, all in the report, memory bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from socklb import SocketFilter, dport, dst, find_sockets

from ..cli.runner import NAME, ROOT
from .holders import Holder, holders

pytestmark = [pytest.mark.kernel, pytest.mark.load]

CONNECTIONS = 80_000
BYTES_A_SOCKET = 300
"""What a run may take for a socket at most, all in all: of its row what a report shows, and its verdict."""

_ADDRESSES = ("127.1.0.1", "::1", "::ffff:127.1.0.2", "127.1.0.3")
_PORT, _LAST_PORT = 7000, 7099

# The peak of a fresh process, from its own memory map: that of getrusage() begins with what forked it. What a run
# imports is in memory before, and the report is printed after the peak is known.
_SCRIPT = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from {NAME} import Backend, NetworkNamespace, SocketFilter, destroy_sockets, dport, dst, terminate_connections

dry_run = sys.argv[2] == "True"

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))

def destroy(addresses, ports):
    if sys.argv[1] == "destroy_sockets":
        where = (dst("127.1.0.0/16") | dst("::1")) & dport(*ports)
        return destroy_sockets(SocketFilter("tcp", where), dry_run=dry_run).outcomes
    backends = [Backend(address, port, "tcp") for address in addresses for port in range(ports[0], ports[1] + 1)]
    return terminate_connections(backends, namespaces=[NetworkNamespace.current()], dry_run=dry_run).outcomes

destroy(["127.1.0.1"], [1, 1])
before = peak()
outcomes = destroy({_ADDRESSES!r}, [{_PORT}, {_LAST_PORT}])
growth = peak() - before
json.dump({{"growth": growth, "verdicts": [(o.socket.cookie, o.verdict) for o in outcomes]}}, sys.stdout)
"""


@pytest.fixture
def crowd(network: None) -> Iterator[list[Holder]]:
    with holders(CONNECTIONS, _ADDRESSES, _PORT) as made:
        yield made


@pytest.mark.parametrize("call", ["destroy_sockets", "terminate_connections"])
def test_all_are_gone_and_all_are_in_the_report(crowd: list[Holder], call: str) -> None:
    cookies = [cookie for holder in crowd for cookie in holder.reconnect()]
    assert len(cookies) == CONNECTIONS

    for dry_run, verdict in ((True, "would_destroy"), (False, "destroyed")):
        done = subprocess.run([sys.executable, "-c", _SCRIPT, call, str(dry_run)], check=True, stdout=subprocess.PIPE)
        said = json.loads(done.stdout)
        assert sorted(map(tuple, said["verdicts"])) == [(cookie, verdict) for cookie in sorted(cookies)]
        print(f"{call}, {verdict}: {said['growth'] / CONNECTIONS:.0f} bytes a socket")
        assert said["growth"] <= CONNECTIONS * BYTES_A_SOCKET
    errors: Counter[tuple[str, str]] = sum((holder.errors() for holder in crowd), Counter())
    assert errors == {("ECONNABORTED", "ECONNRESET"): CONNECTIONS}
    assert list(find_sockets(SocketFilter("tcp", (dst("127.1.0.0/16") | dst("::1")) & dport(_PORT, _LAST_PORT)))) == []
