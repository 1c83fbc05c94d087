"""`destroy_sockets` and `probe` against a fake kernel: the verdict of each socket, and what is sent for it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from importlib import import_module
from itertools import count
from math import ceil
from random import Random
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import (
    KernelError,
    SocketFilter,
    Support,
    TcpState,
    destroy_sockets,
    dport,
    find_sockets,
    probe,
    sport,
)
from socklb.engine import destroy as destroy_module
from socklb.engine.destroy import ANSWER_LOST, ONLY_BOUND, SHARED_ADDRESS, TIME_LIMIT
from socklb.wire.reply import decode_msg
from socklb.wire.request import SOCK_DESTROY
from socklb.wire.socket_id import AF_INET, AF_INET6, SocketId

from ..fake_kernel import (
    Answer,
    Datagram,
    FakeKernel,
    Request,
    StatefulTable,
    done_message,
    row,
    table,
    tries,
    verdicts,
)
from ..sockets import socket_of
from .test_diag import raiser

TCP = SocketFilter("tcp", dport(80), family=AF_INET)
BOTH_FAMILIES = SocketFilter("tcp", dport(80))
UDP_SERVERS = SocketFilter("udp", sport(53), family=AF_INET)

probe_module = import_module("socklb.engine.probe")  # `socklb.engine.probe` as an attribute is the function

Verdict = tuple[str, str, "int | None"]


def destroyed(answer: Answer, filter: SocketFilter = TCP, **options: Any) -> tuple[dict[int, str], FakeKernel]:
    with FakeKernel(answer).installed() as kernel:
        return verdicts(destroy_sockets(filter, **options)), kernel


def outcomes(answer: Answer, filter: SocketFilter = TCP, *, can_destroy: bool = False) -> dict[int, Verdict]:
    """Verdict, reason and errno of each socket by its cookie, also of a run that an error ended."""
    with FakeKernel(answer).installed(), mock.patch.object(probe_module, "can_destroy", return_value=can_destroy):
        try:
            report = destroy_sockets(filter)
        except KernelError as error:
            report = error.report
    return {socket_of(one).cookie: (one.verdict, one.reason, one.error) for one in report.outcomes}


@pytest.mark.parametrize("call", [find_sockets, destroy_sockets])
def test_what_is_no_filter_is_a_wrong_argument(call: Callable[[Any], object]) -> None:
    with FakeKernel(table([row(1)])).installed() as kernel, pytest.raises(TypeError):
        call("tcp")
    assert kernel.sockets == []


class TestNoEntry:
    """ENOENT says little: dump again, and try again as long as the last round destroyed something."""

    @pytest.mark.parametrize("step", [1, -1])
    @pytest.mark.parametrize(("moves", "verdict"), [(2, "destroyed"), (3, "destroyed"), (4, "gone")])
    def test_a_socket_that_moves_and_still_matches_is_followed_three_times(
        self, step: int, moves: int, verdict: str
    ) -> None:
        rows = [row(1, sport=5000)]

        def destroy(id: SocketId, family: int) -> int:
            if id.sport == 5000 + moves * step:
                return 0
            rows[:] = [row(1, sport=id.sport + step)]
            return errno.ENOENT

        said, kernel = destroyed(table(rows, destroy))
        assert (said, tries(kernel)) == ({1: verdict}, {1: min(moves + 1, 4)})

    @given(groups=st.lists(st.integers(1, 6), min_size=1, max_size=6))
    def test_twins_are_destroyed_one_after_another(self, groups: list[int]) -> None:
        rows = [row(100 * group + n, sport=5000 + group) for group, size in enumerate(groups) for n in range(size)]
        said, kernel = destroyed(StatefulTable(rows))
        assert said == {decode_msg(one).id.cookie: "destroyed" for one in rows}
        assert len(kernel.dumps) == min(max(groups), 2), "a table without a hidden twin is not dumped again"
        assert tries(kernel) == dict.fromkeys(said, 1), "as many destroys as sockets"
        assert sum(map(len, kernel.look_ups)) <= 2 * len(rows)

    def test_after_ten_seconds_at_one_address_the_others_are_next(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Half a second passes at each look at the clock."""
        clock = count()
        monkeypatch.setattr(destroy_module, "monotonic", lambda: next(clock) / 2)
        rows = [*(row(n, sport=5000) for n in range(100)), *(row(n, sport=5001) for n in (100, 101))]
        with FakeKernel(StatefulTable(rows)).installed():
            report = destroy_sockets(TCP)
        late = {socket_of(o).cookie for o in report.outcomes if o.reason == TIME_LIMIT}
        died = {socket_of(o).cookie for o in report.outcomes if o.verdict == "destroyed"}
        assert {100, 101} < died, "those of another address"
        assert (late | died, late & died) == ({*range(102)}, set())
        assert len(late) > 80

    @given(groups=st.lists(st.integers(1, 6), min_size=1, max_size=6), order=st.randoms(use_true_random=False))
    def test_what_answers_0_and_stays_is_never_tried_again(self, groups: list[int], order: Random) -> None:
        def server(cookie: int, group: int) -> bytes:
            return row(cookie, state=7, src=f"10.1.0.{group}", sport=53, dst="0.0.0.0", dport=0)

        rows = [server(100 * group + n, group) for group, size in enumerate(groups) for n in range(size)]
        order.shuffle(rows)
        first = {decode_msg(one).id.src: decode_msg(one).id.cookie for one in rows}  # what `StatefulTable` finds
        said, kernel = destroyed(StatefulTable(rows, stays=True), UDP_SERVERS, unconnected=True)
        assert {cookie for cookie, verdict in said.items() if verdict == "destroyed"} == set(first.values())
        assert {cookie for cookie, verdict in said.items() if verdict == "failed"} == set(said) - set(first.values())
        assert {tries(kernel)[cookie] for cookie in first.values()} == {1}

    @pytest.mark.parametrize("state", [TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, TcpState.LAST_ACK, TcpState.CLOSING])
    def test_still_there_without_progress_is_failed_with_the_reason(self, state: int) -> None:
        rows = [row(1, state=state, inode=1), row(2, state=state, inode=2)]
        said = outcomes(table(rows, lambda one, family: errno.ENOENT))
        assert said == dict.fromkeys((1, 2), ("failed", SHARED_ADDRESS, errno.ENOENT))

    @pytest.mark.parametrize(
        ("before", "after", "verdict"),
        [
            (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, ("gone", "", None)),
            (TcpState.ESTABLISHED, TcpState.CLOSE, ("gone", "", None)),
            (TcpState.CLOSE, TcpState.CLOSE, ("failed", ONLY_BOUND, errno.ENOENT)),
        ],
        ids=["its-peer-closed", "was-reset", "is-only-bound"],
    )
    def test_a_socket_that_left_the_states_of_the_filter(self, before: int, after: int, verdict: Verdict) -> None:
        """Without a peer it was reset, or was only bound from the start: the kernel destroys neither."""
        filter = SocketFilter("tcp", sport(5000), states=["established", "close"], family=AF_INET)
        rows = [row(1, sport=5000, state=before)]

        def destroy(id: SocketId, family: int) -> int:
            rows[:] = [row(1, sport=5000, state=after)]
            return errno.ENOENT

        assert outcomes(table(rows, destroy), filter) == {1: verdict}


