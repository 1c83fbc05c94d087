"""Every public call that talks to the kernel, as a value: run against a fake kernel, with its result in one form."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from importlib import import_module
from typing import Any, NamedTuple, Optional
from unittest import mock

import socklb
from socklb import (
    Backend,
    BackendTable,
    NetworkNamespace,
    NotPermitted,
    NotSupported,
    Report,
    SocketFilter,
    SocklbError,
    TerminationLoop,
    destroy_sockets,
    dport,
    find_sockets,
    live_cookies,
    probe,
    terminate_connections,
)
from socklb.cli import main
from socklb.states import state_word
from socklb.termination.loop import Pass
from socklb.wire.request import IPPROTO_UDP, SOCK_DIAG_BY_FAMILY
from socklb.wire.socket_id import AF_INET, AF_INET6

from ..fake_kernel import Answer, Datagram, FakeKernel, Request, StatefulTable, done_message, row
from ..sockets import socket_of

DUMP, LOOK_UP, DESTROY = "dump", "look-up", "destroy"

Reported = dict[Any, str]
"""By cookie the state of a socket that was listed, or the verdict about it; by label what a probe says."""


class End(NamedTuple):
    """How a call ends: the public class of its error (None without one), and its errno."""

    kind: Optional[type[SocklbError]] = None
    errno: Optional[int] = None

    @classmethod
    def of(cls, error: BaseException | None) -> End:
        if error is None:
            return cls()
        public = next(kind for kind in type(error).__mro__ if getattr(socklb, kind.__name__, None) is kind)
        return cls(public, getattr(error, "errno", None))


GOOD = End()


class Result(NamedTuple):
    """How a call ended (a command: with which exit code), and what it reported."""

    end: End | int
    pairs: Sequence[tuple[Any, str]]

    @property
    def reported(self) -> Reported:
        return dict(self.pairs)


class TcpSockets(StatefulTable):
    """A table without UDP."""

    def __call__(self, requests: Sequence[Request]) -> Iterable[Datagram]:
        is_udp = requests[0].type == SOCK_DIAG_BY_FAMILY and requests[0].body.protocol == IPPROTO_UDP
        return [done_message(requests[0])] if is_udp else super().__call__(requests)


class NoSocket(nullcontext[None]):
    """Stands in for the socket that a probe makes and destroys."""

    port, inode = 40000, 77

    def __init__(self, family: int, protocol: int) -> None:
        super().__init__()


class Call(NamedTuple):
    """`right` is what it reports about a kernel with these rows when nothing goes wrong.

    `so_far`: what it reports when its first or second dump, or batch of look-ups or destroys, ends it, for each that it
    makes. (A list may have reported more of that dump.)
    """

    run: Callable[[], Result]
    rows: Sequence[bytes]
    right: Reported
    so_far: Mapping[tuple[str, int], Reported]
    as_end: Callable[[End, Reported], End | int] = lambda end, reported: end
    kernel: type[StatefulTable] = TcpSockets

    @property
    def destroys(self) -> bool:
        """Whether it gives verdicts."""
        return "destroyed" in self.right.values()

    def against(self, fault: Callable[[Answer], Answer]) -> Result:
        """Its result on a kernel with this fault. What holds whatever the fault is checked here."""
        kernel = self.kernel(self.rows)
        result = self.on(fault(kernel))
        if self.destroys:
            destroyed = {cookie for cookie, verdict in result.reported.items() if verdict == "destroyed"}
            assert destroyed <= set(kernel.killed), "what is reported as destroyed was destroyed"
            assert set(kernel.killed) <= set(result.reported), "every destroyed socket is in the report"
        assert set(result.reported) <= set(self.right), "no other socket is reported"
        assert len(result.reported) == len(result.pairs), "nothing is reported twice"
        return result

    def on(self, answer: Answer) -> Result:
        probe_module = import_module("socklb.engine.probe")  # the package has the function by that name
        with (
            FakeKernel(answer).installed(),
            mock.patch.object(probe_module, "ProbeSocket", NoSocket),
            mock.patch.object(probe_module, "can_destroy", return_value=False),
        ):
            return self.run()

    def check(self, result: Result, end: End, reported: Reported) -> None:
        assert (result.end, result.reported) == (self.as_end(end, reported), reported)


# ----------------------------------------------------------------------------------------- running a call

TCP, UDP = SocketFilter("tcp", dport(80)), SocketFilter("udp", dport(80))
_BACKENDS = [
    Backend.parse(f"{address}:80/{protocol}") for protocol in ("TCP", "UDP") for address in ("10.0.0.5", "[fd00::5]")
]


def verdicts_in(report: Report | None) -> Reported:
    """By cookie; the sums are those of the verdicts, for the whole and for the backends together."""
    assert report is not None
    verdicts = {socket_of(outcome).cookie: outcome.verdict for outcome in report.outcomes}
    assert len(verdicts) == len(report.outcomes) == report.matched
    assert report.counts._asdict() == {name: Counter(verdicts.values())[name] for name in report.counts._fields}
    for parts in (report.backends, report.namespaces):
        assert not parts or tuple(report.counts) == tuple(map(sum, zip(*parts.values())))
    return verdicts


def value_or_report(call: Callable[[], Any]) -> tuple[Any, End]:
    """What it returns, or the report of its error (None if it has none); and how it ended.

    A termination puts the errors of single namespaces into its report: that of the only one is how it ended.
    """
    try:
        value, end = call(), GOOD
    except SocklbError as error:
        value, end = error.report, End.of(error)
    if isinstance(value, Report) and value.errors and len(value.namespaces) == 1:
        end = End.of(*value.errors.values())
    return value, end


def one_pass(backends: Sequence[Backend], namespaces: str | list[NetworkNamespace]) -> Any:
    """The report of the loop's only pass, in which all these backends go down."""
    passes: list[Pass] = []
    table = BackendTable()
    cutting = TerminationLoop(table, namespaces=namespaces, second_pass=None, on_pass=passes.append)
    for backend in backends:
        table.upsert(backend)
    table.replace([])
    cutting.stop()
    cutting.run()
    ((_, report, error, *_),) = passes
    if error is not None:
        raise error
    return report


