# SPDX-License-Identifier: MIT
"""The netlink socket to the kernel's sock_diag: dumps that stream, destroys that go out many at once."""

from __future__ import annotations

import errno
import socket

from ..errors import KernelError, MalformedMessage, NotPermitted, NotSupported, kernel_error
from ..wire.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    decode_ack,
    decode_done,
    encode_message,
    iter_messages,
)
from ..wire.request import SOCK_DESTROY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

NETLINK_SOCK_DIAG = 4
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

BATCH = 64
"""How many destroys go out in one send. Their 64 acknowledgements fit into the smallest usual receive buffer."""

_TIMEOUT_SECONDS = 10
_ATTEMPTS = 3
_BUFFER_SIZE = 65536  # a dump reply is at most 32 KiB; an error without CAP_ACK carries the whole request


class _Interrupted(KernelError):
    """The table changed under a dump, or a reply was lost: what came is not the whole, and may be asked for again."""


def open_netlink() -> socket.socket:
    """A NETLINK_SOCK_DIAG socket in the network namespace of the calling thread."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)


class DiagSocket:
    """A conversation with sock_diag, in the network namespace that it was opened in. A context manager.

    Raises KernelError for what the kernel answers (ETIMEDOUT when it does not answer within 10 seconds), and
    MalformedMessage for what it could not have meant; after that one the socket is closed.
    """

    def __init__(self) -> None:
        try:
            self._socket = open_netlink()
        except OSError as error:
            raise _open_error(error) from None
        self._sequence = 0
        self.destroy_was_repeated = False
        self._buffer = bytearray(_BUFFER_SIZE)
        try:
            self._socket.settimeout(_TIMEOUT_SECONDS)
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
                self._set_option(option)
            self._socket.bind((0, 0))
        except OSError as error:
            self.close()
            raise _open_error(error) from None

    def _set_option(self, option: int) -> None:
        """Kernels before 4.3 and 4.12 lack these options; acknowledgements are longer then, or say less."""
        try:
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> DiagSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --------------------------------------------------------------------------------------------- dumps

    def dump(self, type: int, request: bytes, doing: str, *, may_repeat_rows: bool = False) -> Iterator[list[bytes]]:
        """Dump with a request of this message type; yields the rows of each reply buffer as lists of payloads.

        A dump that was interrupted is repeated, up to three times in all; once rows have been given out, only if they
        `may_repeat`, for then the same row can come again. `doing` says in errors what was tried.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            given = False
            try:
                for rows in self._dump_once(type, request, doing):
                    given = given or bool(rows)
                    yield rows
                return
            except _Interrupted:
                if attempt == _ATTEMPTS or (given and not may_repeat_rows):
                    raise

    def _dump_once(self, type: int, request: bytes, doing: str) -> Iterator[list[bytes]]:
        sequence = self._next_sequence(1)
        self._send(encode_message(type, NLM_F_REQUEST | NLM_F_DUMP, sequence, request), doing)
        lost: _Interrupted | None = None  # said when the dump is over, so that the next one starts clean
        losses = 0
        done = False
        while not done:
            rows: list[bytes] = []
            try:
                reply = self._receive(doing)
            except _Interrupted as error:
                losses += 1
                if losses == _ATTEMPTS:
                    raise KernelError(*error.args) from None  # not repeated: the end of this dump was not seen
                lost = error
                continue
            try:
                for kind, flags, answered, _, start, end in iter_messages(reply, len(reply)):
                    if kind == type and answered == sequence and not done and not flags & NLM_F_DUMP_INTR:
                        rows.append(reply[start:end])
                        continue
                    if answered != sequence:
                        raise MalformedMessage("sequence of a reply", offset=start, expected=sequence, got=answered)
                    if done:
                        raise MalformedMessage("message behind the last", offset=start, expected="nothing", got=kind)
                    if flags & NLM_F_DUMP_INTR:
                        lost = _Interrupted(errno.EINTR, f"{doing}: the table changed during the dump; try again")
                    if kind == NLMSG_DONE:
                        done = True
                        code, text = _error_of(decode_done(reply, start, end, flags))
                    elif kind == NLMSG_ERROR:
                        done = True
                        code, text = _error_of(decode_ack(reply, start, end, flags))
                        code = code or errno.EPROTO  # an acknowledgement where rows were asked for
                    elif kind == NLMSG_OVERRUN:
                        lost = _Interrupted(errno.ENOBUFS, f"{doing}: the kernel lost replies; try again")
                    elif kind not in (type, NLMSG_NOOP):
                        raise MalformedMessage("type of a reply", offset=start, expected=type, got=kind)
            except MalformedMessage:
                self.close()
                raise
            if rows and lost is None:
                yield rows
        if code == errno.EINTR:
            raise _Interrupted(code, f"{doing}: interrupted; try again")
        if code:
            raise _dump_error(code, doing, text)
        if lost is not None:
            raise lost

    # ------------------------------------------------------------------------------------------ destroys

    def destroy(self, requests: Sequence[bytes], doing: str) -> list[int]:
        """Send up to BATCH destroys in one go; the errno of each in order, 0 for a socket that was destroyed.

        The acknowledgement is asked for the last alone, the kernel reports the failures of the others by itself. When
        an answer was lost all are sent again, and `destroy_was_repeated` tells: what the first attempt destroyed then
        answers ENOENT.
        """
        oldest = self._sequence + 1
        self.destroy_was_repeated = False
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._destroy_once(requests, doing, oldest)
            except _Interrupted:
                self.destroy_was_repeated = True
                self._drain()
        return self._destroy_once(requests, doing, oldest)

    def _drain(self) -> None:
        """Take what is left of the answers: as long as one waits, the kernel drops new ones without a further ENOBUFS
        (NETLINK_S_CONGESTED).
        """
        self._socket.settimeout(0)
        try:
            for _ in range(2 * BATCH):
                try:
                    self._socket.recvmsg_into([self._buffer])
                except BlockingIOError:
                    break
                except OSError:
                    continue  # the next attempt runs into it again, if it stays
        finally:
            self._socket.settimeout(_TIMEOUT_SECONDS)

    def _destroy_once(self, requests: Sequence[bytes], doing: str, oldest: int) -> list[int]:
        """`oldest` is the first sequence of the batch's first attempt: late answers to it are passed over."""
        first = self._next_sequence(len(requests))
        last = first + len(requests) - 1
        self._send(
            b"".join(
                encode_message(SOCK_DESTROY, NLM_F_REQUEST | (NLM_F_ACK if n == last else 0), n, request)
                for n, request in enumerate(requests, first)
            ),
            doing,
        )
        codes = [0] * len(requests)
        answered = first - 1
        while answered != last:
            reply = self._receive(doing)
            try:
                for kind, flags, sequence, _, start, end in iter_messages(reply, len(reply)):
                    if kind == NLMSG_NOOP or oldest <= sequence < first:
                        continue
                    if kind != NLMSG_ERROR:
                        raise MalformedMessage("type of a reply", offset=start, expected=NLMSG_ERROR, got=kind)
                    if not answered < sequence <= last:
                        raise MalformedMessage(
                            "sequence of a reply", offset=start, expected=f"{answered + 1}..{last}", got=sequence
                        )
                    codes[sequence - first] = decode_ack(reply, start, end, flags).errno
                    answered = sequence
            except MalformedMessage:
                self.close()
                raise
        return codes

    # --------------------------------------------------------------------------------------- one datagram

    def _next_sequence(self, count: int) -> int:
        first = self._sequence + 1
        self._sequence += count
        return first

    def _send(self, data: bytes, doing: str) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._socket.send(data)
                return
            except socket.timeout:
                raise _timed_out(doing) from None
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.EINTR) or attempt == _ATTEMPTS:
                    raise kernel_error(error.errno or 0, doing) from None

    def _receive(self, doing: str) -> bytes:
        """One datagram from the kernel."""
        try:
            size, _, flags, sender = self._socket.recvmsg_into([self._buffer])
        except socket.timeout:
            raise _timed_out(doing) from None
        except OSError as error:
            if error.errno in (errno.ENOBUFS, errno.EINTR):
                raise _Interrupted(error.errno, f"{doing}: the kernel lost replies; try again") from None
            raise kernel_error(error.errno or 0, doing) from None
        wrong: dict[str, Any] | None = None
        if sender[0] != 0:
            wrong = {"what": "sender of a reply", "expected": "the kernel, port 0", "got": f"port {sender[0]}"}
        elif flags & socket.MSG_TRUNC:
            wrong = {"what": "cut reply", "expected": f"at most {len(self._buffer)} bytes", "got": "more"}
        elif not size:
            wrong = {"what": "empty reply", "expected": "a netlink message", "got": "nothing"}
        if wrong:
            self.close()
            raise MalformedMessage(offset=0, **wrong)
        return bytes(memoryview(self._buffer)[:size])


