"""Every public call as a value: how it is run against a kernel that is a function, and what came of it in one form.

A call is of one of four kinds. A LIST tells sockets as they come, a SET all of them in the end, a KILL gives each one
that it matched a verdict, a PROBE tells what is supported.
"""

from __future__ import annotations

import errno
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple, Optional, Union
from unittest import mock

import socklb
from socklb import (
    DestroyReport,
    NetworkNamespace,
    SocketFilter,
    SocklbError,
    destroy_sockets,
    dport,
    find_sockets,
    live_cookies,
    probe,
)
from socklb.cli import main
from socklb.states import state_word
from socklb.wire.request import IPPROTO_UDP, TCPDIAG_GETSOCK
from socklb.wire.socket_id import AF_INET, AF_INET6, SocketId

from ..fake_kernel import Answer, Datagram, FakeKernel, Living, Request, row, table, verdicts
from ..kernel.test_diag_verdicts import Own, probe_module

LIST, SET, KILL, PROBE = "list", "set", "kill", "probe"
DESTROYING = (KILL, PROBE)

Told = dict[Any, str]


class End(NamedTuple):
    """How a call ends: the class of its error as `socklb` has it (None without one), and its errno."""

    kind: Optional[type[SocklbError]] = None
    errno: Optional[int] = None

    @classmethod
    def of(cls, error: SocklbError | None) -> End:
        if error is None:
            return cls()
        public = next(kind for kind in type(error).__mro__ if getattr(socklb, kind.__name__, None) is kind)
        return cls(public, getattr(error, "errno", None))


GOOD = End()


class Ended(NamedTuple):
    """How a call ended (on the command line: with which exit code), and what it told.

    By cookie the state of a socket that was listed, or the verdict about it; by its label what a probe says. `often`
    are those that were told more than once.
    """

    end: End | int
    told: Told
    often: frozenset[int] = frozenset()

    @classmethod
    def telling(cls, end: End | int, told: Sequence[tuple[int, str]]) -> Ended:
        counts = Counter(cookie for cookie, _ in told)
        return cls(end, dict(told), frozenset(cookie for cookie, count in counts.items() if count > 1))


class Call(NamedTuple):
    """`right` is what it tells when nothing goes wrong.

    `so_far` is what it tells when its first or second dump or batch of destroys ends it, for each that it makes; a LIST
    may have told more by then.
    """

    kind: str
    run: Callable[[], Ended]
    make_world: Callable[[], World]
    right: Told
    so_far: Mapping[tuple[str, int], Told]
    as_end: Callable[[End, Told], End | int] = lambda end, told: end

    def against(self, fault: Callable[[Answer], Answer]) -> Ended:
        """What comes of it on a kernel with this fault. The laws that hold whatever the fault is are looked at here."""
        world = self.make_world()
        ended = self.on(FakeKernel(fault(world)))
        assert not ended.often
        if self.kind == KILL:
            said = {cookie for cookie, verdict in ended.told.items() if verdict == "destroyed"}
            assert said <= set(world.killed), "what is called destroyed is"
            assert set(world.killed) <= set(ended.told), "whoever died is in the report"
            assert set(ended.told) <= set(self.right), "whoever is not meant is not"
        if self.kind not in DESTROYING:
            assert ended.told.items() <= self.right.items()
        return ended

    def on(self, kernel: FakeKernel) -> Ended:
        with kernel.installed(), mock.patch.object(probe_module, "ThrowawaySocket", Own):
            return self.run()


# ------------------------------------------------------------------------------------------------ worlds


class TwoProtocols:
    """The same kernel, with other sockets for UDP."""

    def __init__(self, tcp: Sequence[bytes], udp: Sequence[bytes]) -> None:
        self._tcp, self._udp = Living(tcp), Living(udp)

    def __call__(self, requests: Sequence[Request]) -> Iterable[Datagram]:
        is_udp = requests[0].type != TCPDIAG_GETSOCK and requests[0].body.protocol == IPPROTO_UDP
        return (self._udp if is_udp else self._tcp)(requests)

    @property
    def rows(self) -> list[bytes]:
        """Those of TCP, which comes first."""
        return self._tcp.rows

    @property
    def killed(self) -> list[int]:
        return self._tcp.killed + self._udp.killed


