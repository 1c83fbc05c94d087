"""DiagSocket against a fake kernel: opening, dumps, and what of a reply it accepts."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count, repeat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socklb.errors import KernelError, MalformedMessage, NotPermitted, NotSupported
from socklb.kernel import diag, netlink_socket
from socklb.kernel.diag import DiagSocket
from socklb.kernel.netlink_socket import NETLINK_CAP_ACK, NETLINK_EXT_ACK, SOL_NETLINK
from socklb.wire.netlink import (
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    NLMSGERR_ATTR_MSG,
    Ack,
    Done,
    encode_ack,
    encode_done,
    encode_message,
)
from socklb.wire.request import SOCK_DESTROY, SOCK_DIAG_BY_FAMILY, InetDiagReqV2
from socklb.wire.socket_id import AF_INET

from ..fake_kernel import (
    Answer,
    Datagram,
    FakeKernel,
    FakeSocket,
    Request,
    ack_message,
    done_message,
    row,
    row_message,
    table,
)
from ..strategies import errnos

REQUEST = InetDiagReqV2(AF_INET, socket.IPPROTO_TCP, 0, 0xFFF).encode()
A, B, C = row(1), row(2), row(3)

Reply = Callable[[Request], Sequence[Datagram]]
"""What the kernel answers to a dump."""


def dump_of(diag_socket: DiagSocket, *, may_repeat_rows: bool = False) -> Iterable[list[bytes]]:
    return diag_socket.dump(SOCK_DIAG_BY_FAMILY, REQUEST, "list", may_repeat_rows=may_repeat_rows)


def flat(lists: Iterable[list[bytes]]) -> list[bytes]:
    return [one for many in lists for one in many]


def in_turn(*replies: Reply) -> Answer:
    """The first reply to the first dump, the next to the next, then silence."""
    left = list(replies)
    return lambda requests: left.pop(0)(requests[0]) if left else ()


def whole(request: Request) -> Sequence[Datagram]:
    return [row_message(request, A) + row_message(request, B), row_message(request, C) + done_message(request)]


def dumped(*replies: Reply, may_repeat_rows: bool = False) -> tuple[list[bytes], int]:
    """The rows that a dump yields, and how many dumps were requested."""
    with FakeKernel(in_turn(*replies)).installed() as kernel, DiagSocket() as diag_socket:
        return flat(dump_of(diag_socket, may_repeat_rows=may_repeat_rows)), len(kernel.dumps)


def raiser(error: BaseException) -> Callable[..., object]:
    def call(*_: object) -> object:
        raise error

    return call


class TestOpening:
    """CAP_ACK and EXT_ACK are set where the kernel has them (4.3, 4.12); any other error closes the socket."""

    OPTIONS = (NETLINK_CAP_ACK, NETLINK_EXT_ACK)

    @pytest.mark.parametrize("missing", [(), OPTIONS[:1], OPTIONS[1:], OPTIONS])
    def test_options_are_set_where_the_kernel_has_them(self, missing: tuple[int, ...]) -> None:
        kernel = FakeKernel(table([A]))
        kernel.option_errors = dict.fromkeys(missing, errno.ENOPROTOOPT)
        with kernel.installed(), DiagSocket() as diag_socket:
            assert flat(dump_of(diag_socket)) == [A]
        expected = [(SOL_NETLINK, option, 1) for option in self.OPTIONS if option not in missing]
        assert kernel.sockets[0].options == expected

    @pytest.mark.parametrize("step", ["setsockopt", "bind"])
    def test_another_error_closes_the_socket(self, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        monkeypatch.setattr(FakeSocket, step, raiser(OSError(errno.EPERM, step)))
        with FakeKernel(table([])).installed(), pytest.raises(NotPermitted):
            DiagSocket()

    @pytest.mark.parametrize(
        ("code", "kind", "says"),
        [
            (errno.EPROTONOSUPPORT, NotSupported, r"seccomp.*CONFIG_INET_DIAG"),
            (errno.EAFNOSUPPORT, NotSupported, r"seccomp.*CONFIG_INET_DIAG"),
            (errno.EPERM, NotPermitted, r"netlink socket: .*: it needs no capability, so a seccomp filter"),
            (errno.EACCES, NotPermitted, r"netlink socket: .* or a security module \(SELinux"),
            (errno.EMFILE, KernelError, r"netlink socket: Too many open files$"),
        ],
        ids=lambda value: errno.errorcode.get(value) if isinstance(value, int) else "",
    )
    def test_the_error_says_what_is_missing(
        self, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[KernelError], says: str
    ) -> None:
        monkeypatch.setattr(diag, "open_netlink", raiser(OSError(code, os.strerror(code))))
        with pytest.raises(KernelError, match=says) as caught:
            DiagSocket()
        assert (type(caught.value), caught.value.errno) == (kind, code)


class TestRequests:
    def test_a_dump_is_one_message_that_carries_the_request(self) -> None:
        with FakeKernel(table([A, B, C])).installed() as kernel, DiagSocket() as diag_socket:
            flat(dump_of(diag_socket))
        ((asked,),) = kernel.sent
        assert asked == (SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, asked.sequence, REQUEST)

    def test_sequence_numbers_ascend_over_dumps_destroys_and_repetitions(self) -> None:
        replies = [interrupted_in_done, whole, acknowledge, whole, lose_the_answer, acknowledge, whole]
        with FakeKernel(in_turn(*replies)).installed() as kernel, DiagSocket() as diag_socket:
            for _ in range(2):
                flat(dump_of(diag_socket))
                diag_socket.destroy([REQUEST], "destroy")
            flat(dump_of(diag_socket))
        numbers = [request.sequence for requests in kernel.sent for request in requests]
        assert numbers == list(range(numbers[0], numbers[0] + len(replies)))

    def test_rows_are_yielded_datagram_by_datagram(self) -> None:
        with FakeKernel(in_turn(whole)).installed(), DiagSocket() as diag_socket:
            assert list(dump_of(diag_socket)) == [[A, B], [C]]

    def test_a_noop_is_ignored(self) -> None:
        def reply(request: Request) -> Sequence[Datagram]:
            noop = encode_message(NLMSG_NOOP, 0, request.sequence, b"")
            return [noop, noop + row_message(request, A) + noop, noop + done_message(request)]

        assert dumped(reply) == ([A], 1)


def acknowledge(request: Request) -> Sequence[Datagram]:
    return [ack_message(request)]


def lose_the_answer(request: Request) -> Sequence[Datagram]:
    return [OSError(errno.ENOBUFS, "recvfrom")]


def raw(type: int, payload: bytes, flags: int = 0) -> Reply:
    return lambda request: [encode_message(type, flags, request.sequence, payload)]


REFUSED: dict[str, tuple[Reply, str]] = {
    "sequence-before": (lambda r: [row_message(r._replace(sequence=r.sequence - 1), A)], "sequence of a reply"),
    "sequence-behind": (lambda r: [row_message(r._replace(sequence=r.sequence + 1), A)], "sequence of a reply"),
    "done-of-another": (lambda r: [row_message(r, A), done_message(r._replace(sequence=99))], "sequence of a reply"),
    "error-of-another": (lambda r: [ack_message(r._replace(sequence=99), errno.EPERM)], "sequence of a reply"),
    "row-behind-done": (lambda r: [done_message(r) + row_message(r, A)], "message behind the last"),
    "done-behind-done": (lambda r: [done_message(r) + done_message(r)], "message behind the last"),
    "row-behind-error": (lambda r: [ack_message(r, errno.EIO) + row_message(r, A)], "message behind the last"),
    "unknown-type": (raw(0x4242, A), "type of a reply"),
    "destroyed-instead": (raw(SOCK_DESTROY, A), "type of a reply"),
    "no-bytes": (lambda r: [b""], "empty reply at offset 0"),
    "cut-done": (raw(NLMSG_DONE, b"\0\0\0"), "cut NLMSG_DONE"),
    "cut-error": (raw(NLMSG_ERROR, bytes(19)), "cut NLMSG_ERROR"),
    "errno-above-zero": (raw(NLMSG_DONE, b"\1\1\1\1"), "errno of a reply"),
    "more-than-the-buffer": (lambda r: [row_message(r, A) * 800 + done_message(r)], "cut reply at offset 0"),
}


class TestOtherSenders:
    """What does not come from the kernel is passed over, and counted."""

    @given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=40), st.integers(1, 0xFFFFFFFF))))
    def test_they_change_nothing(self, forged: list[tuple[int, bytes, int]]) -> None:
        def answer(requests: Sequence[Request]) -> list[Datagram]:
            datagrams: list[Datagram] = [row_message(requests[0], A), row_message(requests[0], B)]
            datagrams.append(done_message(requests[0]))
            for at, data, port in forged:
                datagrams.insert(min(at, len(datagrams) - 1), (data, port))
            return datagrams

        with FakeKernel(answer).installed(), DiagSocket() as diag_socket:
            assert [row for rows in diag_socket.dump(SOCK_DIAG_BY_FAMILY, b"", "list") for row in rows] == [A, B]
            assert diag_socket.foreign == len(forged)

    def test_they_do_not_extend_the_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        endless, three_and_silence = repeat((b"", 4711)), repeat((b"", 4711), 3)
        for flood, waits in ((endless, []), (three_and_silence, [10 - 4])):
            monkeypatch.setattr(netlink_socket, "monotonic", partial(next, count()))
            kernel = FakeKernel(lambda requests, flood=flood: flood)  # type: ignore[misc]
            with kernel.installed(), DiagSocket() as diag_socket, pytest.raises(KernelError) as caught:
                list(diag_socket.dump(SOCK_DIAG_BY_FAMILY, b"", "list"))
            assert (caught.value.errno, kernel.sockets[0].waits) == (errno.ETIMEDOUT, waits)


class TestRefusedReplies:
    """A reply that the kernel cannot have meant is MalformedMessage, and closes the socket."""

    @pytest.mark.parametrize(("reply", "what"), REFUSED.values(), ids=REFUSED)
    def test_it_is_refused_at_once(self, reply: Reply, what: str) -> None:
        with FakeKernel(in_turn(reply)).installed() as kernel:
            diag_socket = DiagSocket()
            with pytest.raises(MalformedMessage, match=what):
                flat(dump_of(diag_socket, may_repeat_rows=True))
            assert kernel.sockets[0].closed
            assert len(kernel.sent) == 1


ENDS: dict[str, Callable[[int, str], Reply]] = {
    "done": lambda code, text: lambda r: [end_message(NLMSG_DONE, r, code, text)],
    "done-behind-a-row": lambda code, text: lambda r: [row_message(r, A) + end_message(NLMSG_DONE, r, code, text)],
    "error": lambda code, text: lambda r: [end_message(NLMSG_ERROR, r, code, text)],
}


class TestWaiting:
    def test_an_answer_may_come_late(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each may; then it is waited for, and after it nothing is."""
        monkeypatch.setattr(netlink_socket, "monotonic", lambda: 0)

        def answer(requests: Sequence[Request]) -> Iterator[Datagram]:
            for reply in (row_message(requests[0], A), row_message(requests[0], B), done_message(requests[0])):
                yield BlockingIOError(errno.EAGAIN, "recvfrom")
                yield reply

        with FakeKernel(answer).installed() as kernel, DiagSocket() as diag_socket:
            assert flat(dump_of(diag_socket)) == [A, B]
        assert (kernel.sockets[0].waits, kernel.sockets[0].timeout) == ([10] * 3, 0)


