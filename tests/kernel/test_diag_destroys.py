"""DiagSocket against a fake kernel: batches of destroys, and sends that fail."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb.errors import KernelError, MalformedMessage
from socklb.kernel.diag import DiagSocket
from socklb.kernel.netlink_socket import BATCH
from socklb.wire.netlink import NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, NLMSG_NOOP, Ack, encode_ack, encode_message
from socklb.wire.request import SOCK_DESTROY

from ..fake_kernel import Answer, Datagram, FakeKernel, Request, ack_message, done_message, row_message, table
from .test_diag import A, dump_of, flat

Codes = list[int]

FAILURES = (errno.ENOENT, errno.EPERM, errno.EINVAL)

REQUESTS = [bytes([n]) * 56 for n in range(BATCH)]  # DiagSocket does not decode them

batches = st.lists(st.sampled_from([0, *FAILURES]), min_size=1, max_size=BATCH)


def acks(requests: Sequence[Request], codes: Sequence[int], *, echo: bool = False) -> list[bytes]:
    """What the kernel answers: failures always, successes only to NLM_F_ACK; `echo` is a kernel without CAP_ACK."""
    messages = []
    for request, code in zip(requests, codes):
        if code or request.flags & NLM_F_ACK:
            echoed = request.payload if echo and code else b""
            flags, payload = encode_ack(Ack(code, request.type, request.flags, request.sequence, 0, echoed, ()))
            messages.append(encode_message(NLMSG_ERROR, flags, request.sequence, payload))
    return messages


def fragments(messages: Sequence[bytes], cuts: Iterable[bool]) -> Iterator[bytes]:
    """The messages in datagrams of one or more: `cuts` says after which of them a datagram ends."""
    datagram = b""
    for message, cut in zip(messages, cuts):
        datagram += message
        if cut:
            yield datagram
            datagram = b""
    if datagram:
        yield datagram


def destroyed(answer: Answer, count: int) -> tuple[Codes, FakeKernel]:
    """The errno of each destroy, and the kernel."""
    with FakeKernel(answer).installed() as kernel, DiagSocket() as diag_socket:
        return diag_socket.destroy(REQUESTS[:count], "destroy"), kernel


class TestABatch:
    """Many destroys in one send, with NLM_F_ACK on the last alone; the sequence says which one failed."""

    @pytest.mark.parametrize("count", [1, 2, BATCH])
    def test_it_is_one_send_and_the_last_requests_an_acknowledgement(self, count: int) -> None:
        codes, kernel = destroyed(lambda requests: acks(requests, [0] * count), count)
        assert codes == [0] * count
        (sent,) = kernel.sent
        assert [request.payload for request in sent] == REQUESTS[:count]
        assert {request.type for request in sent} == {SOCK_DESTROY}
        assert [request.flags for request in sent] == [NLM_F_REQUEST] * (count - 1) + [NLM_F_REQUEST | NLM_F_ACK]

    @given(codes=batches, cuts=st.lists(st.booleans(), min_size=BATCH, max_size=BATCH), echo=st.booleans())
    def test_each_has_its_own_errno_however_the_replies_are_split(
        self, codes: Codes, cuts: list[bool], echo: bool
    ) -> None:
        got, kernel = destroyed(lambda requests: fragments(acks(requests, codes, echo=echo), cuts), len(codes))
        assert got == codes
        assert len(kernel.sent) == 1

    def test_a_noop_is_ignored(self) -> None:
        noop = encode_message(NLMSG_NOOP, 0, 0, b"")
        got, _ = destroyed(lambda requests: [noop, *acks(requests, [errno.ENOENT, 0]), noop], 2)
        assert got == [errno.ENOENT, 0]


FAIL = errno.ENOENT

REFUSED: dict[str, tuple[Answer, str]] = {
    "out-of-order": (
        lambda r: [ack_message(r[1], FAIL), ack_message(r[0], FAIL)],
        r"sequence of a reply at offset 16: expected 3\.\.3, got 1",
    ),
    "twice": (lambda r: [ack_message(r[0], FAIL), ack_message(r[0], FAIL)], "sequence of a reply"),
    "behind-the-last": (lambda r: [ack_message(r[2]) + ack_message(r[1], FAIL)], "sequence of a reply"),
    "last-twice": (lambda r: [ack_message(r[2]) + ack_message(r[2])], "sequence of a reply"),
    "sequence-before": (lambda r: [ack_message(r[0]._replace(sequence=r[0].sequence - 1))], "sequence of a reply"),
    "sequence-behind": (lambda r: [ack_message(r[2]._replace(sequence=r[2].sequence + 1))], "sequence of a reply"),
    "done": (lambda r: [done_message(r[2])], "type of a reply"),
    "row": (lambda r: [row_message(r[2], A)], "type of a reply"),
    "no-bytes": (lambda r: [b""], "empty reply"),
    "cut": (lambda r: [ack_message(r[2])[:-1]], "netlink message length"),
    "without-the-header-of-the-request": (lambda r: [encode_message(2, 0, r[2].sequence, bytes(8))], "cut NLMSG_ERROR"),
    "errno-above-zero": (lambda r: [encode_message(2, 0, r[2].sequence, b"\1" * 20)], "errno of a reply"),
    "longer-than-the-buffer": (lambda r: [ack_message(r[0], FAIL) * 2000], "cut reply"),
}


class TestRefusedAnswers:
    """A reply that the kernel cannot have meant is MalformedMessage, and closes the socket."""

    @pytest.mark.parametrize(("answer", "what"), REFUSED.values(), ids=REFUSED)
    def test_it_is_refused_at_once(self, answer: Answer, what: str) -> None:
        with FakeKernel(answer).installed() as kernel:
            diag_socket = DiagSocket()
            with pytest.raises(MalformedMessage, match=what):
                diag_socket.destroy(REQUESTS[:3], "destroy")
            assert kernel.sockets[0].closed
            assert len(kernel.sent) == 1

    def test_an_answer_to_the_batch_before(self) -> None:
        with FakeKernel(lambda requests: acks(kernel.sent[0], [0])).installed() as kernel, DiagSocket() as diag_socket:
            assert diag_socket.destroy(REQUESTS[:1], "destroy") == [0]
            with pytest.raises(MalformedMessage, match="sequence of a reply"):
                diag_socket.destroy(REQUESTS[:1], "destroy")


PASSING = pytest.mark.parametrize("code", [errno.ENOBUFS, errno.EINTR])


class TestLostAnswers:
    """If an answer was lost the batch is sent again, three attempts in all."""

    @given(data=st.data())
    def test_answers_to_the_second_attempt_count_and_those_that_were_left_do_not(self, data: st.DataObject) -> None:
        codes = st.lists(st.sampled_from([0, *FAILURES]), min_size=BATCH, max_size=BATCH)
        first, second = data.draw(codes), data.draw(codes)

        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            if len(kernel.sent) > 1:
                return acks(requests, second)
            answers = acks(requests, first)
            lost = data.draw(st.integers(0, len(answers) - 1))
            return [*answers[:lost], OSError(errno.ENOBUFS, "recvfrom"), *answers[lost + 1 :]]

        with FakeKernel(answer).installed() as kernel, DiagSocket() as diag_socket:
            assert diag_socket.destroy(REQUESTS, "destroy") == second
        assert len(kernel.sent) == 2
        assert kernel.sockets[0].timeout == 0

    @PASSING
    def test_every_attempt_sends_the_same(self, code: int) -> None:
        kernel = FakeKernel(lambda requests: [OSError(code, "recvfrom")])
        with kernel.installed(), DiagSocket() as diag_socket, pytest.raises(KernelError) as caught:
            diag_socket.destroy(REQUESTS, "destroy")
        assert caught.value.errno == code
        assert [[request.payload for request in sent] for sent in kernel.sent] == [REQUESTS] * 3

    def test_silence_is_a_timeout_and_the_batch_is_not_repeated(self) -> None:
        kernel = FakeKernel(lambda requests: acks(requests, [FAIL] * len(requests))[:-1])
        with kernel.installed(), DiagSocket() as diag_socket, pytest.raises(KernelError) as caught:
            diag_socket.destroy(REQUESTS, "destroy")
        assert (caught.value.errno, len(kernel.sent)) == (errno.ETIMEDOUT, 1)


class TestSending:
    """ENOBUFS and EINTR on a send: three attempts in all; any other error is raised at once."""

    @PASSING
    @pytest.mark.parametrize("times", [1, 2])
    def test_it_is_repeated(self, code: int, times: int) -> None:
        kernel = FakeKernel(table([A]))
        kernel.send_errors = [OSError(code, "send") for _ in range(times)]
        with kernel.installed(), DiagSocket() as diag_socket:
            assert flat(dump_of(diag_socket)) == [A]
        assert len(kernel.sent) == 1

    @pytest.mark.parametrize(
        ("errors", "code", "left"),
        [
            ([OSError(errno.ENOBUFS, "send")] * 3, errno.ENOBUFS, 0),
            ([OSError(errno.EINTR, "send")] * 3, errno.EINTR, 0),
            ([OSError(errno.ENOMEM, "send"), OSError(errno.EIO, "send")], errno.ENOMEM, 1),
        ],
        ids=["ENOBUFS", "EINTR", "ENOMEM"],
    )
    def test_it_is_an_error(self, errors: list[BaseException], code: int, left: int) -> None:
        kernel = FakeKernel(table([A]))
        kernel.send_errors = errors.copy()
        with kernel.installed(), DiagSocket() as diag_socket, pytest.raises(KernelError) as caught:
            flat(dump_of(diag_socket))
        assert (caught.value.errno, len(kernel.send_errors), kernel.sent) == (code, left, [])