class Throwaways:
    """The throw-away socket of each probe, beside another one. A listener is gone when it was destroyed."""

    killed: Sequence[int] = ()

    def __init__(self) -> None:
        self._closed: set[tuple[int, int]] = set()

    def __call__(self, requests: Sequence[Request]) -> Iterable[Datagram]:
        family, protocol = requests[0].body[:2]

        def destroy(id: SocketId, _: int) -> int:
            if id.cookie != Own.inode or (family, protocol) in self._closed:
                return errno.ENOENT
            if protocol != IPPROTO_UDP:
                self._closed.add((family, protocol))
            return 0

        return table([row(n, family=family, inode=n) for n in (1, Own.inode)], destroy)(requests)


World = Union[Living, TwoProtocols, Throwaways]

FEW = [row(1), row(2), row(3), row(4, family=AF_INET6), row(9, dport=81)]
UDP_ROWS = [row(21), row(22), row(24, family=AF_INET6), row(29, dport=81)]
TWINS = [row(1), row(5, sport=6000), row(6, sport=6000), row(7, sport=6000)]
MANY = [row(n) for n in range(100, 230)]


def few() -> World:
    return Living(FEW)


def two_protocols() -> World:
    return TwoProtocols(FEW, UDP_ROWS)


def twins() -> World:
    """It takes three rounds to destroy them: 7 hides 6, and that one hides 5."""
    return Living(TWINS)


def many() -> World:
    """More than two batches of 64."""
    return Living(MANY)


# --------------------------------------------------------------------------------------------- the calls

TCP, UDP = SocketFilter("tcp", dport(80)), SocketFilter("udp", dport(80))


def find(filter: SocketFilter) -> Ended:
    told: list[tuple[int, str]] = []
    try:
        told.extend((socket.cookie, state_word(socket.state)) for socket in find_sockets(filter))  # what came stays
    except SocklbError as error:
        return Ended.telling(End.of(error), told)
    return Ended.telling(GOOD, told)


def live() -> Ended:
    try:
        return Ended(GOOD, dict.fromkeys(live_cookies([NetworkNamespace.current()]), "alive"))
    except SocklbError as error:
        return Ended(End.of(error), {})


def destroy(filter: SocketFilter) -> Ended:
    audited: list[tuple[int, str]] = []
    report: DestroyReport | None
    try:
        report, end = destroy_sockets(filter, audit=lambda record: audited.append(_verdict(record))), GOOD
    except SocklbError as error:
        report, end = error.report, End.of(error)
    assert report is not None
    told = verdicts(report)
    assert audited == [(outcome.socket.cookie, outcome.verdict) for outcome in report.outcomes]
    return Ended(end, dict(told))


def run_probe() -> Ended:
    try:
        answers = probe()
    except SocklbError as error:
        return Ended(End.of(error), {})
    return Ended(
        GOOD, {f"{name}{4 if family == AF_INET else 6}": said.status for (name, family), said in answers.items()}
    )


def command(*words: str) -> Ended:
    """What a command's JSON tells, and its exit code."""
    out, complaints = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(complaints):
        code = main([*words, "--json"])
    value = json.loads(out.getvalue())
    assert ("error" in value) == bool(complaints.getvalue()) or words[0] == "probe"
    value.pop("error", None)
    if words[0] == "probe":
        return Ended(code, {label: said["status"] for label, said in value.items()})
    sockets = value.pop("sockets")
    if words[0] == "list":
        assert not value
        return Ended.telling(code, [(record["cookie"], record["state"]) for record in sockets])
    told = list(map(_verdict, sockets))
    counts = Counter(verdict for _, verdict in told)
    assert {name: value[name] for name in ("matched", *VERDICTS)} == {
        "matched": len(told),
        **{name: counts[name] for name in VERDICTS},
    }
    return Ended.telling(code, told)


VERDICTS = ("destroyed", "gone", "skipped", "failed")


def _verdict(record: Mapping[str, Any]) -> tuple[int, str]:
    return record["cookie"], record["outcome"]
