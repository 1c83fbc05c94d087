# SPDX-License-Identifier: MIT
"""The netlink socket to the kernel's sock_diag: dumps that stream, and destroys in batches."""

from __future__ import annotations

import errno
import socket
import sys

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
    Ack,
    decode_ack,
    decode_done,
    encode_message,
    iter_messages,
)
from ..wire.request import SOCK_DESTROY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from logging import Logger

    from ..wire.netlink import Done

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
    """A reply was lost, or the table changed during a dump: what came is incomplete, and can be requested again."""


def open_netlink() -> socket.socket:
    """A NETLINK_SOCK_DIAG socket in the network namespace of the calling thread."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)


class DiagSocket:
    """A netlink socket to sock_diag, in the network namespace that it was opened in. A context manager.

    Raises KernelError for an errno that the kernel answers (ETIMEDOUT if it does not answer within 10 seconds), and
    MalformedMessage for a reply that no kernel sends; then the socket is closed. Requests and replies are logged
    if the logger "socklb" was enabled for DEBUG when the socket was opened.
    """

    def __init__(self) -> None:
        try:
            self._socket = open_netlink()
        except OSError as error:
            raise _open_error(error) from None
        self._sequence = 0
        self.destroy_was_repeated = False
        self._buffer = bytearray(_BUFFER_SIZE)
        self._logger = _debug_logger()
        try:
            self._socket.settimeout(_TIMEOUT_SECONDS)
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
                self._set_option(option)
            self._socket.bind((0, 0))
        except OSError as error:
            self.close()
            raise _open_error(error) from None

    def _set_option(self, option: int) -> None:
        """Kernels before 4.3 and 4.12 lack these options: their acknowledgements are longer, or carry no text."""
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
        """Dump with a request of this message type; yields the rows of each datagram, as payloads.

        An interrupted dump is repeated, up to three attempts in all; once rows were yielded, only if they
        `may_repeat`, because the new attempt yields them again. `doing` says in errors what was attempted.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            yielded = False
            try:
                for rows in self._dump_once(type, request, doing):
                    yielded = True
                    yield rows
                return
            except _Interrupted:
                if attempt == _ATTEMPTS or (yielded and not may_repeat_rows):
                    raise
            except MalformedMessage:
                self.close()
                raise

    def _dump_once(self, type: int, request: bytes, doing: str) -> Iterator[list[bytes]]:
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
            rows, end, code = _parse_dump(reply, type, sequence)
            if code:
                interrupted = _interrupted(code, doing)
            if rows and interrupted is None:
                yield rows
        code = end.errno or (errno.EPROTO if isinstance(end, Ack) else 0)  # a success where rows were requested
        if code == errno.EINTR:
            raise _interrupted(code, doing)
        if code:
            raise _dump_error(code, doing, end.text)
        if interrupted is not None:
            raise interrupted

    # ------------------------------------------------------------------------------------------ destroys

    def destroy(self, requests: Sequence[bytes], doing: str) -> list[int]:
        """Send up to BATCH destroys at once; the errno of each in order, 0 for a socket that was destroyed.

        Only the last requests an acknowledgement; failures of the others are reported by the kernel unasked. If an
        answer was lost, all are sent again and `destroy_was_repeated` is set: whatever the first attempt destroyed
        answers ENOENT then.
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

    def _destroy_once(self, requests: Sequence[bytes], doing: str, oldest: int) -> list[int]:
        """`oldest` is the first sequence of the batch's first attempt: late answers to it are ignored."""
        first = self._next_sequence(len(requests))
        last = first + len(requests) - 1
        messages = (
            encode_message(SOCK_DESTROY, NLM_F_REQUEST | (NLM_F_ACK if n == last else 0), n, request)
            for n, request in enumerate(requests, first)
        )
        self._send(b"".join(messages), doing)
        codes = [0] * len(requests)
        answered = first - 1
        while answered != last:
            try:
                reply = self._receive(doing)
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

    def _drain(self) -> None:
        """Discard the answers that are left: as long as one is queued, the kernel drops new ones without a further
        ENOBUFS (NETLINK_S_CONGESTED).
        """
        self._socket.settimeout(0)
        try:
            for _ in range(2 * BATCH):
                try:
                    self._socket.recvmsg_into([self._buffer])
                except BlockingIOError:
                    break
                except OSError:
                    continue  # if it persists, the next attempt meets it too
        finally:
            self._socket.settimeout(_TIMEOUT_SECONDS)

    # ----------------------------------------------------------------------------------------- datagrams

    def _next_sequence(self, count: int) -> int:
        first = self._sequence + 1
        self._sequence += count
        return first

    def _send(self, data: bytes, doing: str) -> None:
        if self._logger:
            _log(self._logger, "->", data)
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
                raise _interrupted(error.errno, doing) from None
            raise kernel_error(error.errno or 0, doing) from None
        reply = bytes(memoryview(self._buffer)[:size])
        if self._logger:
            _log(self._logger, "<-", reply)
        if sender[0] != 0:
            raise MalformedMessage(
                "sender of a reply", offset=0, expected="the kernel, port 0", got=f"port {sender[0]}"
            )
        if flags & socket.MSG_TRUNC:
            raise MalformedMessage("cut reply", offset=0, expected=f"at most {len(self._buffer)} bytes", got="more")
        if not size:
            raise MalformedMessage("empty reply", offset=0, expected="a netlink message", got="nothing")
        return reply


