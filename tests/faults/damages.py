"""Faults, each a small function from what was asked and the honest answer to what comes instead.

`FAULTS` says for each how every kind of call ends.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

from socklb import KernelError, MalformedMessage, NotPermitted, NotSupported
from socklb.wire.netlink import (
    NLM_F_DUMP_INTR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    encode_message,
    iter_messages,
)
from socklb.wire.request import SOCK_DESTROY

from ..fake_kernel import Answer, Datagram, Request, ack_message, done_message, row, row_message
from .calls import GOOD, End

DUMP, DESTROY = "dump", "destroy"

Honest = Callable[[], "list[bytes]"]
"""Lets the kernel do what it was asked for; the messages that it answers. Not called, nothing is done."""

Damage = Callable[[Sequence[Request], Honest], Iterable[Datagram]]

ALWAYS: Sequence[int] = range(1, 1 << 20)


def single(datagrams: Iterable[Datagram]) -> list[bytes]:
    """The messages of an answer one by one."""
    messages = []
    for datagram in datagrams:
        assert isinstance(datagram, bytes)
        starts = [start - 16 for *_, start, _ in iter_messages(datagram, len(datagram))]
        messages += [datagram[a:b] for a, b in zip(starts, [*starts[1:], len(datagram)])]
    return messages


class Befalls:
    """It happens to these dumps or destroys, counted from 1; the others are answered honestly."""

    def __init__(self, damage: Damage, on: str, when: Sequence[int] = ALWAYS) -> None:
        self._damage, self._on, self._when, self._count = damage, on, when, 0
        self.hit: list[Sequence[Request]] = []
        """What was asked for where it happened."""

    def __call__(self, usual: Answer) -> Answer:
        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            if (requests[0].type == SOCK_DESTROY) != (self._on == DESTROY):
                return usual(requests)
            self._count += 1
            if self._count not in self._when:
                return usual(requests)
            self.hit.append(requests)
            return self._damage(requests, lambda: single(usual(requests)))

        return answer


class Fault(NamedTuple):
    """How each kind of call ends. If a KILL goes on, `verdict` is what a socket that was hit gets, and if a PROBE does,
    `status` what is said about what was tried.

    `repeats`: the call tries again; the fault may come twice, and always is the end `in_the_end`.
    """

    on: str
    damage: Damage
    lists: End = GOOD
    kills: End = GOOD
    probes: End = GOOD
    verdict: str = "destroyed"
    status: str = "supported"
    repeats: bool = False
    in_the_end: End = GOOD

    @property
    def only_looks_different(self) -> bool:
        return self == Fault(self.on, self.damage)


# ---------------------------------------------------------------------------------------- changed answers


def at(index: int, change: Callable[[bytes], Datagram]) -> Damage:
    """One message is another; each comes as a datagram of its own."""

    def damage(_: Sequence[Request], honest: Honest) -> list[Datagram]:
        messages: list[Datagram] = list(honest())
        message = messages[index]
        assert isinstance(message, bytes)
        messages[index] = change(message)
        return messages

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
    return lambda message: with_field("=I", 8, (sequence_of(message) + step) & 0xFFFFFFFF)(message)


def sequence_of(message: bytes) -> int:
    return int(struct.unpack_from("=I", message, 8)[0])


def raising(error: BaseException, *, after: int = 0, done: bool = True) -> Damage:
    """A receive fails behind so many messages; the others come, or stay out."""

    def damage(_: Sequence[Request], honest: Honest) -> list[Datagram]:
        messages = honest()
        return [*messages[:after], error, *(messages[after:] if done else [])]

    return damage


def unsent(error: BaseException) -> Damage:
    """The send fails; the kernel has seen nothing."""

    def damage(requests: Sequence[Request], honest: Honest) -> Iterable[Datagram]:
        raise error

    return damage


def in_the_middle(make: Callable[[Request], bytes], *, together: bool = False, rest: bool = False) -> Damage:
    """Behind the first row comes something else, and then the `rest` or nothing."""

    def damage(requests: Sequence[Request], honest: Honest) -> list[Datagram]:
        first, *others = honest()
        messages = [first, make(requests[0]), *(others if rest else [])]
        return [b"".join(messages)] if together else list(messages)

    return damage


def acks(codes: Callable[[int, int], int]) -> Damage:
    """The kernel does nothing, and answers each destroy of a batch by `codes(number, how many)`."""

    def damage(requests: Sequence[Request], honest: Honest) -> list[Datagram]:
        return [ack_message(one, codes(n, len(requests))) for n, one in enumerate(requests)]

    return damage


def marked(message: bytes) -> bytes:
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

MALFORMED = End(MalformedMessage)
LOST, INTERRUPTED, SILENT = (End(KernelError, code) for code in (errno.ENOBUFS, errno.EINTR, errno.ETIMEDOUT))
EIO, EINVAL, ENOMEM = (End(KernelError, code) for code in (errno.EIO, errno.EINVAL, errno.ENOMEM))
REFUSED = End(NotPermitted, errno.EPERM)
NO_DIAG = End(NotSupported, errno.ENOENT)
UNKNOWN = End(NotSupported, errno.EOPNOTSUPP)


def everywhere(on: str, damage: Damage, end: End) -> Fault:
    """All kinds of calls end with it."""
    return Fault(on, damage, end if on == DUMP else GOOD, end, end)


def no_buffers() -> OSError:
    return OSError(errno.ENOBUFS, "no buffers")


def interrupt() -> OSError:
    return OSError(errno.EINTR, "interrupted")


def _of(on: str, damages: dict[str, Damage], end: End) -> dict[str, Fault]:
    return {f"{on}-{name}": everywhere(on, damage, end) for name, damage in damages.items()}


_EITHER_MALFORMED: dict[str, Damage] = {
    "cut": at(-1, lambda m: m[:-1]),
    "cut-in-the-header": at(-1, lambda m: m[:15]),
    "nothing": at(-1, lambda m: b""),
    "length-0": at(-1, length(0)),
    "length-below-the-header": at(-1, length(15)),
    "length-of-the-header": at(-1, length(16)),
    "length-one-too-many": at(-1, lambda m: length(len(m) + 1)(m)),
    "length-of-a-gigabyte": at(-1, length(1 << 30)),
    "length-all-ones": at(-1, length(0xFFFFFFFF)),
    "foreign-port": at(-1, lambda m: (m, 4711)),
    "foreign-sequence": at(-1, other_sequence(1 << 16)),
    "sequence-before": at(-1, other_sequence(-(1 << 16))),
    "unknown-type": at(-1, with_field("=H", 4, 0x4242)),
    "errno-above-zero": at(-1, with_field("=i", 16, 1)),
    "errno-below-them-all": at(-1, with_field("=i", 16, -4096)),
}

FAULTS: dict[str, Fault] = {
    # ---------------------------------------------------------------- answers that only look different
    **_of(
        DUMP,
        {
            "one-by-one": lambda r, honest: list(honest()),
            "in-one-datagram": lambda r, honest: [b"".join(honest())],
            "rows-in-reverse": lambda r, honest: [*honest()[-2::-1], done_message(r[0])],
            "no-operations": lambda r, honest: (
                [noop(r[0]) + m + noop(r[0]) for m in honest()[:-1]] + [noop(r[0]), done_message(r[0])]
            ),
        },
        GOOD,
    ),
    **_of(
        DESTROY,
        {
            "one-by-one": lambda r, honest: list(honest()),
            "in-one-datagram": lambda r, honest: [b"".join(honest())],
            "no-operations": lambda r, honest: [m for a in honest() for m in (noop(r[0]), a)],
            "acknowledged-each": lambda r, honest: _acknowledged_each(r, honest()),
        },
        GOOD,
    ),
    # --------------------------------------------------------------------- what no kernel could have meant
    **_of(DUMP, _EITHER_MALFORMED, MALFORMED),
    **_of(DESTROY, _EITHER_MALFORMED, MALFORMED),
    **_of(
        DUMP,
        {
            "row-of-a-foreign-port": at(0, lambda m: (m, 1)),
            "row-of-a-foreign-sequence": at(0, other_sequence(-1)),
            "row-of-the-next-sequence": at(0, other_sequence(1)),
            "row-cut": at(0, lambda m: m[:-1]),
            "row-too-short": lambda r, honest: [row_message(r[0], row(1)[:71]), done_message(r[0])],
            "row-of-an-unknown-family": at(0, with_field("=B", 16, 7)),
            "done-twice": lambda r, honest: [b"".join(honest()) + done_message(r[0])],
            "row-behind-done": lambda r, honest: [b"".join(honest()[-1:] + honest()[:1])],
            "rows-behind-an-error": in_the_middle(lambda r: ack_message(r, errno.EIO), together=True, rest=True),
            "acknowledgement-of-another-request": in_the_middle(lambda r: ack_message(moved(r, -1))),
            "error-of-another-request": in_the_middle(lambda r: ack_message(moved(r, 1), errno.EPERM)),
            "longer-than-the-buffer": lambda r, honest: [row_message(r[0], row(1)) * 800],
        },
        MALFORMED,
    ),
    **_of(
        DESTROY,
        {
            "done": lambda r, honest: [*honest()[:-1], done_message(r[-1])],
            "row": lambda r, honest: [*honest()[:-1], row_message(r[-1], row(1))],
            "last-twice-in-one-datagram": lambda r, honest: [b"".join([*honest(), ack_message(r[-1])])],
            "of-the-request-before": lambda r, honest: [ack_message(moved(r[0], -1)), *honest()],
            "of-the-request-behind": lambda r, honest: [ack_message(moved(r[-1], 1), errno.EPERM), *honest()],
            "first-of-many-behind-the-last": lambda r, honest: [b"".join([*honest(), ack_message(r[0], errno.EPERM)])],
            "longer-than-the-buffer": lambda r, honest: [ack_message(r[0], errno.ENOENT) * 2000],
        },
        MALFORMED,
    ),
    # ------------------------------------------------------------------------------ errors that it answers
    "dump-done-eio": everywhere(DUMP, done(errno.EIO), EIO),
    "dump-done-eperm": everywhere(DUMP, done(errno.EPERM), REFUSED),
    "dump-done-enomem": everywhere(DUMP, done(errno.ENOMEM), ENOMEM),
    "dump-done-enoent": Fault(DUMP, done(errno.ENOENT), lists=NO_DIAG, kills=NO_DIAG, status="no_diag"),
    "dump-error-in-the-middle": everywhere(DUMP, in_the_middle(lambda r: ack_message(r, errno.EIO)), EIO),
    "dump-error-and-the-rest": everywhere(DUMP, in_the_middle(lambda r: ack_message(r, errno.EIO), rest=True), EIO),
    "dump-eperm-in-the-middle": everywhere(DUMP, in_the_middle(lambda r: ack_message(r, errno.EPERM)), REFUSED),
    "dump-acknowledged": everywhere(DUMP, lambda r, honest: [ack_message(r[0])], End(KernelError, errno.EPROTO)),
    "dump-receive-fails": everywhere(DUMP, raising(OSError(errno.EIO, "recvmsg"), after=1), EIO),
    "dump-send-fails": everywhere(DUMP, unsent(OSError(errno.ENOMEM, "send")), ENOMEM),
    "destroy-receive-fails": everywhere(DESTROY, raising(OSError(errno.EIO, "recvmsg")), EIO),
    "destroy-send-fails": everywhere(DESTROY, unsent(OSError(errno.ENOMEM, "send")), ENOMEM),
    "destroy-eperm": Fault(DESTROY, acks(lambda n, of: errno.EPERM), kills=REFUSED, status="not_permitted"),
    "destroy-eopnotsupp": Fault(DESTROY, acks(lambda n, of: errno.EOPNOTSUPP), kills=UNKNOWN, status="no_destroy"),
    "destroy-einval": Fault(DESTROY, acks(lambda n, of: errno.EINVAL), probes=EINVAL, verdict="failed"),
    # --------------------------------------------------------------------------------------------- silence
    "dump-silent": everywhere(DUMP, lambda r, honest: (), SILENT),
    "dump-without-done": everywhere(DUMP, lambda r, honest: list(honest()[:-1]), SILENT),
    "dump-cut-between-messages": everywhere(DUMP, lambda r, honest: [honest()[0]], SILENT),
    "dump-send-hangs": everywhere(DUMP, unsent(socket.timeout("timed out")), SILENT),
    "destroy-silent": everywhere(DESTROY, lambda r, honest: honest()[:0], SILENT),
    "destroy-without-the-last": everywhere(DESTROY, lambda r, honest: list(honest()[:-1]), SILENT),
    "destroy-send-hangs": everywhere(DESTROY, unsent(socket.timeout("timed out")), SILENT),
    "dump-enobufs-for-ever": everywhere(DUMP, lambda r, honest: repeat(no_buffers()), LOST),
    # ------------------------------------------------------------------------- what the call tries again
    **{
        f"dump-{name}": Fault(DUMP, damage, repeats=True, in_the_end=end)
        for name, damage, end in (
            ("enobufs", raising(no_buffers()), LOST),
            ("eintr", raising(interrupt()), INTERRUPTED),
            ("overrun", lambda r, honest: [overrun(r[0]), *honest()], LOST),
            ("overrun-behind-rows-in-one-datagram", in_the_middle(overrun, together=True, rest=True), LOST),
            ("marked-interrupted", at(0, marked), INTERRUPTED),
            ("done-eintr", lambda r, honest: [done_message(r[0], errno.EINTR)], INTERRUPTED),
        )
    },
    **{
        # Its first row has been told by then.
        f"dump-{name}": Fault(DUMP, damage, lists=end, repeats=True, in_the_end=end)
        for name, damage, end in (
            ("enobufs-behind-a-row", raising(no_buffers(), after=1), LOST),
            ("eintr-behind-a-row", raising(interrupt(), after=1), INTERRUPTED),
            ("overrun-behind-a-row", in_the_middle(overrun, rest=True), LOST),
            ("marked-interrupted-behind-a-row", at(-1, marked), INTERRUPTED),
            ("done-eintr-behind-a-row", done(errno.EINTR), INTERRUPTED),
        )
    },
    **{
        f"{on}-send-{name}": Fault(on, unsent(OSError(code, "send")), repeats=True, in_the_end=End(KernelError, code))
        for on in (DUMP, DESTROY)
        for name, code in (("enobufs", errno.ENOBUFS), ("eintr", errno.EINTR))
    },
    **{
        # It was done all the same, and the second attempt finds nothing. For a probe that is no answer.
        f"destroy-{name}": Fault(
            DESTROY,
            raising(error, done=with_the_rest),
            probes=End(KernelError, errno.ENOENT),
            verdict="gone",
            repeats=True,
            in_the_end=end,
        )
        for name, error, with_the_rest, end in (
            ("enobufs", no_buffers(), False, LOST),
            ("enobufs-and-the-rest", no_buffers(), True, LOST),
            ("eintr", interrupt(), False, INTERRUPTED),
        )
    },
}


def _acknowledged_each(requests: Sequence[Request], said: Sequence[bytes]) -> list[Datagram]:
    """A kernel that acknowledges success too where it was not asked to."""
    by_sequence = {sequence_of(one): one for one in said}
    return [by_sequence.get(one.sequence, ack_message(one)) for one in requests]