class TestLostAnswers:
    """The batch is sent again, and whatever the first attempt destroyed answers ENOENT: who destroyed it is unknown."""

    def outcomes(self, rows: list[bytes], lost: int, dump: int = 0) -> dict[int, Verdict]:
        """When the answers to batch number `lost` are lost, and the dump after it ends with the errno `dump`."""
        kernel = StatefulTable(rows)
        batches: list[int] = []

        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            if requests[0].type != SOCK_DESTROY:
                return [done_message(requests[0], dump)] if dump and batches else kernel(requests)
            batches.append(len(requests))
            answers = list(kernel(requests))
            return [OSError(errno.ENOBUFS, "lost")] if len(batches) - 1 == lost else answers

        return outcomes(answer)

    def test_a_socket_that_is_gone_may_have_been_destroyed(self) -> None:
        rows = [row(n) for n in range(66)]
        said = self.outcomes(rows, lost=1)
        destroyed = dict.fromkeys(range(64), ("destroyed", "", None))
        assert said == {**destroyed, **dict.fromkeys((64, 65), ("gone", ANSWER_LOST, None))}

    def test_a_twin_that_hid_others_may_be_destroyed(self) -> None:
        """The others are tried again then."""
        hidden, before = ([row(first + n, sport=5000 + n) for n in range(64)] for first in (0, 100))
        said = self.outcomes([*hidden, *before], lost=0)
        assert {said[n] for n in range(64)} == {("destroyed", "", None)}
        assert {said[100 + n] for n in range(64)} == {("gone", ANSWER_LOST, None)}

    def test_a_limit_counts_what_may_have_been_destroyed(self) -> None:
        kernel = StatefulTable([row(n) for n in range(30)])
        batches = count()

        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            answers = list(kernel(requests))
            is_lost = requests[0].type == SOCK_DESTROY and next(batches) % 2 == 0
            return [OSError(errno.ENOBUFS, "lost")] if is_lost else answers

        destroyed(answer, limit=10)
        assert len(kernel.killed) == 10

    def test_the_doubt_remains_if_the_run_ends_before_the_next_dump(self) -> None:
        said = self.outcomes([row(1)], lost=0, dump=errno.EIO)
        assert said == {1: ("failed", f"{os.strerror(errno.EIO)}, and perhaps destroyed", errno.EIO)}

    def test_a_later_answer_settles_it(self) -> None:
        """The socket was not destroyed by the first attempt, because its twin hid it."""
        said = self.outcomes([row(1, sport=5000), row(2, sport=5000)], lost=0)
        assert said == {1: ("destroyed", "", None), 2: ("gone", ANSWER_LOST, None)}