def _parse_dump(reply: bytes, type: int, sequence: int) -> tuple[list[bytes], Ack | Done | None, int]:
    """The rows of a datagram, what ended the dump if anything did, and EINTR or ENOBUFS if it was interrupted."""
    rows: list[bytes] = []
    end: Ack | Done | None = None
    interrupted = 0
    for kind, flags, answered, _, start, stop in iter_messages(reply, len(reply)):
        if kind == type and answered == sequence and end is None and not flags & NLM_F_DUMP_INTR:
            rows.append(reply[start:stop])
            continue
        if answered != sequence:
            raise MalformedMessage("sequence of a reply", offset=start, expected=sequence, got=answered)
        if end is not None:
            raise MalformedMessage("message behind the last", offset=start, expected="nothing", got=kind)
        if flags & NLM_F_DUMP_INTR:
            interrupted = errno.EINTR
        if kind == NLMSG_DONE:
            end = decode_done(reply, start, stop, flags)
        elif kind == NLMSG_ERROR:
            end = decode_ack(reply, start, stop, flags)
        elif kind == NLMSG_OVERRUN:
            interrupted = errno.ENOBUFS
        elif kind not in (type, NLMSG_NOOP):
            raise MalformedMessage("type of a reply", offset=start, expected=type, got=kind)
    return rows, end, interrupted


def _debug_logger() -> Logger | None:
    """The logger "socklb" if it is enabled for DEBUG, which takes that the program has imported `logging`."""
    if "logging" not in sys.modules:
        return None
    import logging

    logger = logging.getLogger("socklb")
    return logger if logger.isEnabledFor(logging.DEBUG) else None


def _log(logger: Logger, direction: str, data: bytes) -> None:
    from ..wire.describe import describe  # takes a while to import, and few debug

    logger.debug("%s %s", direction, describe(data))


# -------------------------------------------------------------------------------------------------- errors


def _interrupted(code: int, doing: str) -> _Interrupted:
    why = "the kernel lost replies" if code == errno.ENOBUFS else "interrupted"
    return _Interrupted(code, f"{doing}: {why}; try again")


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
    """ENOENT at the end of a dump does not mean an empty table: the protocol and family have no diag handler."""
    if code == errno.ENOENT:
        return NotSupported(
            code,
            f"{doing}: this kernel cannot list such sockets: CONFIG_INET_DIAG with CONFIG_INET_UDP_DIAG for UDP "
            "(or: modprobe tcp_diag udp_diag)",
        )
    if code == errno.EOPNOTSUPP:
        return NotSupported(code, f"{doing}: this kernel was built without CONFIG_INET_DIAG")
    return kernel_error(code, doing, text)