def _error_of(answer: Any) -> tuple[int, str]:
    return answer.errno, answer.text


def _timed_out(doing: str) -> KernelError:
    return KernelError(errno.ETIMEDOUT, f"{doing}: the kernel did not answer within {_TIMEOUT_SECONDS} seconds")


def _open_error(error: OSError) -> KernelError:
    if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
        return NotSupported(
            error.errno,
            "open a netlink socket: this kernel (or a seccomp filter) has no NETLINK_SOCK_DIAG: CONFIG_INET_DIAG",
        )
    kind = NotPermitted if error.errno == errno.EPERM else KernelError
    hint = " (a seccomp filter? It needs no capability)" if error.errno in (errno.EPERM, errno.EACCES) else ""
    return kind(error.errno or 0, f"open a netlink socket: {error.strerror}{hint}")


def _dump_error(code: int, doing: str, text: str) -> KernelError:
    """ENOENT at the end of a dump is no empty table: no handler for the protocol and family is there."""
    if code == errno.ENOENT:
        return NotSupported(
            code,
            f"{doing}: this kernel cannot list such sockets: CONFIG_INET_DIAG with CONFIG_INET_UDP_DIAG for UDP "
            "(or: modprobe tcp_diag udp_diag)",
        )
    if code == errno.EOPNOTSUPP:
        return NotSupported(code, f"{doing}: this kernel was built without CONFIG_INET_DIAG")
    return kernel_error(code, doing, text)