def find(filter: SocketFilter) -> Result:
    pairs: list[tuple[int, str]] = []
    _, end = value_or_report(lambda: pairs.extend((one.cookie, state_word(one.state)) for one in find_sockets(filter)))
    return Result(end, pairs)  # what came before an error, too


def live() -> Result:
    cookies, end = value_or_report(lambda: live_cookies([NetworkNamespace.current()]))
    return Result(end, [(cookie, "alive") for cookie in cookies or ()])


def destroy(filter: SocketFilter) -> Result:
    audited: list[tuple[int, str]] = []
    report, end = value_or_report(
        lambda: destroy_sockets(filter, audit=lambda record: audited.append((record["cookie"], record["outcome"])))
    )
    assert audited == list(verdicts_in(report).items())
    return Result(end, audited)


def terminate(call: Callable[..., Any]) -> Result:
    report, end = value_or_report(lambda: call(_BACKENDS, namespaces=[NetworkNamespace.current()]))
    return Result(end, list(verdicts_in(report).items()))


def run_probe() -> Result:
    supports, end = value_or_report(probe)
    supports = (supports or {}).items()
    return Result(end, [(f"{name}{4 if family == AF_INET else 6}", one.status) for (name, family), one in supports])


def command(*words: str) -> Result:
    """The exit code, and what the JSON says."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        code = main([*words, "--json"])
    value = json.loads(out.getvalue())
    assert ("error" in value) == bool(errors.getvalue())
    what = "state" if words[0] == "list" else "outcome"
    return Result(code, [(record["cookie"], record[what]) for record in value["sockets"]])


def as_exit_code(end: End, reported: Reported) -> int:
    if end.kind is None:
        return 1 if "failed" in reported.values() else 0
    return 4 if end.kind is NotPermitted else 3 if end.kind is NotSupported else 1


# ---------------------------------------------------------------------------------------------- the table


def each(cookies: Iterable[Any], what: str) -> Reported:
    return dict.fromkeys(cookies, what)


def ends_at_once(matched: Iterable[int]) -> dict[tuple[str, int], Reported]:
    return {(DUMP, 1): {}, **dict.fromkeys(((LOOK_UP, 1), (DESTROY, 1)), each(matched, "failed"))}


FEW = [row(1), row(2), row(3), row(4, family=AF_INET6), row(9, dport=81)]
MANY = [row(n) for n in range(100, 230)]  # more than two batches of 64
TWINS = [row(1), row(5, sport=6000), row(6, sport=6000), row(7, sport=6000)]  # 7 hides 6, and that one hides 5
PROBED = [row(n, family=AF_INET if n < 3 else AF_INET6, inode=NoSocket.inode) for n in range(1, 5)]  # one after another

_FEW, _MANY = (1, 2, 3, 4), range(100, 230)
_LISTED, _DESTROYED = each(_FEW, "ESTABLISHED"), each(_FEW, "destroyed")
_FIRST_ROUND = {**each((1, 7), "destroyed"), **each((5, 6), "failed")}
_FIRST_BATCH = {**each(_MANY, "failed"), **each(_MANY[:64], "destroyed")}
_OF_BOTH_PROTOCOLS = {**ends_at_once(_FEW), (DUMP, 2): _DESTROYED}  # TCP comes first, and there is no UDP
_SUPPORTED = each(("tcp4", "tcp6", "udp4", "udp6"), "supported")

FIND = Call(lambda: find(TCP), FEW, _LISTED, {(DUMP, 1): {}})
FIND_IN_TWO_DUMPS = Call(  # one a family
    lambda: find(UDP), FEW, _LISTED, {(DUMP, 1): {}, (DUMP, 2): each((1, 2, 3), "ESTABLISHED")}, kernel=StatefulTable
)
DESTROY_FEW = Call(lambda: destroy(TCP), FEW, _DESTROYED, ends_at_once(_FEW))
DESTROY_IN_ROUNDS = Call(
    lambda: destroy(TCP),
    TWINS,
    each((1, 5, 6, 7), "destroyed"),
    {**ends_at_once((1, 5, 6, 7)), **dict.fromkeys(((DUMP, 2), (LOOK_UP, 2), (DESTROY, 2)), _FIRST_ROUND)},
)
DESTROY_IN_BATCHES = Call(
    lambda: destroy(TCP),
    MANY,
    each(_MANY, "destroyed"),
    {**ends_at_once(_MANY), **dict.fromkeys(((LOOK_UP, 2), (DESTROY, 2)), _FIRST_BATCH)},
)

CALLS: dict[str, Call] = {
    "find_sockets": FIND,
    "list": Call(lambda: command("list", "--tcp", "dport = 80"), FEW, _LISTED, {(DUMP, 1): {}}, as_exit_code),
    "live_cookies": Call(live, FEW, each((*_FEW, 9), "alive"), {(DUMP, 1): {}, (DUMP, 2): {}}),
    "destroy_sockets": DESTROY_FEW,
    "destroy": Call(lambda: command("destroy", "dport = 80"), FEW, _DESTROYED, _OF_BOTH_PROTOCOLS, as_exit_code),
    "terminate_connections": Call(lambda: terminate(terminate_connections), FEW, _DESTROYED, _OF_BOTH_PROTOCOLS),
    "TerminationLoop": Call(lambda: terminate(one_pass), FEW, _DESTROYED, _OF_BOTH_PROTOCOLS),
    "terminate": Call(
        lambda: command("terminate", "--netns", "current", *map(str, _BACKENDS)),
        FEW,
        _DESTROYED,
        _OF_BOTH_PROTOCOLS,
        as_exit_code,
    ),
    "probe": Call(run_probe, PROBED, _SUPPORTED, {(DUMP, 1): {}, (DESTROY, 1): {}}, kernel=StatefulTable),
}
"""One for each public name that talks to the kernel, and one for each command that lists or destroys."""
