"""What depends on the call: an answer too many, refusals half way, and sockets that do not wait to be destroyed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from unittest import mock

import pytest

from socklb import AuditError, KernelError, NotPermitted, NotSupported, SocklbError, destroy_sockets
from socklb.wire.reply import decode_msg
from socklb.wire.request import SOCK_DESTROY

from ..fake_kernel import (
    Answer,
    Datagram,
    FakeKernel,
    FakeSocket,
    Request,
    StatefulTable,
    ack_message,
    done_message,
    row,
    row_message,
    verdicts,
)
from .calls import (
    CALLS,
    DESTROY,
    DESTROY_FEW,
    DESTROY_IN_BATCHES,
    DESTROY_IN_ROUNDS,
    DUMP,
    FIND,
    FIND_IN_TWO_DUMPS,
    GOOD,
    MANY,
    TCP,
    Call,
    End,
    each,
)
from .faults import ALWAYS, EINVAL, MALFORMED, NO_DESTROY, REFUSED, Damage, InjectFault

KILLS = pytest.mark.parametrize(
    "call", [DESTROY_FEW, DESTROY_IN_ROUNDS, CALLS["terminate_connections"]], ids=["destroy", "rounds", "terminate"]
)

DONE_TWICE: Damage = lambda r, honest: [b"".join(honest()), done_message(r[0])]  # noqa: E731
ACKNOWLEDGED_TWICE: Damage = lambda r, honest: [*honest(), ack_message(r[-1])]  # noqa: E731


@pytest.mark.parametrize(
    ("call", "on", "damage", "next"),
    [
        pytest.param(FIND, DUMP, DONE_TWICE, None, id="find"),
        pytest.param(FIND_IN_TWO_DUMPS, DUMP, DONE_TWICE, (DUMP, 2), id="find in two dumps"),
        pytest.param(DESTROY_FEW, DUMP, DONE_TWICE, (DESTROY, 1), id="dump, then destroy"),
        pytest.param(DESTROY_FEW, DESTROY, ACKNOWLEDGED_TWICE, None, id="destroy"),
        pytest.param(DESTROY_IN_ROUNDS, DESTROY, ACKNOWLEDGED_TWICE, (DUMP, 2), id="rounds"),
        pytest.param(DESTROY_IN_BATCHES, DESTROY, ACKNOWLEDGED_TWICE, (DESTROY, 2), id="batches"),
        pytest.param(CALLS["terminate_connections"], DESTROY, ACKNOWLEDGED_TWICE, (DUMP, 2), id="next filter"),
    ],
)
def test_one_answer_too_many_is_no_part_of_the_next(
    call: Call, on: str, damage: Damage, next: tuple[str, int] | None
) -> None:
    """It is read only if the same netlink socket sends another request."""
    end, reported = (GOOD, call.right) if next is None else (MALFORMED, call.so_far[next])
    call.check(call.against(InjectFault(damage, on, (1,))), end, reported)


@pytest.mark.parametrize("call", [FIND, FIND_IN_TWO_DUMPS, DESTROY_FEW], ids=["find", "families", "destroy"])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP])
@pytest.mark.parametrize("form", [done_message, ack_message])
@pytest.mark.parametrize("when", [(1,), ALWAYS], ids=["once", "always"])
def test_a_refused_dump_is_asked_for_in_an_older_way_if_there_is_one(
    call: Call, code: int, form: Callable[[Request, int], bytes], when: Sequence[int]
) -> None:
    """There is none for dumps by family. In the end the error says what the kernel lacks."""
    ends = when is ALWAYS or call is FIND_IN_TWO_DUMPS
    error = EINVAL if code == errno.EINVAL else End(NotSupported, code)
    end, reported = (error, {}) if ends else (GOOD, call.right)
    call.check(call.against(InjectFault(lambda r, honest: [form(r[0], code)], DUMP, when)), end, reported)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("step", "kind", "code"),
    [
        ("__init__", KernelError, errno.EMFILE),
        ("__init__", NotSupported, errno.EPROTONOSUPPORT),
        ("setsockopt", KernelError, errno.ENOMEM),
        ("bind", NotPermitted, errno.EPERM),
    ],
)
def test_without_a_netlink_socket_nothing_is_reported(
    name: str, step: str, kind: type[SocklbError], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fake kernel stands in for what opens the socket: where it makes its own, the error is raised.
    monkeypatch.setattr(FakeSocket, step, mock.Mock(side_effect=OSError(code, step)))
    call = CALLS[name]
    lacks_diag = name == "probe" and kind is NotSupported
    end, reported = (GOOD, each(call.right, "no_diag")) if lacks_diag else (End(kind, code), {})
    call.check(call.against(lambda usual: usual), end, reported)


@pytest.mark.parametrize("end", [REFUSED, NO_DESTROY], ids=["EPERM", "EOPNOTSUPP"])
@pytest.mark.parametrize("after", range(4))
def test_refused_in_any_round_what_was_destroyed_is_and_the_rest_is_failed(end: End, after: int) -> None:
    left = after
    killed: list[list[int]] = []

    def fault(usual: Any) -> Answer:
        killed.append(usual.killed)

        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            nonlocal left
            allowed = requests if requests[0].type != SOCK_DESTROY else requests[:left]
            left -= len(allowed) if requests[0].type == SOCK_DESTROY else 0
            answers = list(usual(allowed)) if allowed else []
            return [*answers, *(ack_message(request, end.errno or 0) for request in requests[len(allowed) :])]

        return answer

    call = DESTROY_IN_ROUNDS
    result = call.against(fault)
    call.check(result, end, {**each(call.right, "failed"), **each(killed[0], "destroyed")})


Change = Callable[[bytes], "list[bytes]"]


def with_id(one: bytes, **fields: int) -> bytes:
    message = decode_msg(one)
    return message._replace(id=message.id._replace(**fields)).encode()


def another(one: bytes) -> bytes:
    """Another socket at the same address."""
    return with_id(one, cookie=1000 + decode_msg(one).id.cookie)


MEANWHILE: dict[str, tuple[Change, str]] = {
    "closed": (lambda one: [], "gone"),
    "address taken over": (lambda one: [another(one)], "gone"),
    "connected elsewhere": (lambda one: [with_id(one, dport=81)], "gone"),
    "elsewhere, and address taken over": (lambda one: [with_id(one, dport=81), another(one)], "gone"),
    "other source port": (lambda one: [with_id(one, sport=7000 + decode_msg(one).id.cookie)], "destroyed"),
}


@KILLS
@pytest.mark.parametrize(("change", "verdict"), MEANWHILE.values(), ids=MEANWHILE)
@pytest.mark.parametrize("which", [slice(0, 1), slice(1, 3), slice(None)], ids=["the first", "two", "all"])
def test_a_socket_that_changes_between_dump_and_destroy(call: Call, change: Change, verdict: str, which: slice) -> None:
    """`gone`: it no longer exists, or is connected elsewhere. The socket that took its place is not destroyed."""
    changed: set[int] = set()

    def fault(usual: Any) -> Answer:
        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            if requests[0].type == SOCK_DESTROY and not changed:
                for one in [one for one in usual.rows if decode_msg(one).id.dport == 80][which]:
                    changed.add(decode_msg(one).id.cookie)
                    place = usual.rows.index(one)
                    usual.rows[place : place + 1] = change(one)
            yield from usual(requests)

        return answer

    result = call.against(fault)
    assert changed
    call.check(result, GOOD, {**call.right, **each(changed, verdict)})


@pytest.mark.parametrize(("call", "rows"), [(FIND, 4), (FIND_IN_TWO_DUMPS, 3)], ids=["find", "families"])
def test_a_list_gives_out_the_rows_before_its_error(call: Call, rows: int) -> None:
    result = call.against(InjectFault(lambda r, honest: [b"".join(honest()[:-1]), b"?"], DUMP, (1,)))
    assert (result.end, len(result.reported)) == (MALFORMED, rows)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "probe"])
def test_a_row_that_does_not_match_is_neither_listed_nor_destroyed(name: str) -> None:
    """The kernel looks at a socket twice, for its program and for the row, and a UDP socket may connect elsewhere in
    between (inet_diag_dump_icsk() and udp_dump() hold no lock of it): a row need not be what the program let through.
    """
    call = CALLS[name]
    injected = InjectFault(lambda r, honest: [row_message(r[0], row(9, dport=81)), *honest()], DUMP, (1,))
    call.check(call.against(injected), GOOD, call.right)


@pytest.mark.parametrize("options", [{}, {"dry_run": True}, {"limit": 10}], ids=str)
@pytest.mark.parametrize("after", [0, 1, 63, 64, 100])
def test_when_the_audit_fails_every_socket_is_in_the_report(options: dict[str, Any], after: int) -> None:
    """What was to be destroyed is failed."""
    written: list[object] = []

    def audit(record: dict[str, Any]) -> None:
        if len(written) == after:
            raise AuditError(errno.ENOSPC, "full")
        written.append(record)

    with FakeKernel(StatefulTable(MANY)).installed(), pytest.raises(AuditError) as caught:
        destroy_sockets(TCP, audit=audit, **options)
    assert caught.value.report is not None
    assert len(verdicts(caught.value.report)) == len(MANY)