class TestEndOfDump:
    """NLMSG_DONE carries an errno; NLMSG_ERROR is 2, and so is AF_INET."""

    @pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
    @pytest.mark.parametrize("text", ["", "invalid bytecode at 4"])
    @pytest.mark.parametrize(
        ("code", "kind", "says"),
        [
            (errno.ENOENT, NotSupported, "CONFIG_INET_DIAG"),
            (errno.EOPNOTSUPP, NotSupported, "CONFIG_INET_DIAG$"),
            (errno.EPERM, NotPermitted, "CAP_NET_ADMIN"),
            (errno.EINVAL, KernelError, os.strerror(errno.EINVAL)),
        ],
        ids=["ENOENT", "EOPNOTSUPP", "EPERM", "EINVAL"],
    )
    def test_its_errno_is_an_error_with_its_text(
        self, end: Callable[[int, str], Reply], text: str, code: int, kind: type[KernelError], says: str
    ) -> None:
        with pytest.raises(KernelError, match=says) as caught:
            dumped(end(code, text))
        assert (type(caught.value), caught.value.errno) == (kind, code)
        assert text in str(caught.value) or kind is NotSupported

    @given(code=errnos.filter(lambda code: code != errno.EINTR), echoed=st.sampled_from((b"", A)))
    @example(code=254, echoed=A)  # negated it begins with the byte 2, like a row of AF_INET
    def test_an_error_is_never_taken_for_a_row(self, code: int, echoed: bytes) -> None:
        flags, payload = encode_ack(Ack(code, SOCK_DIAG_BY_FAMILY, 0, 1, 0, echoed, ()))
        with pytest.raises(KernelError) as caught:
            dumped(raw(NLMSG_ERROR, payload, flags))
        assert caught.value.errno == code

    def test_a_text_without_an_errno_is_no_error(self) -> None:
        assert dumped(ENDS["done-behind-a-row"](0, "a warning")) == ([A], 1)

    def test_an_acknowledgement_does_not_end_a_dump(self) -> None:
        with pytest.raises(KernelError) as caught:
            dumped(acknowledge)
        assert caught.value.errno == errno.EPROTO

    @pytest.mark.parametrize("rows", [[], [A]], ids=["at-once", "behind-a-row"])
    def test_silence_is_a_timeout_and_the_dump_is_not_repeated(
        self, rows: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(netlink_socket, "monotonic", lambda: 0)
        with FakeKernel(lambda requests: [row_message(requests[0], one) for one in rows]).installed() as kernel:
            with DiagSocket() as diag_socket, pytest.raises(KernelError, match="within 10 seconds") as caught:
                flat(dump_of(diag_socket))
            assert caught.value.errno == errno.ETIMEDOUT
            assert (len(kernel.sent), kernel.sockets[0].waits) == (1, [10])

    def test_any_other_error_of_a_receive_is_raised(self) -> None:
        with pytest.raises(KernelError) as caught:
            dumped(lambda r: [OSError(errno.ENOMEM, "recvfrom")])
        assert caught.value.errno == errno.ENOMEM


def end_message(type: int, request: Request, code: int, text: str) -> bytes:
    attributes = ((NLMSGERR_ATTR_MSG, text.encode() + b"\0"),) if text else ()
    if type == NLMSG_DONE:
        flags, payload = encode_done(Done(code, attributes))
    else:
        flags, payload = encode_ack(Ack(code, request.type, request.flags, request.sequence, 0, b"", attributes))
    return encode_message(type, flags, request.sequence, payload)


def overrun(request: Request) -> bytes:
    return encode_message(NLMSG_OVERRUN, 0, request.sequence, b"")


def interrupted_in_done(request: Request) -> Sequence[Datagram]:
    return [done_message(request, errno.EINTR)]


INTERRUPTIONS: dict[str, Reply] = {
    "overrun": lambda r: [overrun(r), done_message(r)],
    "overrun-behind-rows": lambda r: [row_message(r, C) + overrun(r), row_message(r, B), done_message(r)],
    "replies-lost-twice": lambda r: [*[OSError(errno.ENOBUFS, "recvfrom")] * 2, row_message(r, C), done_message(r)],
    "receive-interrupted": lambda r: [OSError(errno.EINTR, "recvfrom"), row_message(r, C), done_message(r)],
    "done-says-so": interrupted_in_done,
    "first-row-says-so": lambda r: [row_message(r, C, NLM_F_MULTI | NLM_F_DUMP_INTR), done_message(r)],
    "done-is-marked": lambda r: [done_message(r, 0, NLM_F_DUMP_INTR)],
    "done-behind-rows-is-marked": lambda r: [row_message(r, C) + done_message(r, 0, NLM_F_DUMP_INTR)],
}


@pytest.mark.parametrize("interruption", INTERRUPTIONS.values(), ids=INTERRUPTIONS)
class TestInterruptedDumps:
    """ENOBUFS, EINTR and a dump marked as interrupted: three attempts in all, then an error."""

    @pytest.mark.parametrize("times", [1, 2])
    def test_repeated_if_no_row_was_yielded(self, interruption: Reply, times: int) -> None:
        assert dumped(*[interruption] * times, whole) == ([A, B, C], times + 1)

    def test_the_third_time_it_is_an_error(self, interruption: Reply) -> None:
        with FakeKernel(in_turn(*[interruption] * 3, whole)).installed() as kernel, DiagSocket() as diag_socket:
            with pytest.raises(KernelError) as caught:
                flat(dump_of(diag_socket))
            assert caught.value.errno in (errno.EINTR, errno.ENOBUFS)
            assert len(kernel.dumps) == 3
            assert flat(dump_of(diag_socket)) == [A, B, C], "the socket can still be used, and nothing is left in it"

    def test_once_rows_were_yielded_repeated_only_if_they_may_repeat(self, interruption: Reply) -> None:
        def late(request: Request) -> Sequence[Datagram]:
            return [row_message(request, A), *interruption(request)]

        with FakeKernel(in_turn(late, whole)).installed() as kernel, DiagSocket() as diag_socket:
            streamed = iter(dump_of(diag_socket))
            assert next(streamed) == [A]
            with pytest.raises(KernelError):
                flat(streamed)
            assert len(kernel.dumps) == 1

        rows, dumps = dumped(late, whole, may_repeat_rows=True)
        assert (rows[0], rows[-3:], dumps) == (A, [A, B, C], 2)


def test_a_dump_whose_end_is_lost_is_not_repeated() -> None:
    """It is still under way, and the kernel accepts no other one meanwhile."""
    with FakeKernel(lambda requests: repeat(OSError(errno.ENOBUFS, "recvfrom"))).installed() as kernel:
        with DiagSocket() as diag_socket, pytest.raises(KernelError) as caught:
            flat(dump_of(diag_socket))
        assert (caught.value.errno, len(kernel.dumps)) == (errno.ENOBUFS, 1)


class TestDebugLog:
    """Each datagram is a line at DEBUG. Otherwise nothing is formatted."""

    def test_a_refused_reply_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG, "socklb"), pytest.raises(MalformedMessage):
            dumped(lambda r: [row_message(r, A)[:15]])
        assert [message.partition(":")[0] for message in caplog.messages] == [
            "-> seq 1 SOCK_DIAG_BY_FAMILY",
            "<- malformed",
        ]

    def test_above_debug_nothing_is_formatted(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("socklb.wire.describe.describe", raiser(AssertionError("formatted")))
        with caplog.at_level(logging.INFO, "socklb"):
            assert dumped(whole) == ([A, B, C], 1)
        assert caplog.messages == []
