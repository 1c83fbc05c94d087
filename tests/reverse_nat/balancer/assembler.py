"""eBPF, assembled by hand: one function an instruction, named for what it does, and labels to jump to.

The codes are those of <linux/bpf.h> and <linux/bpf_common.h>; Documentation/bpf/standardization says what they mean.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from typing import NamedTuple

# The registers: what a function returns; its arguments; what it leaves alone; the end of the stack, which grows down.
R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = range(11)

# BPF_W and so on: the sizes of what is loaded and stored, four, two and eight bytes.
W, H, DW = 0x00, 0x08, 0x18

_LDX_MEM, _ST_MEM, _STX_MEM = 0x61, 0x62, 0x63  # with BPF_W, which is 0
_MOV64_X, _MOV64_K, _ADD64_K = 0xBF, 0xB7, 0x07
_JA, _JEQ_K, _JNE_K, _JNE32_K = 0x05, 0x15, 0x55, 0x56
_CALL, _EXIT = 0x85, 0x95
_LD_IMM64 = 0x18
_PSEUDO_MAP_FD = 1

_BPF_INSN = struct.Struct(
    "="
    "B"  # code
    "B"  # dst_reg and src_reg, four bits each: the first in the lower half of little-endian machines
    "h"  # off
    "i"  # imm
)


class Instruction(NamedTuple):
    """struct bpf_insn; an offset that is a word is a label."""

    code: int
    target: int = 0
    source: int = 0
    offset: int | str = 0
    immediate: int = 0


Code = Iterable["Instruction | str"]  # a word stands before the instruction that it labels


def assemble(code: Code) -> bytes:
    """The program. Raises KeyError for a jump to a label that is not there."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for statement in code:
        if isinstance(statement, Instruction):
            instructions.append(statement)
        elif statement in labels:
            raise ValueError(f"the label {statement} is there twice")
        else:
            labels[statement] = len(instructions)
    return b"".join(
        _BPF_INSN.pack(code, _registers(target, source), labels[to] - at if isinstance(to, str) else to, immediate)
        for at, (code, target, source, to, immediate) in enumerate(instructions, 1)
    )


def _registers(target: int, source: int) -> int:
    return source << 4 | target if sys.byteorder == "little" else target << 4 | source


def load(size: int, target: int, source: int, offset: int) -> Instruction:
    """target = *(source + offset)"""
    return Instruction(_LDX_MEM | size, target, source, offset)


def store(size: int, target: int, offset: int, source: int) -> Instruction:
    """*(target + offset) = source"""
    return Instruction(_STX_MEM | size, target, source, offset)


def store_number(size: int, target: int, offset: int, number: int) -> Instruction:
    """*(target + offset) = number"""
    return Instruction(_ST_MEM | size, target, 0, offset, number)


def copy(target: int, to: int, source: int, offset: int, length: int) -> list[Instruction]:
    """*(target + to) = *(source + offset), so many bytes, a word at a time (a context allows no more) through R1."""
    return [
        instruction
        for at in range(0, length, 4)
        for instruction in (load(W, R1, source, offset + at), store(W, target, to + at, R1))
    ]


def move(target: int, source: int) -> Instruction:
    return Instruction(_MOV64_X, target, source)


def move_number(target: int, number: int) -> Instruction:
    return Instruction(_MOV64_K, target, immediate=number)


def address_on_stack(target: int, offset: int) -> list[Instruction]:
    """target = FP + offset"""
    return [move(target, FP), Instruction(_ADD64_K, target, immediate=offset)]


def load_map(target: int, descriptor: int) -> list[Instruction]:
    """The map that a descriptor stands for; the one instruction that takes two places."""
    return [Instruction(_LD_IMM64, target, _PSEUDO_MAP_FD, immediate=descriptor), Instruction(0)]


def jump(label: str) -> Instruction:
    return Instruction(_JA, offset=label)


def jump_if_equal(register: int, number: int, label: str) -> Instruction:
    return Instruction(_JEQ_K, register, offset=label, immediate=number)


def jump_unless_equal(register: int, number: int, label: str) -> Instruction:
    return Instruction(_JNE_K, register, offset=label, immediate=number)


def jump_unless_equal_32(register: int, number: int, label: str) -> Instruction:
    """Compares the lower halves: a number with the top bit set would be extended to 64 bits otherwise."""
    return Instruction(_JNE32_K, register, offset=label, immediate=number)


def call(helper: int) -> Instruction:
    return Instruction(_CALL, immediate=helper)


def leave(number: int) -> list[Instruction]:
    """return number"""
    return [move_number(R0, number), Instruction(_EXIT)]
