"""What people write after `ss`: each expression selects the same sockets here as there, or the reason stands beside it.

A line is `EXPRESSION ; EXPRESSION -> ROWS`, where ROWS are names of the sockets in `Scene`, `*` all of them, `* - a b`
all but some, `none` not one, `refused` an error. `| ROWS: REASON` is what ss shows where that is something else, and
why; `| ?: REASON` where it refuses, or did so in some version. What names no states is about all of them.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from typing import Any

import pytest

from socklb import TcpState, find_sockets
from socklb.cli import parse
from socklb.cli.arguments import filters_from

from . import world
from .reverse_nat.balancer.cgroup import inside, new_cgroup
from .sockets import Sockets, add_v6_address, eventually, family_of, reset_on_close, state_of
from .ss import plain_endpoint, require_ss, row_of

pytestmark = pytest.mark.kernel

TABLE = """\
dst 127.0.0.1 ; dst 127.0.0.1:* -> c1 c8 s1 s3 s4 s9
dst = 127.0.0.53 ; dst 127.0.0.52/31 ; dst 127/8:53 ; dst 127.0.0.53:domain ; dst 127.0.0.53 -> u1 u3
dst == 10.9.0.1 ; dst 10.9.0.0/16 ; dst 10/8 -> c2 c7 s2 s7 u2 u8
state established dst != 127.0.0.1 -> c2 c3 c4 c5 c6 c9 s2 s5 s6 u1 u2 u3 u4 u8 | ?: not of an address
dst ne 10.9/16:22 and src 10.9.0.1 -> s2 s7 u2 u8 | ?: not of an address
dport != 0 src neq 127.0.0.0/8 -> c2 c5 c6 c7 s2 s5 s6 s7 u2 u4 u8 | ?: not of an address
src 127.0.0.1 -> c0 c1 c3 c4 c8 c9 l4 s1 u1 u3
src 0.0.0.0 -> l1 l6 u5
dst 127.0/16 -> c0 c1 c3 c4 c8 c9 s1 s3 s4 s9 u1 u3
dst 127.0.0.0/30 -> c1 c3 c4 c8 s1 s3 s4 s9
dst 0.0.0.0 -> l1 l4 l6 l7 u5 u7
dst 127.0.0.1:5432 ; dst inet:127.0.0.1:5432 -> c1 c8
dst = 10.9.0.1:22 ; dst default:22 ; dst *:22 ; dst any:ssh ; dst :22 ; dport 22 ; dport :22 ; dport = 22 -> c2 c7
src 127.0.0.1:postgresql -> l4 s1
src 127.0.0.2:80 -> s3
dst localhost -> refused | c1 c8 s1 s3 s4 s9: it looks names up
dst = db.example.com ; dst 127.0.0.256 ; dst 10.9.0.1/33 ; dst 127.0.0.1:nosuch ; dst [::1 ; dev < lo -> refused
dst 127.0.0.1:65536 -> refused | none: it takes any number
src 127.0.0.53%lo -> refused | ?: shown, not taken
dst [::1] -> c6 s6
dst [::1]:443 ; autobound and dport = :443 -> c6
src [::1]:443 -> s6
src [::] -> l2 l3 u6
src [::]:80 ; src :::80 -> l2
dst ::/0 ; dst inet6:* -> c3 c5 c6 l2 l3 l5 s3 s4 s5 s6 u3 u4 u6
dst [fd00::1] ; dst fd00::/8 ; dst [fd00::/8] ; dst [fd00::1]:* -> c5 s5 u4
dst [fd00::/8]:53 ; dst fd00::/8:53 ; src [fd00::1]:50004 -> u4
dst [fd00::]/8 -> c5 s5 u4 | ?: only before the bracket
dst ::1 -> c6 s6 | ?: without brackets
dst fd00::1:beef -> none | ?: without brackets
dst ::1:443 -> refused | c6: an address as well
dst []:80 -> refused | c3 c4: to it an address of no bits
src ::ffff:127.0.0.3 -> s4 | ?: without brackets
dst [::ffff:127.0.0.53] ; dst ::ffff:127.0.0.53:53 -> u1 u3 | u3: mapped alone
dst [::ffff:127.0.0.0/104] -> c0 c1 c3 c4 c8 c9 s1 s3 s4 s9 u1 u3 | c3 s3 s4 u3: mapped alone
dst * ; src any ; dst all ; dst *:* ; dport <= 65535 ; dport = :* ; sport * ; dst 10.9.0.1 or not dst 10.9.0.1 -> *
not dst any ; dport >= 65535 -> none
src *:ssh ; sport = :ssh -> l1 s2 s7
dst all:domain ; dport = :domain -> u1 u3 u4
dst inet:127.0.0.1 -> c1 c8 s1 s3 s4 s9 | c1 c8 s1 s9: v4 sockets alone
dst inet:* dport = :80 ; dport inet::80 -> c3 c4 | c4: v4 sockets alone
src inet:127.0.0.3 -> s4 | none: v4 sockets alone
not dst inet:* dport = :53 -> u4 | none: v4 sockets alone
dst inet6:*:53 ; dport = inet6::53 -> u3 u4
src inet6::80 -> l2 s3 s4
dst inet6:127.0.0.1 ; dst inet:[::1] ; inet:127.0.0.1 ; dport = :nosuch ; dport = = 22 ; dport ! 22 ; dport -> refused
dport = :22 ; dport == :22 ; dport eq 22 ; dport inet::22 ; ! dport != :22 ; ! ! dport = :22 -> c2 c7
dport != :22 ; not dport = :22 -> * - c2 c7
dport ne 0 ; dport neq :0 -> * - l1 l2 l3 l4 l5 l6 l7 u5 u6 u7
dport < 80 ; dport lt :80 ; dport <= 53 ; dport leq :53 -> c2 c7 l1 l2 l3 l4 l5 l6 l7 u1 u3 u4 u5 u6 u7
dport > 6379 ; dport gt :6379 -> c0 c9 s1 s2 s3 s4 s5 s6 s7 s9
dport >= 6379 ; dport ge :6379 ; dport geq :6379 -> c0 c5 c9 s1 s2 s3 s4 s5 s6 s7 s9
sport >= 60000 ; autobound -> c6 u2
sport < 100 and dport = 0 -> l1 l2 u5 u7
sport > 1024 sport < 9999 -> l4 l5 l6 l7 s1 s5 s9
dport < 1 -> l1 l2 l3 l4 l5 l6 l7 u5 u6 u7
dport http -> c3 c4
dport = :ntp -> u2 | none: to it of TCP alone
-u dport = :ntp -> u2
dport != * -> refused | none: no port is *
sport >= inet6::443 -> c3 c5 c6 l3 l5 s5 s6 u3 u4 u6
dport=22 -> c2 c7 | ?: without spaces
DPORT = :22 ; dport EQ :22 -> c2 c7 | ?: in capitals
dev lo ; dev = lo ; dev 1 ; dev eq 1 -> c4 l6 s9 u7
dev != lo ; not dev lo -> * - c4 l6 s9 u7
dev nosuch0 ; fwmark < 3 ; fwmark red ; cgroup /nowhere/at/all ; ( dport = :22 ; dport = :22 ) -> refused
fwmark 0x13 ; fwmark = 19 -> c1 u1
fwmark == 0x23 ; fwmark = 0x20/0x2c ; dport = :22 and sport = :40002 ; dport = :22 & sport = :40002 -> c2
state established fwmark = 0 -> c3 c4 c6 c9 s1 s2 s3 s4 s5 s6 u2 u3 u4 u8
state established fwmark != 0x3/0x3 -> c3 c4 c5 c6 c9 s1 s2 s3 s4 s5 s6 u2 u3 u4 u8
cgroup {cgroup} ; cgroup = {cgroup} -> u8
cgroup {cgroup} or dport = :22 -> c2 c7 u8
state established dst 10.9/16 cgroup != {cgroup} -> c2 s2 u2
state time-wait not cgroup {cgroup} -> none | c8: it is in no cgroup
state listening not autobound -> l1 l2 l3 l4 l5 l6 l7
state established not autobound dst 127/8 -> c1 c3 c4 c9 s1 s3 s4 u1 u3 | c1 c3 c4 c9 u1 u3: accepted ones are neither
dport = :22 or sport = :22 ; dport = :22 | sport = :22 ; '( dport = :22 or sport = :22 )' -> c2 c7 l1 s2 s7
dport = :22 || dport = :443 -> c2 c6 c7
dport = :22 && src 10.9.0.1:40007 ; dst 10.9.0.1 dport = :22 sport = :40007 -> c7
dst 127.0.0.1 AND dport = :5432 -> c1 c8 | ?: in capitals
!dport = 22 -> * - c2 c7 | ?: without spaces
! ( dst 127/8 or src 127/8 ) -> * - c0 c1 c3 c4 c8 c9 l4 l7 s1 s3 s4 s9 u1 u3 u7
not ( dst 127/8 and dport = :53 ) -> * - u1 u3
( ( dport = :22 ) ) -> c2 c7
(dport = :22 or sport = :22) -> c2 c7 l1 s2 s7 | ?: without spaces
( dport = :22 or sport = :22 ) and not dst 10.9.0.1 -> l1
( dport = :22 or dport = :80 ) ( src 127/8 or src 10/8 ) -> c2 c3 c4 c7
( dst 127.0.0.53 and dport = :53 ) or ( src [::1] and sport = :443 ) -> s6 u1 u3
dport = :22 and sport = :40002 or dport = :443 ; dport = :443 or ( dport = :22 and sport = :40002 ) -> c2 c6
dport = :443 or dport = :22 and sport = :40002 -> refused | c2: from left to right
dst 127.0.0.53 dport = :53 or dst [::1] dport = :443 -> refused | c6: from left to right
dport neq 22 and dport != 53 and dport != 80 and dport != 0 and src 127/8 -> c0 c1 c8 c9 s1 s3 s4 s9
dport >= 40001 dport <= 40003 -> s1 s2 s3
dport = :22 or ; ( ) ; port = :22 -> refused

state established -> * - c0 c7 c8 l1 l2 l3 l4 l5 l6 l7 s7 s9 u5 u6 u7
state estab dport = :22 -> c2 | ?: shown, not taken
state established '( dport = :ssh or sport = :ssh )' -> c2 s2
state ESTABLISHED dst 127.0.0.53 -> u1 u3
state listening -> l1 l2 l3 l4 l5 l6 l7
state LISTEN -> l1 l2 l3 l4 l5 l6 l7 | ?: shown, not taken
state listening src 0.0.0.0 -> l1 l6
state listening sport lt :1024 -> l1 l2 l3
state time-wait ; state TIME-WAIT dst 127.0.0.1:5432 ; -tan state time-wait -> c8
state close-wait -> s7
state unconn sport = :68 -> u5 | ?: shown, not taken
state closed sport = :68 -> u5
state unconnected sport lt :69 -> u5 u7
state fin-wait-2 dport = :22 -> c7
state syn-sent -> c0
state syn-recv ; state syn-rcv -> s9
state connected dport = :53 ; -u dport = :53 ; dport = :53 -u -> u1 u3 u4
state synchronized -> * - c0 l1 l2 l3 l4 l5 l6 l7 u5 u6 u7
state bucket -> c8 s9
state connected exclude syn-recv dst 127.0.0.1 -> c1 c8 s1 s3 s4 | ?: since 6.8 with SYN-RECV
state big -> * - c8 s9 | ?: since 6.8 with SYN-RECV
state all dport = :5432 ; -a exclude listening dport = :5432 -> c1 c8
state established,close-wait src 10.9.0.1:22 -> s2 s7 | ?: one state a word
state established state listening sport = :22 -> l1 s2
state time-wait state close-wait -> c8 s7
state connected exclude established -> c0 c7 c8 s7 s9
state all exclude listening exclude time-wait -> * - c8 l1 l2 l3 l4 l5 l6 l7
state synchronized exclude time-wait dport = :5432 ; exclude time-wait dport = :5432 -> c1
exclude established src 127.0.0.1 -> c0 l4 | c0 c8 l4: TIME-WAIT by name alone
exclude listening dport = :5432 -> c1 | c1 c8: TIME-WAIT by name alone
exclude established,listening dport = :22 -> c7 | ?: one state a word
exclude established state listening sport = :22 -> l1 | l1 s7: from left to right
exclude all sport = :22 -> refused | s2 s7: it leaves all but few
excl listening sport = :22 -> refused | s2 s7: short, in no manual
State established dport = :22 -> c2 | ?: in capitals
state ; state nosuch ; state established and dport = :22 ; dport = :22 state established -> refused
-t dport = :53 ; -t state unconnected ; -4 dst 127.0.0.2 -> none
-t4 src 127/8 -> c0 c1 c4 c8 c9 l4 l7 s1 s9
-6 -> c3 c5 c6 l2 l3 l5 s3 s4 s5 s6 u3 u4 u6
-u4 dport = :53 -> u1
-tuan dport = :22 -> c2 c7
-tan state established dport = :22 ; -n -t state established dport = :22 -> c2
-t sport = :22 -4 -> l1 s2 s7
-4 state listening -> l1 l4 l6 l7
-u state unconnected -> u5 u6 u7
-6 dst 127.0.0.53 -> u3 | ?: no v4 address there
-46 dport = :53 -> u1 u3 u4 | u3 u4: the last one counts
--tcp --ipv6 dport = :6379 -> c5
-l -> refused | ?: write state listening
"""

Address = tuple[str, int]
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM


class Scene:
    """l1 listens, c1 is a client and s1 the server's side of the same connection, u1 is of UDP. A port of 0 is left for
    the kernel to choose, from 60000 on.
    """

    LIFE = 20  # seconds: some of the sockets would go after 60

    def __init__(self) -> None:
        world.new_network()
        with open("/proc/sys/net/ipv4/ip_local_port_range", "w", encoding="ascii") as file:
            file.write("60000 60999")
        add_v6_address("fd00::1")
        self._names: dict[tuple[str, ...], str] = {}
        self.cgroup, self._cleanup = "", ExitStack()
        self.close = self._cleanup.close
        with suppress(OSError):  # no cgroup2 here, or not permitted
            self.cgroup = self._cleanup.enter_context(new_cgroup())
        self._sockets = self._cleanup.enter_context(Sockets())
        self._make_tcp()
        self._make_udp()
        eventually(lambda: here(self, ["-a"]) == self.expected("*"), "all the sockets, each in its state")
        self.end = time.monotonic() + self.LIFE

    def named(self, rows: Iterable[Iterable[str]]) -> str:
        return " ".join(sorted(self._names.get(tuple(row), "unknown") for row in rows)) or "none"

    def expected(self, rows: str) -> str:
        """What the table says, as `named` writes it."""
        return " ".join(sorted({*self._names.values()} - {*rows.split()})) if rows.startswith("*") else rows

    def _make_tcp(self) -> None:
        l1, l2, l3 = (self._listen(*each) for each in (("l1", "0.0.0.0", 22), ("l2", "::", 80), ("l3", "::", 443)))
        l4, l5 = self._listen("l4", "127.0.0.1", 5432), self._listen("l5", "fd00::1", 6379)
        l6 = self._listen("l6", "0.0.0.0", 9100, device="lo")
        l7 = self._listen("l7", "127.0.0.4", 9004, backlog=0)
        self._pair("1", l4, ("127.0.0.1", 40001), ("127.0.0.1", 5432), mark=0x13)
        self._pair("2", l1, ("10.9.0.1", 40002), ("10.9.0.1", 22), mark=0x23)
        self._pair("3", l2, ("::ffff:127.0.0.1", 40003), ("::ffff:127.0.0.2", 80))
        self._pair("4", l2, ("127.0.0.1", 40004), ("127.0.0.3", 80), device="lo")
        self._pair("5", l5, ("fd00::1", 40005), ("fd00::1", 6379), mark=0x100)
        self._pair("6", l3, ("::1", 0), ("::1", 443))
        half = self._pair("7", l1, ("10.9.0.1", 40007), ("10.9.0.1", 22))  # FIN-WAIT-2 and CLOSE-WAIT
        half.shutdown(socket.SHUT_WR)
        eventually(lambda: state_of(half) == TcpState.FIN_WAIT2, "FIN_WAIT2")
        over = self._connect("c8", TCP, ("127.0.0.1", 40008), ("127.0.0.1", 5432))  # TIME-WAIT
        over.shutdown(socket.SHUT_WR)
        l4.accept()[0].close()
        assert over.recv(1) == b""
        over.close()
        l6.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
        waiting = self._connect("c9", TCP, ("127.0.0.1", 40009), ("127.0.0.5", 9100))
        self._name("s9", waiting.getpeername(), waiting.getsockname(), "lo")  # SYN-RECV
        first = self._bound(TCP, ("127.0.0.1", 0))  # it fills the queue, and is gone
        reset_on_close(first)
        first.connect(l7.getsockname())
        first.close()
        knocking = self._bound(TCP, ("127.0.0.1", 40000))  # SYN-SENT
        knocking.setblocking(False)
        knocking.connect_ex(l7.getsockname())
        self._name("c0", knocking.getsockname(), l7.getsockname())

    def _make_udp(self) -> None:
        self._connect("u1", UDP, ("127.0.0.1", 50001), ("127.0.0.53", 53), mark=0x13)
        self._connect("u2", UDP, ("10.9.0.1", 0), ("10.9.0.1", 123))
        self._connect("u3", UDP, ("::ffff:127.0.0.1", 50003), ("::ffff:127.0.0.53", 53))
        self._connect("u4", UDP, ("fd00::1", 50004), ("fd00::1", 53))
        self._name("u5", self._bound(UDP, ("0.0.0.0", 68)).getsockname())
        self._name("u6", self._bound(UDP, ("::", 546)).getsockname())
        self._name("u7", self._bound(UDP, ("127.0.0.53", 53), device="lo").getsockname(), device="lo")
        with inside(self.cgroup) if self.cgroup else nullcontext():
            self._connect("u8", UDP, ("10.9.0.1", 50008), ("10.9.0.1", 514))

    def _name(self, name: str, local: Address, peer: Address | None = None, device: str = "") -> None:
        """An end without a peer has the wildcard of its family there."""
        host, port = (peer or ("::" if ":" in local[0] else "0.0.0.0", 0))[:2]
        zone = f"%{device}" if device else ""
        self._names[plain_endpoint(f"{local[0]}{zone}:{local[1]}"), plain_endpoint(f"{host}:{port}")] = name

    def _bound(self, kind: int, address: Address, *, device: str = "", mark: int = 0) -> socket.socket:
        made = self._sockets.make(family_of(address[0]), kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if address == ("::", 443):
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if address[1]:
            made.bind(address)
        return made

    def _listen(self, name: str, host: str, port: int, *, device: str = "", backlog: int = 9) -> socket.socket:
        made = self._bound(TCP, (host, port), device=device)
        made.listen(backlog)
        self._name(name, (host, port), device=device)
        return made

    def _connect(self, name: str, kind: int, source: Address, target: Address, **options: Any) -> socket.socket:
        made = self._bound(kind, source, **options)
        made.connect(target)
        self._name(name, made.getsockname(), target, options.get("device", ""))
        return made

    def _pair(
        self, name: str, listener: socket.socket, source: Address, target: Address, **options: Any
    ) -> socket.socket:
        client = self._connect(f"c{name}", TCP, source, target, **options)
        server = self._sockets.keep(listener.accept()[0])
        self._name(f"s{name}", server.getsockname(), server.getpeername())
        return client


def _table() -> Iterator[tuple[str, str, str]]:
    """(expression, rows here, rows of ss)"""
    for line in filter(None, TABLE.splitlines()):
        expressions, _, answers = line.partition(" -> ")
        rows, _, difference = answers.partition(" | ")
        for expression in expressions.split(" ; "):
            yield expression, rows, difference.partition(":")[0] or rows


HERE = {expression: rows for expression, rows, _ in _table()}
THERE = {expression: rows for expression, _, rows in _table() if rows != "?"}


@pytest.fixture(scope="module")
def scenes() -> Iterator[list[Scene]]:
    scenes = [Scene()]
    yield scenes
    scenes.pop().close()


@pytest.fixture
def scene(scenes: list[Scene]) -> Scene:
    if time.monotonic() > scenes[0].end:
        scenes.pop().close()
        scenes.append(Scene())
    return scenes[0]


@pytest.mark.parametrize("expression", HERE)
def test_an_expression_selects_its_rows(scene: Scene, expression: str) -> None:
    assert here(scene, words_of(scene, expression)) == scene.expected(HERE[expression])


@pytest.mark.parametrize("expression", THERE)
def test_ss_shows_the_same_rows_but_for_the_reason_given(scene: Scene, expression: str) -> None:
    require_ss()
    assert there(scene, words_of(scene, expression)) == scene.expected(THERE[expression])


def words_of(scene: Scene, expression: str) -> list[str]:
    if "{cgroup}" in expression and not scene.cgroup:
        world.cannot("there is no cgroup2, or none may be made in it")
    if re.search("ssh|domain|ntp|http|postgresql", expression) and not os.path.exists("/etc/services"):
        world.cannot("there is no /etc/services (netbase) that names services")
    words = shlex.split(expression.replace("{cgroup}", scene.cgroup))
    return words if {"state", "exclude", "excl"} & {word.lower() for word in words} else ["-a", *words]


def here(scene: Scene, words: list[str]) -> str:
    """What the package finds, by the words of its own command line."""
    try:
        filters = filters_from(parse(["list", *words]))
        return scene.named(row_of(each)[-2:] for filter in filters for each in find_sockets(filter))
    except (ValueError, SystemExit):
        return "refused"


def there(scene: Scene, words: list[str]) -> str:
    protocols = [] if any(re.match("-[an46]*[tu]|--(tcp|udp)$", word) for word in words) else ["-tu"]
    done = subprocess.run(["ss", "-Hn", *protocols, *words], capture_output=True, text=True)
    if done.returncode:
        return "refused"
    return scene.named(map(plain_endpoint, line.split()[-2:]) for line in done.stdout.splitlines())
