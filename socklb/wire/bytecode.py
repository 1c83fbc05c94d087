# SPDX-License-Identifier: MIT
"""Bytecode with which the kernel selects the rows of a dump (INET_DIAG_REQ_BYTECODE, linux/inet_diag.h).

A program is a sequence of instructions: struct inet_diag_bc_op and its argument. Each is a test that continues at
`yes` or at `no`, forward offsets in bytes from its own start. A socket that reaches the end is sent; one that reaches 4
bytes past the end is not. The kernel verifies a program in inet_diag_bc_audit() and runs it in inet_diag_bc_run(),
net/ipv4/inet_diag.c. All fields are in the machine's byte order, except for addresses.
"""

from __future__ import annotations

from collections import namedtuple
from struct import Struct

from ..errors import MalformedMessage
from .socket_id import AF_INET, AF_INET6

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Union

    Argument = Union[None, int, "HostCond", "MarkCond"]

INET_DIAG_REQ_BYTECODE = 1  # the type of the attribute with a program
MAX_SIZE = (0xFFFF - 4) & ~3  # of a program: what fits into one attribute

INET_DIAG_BC_NOP = 0
INET_DIAG_BC_JMP = 1  # always continues at `no`
INET_DIAG_BC_S_GE = 2
INET_DIAG_BC_S_LE = 3
INET_DIAG_BC_D_GE = 4
INET_DIAG_BC_D_LE = 5
INET_DIAG_BC_AUTO = 6  # the kernel chose the local port
INET_DIAG_BC_S_COND = 7
INET_DIAG_BC_D_COND = 8
INET_DIAG_BC_DEV_COND = 9
INET_DIAG_BC_MARK_COND = 10  # EPERM without CAP_NET_ADMIN
INET_DIAG_BC_S_EQ = 11  # Linux 5.0; not emitted, for a host condition of family 0 does the same everywhere
INET_DIAG_BC_D_EQ = 12
INET_DIAG_BC_CGROUP_COND = 13  # Linux 5.9

PORT_COMPARISONS = frozenset(
    {INET_DIAG_BC_S_GE, INET_DIAG_BC_S_LE, INET_DIAG_BC_D_GE, INET_DIAG_BC_D_LE, INET_DIAG_BC_S_EQ, INET_DIAG_BC_D_EQ}
)
HOST_CONDITIONS = frozenset({INET_DIAG_BC_S_COND, INET_DIAG_BC_D_COND})

OP = Struct(
    "="
    "B"  # code
    "B"  # yes: with 8 bits no more than a few instructions away, here always the next one
    "H"  # no
)
_HOSTCOND = Struct(
    "="
    "B"  # family: AF_UNSPEC (no address follows), AF_INET or AF_INET6
    "B"  # prefix_len
    "2x"
    "i"  # port, -1 for any
)  # then the address
_PORT = Struct("=2xH")  # the `no` of a second inet_diag_bc_op, which is not executed
_IFINDEX = Struct("=I")
_MARKCOND = Struct("=II")  # value, mask
_CGROUP = Struct("=Q")

ANY_PORT = -1
_ADDRESS_SIZES = {0: 0, AF_INET: 4, AF_INET6: 16}
_FIXED_ARGUMENTS = {
    **dict.fromkeys(PORT_COMPARISONS, _PORT),
    INET_DIAG_BC_DEV_COND: _IFINDEX,
    INET_DIAG_BC_CGROUP_COND: _CGROUP,
}
_WITHOUT_ARGUMENT = frozenset({INET_DIAG_BC_NOP, INET_DIAG_BC_JMP, INET_DIAG_BC_AUTO})


class HostCond(namedtuple("HostCond", "family prefix_len port address")):
    """struct inet_diag_hostcond: a packed address of the family's size; port -1 is any port."""

    __slots__ = ()


class MarkCond(namedtuple("MarkCond", "mark mask")):
    """struct inet_diag_markcond."""

    __slots__ = ()


class Instruction(namedtuple("Instruction", "code yes no argument", defaults=(None,))):
    """One instruction. The argument is a port, an interface index, a cgroup id, a HostCond, a MarkCond, or None."""

    __slots__ = ()


def encode_argument(code: int, argument: Argument) -> bytes:
    """The bytes after the inet_diag_bc_op of an instruction. Raises ValueError for an unknown code."""
    if isinstance(argument, HostCond):
        return _HOSTCOND.pack(argument.family, argument.prefix_len, argument.port) + bytes(argument.address)
    if isinstance(argument, MarkCond):
        return _MARKCOND.pack(*argument)
    if code in _FIXED_ARGUMENTS:
        return _FIXED_ARGUMENTS[code].pack(argument)
    if code not in _WITHOUT_ARGUMENT:
        raise ValueError(f"unknown bytecode {code}, or one that does not take {argument!r}")
    return b""