class TestHowMuchIsSent:
    """Up to 64 destroys in a send, and one dump, which answers for both families where both are wanted."""

    @pytest.mark.parametrize("count", [0, 1, 64, 65, 129])
    @pytest.mark.parametrize("v6", [False, True], ids=["v4", "both"])
    def test_n_sockets_take_one_dump_and_a_batch_for_each_64(self, count: int, v6: bool) -> None:
        rows = [row(n, family=AF_INET6 if v6 and n % 2 else AF_INET) for n in range(count)]
        said, kernel = destroyed(table(rows), BOTH_FAMILIES if v6 else TCP)
        assert said == dict.fromkeys(range(count), "destroyed")
        assert [request.families for request in kernel.dumps] == [(AF_INET, AF_INET6) if v6 else (AF_INET,)]
        assert [len(batch) for batch in kernel.look_ups] == [len(batch) for batch in kernel.destroys]
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

    @pytest.mark.parametrize("limit", [1, 64, 65, 100])
    def test_no_more_than_the_limit_is_sent(self, limit: int) -> None:
        said, kernel = destroyed(table([row(n) for n in range(100)]), limit=limit)
        assert sorted(said.values()) == ["destroyed"] * limit + ["skipped"] * (100 - limit)
        assert len(tries(kernel)) == limit

    def test_a_dry_run_sends_none(self) -> None:
        said, kernel = destroyed(table([row(1), row(2)]), dry_run=True)
        assert (said, kernel.destroys) == ({1: "would_destroy", 2: "would_destroy"}, [])


class TestRefusals:
    """EPERM, EACCES, EOPNOTSUPP end the run, with the report so far in `.report`; others are that socket's alone."""

    ENDING = pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP])

    @ENDING
    def test_half_way_the_rest_is_failed(self, code: int) -> None:
        said = outcomes(table([row(n) for n in range(150)], lambda one, family: code if one.cookie >= 70 else 0))
        failed = ("failed", os.strerror(code), code)
        assert said == {n: ("destroyed", "", None) if n < 70 else failed for n in range(150)}

    @ENDING
    def test_also_those_that_answered_enoent_before(self, code: int) -> None:
        answers = iter([errno.ENOENT, 0, code])
        said = outcomes(table([row(n) for n in range(4)], lambda one, family: next(answers, code)))
        assert [said[n][0] for n in range(4)] == ["failed", "destroyed", "failed", "failed"]

    @given(codes=st.lists(st.sampled_from([0, errno.EINVAL, errno.EIO, errno.ENOMEM]), max_size=150))
    def test_any_other_errno_fails_that_socket_alone(self, codes: list[int]) -> None:
        said, _ = destroyed(table([row(n) for n in range(len(codes))], lambda one, family: codes[one.cookie]))
        assert said == {n: "failed" if code else "destroyed" for n, code in enumerate(codes)}

    def test_nothing_matched_needs_no_privilege(self) -> None:
        said, kernel = destroyed(table([row(1, dport=81)], lambda one, family: errno.EPERM))
        assert (said, kernel.destroys) == ({}, [])


class Own(nullcontext[None]):
    """The socket that `probe` makes, without a kernel."""

    port, inode = 40000, 77

    def __init__(self, family: int, protocol: int) -> None:
        super().__init__()


class TestProbe:
    """Each protocol and family has a status, and what is missing and how to get it."""

    EVERY = (("tcp", AF_INET), ("tcp", AF_INET6), ("udp", AF_INET), ("udp", AF_INET6))

    def probed(self, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Support]:
        monkeypatch.setattr(probe_module, "ProbeSocket", Own)
        with FakeKernel(answer).installed():
            return probe()

    def listing(self, code: int, inode: int = 77) -> Answer:
        """The socket with this inode and another one; a destroy of the first answers `code`."""

        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            body = requests[0].body
            rows = [row(n, family=body.family, inode=n) for n in (1, inode)]
            return table(rows, lambda one, family: code if one.cookie == inode else 0)(requests)

        return answer

    @pytest.mark.parametrize(
        ("code", "status", "missing"),
        [
            (0, "supported", ""),
            (errno.EPERM, "not_permitted", "CAP_NET_ADMIN"),
            (errno.EOPNOTSUPP, "no_destroy", "CONFIG_INET_DIAG_DESTROY"),
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
        monkeypatch.setattr(probe_module, "ProbeSocket", raiser(OSError(code, "socket")))
        with FakeKernel(table([])).installed() as kernel:
            results = probe()
        assert {key: result.status for key, result in results.items()} == dict.fromkeys(self.EVERY, "no_family")
        assert "CONFIG_IPV6" in results["tcp", AF_INET6].missing
        assert kernel.sockets == []
