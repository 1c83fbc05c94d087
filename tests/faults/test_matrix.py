"""Every fault for the calls that can differ, some faults for every public call: the right result or a known error."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

import pytest

import socklb

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
    LOOK_UP,
    Call,
    End,
    each,
)
from .faults import ALWAYS, EINVAL, FAULTS, Fault, InjectFault

FIRST, SECOND, TWICE = (1,), (2,), (1, 2)


def cases() -> Iterator[Any]:
    """All calls share one netlink socket: they differ in whether rows are streamed, and in what they ask next."""
    for name, fault in FAULTS.items():
        calls = {"find": FIND, "destroy": DESTROY_FEW} if fault.on == DUMP else {"destroy": DESTROY_FEW}
        occasions = {"first": FIRST, **({"twice": TWICE, "always": ALWAYS} if fault.repeats else {})}
        for call_name, call in calls.items():
            for occasion, when in occasions.items():
                yield pytest.param(call, fault, when, id=f"{name}, {call_name}, {occasion}")
        later = {"two dumps": FIND_IN_TWO_DUMPS, "rounds": DESTROY_IN_ROUNDS, "batches": DESTROY_IN_BATCHES}
        for call_name, call in later.items():
            if (fault.on, 2) in call.so_far:
                yield pytest.param(call, fault, SECOND, id=f"{name}, {call_name}, second")


@pytest.mark.parametrize(("call", "fault", "when"), list(cases()))
def test_every_fault(call: Call, fault: Fault, when: Sequence[int]) -> None:
    check(call, fault, when, fault.end)


def check(call: Call, fault: Fault, when: Sequence[int], end: End) -> None:
    injected = InjectFault(fault.damage, fault.on, when)
    result = call.against(injected)
    assert injected.hit, "it happened"
    streams = not call.destroys and "alive" not in call.right.values()
    goes_on = end == GOOD or (fault.repeats and when is not ALWAYS and not (fault.after_a_row and streams))
    if goes_on:
        hit = {} if fault.on != DESTROY else each((one.body.id.cookie for one in injected.hit), fault.verdict)
        if call is DESTROY_IN_ROUNDS and fault.verdict != "destroyed":
            # An attempt whose answer was lost has made the way free to another twin; one that failed has not.
            assert result.end == GOOD
            assert result.reported.keys() == call.right.keys()
            assert set(result.reported.values()) <= {fault.verdict, "destroyed"}
        else:
            reported = {**call.right, **hit}
            call.check(result, GOOD, reported)
    elif streams:  # it may have reported more of that dump
        assert result.end == call.as_end(end, result.reported)
        assert call.so_far[fault.on, when[0]].items() <= result.reported.items()
    else:
        call.check(result, end, call.so_far[fault.on, when[0]])


PROBED: dict[str, tuple[End, str]] = {
    "dump: done enoent": (GOOD, "no_diag"),
    "destroy: eperm": (GOOD, "not_permitted"),
    "destroy: eopnotsupp": (GOOD, "no_destroy"),
    "destroy: einval": (EINVAL, ""),
    "destroy: enobufs": (End(socklb.KernelError, errno.ENOENT), ""),
}
"""How a probe ends where other calls end otherwise, and what it says of the first that it tries."""

SOME = ("in one datagram", "cut", "foreign port", "silent", "receive fails", "send enobufs", "enobufs")


@pytest.mark.parametrize(
    ("call_name", "name"),
    [
        (call_name, name)
        for call_name, call in CALLS.items()
        for name in (*(f"{on}: {name}" for on in (DUMP, LOOK_UP, DESTROY) for name in SOME), *PROBED)
        if (FAULTS[name].on, 1) in call.so_far
    ],
)
def test_every_public_call(call_name: str, name: str) -> None:
    call, fault = CALLS[call_name], FAULTS[name]
    if call_name != "probe":
        check(call, fault, FIRST, fault.end)
        return
    end, status = PROBED.get(name, (GOOD if fault.repeats else fault.end, "supported"))
    result = call.against(InjectFault(fault.damage, fault.on, FIRST))
    call.check(result, end, {**call.right, "tcp4": status} if end == GOOD else {})


@pytest.mark.parametrize("name", CALLS)
def test_without_a_fault_everything_is_right(name: str) -> None:
    call = CALLS[name]
    call.check(call.against(lambda usual: usual), GOOD, call.right)


TALKS_TO_NO_KERNEL = {
    *("AuditError", "KernelError", "MalformedMessage", "NotPermitted", "NotSupported", "RunStopped"),
    *("SocklbError", "UnboundedFilter"),
    *("Backend", "BackendState", "BackendTable", "Condition", "Counts", "Flow", "InetSocket", "Outcome", "Report"),
    *("Instance", "Pass", "RevNatEntry", "UnsearchedNamespace", "Support", "TcpState", "FilterSyntaxError"),
    *(
        "SocketFilter",
        "autobound",
        "cgroup",
        "device",
        "dport",
        "dst",
        "idle",
        "mark",
        "pid",
        "sport",
        "src",
        "stalled",
        "uid",
    ),
    *("state_mask", "states_in"),
    *("NetworkNamespace", "RevNatMaps", "discover_namespaces"),  # but not over netlink
    "find_flows",  # to ctnetlink
}


@pytest.mark.parametrize("name", [name for name in socklb.__all__ if callable(getattr(socklb, name))])
def test_no_public_name_is_left_out(name: str) -> None:
    """What may talk to the kernel has a call here, which goes through it."""
    assert (name in CALLS) != (name in TALKS_TO_NO_KERNEL)
    if name in CALLS:
        public: Any = getattr(socklb, name)
        code: CodeType = getattr(public, "run", public).__code__
        seen: set[CodeType] = set()

        def see(frame: FrameType, *_: object) -> None:
            seen.add(frame.f_code)

        before = sys.getprofile()
        sys.setprofile(see)
        try:
            CALLS[name].against(lambda usual: usual)
        finally:
            sys.setprofile(before)
        assert code in seen
