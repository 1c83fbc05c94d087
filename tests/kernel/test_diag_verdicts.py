"""Which verdict each socket gets, and what is sent for it: the public calls, against a kernel that is a function."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from importlib import import_module
from math import ceil
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import KernelError, SocketFilter, Support, TcpState, destroy_sockets, probe, sport
from socklb.engine.destroy import ANSWER_LOST, ONLY_BOUND, SHARED_ADDRESS
from socklb.wire.reply import decode_msg
from socklb.wire.request import SOCK_DESTROY
from socklb.wire.socket_id import AF_INET, AF_INET6, SocketId

from ..fake_kernel import Answer, Datagram, FakeKernel, Living, Request, done_message, row, table, tries
from .test_diag import raiser
from .test_diag_faults import BOTH_FAMILIES, TCP, destroyed

UDP_SERVERS = SocketFilter("udp", sport(53), family=AF_INET)


probe_module = import_module("socklb.engine.probe")  # in the package that name is the function


class TestNoEntry:
    """ENOENT on a destroy says little: dump again, and try again as long as the last round destroyed something."""

    def test_a_socket_that_closed_by_itself_is_gone(self) -> None:
        rows = [row(n) for n in range(3)]

        def destroy(id: SocketId, family: int) -> int:
            if len(rows) == 3:
                del rows[1]
            return errno.ENOENT if id.cookie == 1 else 0

        said, kernel = destroyed(table(rows, destroy))
        assert said == {0: "destroyed", 1: "gone", 2: "destroyed"}
        assert (tries(kernel), len(kernel.dumps)) == ({0: 1, 1: 1, 2: 1}, 2)

    @pytest.mark.parametrize("step", [1, -1])
    def test_a_socket_that_moved_and_is_still_meant_is_destroyed_where_it_is_now(self, step: int) -> None:
        rows = [row(1, sport=5000)]

        def destroy(id: SocketId, family: int) -> int:
            if id.sport == 5000 + 2 * step:
                return 0
            rows[:] = [row(1, sport=id.sport + step)]
            return errno.ENOENT

        said, kernel = destroyed(table(rows, destroy))
        assert (said, tries(kernel)) == ({1: "destroyed"}, {1: 3})

    def test_a_socket_that_moves_on_and_on_is_not_followed_for_ever(self) -> None:
        rows = [row(1, sport=5000)]

        def destroy(id: SocketId, family: int) -> int:
            rows[:] = [row(1, sport=id.sport + 1)]
            return errno.ENOENT

        said, kernel = destroyed(table(rows, destroy))
        assert (said, tries(kernel)) == ({1: "gone"}, {1: 4})

    @pytest.mark.parametrize(
        "successor",
        [row(9, sport=5000), row(1, sport=5000, dport=81)],
        ids=["address-taken-over", "connected-elsewhere"],
    )
    def test_its_address_with_another_cookie_is_another_socket_and_so_is_the_reverse(self, successor: bytes) -> None:
        rows = [row(1, sport=5000)]

        def destroy(id: SocketId, family: int) -> int:
            rows[:] = [successor]
            return errno.ENOENT

        said, kernel = destroyed(table(rows, destroy))
        assert (said, tries(kernel)) == ({1: "gone"}, {1: 1})

    @given(groups=st.lists(st.integers(1, 6), min_size=1, max_size=6))
    def test_twins_are_destroyed_one_after_another(self, groups: list[int]) -> None:
        rows = [row(100 * group + n, sport=5000 + group) for group, size in enumerate(groups) for n in range(size)]
        said, kernel = destroyed(Living(rows))
        assert said == {decode_msg(one).id.cookie: "destroyed" for one in rows}
        assert len(kernel.dumps) == max(groups), "a table without a hidden twin is not looked at again"
        assert max(tries(kernel).values()) == max(groups)

    @given(groups=st.lists(st.integers(1, 6), min_size=1, max_size=6), order=st.randoms(use_true_random=False))
    def test_what_answers_0_and_stays_is_never_tried_again(self, groups: list[int], order: Random) -> None:
        def server(cookie: int, group: int) -> bytes:
            return row(cookie, state=7, src=f"10.1.0.{group}", sport=53, dst="0.0.0.0", dport=0)

        rows = [server(100 * group + n, group) for group, size in enumerate(groups) for n in range(size)]
        order.shuffle(rows)
        first = {decode_msg(one).id.src: decode_msg(one).id.cookie for one in rows}  # what `Living` finds
        said, kernel = destroyed(Living(rows, stays=True), UDP_SERVERS, unconnected=True)
        assert {cookie for cookie, verdict in said.items() if verdict == "destroyed"} == set(first.values())
        assert {cookie for cookie, verdict in said.items() if verdict == "failed"} == set(said) - set(first.values())
        assert {tries(kernel)[cookie] for cookie in first.values()} == {1}

    @pytest.mark.parametrize("state", [TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, TcpState.LAST_ACK, TcpState.CLOSING])
    def test_still_there_without_progress_is_failed_with_the_reason(self, state: int) -> None:
        rows = [row(1, state=state), row(2, state=state)]
        with FakeKernel(table(rows, lambda one, family: errno.ENOENT)).installed() as kernel:
            report = destroy_sockets(TCP)
        assert {(o.verdict, o.reason, o.error) for o in report.outcomes} == {("failed", SHARED_ADDRESS, errno.ENOENT)}
        assert tries(kernel) == {1: 1, 2: 1}

    def test_a_connection_that_left_its_state_is_not_gone(self) -> None:
        """It was found established, and waits for its owner to close when it is looked for again."""
        rows = [row(1, sport=5000, state=TcpState.ESTABLISHED)]

        def destroy(id: SocketId, family: int) -> int:
            rows[:] = [row(1, sport=5000, state=TcpState.CLOSE_WAIT)]
            return errno.ENOENT

        with FakeKernel(table(rows, destroy)).installed():
            report = destroy_sockets(SocketFilter("tcp", sport(5000), states=["established"], family=AF_INET))
        assert [o[1:] for o in report.outcomes] == [("failed", SHARED_ADDRESS, errno.ENOENT)]

    @pytest.mark.parametrize("state", [TcpState.ESTABLISHED, TcpState.CLOSE])
    def test_one_that_only_holds_its_port_was_reset_or_is_only_bound(self, state: int) -> None:
        """The first is gone, the other was never anything else: the kernel destroys none without a peer."""
        rows = [row(1, sport=5000, state=state)]

        def destroy(id: SocketId, family: int) -> int:
            rows[:] = [row(1, sport=5000, state=TcpState.CLOSE)]
            return errno.ENOENT

        with FakeKernel(table(rows, destroy)).installed():
            report = destroy_sockets(SocketFilter("tcp", sport(5000), states=["established", "close"], family=AF_INET))
        only_bound = ("failed", ONLY_BOUND, errno.ENOENT)
        assert [o[1:] for o in report.outcomes] == [only_bound if state == TcpState.CLOSE else ("gone", "", None)]


class TestLostAnswers:
    """The batch is sent again, and what the first attempt destroyed answers ENOENT then: whose deed it was is lost."""

    def outcomes(self, rows: list[bytes], lost: int, dump: int = 0) -> dict[int, tuple[object, ...]]:
        """When the answers to the batch `lost` are, and the dump behind it ends with the errno `dump`."""
        kernel = Living(rows)
        batches: list[int] = []

        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            if requests[0].type != SOCK_DESTROY:
                return [done_message(requests[0], dump)] if dump and batches else kernel(requests)
            batches.append(len(requests))
            answers = list(kernel(requests))
            return [OSError(errno.ENOBUFS, "lost")] if len(batches) - 1 == lost else answers

        with FakeKernel(answer).installed():
            try:
                report = destroy_sockets(TCP)
            except KernelError as error:
                report = error.report
        return {outcome.socket.cookie: tuple(outcome[1:]) for outcome in report.outcomes}

    def test_who_is_gone_may_have_been_destroyed(self) -> None:
        rows = [row(n) for n in range(66)]
        told = self.outcomes(rows, lost=1)
        destroyed = dict.fromkeys(range(64), ("destroyed", "", None))
        assert told == {**destroyed, **dict.fromkeys((64, 65), ("gone", ANSWER_LOST, None))}

    def test_who_hid_others_may_be_gone_by_it(self) -> None:
        """Then those are tried again."""
        hidden, before = ([row(first + n, sport=5000 + n) for n in range(64)] for first in (0, 100))
        told = self.outcomes([*hidden, *before], lost=1)
        assert {told[n] for n in range(64)} == {("destroyed", "", None)}
        assert {told[100 + n] for n in range(64)} == {("gone", ANSWER_LOST, None)}

    def test_the_doubt_stays_when_the_run_ends_before_it_is_known_who_is_gone(self) -> None:
        told = self.outcomes([row(1)], lost=0, dump=errno.EIO)
        assert told == {1: ("failed", f"{os.strerror(errno.EIO)}, and perhaps destroyed", errno.EIO)}

    def test_it_goes_with_a_later_answer(self) -> None:
        """It was not destroyed the first time, for it hid behind a twin."""
        told = self.outcomes([row(1, sport=5000), row(2, sport=5000)], lost=0)
        assert told == {1: ("destroyed", "", None), 2: ("gone", ANSWER_LOST, None)}


class TestHowMuchIsSent:
    """Up to 64 destroys a send, and one dump, of both families if both are asked for."""

    @pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 128, 129, 200])
    @pytest.mark.parametrize("v6", [False, True], ids=["v4", "both"])
    def test_n_sockets_take_one_dump_and_a_batch_for_each_64(self, count: int, v6: bool) -> None:
        rows = [row(n, family=AF_INET6 if v6 and n % 2 else AF_INET) for n in range(count)]
        said, kernel = destroyed(table(rows), BOTH_FAMILIES if v6 else TCP)
        assert said == dict.fromkeys(range(count), "destroyed")
        assert [request.families for request in kernel.dumps] == [(AF_INET, AF_INET6) if v6 else (AF_INET,)]
        assert len(kernel.destroys) == ceil(count / 64)
        assert [len(batch) for batch in kernel.destroys[:-1]] == [64] * (len(kernel.destroys) - 1)
        assert tries(kernel) == dict.fromkeys(range(count), 1)
        assert len(kernel.sockets) == 1

    def test_a_destroy_carries_the_family_and_the_whole_identity(self) -> None:
        rows = [row(1 << 63 | family, family=family) for family in (AF_INET, AF_INET6)]
        _, kernel = destroyed(table(rows), BOTH_FAMILIES)
        (batch,) = kernel.destroys
        asked = [(request.body.family, request.body.id) for request in batch]
        assert asked == [(message.family, message.id) for message in map(decode_msg, rows)]

    @pytest.mark.parametrize("limit", [1, 63, 64, 65, 100])
    def test_no_more_than_the_limit_is_ever_sent(self, limit: int) -> None:
        said, kernel = destroyed(table([row(n) for n in range(100)]), limit=limit)
        assert sorted(said.values()) == ["destroyed"] * limit + ["skipped"] * (100 - limit)
        assert len(tries(kernel)) == limit

    def test_a_dry_run_sends_none(self) -> None:
        said, kernel = destroyed(table([row(1), row(2)]), dry_run=True)
        assert (said, kernel.destroys) == ({1: "skipped", 2: "skipped"}, [])


class Own(nullcontext[None]):
    """A throw-away socket that nobody made."""

    port, inode = 40000, 77

    def __init__(self, family: int, protocol: int) -> None:
        super().__init__()


class TestProbe:
    """no privilege, no kernel support: what is missing and how to get it."""

    EVERY = (("tcp", AF_INET), ("tcp", AF_INET6), ("udp", AF_INET), ("udp", AF_INET6))

    def probed(self, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Support]:
        monkeypatch.setattr(probe_module, "ThrowawaySocket", Own)
        with FakeKernel(answer).installed():
            return probe()

    def listing(self, code: int, inode: int = 77) -> Answer:
        """The socket with that inode among others, and what a destroy of it answers."""

        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            body = requests[0].body
            rows = [row(n, family=body.family, inode=n) for n in (1, inode)]
            return table(rows, lambda one, family: code if one.cookie == inode else 0)(requests)

        return answer

    @pytest.mark.parametrize(
        ("code", "status", "missing"),
        [
            pytest.param(0, "supported", "", id="0"),
            pytest.param(errno.EPERM, "not_permitted", "CAP_NET_ADMIN", id="EPERM"),
            pytest.param(errno.EOPNOTSUPP, "no_destroy", "CONFIG_INET_DIAG_DESTROY", id="EOPNOTSUPP"),
        ],
    )
    def test_what_a_destroy_answers_is_the_status(
        self, monkeypatch: pytest.MonkeyPatch, code: int, status: str, missing: str
    ) -> None:
        results = self.probed(self.listing(code), monkeypatch)
        assert tuple(results) == self.EVERY
        assert {result.status for result in results.values()} == {status}
        assert all(missing in result.missing for result in results.values())
        assert bool(missing) == any(result.missing for result in results.values())

    def test_a_dump_that_ends_with_enoent_is_no_diag(self, monkeypatch: pytest.MonkeyPatch) -> None:
        results = self.probed(lambda requests: [done_message(requests[0], errno.ENOENT)], monkeypatch)
        assert {key: result.status for key, result in results.items()} == dict.fromkeys(self.EVERY, "no_diag")
        assert "udp_diag" in results["udp", AF_INET].missing

    @pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL])
    def test_a_socket_that_cannot_be_made_is_no_family(self, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        monkeypatch.setattr(probe_module, "ThrowawaySocket", raiser(OSError(code, "socket")))
        with FakeKernel(table([])).installed() as kernel:
            results = probe()
        assert {key: result.status for key, result in results.items()} == dict.fromkeys(self.EVERY, "no_family")
        assert "CONFIG_IPV6" in results["tcp", AF_INET6].missing
        assert kernel.sockets == []

    def test_any_other_answer_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for answer, code in (
            (self.listing(errno.EINVAL), errno.EINVAL),
            (self.listing(0, inode=78), errno.ENOENT),
            (lambda requests: (), errno.ETIMEDOUT),
        ):
            with pytest.raises(KernelError) as caught:
                self.probed(answer, monkeypatch)
            assert caught.value.errno == code
        monkeypatch.setattr(probe_module, "ThrowawaySocket", raiser(OSError(errno.EMFILE, "socket")))
        with pytest.raises(KernelError) as caught:
            probe()
        assert caught.value.errno == errno.EMFILE
