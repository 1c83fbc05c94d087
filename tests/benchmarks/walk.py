"""The unit of cost: one walk of the kernel's TCP table that rejects everything."""

from __future__ import annotations

from socklb.kernel.diag import DiagSocket
from socklb.wire.bytecode import INET_DIAG_REQ_BYTECODE, Assembler
from socklb.wire.netlink import encode_attribute
from socklb.wire.request import TCPDIAG_GETSOCK, InetDiagReq

LISTED_STATES = 0x1F3E


def walk(diag: DiagSocket) -> None:
    program = Assembler()
    program.jump(program.reject)
    request = InetDiagReq(states=LISTED_STATES).encode()
    request += encode_attribute(INET_DIAG_REQ_BYTECODE, program.assemble() or b"")
    assert not any(diag.dump(TCPDIAG_GETSOCK, request, "walk"))


def walk_once() -> None:
    """With a netlink socket of its own."""
    with DiagSocket() as diag:
        walk(diag)
