"""`list --summary`: sockets counted by state, and by peer those with most."""

from __future__ import annotations

import socket

import pytest

from ..sockets import Sockets
from .runner import run

pytestmark = pytest.mark.kernel

INTERRUPTED = """
find = module(".cli.list").find_sockets
def interrupted(*words, **options):
    yield next(find(*words, **options))
    raise KeyboardInterrupt
module(".cli.list").find_sockets = interrupted
"""


def counted(*words: str) -> tuple[dict[str, int], dict[str, int]]:
    """By protocol and state, and by peer."""
    record = run("list", "--summary", "--json", *words).json
    states = {f"{row['protocol']} {row['state']}": row["sockets"] for row in record["states"]}
    assert record["total"] == sum(states.values())
    return states, {f"{p['protocol']} {p['address']} {p['port']}": p["sockets"] for p in record["peers"]}


def test_by_state_and_by_peer(sockets: Sockets) -> None:
    """A mapped address is the v4 one; a port is shown where there is one alone."""
    for address in ("127.0.0.2", "127.0.0.2", "::ffff:127.0.0.2"):
        sockets.tcp(address, 9000)
    sockets.tcp("127.0.0.3", 9000)
    sockets.udp("127.0.0.3", 53)
    sockets.udp_bound("127.0.0.1", 54)
    states, peers = counted()
    assert states == {"tcp ESTABLISHED": 8, "tcp LISTEN": 2, "udp ESTABLISHED": 1, "udp CLOSE": 1}
    assert peers == {
        "tcp 127.0.0.1 None": 4,
        "tcp 127.0.0.2 9000": 3,
        "tcp 127.0.0.3 9000": 1,
        "udp 127.0.0.3 53": 1,
    }
    assert list(peers.values()) == [4, 3, 1, 1]
    assert counted("-u", "dst 127.0.0.3") == ({"udp ESTABLISHED": 1}, {"udp 127.0.0.3 53": 1})


def test_as_text(sockets: Sockets) -> None:
    """Beyond the ten peers with most sockets there is a number; nothing is wider than 80 columns."""
    for number in range(1, 13):
        for _ in range(1 + (number == 12)):
            sockets.udp(f"127.0.1.{number}", 53)
    bound = sockets.make(socket.AF_INET6, socket.SOCK_DGRAM)
    bound.bind(("::1", 0))
    lines = run("list", "-s").out.splitlines()
    cells = [line.split() for line in lines]
    assert cells[:6] == [
        ["Netid", "State", "Sockets"],
        ["udp", "ESTABLISHED", "13"],
        ["udp", "CLOSE", "1"],
        ["total", "14"],
        [],
        ["Netid", "Peer:Port", "Sockets"],
    ]
    assert cells[6] == ["udp", "127.0.1.12:53", "2"]
    assert len(cells) == 6 + 10 + 1
    assert cells[-1] == ["2", "other", "peers", "2"]
    assert max(map(len, lines)) <= 80


def test_where_there_is_nothing(network: None) -> None:
    assert run("list", "--summary").out.split() == ["Netid", "State", "Sockets", "total", "0"]
    assert run("list", "--summary", "--json").json == {"total": 0, "states": [], "peers": [], "other_peers": 0}


def test_an_interrupt_leaves_whole_json(sockets: Sockets) -> None:
    sockets.udp("127.0.0.2", 53)
    result = run("list", "-u", "--summary", "--json", patch=INTERRUPTED)
    assert (result.code, result.json["total"], result.json["error"]) == (130, 1, "interrupted")
    assert run("list", "-u", "--summary", patch=INTERRUPTED)[:2] == (130, "")


@pytest.mark.parametrize("words", [["-p"], ["-e"], ["--json", "dev nosuch0"]])
def test_bad_input(network: None, words: list[str]) -> None:
    result = run("list", "--summary", *words)
    assert (result.code, result.out) == (2, "")
    assert ("not allowed with -p or -e" if len(words) == 1 else "no interface 'nosuch0'") in result.err
