"""What other kernels do otherwise (Linux 4.9 to 5.10), on a fake kernel with their manners."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

import pytest

from socklb import NotSupported, Report, SocketFilter, TcpState, cgroup, destroy_sockets, dport, find_sockets
from socklb.wire.bytecode import INET_DIAG_BC_CGROUP_COND, decode_program
from socklb.wire.netlink import NLM_F_CAPPED, NLMSG_ERROR, Ack, encode_ack, encode_message
from socklb.wire.reply import decode_msg
from socklb.wire.socket_id import SocketId

from .. import this_kernel
from ..fake_kernel import Answer, Datagram, FakeKernel, Request, StatefulTable, row, table, verdicts
from ..sockets import Sockets, socket_of

TCP = SocketFilter("tcp", dport(80))
TIME_WAIT_TIMER = 3


class MiniSockets(StatefulTable):
    """Destroying a time-wait mini-socket answers EOPNOTSUPP. Each connection becomes one, or goes, when `closing` says
    so, which is asked just before it is destroyed.
    """

    def __init__(self, rows: Sequence[bytes], closing: Callable[[int], bool], *, stays: bool = True) -> None:
        super().__init__(rows)
        self._closing, self._becomes_one = closing, stays

    def _destroy(self, id: SocketId, family: int) -> int:
        for n, one in enumerate(self.rows):
            if decode_msg(one).id == id and self._closing(id.cookie):
                if self._becomes_one:
                    self.rows[n] = bytes([one[0], TcpState.TIME_WAIT, TIME_WAIT_TIMER, *one[3:]])
                else:
                    del self.rows[n]
                return errno.EOPNOTSUPP
        return super()._destroy(id, family)


class TestMiniSockets:
    """Linux 4.9 and 5.10: one refusal of one socket ends nothing."""

    @pytest.mark.parametrize("stays", [True, False], ids=["becomes one", "gone"])
    def test_a_socket_that_closes_by_itself_is_gone(self, stays: bool) -> None:
        kernel = MiniSockets([row(n) for n in range(1, 201)], lambda cookie: cookie % 5 == 0, stays=stays)
        with FakeKernel(kernel).installed():
            said = verdicts(destroy_sockets(TCP))
        assert said == {n: "gone" if n % 5 == 0 else "destroyed" for n in range(1, 201)}

    def test_one_that_matches_all_the_same_is_failed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(import_module("socklb.engine.probe"), "can_destroy", lambda *_: True, raising=False)
        kernel = MiniSockets([row(1), row(2)], lambda cookie: cookie == 1)
        filter = SocketFilter("tcp", dport(80), states=["established", "time-wait"])
        with FakeKernel(kernel).installed():
            report = destroy_sockets(filter)
        assert {socket_of(o).cookie: (o.verdict, o.error) for o in report.outcomes} == {
            1: ("failed", errno.EOPNOTSUPP),
            2: ("destroyed", None),
        }

    def test_if_the_probes_own_socket_is_refused_too_the_kernel_cannot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(import_module("socklb.engine.probe"), "can_destroy", lambda *_: False, raising=False)
        refusing = table([row(1), row(2)], lambda *_: errno.EOPNOTSUPP)
        with FakeKernel(refusing).installed(), pytest.raises(NotSupported, match="CONFIG_INET_DIAG_DESTROY") as caught:
            destroy_sockets(TCP)
        report: Report = caught.value.report
        assert verdicts(report) == {1: "failed", 2: "failed"}


class KeepsOrphans(StatefulTable):
    """Destroying a connection that nobody holds answers 0, stops its timer, and leaves it for good."""

    def _destroy(self, id: SocketId, family: int) -> int:
        for one in self.rows:
            message = decode_msg(one)
            if message.id == id and not message.inode and message.state in (4, 9, 11):
                return 0
        return super()._destroy(id, family)


class TestOrphans:
    """Linux 5.10: a closing connection without an owner is spared."""

    ROWS = (
        *(row(state, state=state) for state in (TcpState.FIN_WAIT1, TcpState.LAST_ACK, TcpState.CLOSING)),
        row(21, state=TcpState.FIN_WAIT1, inode=4711),
        row(22, inode=4712),
    )

    def report(self, kernel: StatefulTable, monkeypatch: pytest.MonkeyPatch, keeps: bool) -> Report:
        monkeypatch.setattr(import_module("socklb.engine.probe"), "keeps_orphans", lambda: keeps, raising=False)
        with FakeKernel(kernel).installed():
            return destroy_sockets(TCP)

    def test_what_is_reported_as_destroyed_is_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kernel = KeepsOrphans(self.ROWS)
        report = self.report(kernel, monkeypatch, keeps=True)
        assert {socket_of(o).cookie: o.reason for o in report.outcomes if o.verdict == "skipped"} == dict.fromkeys(
            (TcpState.FIN_WAIT1, TcpState.LAST_ACK, TcpState.CLOSING), "no owner"
        )
        left = {decode_msg(one).id.cookie for one in kernel.rows}
        assert {socket_of(o).cookie for o in report.outcomes if o.verdict == "destroyed"} == {21, 22}
        assert left == {TcpState.FIN_WAIT1, TcpState.LAST_ACK, TcpState.CLOSING}

    def test_where_the_kernel_removes_them_they_die(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.report(StatefulTable(self.ROWS), monkeypatch, keeps=False).destroyed == 5

    @pytest.mark.kernel
    def test_which_of_the_two_is_tried_on_a_connection_of_its_own(
        self, network: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        probe = import_module("socklb.engine.probe")
        keeps_orphans = probe.keeps_orphans.__wrapped__  # without its memory
        assert keeps_orphans() is not this_kernel.destroys_orphans()
        assert list(find_sockets(SocketFilter("tcp", states="all"))) == [], "nothing of it is left"
        monkeypatch.setattr("socklb.kernel.diag.DiagSocket.destroy", lambda *_: [0])  # as if the kernel did nothing
        assert keeps_orphans() is True

    @pytest.mark.kernel
    def test_one_is_destroyed_and_gone_or_spared_and_there(self, sockets: Sockets) -> None:
        client, _ = sockets.fin_wait1("127.0.0.2", 80)
        client.close()
        (outcome,) = destroy_sockets(TCP).outcomes
        dies = this_kernel.destroys_orphans()
        assert (outcome.verdict, outcome.reason) == (("destroyed", "") if dies else ("skipped", "no owner"))
        assert len(list(find_sockets(TCP))) == (0 if dies else 1)


class TestCappedWithoutTheFlag:
    """Linux 4.3 to 4.11 cap an acknowledgement and do not say so, and have no cgroup condition."""

    @staticmethod
    def old(inner: Answer) -> Answer:
        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            (request,) = requests
            ops = {instruction.code for _, instruction in decode_program(request.program)}
            if INET_DIAG_BC_CGROUP_COND not in ops:
                return inner(requests)
            flags, payload = encode_ack(
                Ack(errno.EINVAL, request.type, request.flags, request.sequence, 0, b"", (), 16 + len(request.payload))
            )
            assert flags == NLM_F_CAPPED
            return [encode_message(NLMSG_ERROR, 0, request.sequence, payload)]

        return answer

    def test_the_errno_is_understood_and_the_next_way_is_tried(self) -> None:
        rows: list[Any] = [row(n, attributes=[(21, n.to_bytes(8, sys.byteorder))]) for n in (1, 2)]
        with FakeKernel(self.old(table(rows))).installed():
            assert [s.cookie for s in find_sockets(SocketFilter("tcp", dport(80) & cgroup(2)))] == [2]