def encode_instruction(instruction: Instruction) -> bytes:
    argument = encode_argument(instruction.code, instruction.argument)
    return OP.pack(instruction.code, instruction.yes, instruction.no) + argument


def decode_instruction(program: bytes, offset: int) -> Instruction:
    """The instruction at an offset. Raises MalformedMessage if it is cut off, or its code or family is unknown."""
    _need(program, offset, OP.size)
    code, yes, no = OP.unpack_from(program, offset)
    at = offset + OP.size
    argument: Argument = None
    if code in HOST_CONDITIONS:
        _need(program, at, _HOSTCOND.size)
        family, prefix_len, port = _HOSTCOND.unpack_from(program, at)
        if family not in _ADDRESS_SIZES:
            raise MalformedMessage("family of a host condition", offset=at, expected="0, 2 or 10", got=family)
        at += _HOSTCOND.size
        _need(program, at, _ADDRESS_SIZES[family])
        argument = HostCond(family, prefix_len, port, bytes(program[at : at + _ADDRESS_SIZES[family]]))
    elif code == INET_DIAG_BC_MARK_COND:
        _need(program, at, _MARKCOND.size)
        argument = MarkCond(*_MARKCOND.unpack_from(program, at))
    elif code in _FIXED_ARGUMENTS:
        _need(program, at, _FIXED_ARGUMENTS[code].size)
        (argument,) = _FIXED_ARGUMENTS[code].unpack_from(program, at)
    elif code not in _WITHOUT_ARGUMENT:
        raise MalformedMessage("bytecode", offset=offset, expected="0..13", got=code)
    return Instruction(code, yes, no, argument)


def _need(program: bytes, offset: int, size: int) -> None:
    if len(program) - offset < size:
        raise MalformedMessage(
            "cut bytecode", offset=offset, expected=f"{size} bytes", got=f"{max(0, len(program) - offset)}"
        )


def decode_program(program: bytes) -> Iterator[tuple[int, Instruction]]:
    """(offset, instruction) of each, read one after the other; `yes` and `no` are not followed."""
    offset = 0
    while offset < len(program):
        instruction = decode_instruction(program, offset)
        yield offset, instruction
        offset += OP.size + len(encode_argument(instruction.code, instruction.argument))


class Label:
    """A position in a program, to which tests can refer before it is placed."""

    __slots__ = ("offset",)

    def __init__(self) -> None:
        self.offset: int | None = None


class Assembler:
    """Builds a program of tests that fall through for yes, and jump to a label for no.

    A socket that reaches the end is accepted, one that goes to the label `reject` is not.
    """

    def __init__(self) -> None:
        self.reject = Label()
        self.used: set[int] = set()
        self._size = 0
        self._instructions: list[tuple[int, bytes, Label]] = []

    def test(self, code: int, argument: Argument, no: Label) -> None:
        """Append a test: a socket that passes falls through to what is appended next, any other goes to `no`."""
        self._append(code, encode_argument(code, argument), no)

    def jump(self, label: Label) -> None:
        self._append(INET_DIAG_BC_JMP, b"", label)

    def place(self, label: Label) -> None:
        """Make the label refer to what is appended next."""
        label.offset = self._size

    def _append(self, code: int, argument: bytes, no: Label) -> None:
        self.used.add(code)
        self._instructions.append((code, argument, no))
        self._size += OP.size + len(argument)

    def assemble(self) -> bytes | None:
        """The program, or None if it does not fit into an attribute. An empty one accepts every socket."""
        if self._size > MAX_SIZE:
            return None
        self.reject.offset = self._size + OP.size
        parts = []
        offset = 0
        for code, argument, no in self._instructions:
            length = OP.size + len(argument)
            target = no.offset
            if target is None or target <= offset:
                raise ValueError(f"the label of the instruction at {offset} is not placed after it")
            parts.append(OP.pack(code, length, target - offset) + argument)
            offset += length
        return b"".join(parts)


def either(first: bytes, second: bytes) -> bytes | None:
    """A program that accepts what one of two assembled ones does; None if it does not fit into an attribute."""
    return _joined(first, second, len(second))


def except_for(first: bytes, second: bytes) -> bytes | None:
    """A program that accepts what the second does, and not the first; None if it does not fit into an attribute."""
    return _joined(first, second, len(second) + OP.size)


def _joined(first: bytes, second: bytes, further: int) -> bytes | None:
    """Whom the first rejects goes on behind the jump, to the second; whom it accepts the jump takes further."""
    joined = first + OP.pack(INET_DIAG_BC_JMP, OP.size, OP.size + further) + second
    return joined if len(joined) <= MAX_SIZE else None
