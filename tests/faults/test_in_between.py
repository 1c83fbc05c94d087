"""What depends on the call: an answer too many, refusals half way, and sockets that do not wait to be hit."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from unittest import mock

import pytest

from socklb import AuditError, KernelError, NotPermitted, NotSupported, destroy_sockets
from socklb.wire.reply import decode_msg
from socklb.wire.request import SOCK_DESTROY

from ..fake_kernel import (
    Answer,
    Datagram,
    FakeKernel,
    FakeSocket,
    Living,
    Request,
    ack_message,
    done_message,
    row,
    row_message,
    verdicts,
)
from ..kernel.test_diag import raiser
from .calls import DESTROYING, GOOD, KILL, LIST, MANY, PROBE, TCP, Call, End, TwoProtocols, World, two_protocols
from .damages import DESTROY, DUMP, EINVAL, MALFORMED, REFUSED, UNKNOWN, Befalls
from .table import CALLS, each

EVERY = pytest.mark.parametrize("name", CALLS)
KILLS = pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.kind == KILL])


TWO_PROTOCOLS = [name for name, call in CALLS.items() if call.kind == KILL and call.make_world is two_protocols]

# What the same socket asks next.
BEHIND_A_DUMP = {
    **dict.fromkeys(("find-in-two-dumps", "live-cookies"), (DUMP, 2)),
    **dict.fromkeys((name for name, call in CALLS.items() if call.kind in DESTROYING), (DESTROY, 1)),
}
BEHIND_A_BATCH = {
    "destroy-in-rounds": (DUMP, 2),
    "destroy-in-batches": (DESTROY, 2),
    **dict.fromkeys(TWO_PROTOCOLS, (DUMP, 2)),
}


class TestOneAnswerTooMany:
    """It is no part of the next answer. Where the same socket asks nothing more, nobody reads it."""

    @EVERY
    def test_done_twice(self, name: str) -> None:
        fault = Befalls(lambda r, honest: [b"".join(honest()), done_message(r[0])], DUMP, (1,))
        self.look(CALLS[name], fault, BEHIND_A_DUMP.get(name))

    @EVERY
    def test_the_last_destroy_acknowledged_twice(self, name: str) -> None:
        fault = Befalls(lambda r, honest: [*honest(), ack_message(r[-1])], DESTROY, (1,))
        self.look(CALLS[name], fault, BEHIND_A_BATCH.get(name))

    def look(self, call: Call, fault: Befalls, next: tuple[str, int] | None) -> None:
        ended = call.against(fault)
        end, told = (GOOD, call.right) if next is None else (MALFORMED, call.so_far[next])
        assert (ended.end, ended.told) == (call.as_end(end, told), told)


class TestRefusedDumps:
    """Asked for in an older way, where there is one; else the error says what the kernel lacks."""

    CODES = pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP])
    FORMS = pytest.mark.parametrize("form", [done_message, ack_message])

    @EVERY
    @CODES
    @FORMS
    def test_the_first(self, name: str, code: int, form: Callable[[Request, int], bytes]) -> None:
        ended = CALLS[name].against(Befalls(lambda r, honest: [form(r[0], code)], DUMP, (1,)))
        in_one_walk = name != "find-in-two-dumps" and CALLS[name].kind != PROBE
        newer_bytecode = code == errno.EINVAL and name == "find-in-two-dumps"
        if in_one_walk or newer_bytecode:
            assert (ended.end, ended.told) == (CALLS[name].as_end(GOOD, CALLS[name].right), CALLS[name].right)
        else:
            end = EINVAL if code == errno.EINVAL else End(NotSupported, code)
            told = {}
            if CALLS[name].kind == PROBE and end != EINVAL:
                end, told = GOOD, {**CALLS[name].right, "tcp4": "no_diag"}
            assert (ended.end, ended.told) == (CALLS[name].as_end(end, told), told)

    @EVERY
    @CODES
    @FORMS
    def test_all(self, name: str, code: int, form: Callable[[Request, int], bytes]) -> None:
        ended = CALLS[name].against(Befalls(lambda r, honest: [form(r[0], code)], DUMP))
        end, told = EINVAL if code == errno.EINVAL else End(NotSupported, code), {}
        if CALLS[name].kind == PROBE and end != EINVAL:
            end, told = GOOD, dict.fromkeys(CALLS[name].right, "no_diag")
        assert (ended.end, ended.told) == (CALLS[name].as_end(end, told), told)


class TestNoSocket:
    """Without a netlink socket nothing is told, and nobody dies."""

    @EVERY
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            pytest.param(errno.EMFILE, KernelError, id="EMFILE"),
            pytest.param(errno.EPERM, NotPermitted, id="EPERM"),
            pytest.param(errno.EPROTONOSUPPORT, NotSupported, id="EPROTONOSUPPORT"),
        ],
    )
    @pytest.mark.parametrize("step", ["socket", "setsockopt", "bind"])
    def test_it_cannot_be_had(self, name: str, code: int, kind: type[KernelError], step: str) -> None:
        call = CALLS[name]
        error = raiser(OSError(code, step))
        # The fake kernel puts its own in place of `open_netlink`, so the error is raised where that one makes a socket.
        with mock.patch.object(FakeSocket, "__init__" if step == "socket" else step, error):
            ended = call.against(lambda usual: usual)
        end = End(kind, code)
        told = dict.fromkeys(call.right, "no_diag") if call.kind == PROBE and kind is NotSupported else {}
        if told:
            end = GOOD
        assert (ended.end, ended.told) == (call.as_end(end, told), told)


class TestRefusedHalfWay:
    """EPERM and EOPNOTSUPP end the run: what was destroyed is, and the rest of what matched is failed."""

    @KILLS
    @pytest.mark.parametrize("end", [REFUSED, UNKNOWN], ids=["EPERM", "EOPNOTSUPP"])
    @pytest.mark.parametrize("after", [0, 1, 2, 3, 63, 64, 65, 129])
    def test_after_so_many(self, name: str, end: End, after: int) -> None:
        call = CALLS[name]
        left = after
        world: list[World] = []

        def fault(usual: Answer) -> Answer:
            world.append(usual)  # type: ignore[arg-type]

            def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
                nonlocal left
                if requests[0].type != SOCK_DESTROY:
                    return usual(requests)
                allowed, refused = requests[:left], requests[left:]
                left -= len(allowed)
                answers = list(usual(allowed)) if allowed else []
                return [*answers, *(ack_message(request, end.errno or 0) for request in refused)]

            return answer

        ended = call.against(fault)
        killed = set(world[0].killed)
        if killed == call.right.keys():
            end = GOOD  # it was not asked for more
        matched = call.so_far[DESTROY, 2 if name in TWO_PROTOCOLS and after > 3 else 1]
        assert ended.end == call.as_end(end, ended.told)
        assert ended.told == {**each(matched, "failed"), **each(killed, "destroyed")}


Change = Callable[[bytes], "list[bytes]"]


def with_cookie(one: bytes, cookie: int) -> bytes:
    message = decode_msg(one)
    return message._replace(id=message.id._replace(cookie=cookie)).encode()


def with_ports(one: bytes, sport: int, dport: int) -> bytes:
    message = decode_msg(one)
    return message._replace(id=message.id._replace(sport=sport, dport=dport)).encode()


MEANWHILE: dict[str, tuple[Change, str]] = {
    "closed": (lambda one: [], "gone"),
    "address-taken-over": (lambda one: [with_cookie(one, 1000 + decode_msg(one).id.cookie)], "gone"),
    "connected-elsewhere": (lambda one: [with_ports(one, decode_msg(one).id.sport, 81)], "gone"),
    "elsewhere-and-address-taken-over": (
        lambda one: [with_ports(one, decode_msg(one).id.sport, 81), with_cookie(one, 1000 + decode_msg(one).id.cookie)],
        "gone",
    ),
    "other-source-port": (lambda one: [with_ports(one, 7000 + decode_msg(one).id.cookie, 80)], "destroyed"),
}


class TestBetweenDumpAndDestroy:
    """`gone` is who is no longer there, or is another one now; whoever came in its place is not hit."""

    @KILLS
    @pytest.mark.parametrize(("change", "verdict"), MEANWHILE.values(), ids=MEANWHILE)
    @pytest.mark.parametrize("which", [slice(0, 1), slice(1, 3), slice(None)], ids=["the-first", "two", "all"])
    def test_a_socket_that_does_not_wait(self, name: str, change: Change, verdict: str, which: slice) -> None:
        call = CALLS[name]
        changed: set[int] = set()

        def fault(usual: Answer) -> Answer:
            assert isinstance(usual, (Living, TwoProtocols))
            rows = usual.rows

            def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
                if requests[0].type == SOCK_DESTROY and not changed:
                    meant = [one for one in rows if decode_msg(one).id.dport == 80]
                    for one in meant[which]:
                        changed.add(decode_msg(one).id.cookie)
                        place = rows.index(one)
                        rows[place : place + 1] = change(one)
                return usual(requests)

            return answer

        ended = call.against(fault)
        told = {**call.right, **each(changed, verdict)}
        assert changed
        assert (ended.end, ended.told) == (call.as_end(GOOD, told), told)


class TestLists:
    """A list has no report: what it told before its error is what it told."""

    @pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.kind == LIST])
    def test_rows_before_the_error_were_told(self, name: str) -> None:
        call = CALLS[name]
        ended = call.against(Befalls(lambda r, honest: [b"".join(honest()[:-1]), b"?"], DUMP, (1,)))
        assert ended.end == call.as_end(MALFORMED, ended.told)
        assert len(ended.told) == len([one for one in call.right if one < 20]) - (name == "find-in-two-dumps")


class TestWhatTheFilterDoesNotMean:
    """The kernel looks at a socket twice, for its program and for the row, and a UDP socket may connect elsewhere in
    between (inet_diag_dump_icsk() and udp_dump() hold no lock of it): a row need not be what the program let through.
    """

    @pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.kind != PROBE])
    def test_is_neither_told_nor_hit(self, name: str) -> None:
        call = CALLS[name]
        ended = call.against(Befalls(lambda r, honest: [row_message(r[0], row(9, dport=81)), *honest()], DUMP, (1,)))
        assert (ended.end, ended.told) == (call.as_end(GOOD, call.right), call.right)


class TestAnAuditThatFails:
    """Whatever ends a run, every socket that matched has a verdict: what was to be destroyed is failed."""

    @pytest.mark.parametrize("options", [{}, {"dry_run": True}], ids=["for-real", "dry-run"])
    @pytest.mark.parametrize("after", [0, 1, 63, 64, 100])
    def test_every_socket_is_in_the_report(self, options: dict[str, bool], after: int) -> None:
        self.look(after, options)

    @pytest.mark.parametrize("after", [0, 1, 63, 119])
    def test_also_where_some_are_spared(self, after: int) -> None:
        self.look(after, {"limit": 10})

    def look(self, after: int, options: Any) -> None:
        written: list[object] = []

        def audit(record: dict[str, Any]) -> None:
            if len(written) == after:
                raise AuditError(errno.ENOSPC, "full")
            written.append(record)

        with FakeKernel(Living(MANY)).installed(), pytest.raises(AuditError) as caught:
            destroy_sockets(TCP, audit=audit, **options)
        assert caught.value.report is not None
        assert len(verdicts(caught.value.report)) == len(MANY)
