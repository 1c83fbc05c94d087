# SPDX-License-Identifier: MIT
"""A netlink socket to one of the kernel's subsystems: dumps that stream, and requests in batches.

Whatever is asked of it gets an answer within 10 seconds of waiting, or an error: replies that were lost, interrupted
dumps, datagrams of others and nonsense are dealt with here, once for all subsystems.
"""

from __future__ import annotations

import _socket  # `socket` takes twenty times as long to import
import errno
import os
import sys
from time import monotonic

from ..errors import KernelError, MalformedMessage, NotPermitted, NotSupported, SocklbError, kernel_error
from ..wire.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    NLMSG_NOOP,
    Ack,
    decode_ack,
    encode_message,
    iter_messages,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from logging import Logger
    from typing import TypeVar, Union

    from ..wire.netlink import Done

    S = TypeVar("S", bound="NetlinkSocket")
    T = TypeVar("T")
    Parsed = tuple[list[T], Union[Ack, Done, None], int]

SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

BATCH = 64
"""How many requests go out in one send. Their answers fit into the usual receive buffer."""

_TIMEOUT_SECONDS = 10
_ATTEMPTS = 3
_BUFFER_SIZE = 65536  # a dump reply is at most 32 KiB; an error without CAP_ACK carries the whole request


class _Interrupted(KernelError):
    """A reply was lost, or the table changed during a dump: what came is incomplete, and can be requested again."""


