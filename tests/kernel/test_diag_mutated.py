"""Replies that were damaged on their way: the right outcome or a documented error, never an endless loop."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import InetSocket, SocketFilter, TcpState, destroy_sockets, find_sockets
from socklb.wire.request import IPPROTO_UDP, SOCK_DIAG_BY_FAMILY

from ..choices import Choices
from ..damage import KINDS
from ..fake_kernel import Datagram, FakeKernel, Living, Request, done_message, row_message, verdicts
from ..fuzz.targets import replies

plans = st.binary(max_size=80)
"""What is called, and what befalls the answers to it."""


class TestDamagedReplies:
    """`struct.error`, IndexError, KeyError and AssertionError never leave the package; no endless loop."""

    @given(plans)
    def test_find_sockets_gives_sockets_or_a_documented_error(self, plan: bytes) -> None:
        replies.find(Choices(plan))

    @given(plans)
    def test_destroy_sockets_reports_or_raises_with_the_report(self, plan: bytes) -> None:
        replies.destroy(Choices(plan))

    @pytest.mark.parametrize("filter", replies.FILTERS, ids=repr)
    def test_without_damage_everything_is_right(self, filter: SocketFilter) -> None:
        sockets = [InetSocket(row, filter.protocol) for row in replies.ROWS]
        meant = {one.cookie: _verdict(one) for one in sockets if filter.matches(one)}
        assert len(meant) > 1
        with FakeKernel(Living(replies.ROWS)).installed():
            assert sorted(one.cookie for one in find_sockets(filter)) == list(meant)
            assert verdicts(destroy_sockets(filter, allow_unbounded=True)) == meant


def _verdict(socket: InetSocket) -> str:
    listens_or_has_no_peer = socket.state not in (TcpState.ESTABLISHED, TcpState.CLOSE)
    if socket.protocol == IPPROTO_UDP:
        listens_or_has_no_peer = socket.state != TcpState.ESTABLISHED
    return "skipped" if listens_or_has_no_peer else "destroyed"


class TestDamage:
    """Each kind of it can change an answer, or nothing above could fail."""

    @pytest.mark.parametrize("kind", range(len(KINDS)))
    def test_of_every_kind_changes_something(self, kind: int) -> None:
        request = Request(SOCK_DIAG_BY_FAMILY, 0, 1, b"")
        rows = b"".join(row_message(request, one) for one in replies.ROWS)
        whole: list[Datagram] = [rows, done_message(request)]
        random = Random(kind)
        changed = 0
        for _ in range(20):
            datagrams = whole.copy()
            KINDS[kind](Choices(bytes(random.randrange(256) for _ in range(40))))(datagrams, [request])
            changed += datagrams != whole
        assert changed > 5
