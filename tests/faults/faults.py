"""Faults: what comes instead of the honest answer to a request, and how a call then ends."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from socklb import KernelError, MalformedMessage, NotPermitted, NotSupported
from socklb.wire.netlink import NLM_F_DUMP_INTR, NLMSG_NOOP, NLMSG_OVERRUN, encode_message, iter_messages

from ..fake_kernel import Answer, Datagram, Request, ack_message, done_message, row, row_message
from .calls import DESTROY, DUMP, GOOD, LOOK_UP, End

Honest = Callable[[], "list[bytes]"]
"""Lets the kernel do what it was asked for; the messages that it answers. Not called, nothing is done."""

Damage = Callable[[Sequence[Request], Honest], Iterable[Datagram]]

MALFORMED = End(MalformedMessage)
LOST, INTERRUPTED, SILENT = (End(KernelError, code) for code in (errno.ENOBUFS, errno.EINTR, errno.ETIMEDOUT))
EIO, EINVAL, ENOMEM = (End(KernelError, code) for code in (errno.EIO, errno.EINVAL, errno.ENOMEM))
REFUSED = End(NotPermitted, errno.EPERM)
NO_DIAG = End(NotSupported, errno.ENOENT)
NO_DESTROY = End(NotSupported, errno.EOPNOTSUPP)

ALWAYS: Sequence[int] = range(1, 1 << 20)


def single(datagrams: Iterable[Datagram]) -> list[bytes]:
    """The messages of an answer one by one."""
    messages = []
    for datagram in datagrams:
        assert isinstance(datagram, bytes)
        starts = [start - 16 for *_, start, _ in iter_messages(datagram, len(datagram))]
        messages += [datagram[a:b] for a, b in zip(starts, [*starts[1:], len(datagram)])]
    return messages


class InjectFault:
    """Damages the answers to these dumps, look-ups or destroys, counted from 1; the others are honest. `hit`: the
    requests.
    """

    def __init__(self, damage: Damage, on: str, when: Sequence[int] = ALWAYS) -> None:
        self._damage, self._on, self._when, self._count = damage, on, when, 0
        self.hit: list[Request] = []

    def __call__(self, usual: Answer) -> Answer:
        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            if requests[0].kind != self._on:
                return usual(requests)
            self._count += 1
            if self._count not in self._when:
                return usual(requests)
            self.hit += requests
            return self._damage(requests, lambda: single(usual(requests)))

        return answer


class Fault(NamedTuple):
    """What happens to a dump or a batch of destroys, and how the call ends.

    `repeats`: the call tries again, and ends so only if the fault stays. `after_a_row`: what streams rows cannot try
    again by then. Where the call goes on, `verdict` is what those get that were to be destroyed.
    """

    on: str
    damage: Damage
    end: End = MALFORMED
    repeats: bool = False
    after_a_row: bool = False
    verdict: str = "destroyed"


# ---------------------------------------------------------------------------------------- changed answers


def at(index: int, change: Callable[[bytes], Datagram]) -> Damage:
    """One message is another; each comes as a datagram of its own."""

    def damage(_: Sequence[Request], honest: Honest) -> list[Datagram]:
        messages = honest()
        changed: list[Datagram] = list(messages)
        changed[index] = change(messages[index])
        return changed

    return damage


def with_field(format: str, offset: int, value: int) -> Callable[[bytes], bytes]:
    def change(message: bytes) -> bytes:
        changed = bytearray(message)
        struct.pack_into(format, changed, offset, value)
        return bytes(changed)

    return change


def length(value: int) -> Callable[[bytes], bytes]:
    return with_field("=I", 0, value)


def other_sequence(step: int) -> Callable[[bytes], bytes]:
    def change(message: bytes) -> bytes:
        (sequence,) = struct.unpack_from("=I", message, 8)
        return with_field("=I", 8, (sequence + step) & 0xFFFFFFFF)(message)

    return change


def raising(error: BaseException, *, after: int = 0, rest: bool = True) -> Damage:
    """A receive fails behind so many messages; then come the others, or nothing."""

    def damage(_: Sequence[Request], honest: Honest) -> list[Datagram]:
        messages = honest()
        return [*messages[:after], error, *(messages[after:] if rest else [])]

    return damage


def unsent(error: BaseException) -> Damage:
    """The send fails; the kernel has seen nothing."""

    def damage(requests: Sequence[Request], honest: Honest) -> Iterable[Datagram]:
        raise error

    return damage


def behind_a_row(make: Callable[[Request], bytes], *, together: bool = False, rest: bool = False) -> Damage:
    """Behind the first row comes something else, and then the others or nothing."""

    def damage(requests: Sequence[Request], honest: Honest) -> list[Datagram]:
        first, *others = honest()
        messages = [first, make(requests[0]), *(others if rest else [])]
        return [b"".join(messages)] if together else list(messages)

    return damage


def refused(code: int) -> Damage:
    """The kernel does nothing, and answers each destroy so."""
    return lambda requests, honest: [ack_message(request, code) for request in requests]


def marked(message: bytes) -> bytes:
    """As a part of a dump that the kernel knows to be inconsistent."""
    (flags,) = struct.unpack_from("=H", message, 6)
    return with_field("=H", 6, flags | NLM_F_DUMP_INTR)(message)


def done(code: int) -> Damage:
    return lambda requests, honest: [*honest()[:-1], done_message(requests[0], code)]


def noop(request: Request) -> bytes:
    return encode_message(NLMSG_NOOP, 0, request.sequence, b"")


def overrun(request: Request) -> bytes:
    return encode_message(NLMSG_OVERRUN, 0, request.sequence, b"")


def moved(request: Request, step: int) -> Request:
    return request._replace(sequence=request.sequence + step)


# --------------------------------------------------------------------------------------------- the table

_NO_BUFFERS, _INTERRUPT = OSError(errno.ENOBUFS, "no buffers"), OSError(errno.EINTR, "interrupted")

_ROW_OF_112 = row(1, attributes=[(999, bytes(36))])  # 128 with its header: the buffer ends between two


def _of_either(on: str) -> dict[str, Fault]:
    """What may happen to all of them alike."""
    return {
        "one by one": Fault(on, lambda r, honest: list(honest()), GOOD),
        "in one datagram": Fault(on, lambda r, honest: [b"".join(honest())], GOOD),
        "no-operations": Fault(on, lambda r, honest: [x for m in honest() for x in (noop(r[0]), noop(r[0]) + m)], GOOD),
        "cut": Fault(on, at(-1, lambda m: m[:-1])),
        "nothing": Fault(on, at(-1, lambda m: b"")),
        "length 0": Fault(on, at(-1, length(0))),
        "foreign port": Fault(on, lambda r, honest: [x for m in honest() for x in ((m, 4711), m)], GOOD),
        "foreign sequence": Fault(on, at(-1, other_sequence(1 << 16))),
        "unknown type": Fault(on, at(-1, with_field("=H", 4, 0x4242))),
        "errno above zero": Fault(on, at(-1, with_field("=i", 16, 1))),
        "errno below them all": Fault(on, at(-1, with_field("=i", 16, -4096))),
        "silent": Fault(on, lambda r, honest: honest()[:0], SILENT),
        "without the last": Fault(on, lambda r, honest: list(honest()[:-1]), SILENT),
        "receive fails": Fault(on, raising(OSError(errno.EIO, "recvfrom")), EIO),
        "send fails": Fault(on, unsent(OSError(errno.ENOMEM, "send")), ENOMEM),
        "send enobufs": Fault(on, unsent(_NO_BUFFERS), LOST, repeats=True),
        "send eintr": Fault(on, unsent(_INTERRUPT), INTERRUPTED, repeats=True),
    }


def dump(damage: Damage, end: End = MALFORMED) -> Fault:
    return Fault(DUMP, damage, end)


def dumped_again(damage: Damage, end: End, *, after_a_row: bool = False) -> Fault:
    return Fault(DUMP, damage, end, repeats=True, after_a_row=after_a_row)


def destroy(damage: Damage, end: End = MALFORMED, **more: Any) -> Fault:
    return Fault(DESTROY, damage, end, **more)


FAULTS: dict[str, Fault] = {
    **{f"{on}: {name}": fault for on in (DUMP, LOOK_UP, DESTROY) for name, fault in _of_either(on).items()},
    # --------------------------------------------------------------------------- replies that no kernel sends
    "dump: row too short": dump(lambda r, honest: [row_message(r[0], row(1)[:71]), done_message(r[0])]),
    "dump: row of an unknown family": dump(at(0, with_field("=B", 16, 7))),
    "dump: done twice": dump(lambda r, honest: [b"".join(honest()) + done_message(r[0])]),
    "dump: row behind done": dump(lambda r, honest: [b"".join(honest()[-1:] + honest()[:1])]),
    "dump: rows behind an error": dump(behind_a_row(lambda r: ack_message(r, errno.EIO), together=True, rest=True)),
    "dump: another acknowledged": dump(behind_a_row(lambda r: ack_message(moved(r, -1)))),
    "dump: error of another request": dump(behind_a_row(lambda r: ack_message(moved(r, 1), errno.EPERM))),
    "dump: longer than the buffer": dump(lambda r, honest: [row_message(r[0], _ROW_OF_112) * 800]),
    "look-up: row too short": Fault(LOOK_UP, lambda r, honest: [*honest()[:-1], row_message(r[-1], row(1)[:71], 0)]),
    "look-up: done": Fault(LOOK_UP, lambda r, honest: [*honest()[:-1], done_message(r[-1])]),
    "destroy: done": destroy(lambda r, honest: [*honest()[:-1], done_message(r[-1])]),
    "destroy: row": destroy(lambda r, honest: [*honest()[:-1], row_message(r[-1], row(1))]),
    "destroy: last twice": destroy(lambda r, honest: [b"".join([*honest(), ack_message(r[-1])])]),
    "destroy: of the one before": destroy(lambda r, honest: [ack_message(moved(r[0], -1)), *honest()]),
    "destroy: of the next": destroy(lambda r, honest: [ack_message(moved(r[-1], 1), errno.EPERM), *honest()]),
    "destroy: first at last": destroy(lambda r, honest: [b"".join([*honest(), ack_message(r[0], errno.EPERM)])]),
    # -------------------------------------------------------------------------------- errors of the kernel
    "dump: done eio": dump(done(errno.EIO), EIO),
    "dump: done eperm": dump(done(errno.EPERM), REFUSED),
    "dump: done enomem": dump(done(errno.ENOMEM), ENOMEM),
    "dump: done enoent": dump(done(errno.ENOENT), NO_DIAG),
    "dump: acknowledged": dump(lambda r, honest: [ack_message(r[0])], End(KernelError, errno.EPROTO)),
    "dump: eio behind a row": dump(behind_a_row(lambda r: ack_message(r, errno.EIO)), EIO),
    "dump: eio behind a row, and the rest": dump(behind_a_row(lambda r: ack_message(r, errno.EIO), rest=True), EIO),
    "dump: eperm behind a row": dump(behind_a_row(lambda r: ack_message(r, errno.EPERM)), REFUSED),
    "dump: receive fails behind a row": dump(raising(OSError(errno.EIO, "recvfrom"), after=1), EIO),
    "dump: nothing behind a row": dump(lambda r, honest: [honest()[0]], SILENT),
    "dump: enobufs without end": dump(lambda r, honest: repeat(_NO_BUFFERS), LOST),
    "destroy: eperm": destroy(refused(errno.EPERM), REFUSED),
    "destroy: eopnotsupp": destroy(refused(errno.EOPNOTSUPP), NO_DESTROY),
    "destroy: einval": destroy(refused(errno.EINVAL), GOOD, verdict="failed"),
    "look-up: eio": Fault(LOOK_UP, refused(errno.EIO), EIO),
    # ------------------------------------------------------------------------------ tried again by the call
    "dump: enobufs": dumped_again(raising(_NO_BUFFERS), LOST),
    "dump: eintr": dumped_again(raising(_INTERRUPT), INTERRUPTED),
    "dump: overrun": dumped_again(lambda r, honest: [overrun(r[0]), *honest()], LOST),
    "dump: overrun behind rows in one": dumped_again(behind_a_row(overrun, together=True, rest=True), LOST),
    "dump: marked as interrupted": dumped_again(at(0, marked), INTERRUPTED),
    "dump: done eintr": dumped_again(lambda r, honest: [done_message(r[0], errno.EINTR)], INTERRUPTED),
    "dump: enobufs behind a row": dumped_again(raising(_NO_BUFFERS, after=1), LOST, after_a_row=True),
    "dump: eintr behind a row": dumped_again(raising(_INTERRUPT, after=1), INTERRUPTED, after_a_row=True),
    "dump: overrun behind a row": dumped_again(behind_a_row(overrun, rest=True), LOST, after_a_row=True),
    "dump: marked behind a row": dumped_again(at(-1, marked), INTERRUPTED, after_a_row=True),
    "dump: done eintr behind rows": dumped_again(done(errno.EINTR), INTERRUPTED, after_a_row=True),
    # The first attempt destroyed them, and the second finds nothing.
    "look-up: enobufs": Fault(LOOK_UP, raising(_NO_BUFFERS, rest=False), LOST, repeats=True),
    "look-up: eintr": Fault(LOOK_UP, raising(_INTERRUPT), INTERRUPTED, repeats=True),
    "destroy: enobufs": destroy(raising(_NO_BUFFERS, rest=False), LOST, repeats=True, verdict="gone"),
    "destroy: enobufs, and the rest": destroy(raising(_NO_BUFFERS), LOST, repeats=True, verdict="gone"),
    "destroy: eintr": destroy(raising(_INTERRUPT, rest=False), INTERRUPTED, repeats=True, verdict="gone"),
}