class NetlinkSocket:
    """A netlink socket, in the network namespace that it was opened in. A context manager.

    Raises KernelError for an errno that the kernel answers (ETIMEDOUT if it does not answer within 10 seconds of
    waiting), MalformedMessage for a reply that no kernel sends (then the socket is closed), and SocklbError in another
    process than the one that opened it. Requests and replies are logged if the logger "socklb" was enabled for DEBUG
    when the socket was opened. Datagrams that do not come from the kernel are passed over; `foreign` counts them.
    """

    lacks = ""
    """What a kernel is without that does not know the protocol, for the message."""

    refuses_sends = False
    """Whether EPERM answers a whole send, once, and not each of its messages: nfnetlink_rcv()."""

    def __init__(self, opened: Callable[[], _socket.socket]) -> None:
        try:
            self._socket = opened()
        except OSError as error:
            raise self._open_error(error) from None
        except AttributeError:  # built where linux/netlink.h was missing
            raise NotSupported(errno.ENOSYS, "open a netlink socket: this Python has no AF_NETLINK") from None
        self._sequence = 0
        self._pid = os.getpid()
        self.foreign = 0
        self._has_received = False
        self.was_repeated = False
        self._buffer = memoryview(bytearray(_BUFFER_SIZE))
        self._logger = _debug_logger()
        try:
            self._socket.settimeout(0)  # answers are queued before send() returns: none is polled for first
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
                self._set_option(option)
            self._socket.bind((0, 0))
            self._socket.connect((0, 0))  # to the kernel: from now on nobody else can send to it
        except OSError as error:
            self.close()
            raise self._open_error(error) from None

    def _set_option(self, option: int) -> None:
        """Kernels before 4.3 and 4.12 lack these options: their acknowledgements are longer, or carry no text."""
        try:
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise

    def close(self) -> None:
        self._socket.close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --------------------------------------------------------------------------------------------- dumps

    def _dump(
        self,
        type: int,
        request: bytes,
        parse: Callable[[bytes, int], Parsed[T]],
        doing: str,
        *,
        may_repeat_rows: bool = False,
    ) -> Iterator[list[T]]:
        """Dump with a request of this message type; yields the rows of each datagram.

        `parse` makes them of a datagram and the sequence that was asked for, besides what ended the dump, if anything
        did, and EINTR or ENOBUFS if it was interrupted. An interrupted dump is repeated, up to three attempts in all;
        once rows were yielded, only if they `may_repeat`, because the new attempt yields them again. `doing` says in
        errors what was attempted.
        """
        if may_repeat_rows and not self._has_received:
            self._enlarge_replies(doing)
        for attempt in range(1, _ATTEMPTS + 1):
            yielded = False
            try:
                for rows in self._dump_once(type, request, parse, doing):
                    yielded = True
                    yield rows
                return
            except _Interrupted as error:
                if attempt == _ATTEMPTS or (yielded and not may_repeat_rows):
                    raise KernelError(*error.args) from None
            except MalformedMessage:
                self.close()
                raise

    def _enlarge_replies(self, doing: str) -> None:
        """Receive something: the kernel makes its replies as large as the largest buffer that it has seen, up to 32 KiB
        (netlink_dump()), and more rows in one mean fewer dumps that have to be repeated. NLMSG_NOOP is acknowledged.
        """
        self._send(encode_message(NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, self._next_sequence(1), b""), doing)
        self._receive(doing)

    def _dump_once(
        self, type: int, request: bytes, parse: Callable[[bytes, int], Parsed[T]], doing: str
    ) -> Iterator[list[T]]:
        sequence = self._next_sequence(1)
        self._send(encode_message(type, NLM_F_REQUEST | NLM_F_DUMP, sequence, request), doing)
        interrupted: _Interrupted | None = None  # raised when the dump is over, so that the next one starts clean
        losses = 0
        end: Ack | Done | None = None
        while end is None:
            try:
                reply = self._receive(doing)
            except _Interrupted as error:
                losses += 1
                if losses == _ATTEMPTS:
                    raise KernelError(*error.args) from None  # not to be repeated: this dump is still under way
                interrupted = error
                continue
            rows, end, code = parse(reply, sequence)
            if code:
                interrupted = _interrupted(code, doing)
            if rows and interrupted is None:
                yield rows
        code = end.errno or (errno.EPROTO if isinstance(end, Ack) else 0)  # a success where rows were requested
        if code == errno.EINTR:
            raise _interrupted(code, doing)
        if code:
            raise self._dump_error(code, doing, end.text)
        if interrupted is not None:
            raise interrupted

    # ------------------------------------------------------------------------------------------- batches

    def _look_up(self, type: int, answer_type: int, requests: Sequence[bytes], doing: str) -> list[bytes | None]:
        """At most BATCH questions at once: the answer to each in order, None where the kernel finds nothing.

        If an answer was lost, half of them are asked at a time.
        """
        for _ in range(_ATTEMPTS):
            try:
                answers = self._exchange(type, answer_type, requests, doing)
                return [self._found(answer, doing) for answer in answers]
            except _Interrupted as error:
                lost = error
                self._drain()
            if len(requests) > 1:
                half, ask = len(requests) // 2, self._look_up
                return ask(type, answer_type, requests[:half], doing) + ask(type, answer_type, requests[half:], doing)
        raise KernelError(*lost.args)

    def _found(self, answer: bytes | int, doing: str) -> bytes | None:
        """The row that answered a look-up; None where nothing is, or something else is (ESTALE, with UDP)."""
        if isinstance(answer, bytes):
            return answer
        if answer in (errno.ENOENT, errno.ESTALE):
            return None
        raise self._error(answer, doing)

    def _order(self, type: int, requests: Sequence[bytes], doing: str) -> list[int]:
        """Up to BATCH orders at once; the errno of each in order, 0 for one that was carried out.

        Only the last requests an acknowledgement; failures of the others are reported by the kernel unasked. If an
        answer was lost, all are sent again and `was_repeated` is set: whatever the first attempt has destroyed or
        deleted answers ENOENT then.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            self.was_repeated = attempt > 1
            try:
                return [int(code) for code in self._exchange(type, None, requests, doing)]
            except _Interrupted as error:
                lost = error
                self._drain()
        raise KernelError(*lost.args)

    def _exchange(self, type: int, answer_type: int | None, requests: Sequence[bytes], doing: str) -> list[bytes | int]:
        """Send messages of one type; for each in order the message of `answer_type` that answers it, or its errno (0
        without an answer). None: they are orders, that are only acknowledged.
        """
        first = self._next_sequence(len(requests))
        last = first + len(requests) - 1
        answer_to_last = NLM_F_ACK if answer_type is None else 0  # a question is answered in any case
        messages = [encode_message(type, NLM_F_REQUEST, n, request) for n, request in enumerate(requests[:-1], first)]
        messages.append(encode_message(type, NLM_F_REQUEST | answer_to_last, last, requests[-1]))
        self._send(b"".join(messages), doing)
        answers: list[bytes | int] = [0] * len(requests)
        answered = first - 1
        while answered != last:
            try:
                reply = self._receive(doing)
                for kind, flags, sequence, _, start, end in iter_messages(reply, len(reply)):
                    if kind == NLMSG_NOOP:
                        continue
                    is_row = kind == answer_type
                    if not is_row and kind != NLMSG_ERROR:
                        raise MalformedMessage("type of a reply", offset=start, expected=NLMSG_ERROR, got=kind)
                    if not answered < sequence <= last:
                        raise MalformedMessage(
                            "sequence of a reply", offset=start, expected=f"{answered + 1}..{last}", got=sequence
                        )
                    answer = reply[start:end] if is_row else decode_ack(reply, start, end, flags).errno
                    if answer == errno.EPERM and self.refuses_sends:
                        return [errno.EPERM] * len(requests)
                    answers[sequence - first] = answer
                    answered = sequence
            except MalformedMessage:
                self.close()
                raise
        return answers

    def _drain(self) -> None:
        """Discard the answers that are left: as long as one is queued, the kernel drops new ones without a further
        ENOBUFS (NETLINK_S_CONGESTED).
        """
        for _ in range(2 * BATCH):
            try:
                self._socket.recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError:
                continue  # if it persists, the next attempt meets it too

    # ----------------------------------------------------------------------------------------- datagrams

    def _next_sequence(self, count: int) -> int:
        first = self._sequence + 1
        self._sequence += count
        return first

    def _send(self, data: bytes, doing: str) -> None:
        if self._logger:
            self._logger.debug("-> %s", self._describe(data))
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._socket.send(data)
                return
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.EINTR) or attempt == _ATTEMPTS:
                    raise kernel_error(error.errno or 0, doing) from None

    def _receive(self, doing: str) -> bytes:
        """One datagram from the kernel. Others' datagrams are no answer, and do not extend the deadline."""
        if os.getpid() != self._pid:
            raise SocklbError(f"{doing}: this was begun in another process, {self._pid}, which reads the answers")
        end = monotonic() + _TIMEOUT_SECONDS
        size, sender = self._receive_into_buffer(doing, end)
        while sender:
            self.foreign += 1
            if monotonic() >= end:
                raise _timed_out(doing)
            size, sender = self._receive_into_buffer(doing, end)
        self._has_received = True
        reply = bytes(self._buffer[:size])
        if self._logger:
            self._logger.debug("<- %s", self._describe(reply))
        if size == len(self._buffer):
            raise MalformedMessage(
                "cut reply", offset=0, expected=f"less than {_BUFFER_SIZE} bytes", got="as many or more"
            )
        if not size:
            raise MalformedMessage("empty reply", offset=0, expected="a netlink message", got="nothing")
        return reply

    def _receive_into_buffer(self, doing: str, end: float) -> tuple[int, int]:
        """Size, and the sender's port, of a datagram; it is waited for where none has come yet."""
        try:
            try:
                size, (sender, _) = self._socket.recvfrom_into(self._buffer)
            except BlockingIOError:
                size, (sender, _) = self._wait(end)
        except _socket.timeout:
            raise _timed_out(doing) from None
        except OSError as error:
            if error.errno in (errno.ENOBUFS, errno.EINTR):
                raise _interrupted(error.errno, doing) from None
            raise kernel_error(error.errno or 0, doing) from None
        return size, sender

    def _wait(self, end: float) -> tuple[int, tuple[int, int]]:
        self._socket.settimeout(max(1e-3, end - monotonic()))
        try:
            return self._socket.recvfrom_into(self._buffer)
        finally:
            self._socket.settimeout(0)

    # ------------------------------------------------------------------------------- the subsystem's own

    def _describe(self, data: bytes) -> str:
        """The messages of one send or one receive as a line of the log."""
        raise NotImplementedError

    def _error(self, code: int, doing: str, text: str = "") -> KernelError:
        """For an errno that was answered."""
        return kernel_error(code, doing, text)

    def _dump_error(self, code: int, doing: str, text: str) -> KernelError:
        """For one at the end of a dump."""
        return self._error(code, doing, text)

    def _open_error(self, error: OSError) -> KernelError:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
            return NotSupported(
                error.errno, f"open a netlink socket: this kernel (or a seccomp filter) has no {self.lacks}"
            )
        if error.errno in (errno.EPERM, errno.EACCES):
            return NotPermitted(
                error.errno,
                f"open a netlink socket: {error.strerror}: it needs no capability, so a seccomp filter or a security "
                "module (SELinux, AppArmor) forbids it",
            )
        return KernelError(error.errno or 0, f"open a netlink socket: {error.strerror}")


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """As many at a time as go out in one send."""
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _debug_logger() -> Logger | None:
    """The logger "socklb" if it is enabled for DEBUG, which takes that the program has imported `logging`."""
    if "logging" not in sys.modules:
        return None
    import logging

    logger = logging.getLogger("socklb")
    return logger if logger.isEnabledFor(logging.DEBUG) else None


def _interrupted(code: int, doing: str) -> _Interrupted:
    why = "the kernel lost replies" if code == errno.ENOBUFS else "interrupted"
    return _Interrupted(code, f"{doing}: {why}; try again")


def _timed_out(doing: str) -> KernelError:
    return KernelError(errno.ETIMEDOUT, f"{doing}: the kernel did not answer within {_TIMEOUT_SECONDS} seconds")
