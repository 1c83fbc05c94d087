"""What bad input gets (DESIGN, section 7), through the public calls, from a kernel that is a function."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import (
    InetSocket,
    KernelError,
    MalformedMessage,
    NetworkNamespace,
    NotPermitted,
    NotSupported,
    SocketFilter,
    SocklbError,
    UnboundedFilter,
    destroy_sockets,
    dport,
    find_sockets,
)
from socklb.wire.netlink import encode_message
from socklb.wire.request import SOCK_DESTROY, SOCK_DIAG_BY_FAMILY
from socklb.wire.socket_id import AF_INET

from ..fake_kernel import (
    Answer,
    Datagram,
    FakeKernel,
    Request,
    ack_message,
    done_message,
    row,
    row_message,
    table,
    tries,
    verdicts,
)

TCP = SocketFilter("tcp", dport(80), family=AF_INET)
BOTH_FAMILIES = SocketFilter("tcp", dport(80))


def found(answer: Answer, filter: SocketFilter = TCP) -> list[InetSocket]:
    with FakeKernel(answer).installed():
        return list(find_sockets(filter))


def cookies(sockets: Iterable[InetSocket]) -> list[int]:
    return [socket.cookie for socket in sockets]


def destroyed(answer: Answer, filter: SocketFilter = TCP, **options: Any) -> tuple[dict[int, str], FakeKernel]:
    with FakeKernel(answer).installed() as kernel:
        return verdicts(destroy_sockets(filter, **options)), kernel


def refused(answer: Answer, filter: SocketFilter = TCP) -> tuple[SocklbError, dict[int, str], FakeKernel]:
    """The error that ends a destroy, and the verdicts up to then."""
    with FakeKernel(answer).installed() as kernel, pytest.raises(SocklbError) as caught:
        destroy_sockets(filter)
    assert caught.value.report is not None
    return caught.value, verdicts(caught.value.report), kernel


class TestWrongArguments:
    """ValueError, TypeError or UnboundedFilter; the kernel is not even asked."""

    @pytest.mark.parametrize(
        ("call", "kind"),
        [
            pytest.param(lambda: find_sockets("tcp"), TypeError, id="no-filter"),  # type: ignore[arg-type]
            pytest.param(lambda: find_sockets(TCP, extensions=["nonsense"]), ValueError, id="unknown-extension"),
            pytest.param(lambda: destroy_sockets(SocketFilter("tcp")), UnboundedFilter, id="unbounded"),
            pytest.param(
                lambda: destroy_sockets(SocketFilter("udp"), dry_run=True), UnboundedFilter, id="dry-unbounded"
            ),
            pytest.param(lambda: destroy_sockets(TCP, limit=0), ValueError, id="limit-0"),
            pytest.param(lambda: destroy_sockets(TCP, limit=True), TypeError, id="limit-bool"),
        ],
    )
    def test_nothing_is_sent(self, call: Callable[[], object], kind: type[Exception]) -> None:
        with FakeKernel(table([row(1)])).installed() as kernel, pytest.raises(kind):
            call()
        assert kernel.sockets == []


class TestNamespaces:
    def test_one_that_vanished_is_an_error_and_nothing_is_asked_elsewhere(self) -> None:
        now = NetworkNamespace.current()
        gone = NetworkNamespace("gone", now.path, now.device, now.inode + 1)
        for call in (lambda: list(find_sockets(TCP, namespace=gone)), lambda: destroy_sockets(TCP, namespace=gone)):
            with FakeKernel(table([row(1)])).installed() as kernel, pytest.raises(KernelError, match="gone vanished"):
                call()
            assert kernel.sockets == []


class TestRefusedReplies:
    """A reply that is cut, too short, does not advance, from a foreign port or sequence: MalformedMessage."""

    WHOLE = (row(1, attributes=[(8, b"\0")]), row(2))

    def test_a_dump_cut_anywhere_is_no_short_list(self) -> None:
        request = Request(SOCK_DIAG_BY_FAMILY, 0, 1, b"")
        whole = b"".join(row_message(request, one) for one in self.WHOLE) + done_message(request)
        assert cookies(found(lambda requests: [whole])) == [1, 2]
        for cut in range(len(whole)):
            with pytest.raises(SocklbError) as caught:
                found(lambda requests, cut=cut: [whole[:cut]])  # type: ignore[misc]
            is_cut = isinstance(caught.value, MalformedMessage)
            assert is_cut or (isinstance(caught.value, KernelError) and caught.value.errno == errno.ETIMEDOUT)

    def test_answers_to_destroys_cut_anywhere_are_no_success(self) -> None:
        rows = [row(n) for n in range(3)]
        for cut in range(3 * 36):

            def answer(requests: Sequence[Request], cut: int = cut) -> Iterable[Datagram]:
                if requests[0].type != SOCK_DESTROY:
                    return table(rows)(requests)
                return [b"".join(ack_message(request, errno.ENOENT) for request in requests)[:cut]]

            _, said, kernel = refused(answer)
            assert said == dict.fromkeys(range(3), "failed")
            assert len(kernel.destroys) == 1

    @pytest.mark.parametrize("size", [*range(16, 16 + 72, 5), 16 + 71])
    def test_a_row_too_short_for_its_structure(self, size: int) -> None:
        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            return [encode_message(SOCK_DIAG_BY_FAMILY, 0, requests[0].sequence, row(1)[: size - 16])]

        with pytest.raises(MalformedMessage, match="cut inet_diag_msg"):
            found(answer)

    @pytest.mark.parametrize("lie", [0, 4, 15, 16 + 71, 16 + 73, 16 + 76, 0x10000, 0xFFFFFFFF])
    @pytest.mark.parametrize("which", [0, 1])
    def test_a_length_that_lies(self, lie: int, which: int) -> None:
        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            messages = [row_message(requests[0], row(n)) for n in range(2)]
            messages[which] = struct.pack("=I", lie) + messages[which][4:]
            return [b"".join(messages)]

        with pytest.raises(MalformedMessage):
            found(answer)

    @pytest.mark.parametrize("family", [0, 1, 3, 255])
    def test_a_row_of_a_family_without_known_addresses(self, family: int) -> None:
        with pytest.raises(MalformedMessage, match="family"):
            found(lambda requests: [row_message(requests[0], bytes([family]) + row(1)[1:])])

    def test_an_end_said_twice(self) -> None:
        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            if requests[0].type == SOCK_DESTROY:
                return map(ack_message, requests)
            return [row_message(requests[0], row(1)) + done_message(requests[0]), done_message(requests[0])]

        with pytest.raises(MalformedMessage, match="sequence"):  # the second end is no part of the next dump
            found(answer, SocketFilter("udp", dport(80)))
        error, said, _ = refused(answer)
        assert (type(error), said) == (MalformedMessage, {1: "failed"})

    @pytest.mark.parametrize("silent_about", [SOCK_DIAG_BY_FAMILY, SOCK_DESTROY])
    def test_a_silent_kernel(self, silent_about: int) -> None:
        usual = table([row(1)])
        error, said, kernel = refused(lambda requests: () if requests[0].type == silent_about else usual(requests))
        assert isinstance(error, KernelError)
        assert (error.errno, said) == (errno.ETIMEDOUT, {1: "failed"} if silent_about == SOCK_DESTROY else {})
        assert len(kernel.sent) == (1 if silent_about == SOCK_DIAG_BY_FAMILY else 2)


def test_an_attribute_never_seen_before_is_kept_and_one_that_is_cut_is_refused_when_looked_at() -> None:
    known, unknown, cut = found(
        table([row(1, attributes=[(8, b"\3")]), row(2, attributes=[(999, b"new")]), row(3) + b"\xff\0\1\0"]),
        SocketFilter("tcp"),
    )
    assert (known.attributes, unknown.attributes) == ({"shutdown": 3}, {999: b"new"})
    with pytest.raises(MalformedMessage):
        _ = cut.attributes


class TestInterruptedDumps:
    """Repeated a bounded number of times; `destroy_sockets` collects by cookie, so each socket has one verdict."""

    def interrupted(self, times: int) -> Answer:
        """So many dumps give the first row, and are then marked interrupted."""
        usual = table([row(1), row(2), row(3)])
        left = [True] * times

        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            if requests[0].type == SOCK_DESTROY or not left:
                return usual(requests)
            left.pop()
            first, *_ = usual(requests)
            assert isinstance(first, bytes)
            return [first, done_message(requests[0], 0, 0x10)]

        return answer

    def test_find_sockets_raises_behind_its_first_row(self) -> None:
        with FakeKernel(self.interrupted(1)).installed() as kernel:
            streamed = find_sockets(TCP)
            assert next(streamed).cookie == 1
            with pytest.raises(KernelError, match="changed during the dump"):
                list(streamed)
            assert len(kernel.dumps) == 1

    @pytest.mark.parametrize("times", [0, 1, 2])
    @pytest.mark.parametrize("options", [{}, {"limit": 3}, {"dry_run": True}], ids=str)
    def test_destroy_sockets_repeats(self, times: int, options: dict[str, Any]) -> None:
        said, kernel = destroyed(self.interrupted(times), **options)
        assert said == dict.fromkeys((1, 2, 3), "skipped" if "dry_run" in options else "destroyed")
        assert len(kernel.dumps) == times + 1
        assert tries(kernel) == ({} if "dry_run" in options else {1: 1, 2: 1, 3: 1})

    def test_destroy_sockets_gives_up_in_the_end_with_nobody_dead(self) -> None:
        error, said, kernel = refused(self.interrupted(3))
        assert isinstance(error, KernelError)
        assert (error.errno, said, len(kernel.dumps), kernel.destroys) == (errno.EINTR, {}, 3, [])


class TestRefusals:
    """EPERM and EOPNOTSUPP end the run, the report so far is in `.report`; any other errno is that socket's."""

    ENDING = pytest.mark.parametrize(
        ("code", "kind", "says"),
        [
            pytest.param(errno.EPERM, NotPermitted, "CAP_NET_ADMIN", id="EPERM"),
            pytest.param(errno.EOPNOTSUPP, NotSupported, "CONFIG_INET_DIAG_DESTROY", id="EOPNOTSUPP"),
        ],
    )

    @ENDING
    @pytest.mark.parametrize("at", [0, 1, 63, 64, 70, 149])
    def test_half_way_what_was_not_destroyed_is_failed(self, code: int, kind: type, says: str, at: int) -> None:
        rows = [row(n) for n in range(150)]
        error, said, kernel = refused(table(rows, lambda one, family: code if one.cookie >= at else 0))
        assert type(error) is kind
        assert says in str(error)
        assert said == {n: "destroyed" if n < at else "failed" for n in range(150)}
        assert len(kernel.destroys) == at // 64 + 1
        assert error.report is not None
        assert {(o.error, o.reason) for o in error.report.outcomes if o.error} == {(code, os.strerror(code))}

    @ENDING
    def test_those_that_answered_enoent_before_are_failed_too(self, code: int, kind: type, says: str) -> None:
        answers = iter([errno.ENOENT, 0, code])
        error, said, _ = refused(table([row(n) for n in range(4)], lambda one, family: next(answers, code)))
        assert type(error) is kind
        assert said == {0: "failed", 1: "destroyed", 2: "failed", 3: "failed"}

    @given(codes=st.lists(st.sampled_from([0, errno.EINVAL, errno.EIO, errno.ENOMEM]), max_size=150))
    def test_any_other_errno_fails_that_socket_alone(self, codes: list[int]) -> None:
        said, _ = destroyed(table([row(n) for n in range(len(codes))], lambda one, family: codes[one.cookie]))
        assert said == {n: "failed" if code else "destroyed" for n, code in enumerate(codes)}

    def test_nothing_matched_needs_no_privilege(self) -> None:
        said, kernel = destroyed(table([row(1, dport=81)], lambda one, family: errno.EPERM))
        assert (said, kernel.destroys) == ({}, [])

    def test_a_dump_that_ends_with_enoent_is_not_an_empty_table(self) -> None:
        for call in (lambda: list(find_sockets(TCP)), lambda: destroy_sockets(TCP)):
            kernel = FakeKernel(lambda requests: [done_message(requests[0], errno.ENOENT)])
            with kernel.installed(), pytest.raises(NotSupported, match="CONFIG_INET_DIAG"):
                call()
