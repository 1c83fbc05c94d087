"""Replies that were damaged on their way: the right outcome or a documented error, never an endless loop."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from socklb import (
    DestroyReport,
    InetSocket,
    MalformedMessage,
    SocketFilter,
    SocklbError,
    cgroup,
    destroy_sockets,
    dport,
    find_sockets,
)
from socklb.wire.attributes import encode_value
from socklb.wire.netlink import NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, encode_message
from socklb.wire.request import SOCK_DIAG_BY_FAMILY
from socklb.wire.socket_id import AF_INET6

from ..fake_kernel import Answer, Datagram, FakeKernel, Living, Request, row
from .test_diag_faults import BOTH_FAMILIES, TCP, tries, verdicts

ATTRIBUTES = [encode_value("shutdown", 0), encode_value("cgroup_id", 7), encode_value("cong", "cubic")]
ROWS = [
    row(1, attributes=ATTRIBUTES),
    row(2, sport=5000, attributes=ATTRIBUTES),
    row(3, sport=5000, attributes=ATTRIBUTES),  # a twin
    row(4, family=AF_INET6, attributes=ATTRIBUTES),
    row(5, dport=81),
]

filters = st.sampled_from([TCP, BOTH_FAMILIES, SocketFilter("tcp", dport(80) & cgroup(7))])

# ------------------------------------------------------------------------------------------------- damage

Damage = Callable[["list[Datagram]"], None]
"""Does something to the datagrams of one answer; where, it draws beforehand, as a number of any size."""

anywhere = st.integers(0, 0xFFFF)
foreign: st.SearchStrategy[Datagram] = st.one_of(
    st.binary(max_size=40),
    st.builds(
        encode_message,
        st.sampled_from([NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN, SOCK_DIAG_BY_FAMILY]),
        st.just(0) | anywhere,
        st.integers(0, 9),
        st.binary(max_size=80),
    ),
    st.sampled_from([errno.ENOBUFS, errno.EINTR, errno.EIO]).map(lambda code: OSError(code, "recvmsg")),
    st.just(socket.timeout("timed out")),
)


def on_bytes(change: Callable[[bytes, int], Datagram], which: int, at: int) -> Damage:
    def damage(datagrams: list[Datagram]) -> None:
        places = [index for index, one in enumerate(datagrams) if isinstance(one, bytes) and one]
        if places:
            place = places[which % len(places)]
            one = datagrams[place]
            assert isinstance(one, bytes)
            datagrams[place] = change(one, at % len(one))

    return damage


def on_order(change: Callable[[list[Datagram], int], object], which: int) -> Damage:
    def damage(datagrams: list[Datagram]) -> None:
        if datagrams:
            change(datagrams, which % len(datagrams))

    return damage


def changed_to(value: int) -> Callable[[bytes, int], Datagram]:
    return lambda one, at: one[:at] + bytes([value]) + one[at + 1 :]


damages: st.SearchStrategy[Damage] = st.one_of(
    st.builds(on_bytes, st.builds(changed_to, st.integers(0, 255)), anywhere, st.integers(0, 40) | anywhere),
    st.builds(on_bytes, st.just(lambda one, at: one[:at]), anywhere, anywhere),
    st.builds(on_bytes, st.just(lambda one, at: one[at:]), anywhere, anywhere),
    st.builds(on_bytes, st.just(lambda one, at: one[:at] + one), anywhere, anywhere),
    st.builds(on_bytes, st.just(lambda one, at: (one, at)), anywhere, anywhere),  # from another port
    st.builds(on_order, st.just(lambda many, at: many.pop(at)), anywhere),
    st.builds(on_order, st.just(lambda many, at: many.insert(at, many[at])), anywhere),
    st.builds(on_order, st.just(lambda many, at: many.append(many.pop(at))), anywhere),
    foreign.flatmap(lambda one: st.builds(on_order, st.just(lambda many, at: many.insert(at, one)), anywhere)),
)
plans = st.lists(st.lists(damages, max_size=3), min_size=1, max_size=4)
"""What befalls the answers to the first sends, one after another; the last of it befalls all later ones."""


def damaged(plan: Sequence[Sequence[Damage]], usual: Answer | None = None) -> Answer:
    usual = usual or Living(ROWS)
    sends = iter(range(1 << 20))

    def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
        datagrams = list(usual(requests))
        for damage in plan[min(next(sends), len(plan) - 1)]:
            damage(datagrams)
        return datagrams

    return answer


def read(socket: InetSocket) -> None:
    """Look at everything that a row tells."""
    assert repr(socket)
    _ = socket.interface, socket.expires_ms, socket.rqueue, socket.wqueue, socket.uid, socket.inode, socket.timer
    with suppress(MalformedMessage):
        _ = socket.attributes


class TestDamagedReplies:
    """`struct.error`, IndexError, KeyError and AssertionError never leave the package; no endless loop."""

    @given(plan=plans, filter=filters)
    def test_find_sockets_gives_sockets_or_a_documented_error(
        self, plan: Sequence[Sequence[Damage]], filter: SocketFilter
    ) -> None:
        with FakeKernel(damaged(plan)).installed() as kernel:
            with suppress(SocklbError):
                for one in find_sockets(filter):
                    read(one)
            assert len(kernel.sent) <= 3 * len(filter.families)

    @given(plan=plans, filter=filters)
    def test_destroy_sockets_reports_or_raises_with_the_report(
        self, plan: Sequence[Sequence[Damage]], filter: SocketFilter
    ) -> None:
        with FakeKernel(damaged(plan)).installed() as kernel:
            report: DestroyReport | None
            try:
                report = destroy_sockets(filter)
            except SocklbError as error:
                report = error.report
            assert report is not None
            for outcome in report.outcomes:
                read(outcome.socket)
            killed = {cookie for cookie, verdict in verdicts(report).items() if verdict == "destroyed"}
            assert killed <= set(tries(kernel))
            # Each round but the last destroys something, and takes a dump and a batch, each at most thrice.
            assert len(kernel.sent) <= 3 * (len(filter.families) + 1) * (len(killed) + 2)

    @given(filter=filters)
    def test_without_damage_everything_is_right(self, filter: SocketFilter) -> None:
        meant = {1, 2, 3} if filter is TCP else {1, 2, 3, 4}
        with FakeKernel(damaged([[]])).installed():
            assert {one.cookie for one in find_sockets(filter)} == meant
            assert verdicts(destroy_sockets(filter)) == dict.fromkeys(meant, "destroyed")
