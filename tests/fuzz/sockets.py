"""Sockets that the targets ask about, and the law that holds for a condition and them."""

from __future__ import annotations

from collections.abc import Sequence

from socklb import InetSocket
from socklb.filters import Condition
from socklb.filters.compiler import compile_condition
from socklb.wire.attributes import encode_value
from socklb.wire.bytecode import decode_program
from socklb.wire.reply import InetDiagMsg
from socklb.wire.request import IPPROTO_TCP
from socklb.wire.socket_id import AF_INET, AF_INET6, SocketId

from .. import bytecode_vm as vm
from ..choices import Choices

_NEAR_V4 = tuple(bytes((10, 0, third, last)) for third in (0, 1) for last in (1, 2, 3, 255))
_V4 = (*_NEAR_V4, bytes(4), b"\xff" * 4)
_MAPPED = tuple(bytes(10) + b"\xff\xff" + packed for packed in _V4)
_V6 = tuple(bytes.fromhex(f"fd{bits:02x}") + bytes(13) + bytes([last]) for bits in (0, 1) for last in (1, 2, 3))
PACKED = (*_V4, *_MAPPED, *_V6, bytes(16), bytes(12) + _V4[0])
PORTS = (0, 1, 53, 80, 443, 1023, 1024, 65534, 65535)
INTERFACES = (0, 1, 2, 0x7FFFFFFF)
MARKS = (0, 1, 0x13, 0xFFFFFFFF)
CGROUPS = (0, 1, 7, 0xFFFFFFFFFFFFFFFF)


def _socket(local: bytes, peer: bytes, ports: tuple[int, int], interface: int, mark: int, cgroup: int) -> InetSocket:
    family = AF_INET if len(local) == 4 else AF_INET6
    id = SocketId(*ports, local, peer, interface, 1)
    attributes = [encode_value("mark", mark), encode_value("cgroup_id", cgroup)]
    return InetSocket(InetDiagMsg(family, 1, 0, 0, id, 0, 0, 0, 0, 0).encode(attributes), IPPROTO_TCP)


SOCKETS = (
    _socket(_V4[0], _V4[1], (1024, 80), 0, 0, 0),
    _socket(_MAPPED[0], _MAPPED[5], (65535, 443), 1, 0x13, 7),
    _socket(_V6[0], _V6[4], (0, 53), 2, 0xFFFFFFFF, 1),
)


def chosen_socket(choices: Choices) -> InetSocket:
    """Both ends of one kind of address, as a socket has them."""
    kind = choices.of((_V4, _MAPPED, _V6))
    ports = choices.of(PORTS), choices.of(PORTS)
    traits = choices.of(INTERFACES), choices.of(MARKS), choices.of(CGROUPS)
    return _socket(choices.of(kind), choices.of(kind), ports, *traits)


def check_plan(
    condition: Condition, lacks: frozenset[int] = frozenset(), sockets: Sequence[InetSocket] = SOCKETS
) -> None:
    """The kernel accepts what it is told, and what it lets through and Python leaves is what the condition means."""
    plan = compile_condition(condition, lacks)
    for program in plan.programs:
        assert not program or vm.verify(program), "a program that no kernel accepts"
        assert not lacks & {instruction.code for _, instruction in decode_program(program)}
    for socket in sockets:
        meant = _meant(condition, socket)
        entry = vm.entry_of(socket)
        let_through = [program for program in plan.programs if not program or vm.run(program, entry)]
        assert len(let_through) <= 1 or not plan.disjoint
        if meant is not None:
            left = plan.residual is None or plan.residual.matches(socket)
            assert bool(let_through and left) == meant, f"{socket} and {condition}"


def _meant(condition: Condition, socket: InetSocket) -> bool | None:
    """None where only the kernel can tell."""
    try:
        return condition.matches(socket)
    except ValueError:
        assert "autobound" in str(condition)
        return None
