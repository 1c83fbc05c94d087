"""The instructions of INET_DIAG_REQ_BYTECODE, encoded, decoded, and given to the kernel."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import KernelError, MalformedMessage
from socklb.kernel.diag import DiagSocket
from socklb.wire import bytecode
from socklb.wire.bytecode import (
    ANY_PORT,
    HOST_CONDITIONS,
    INET_DIAG_BC_AUTO,
    INET_DIAG_BC_CGROUP_COND,
    INET_DIAG_BC_D_COND,
    INET_DIAG_BC_DEV_COND,
    INET_DIAG_BC_JMP,
    INET_DIAG_BC_MARK_COND,
    INET_DIAG_BC_NOP,
    INET_DIAG_BC_S_COND,
    INET_DIAG_BC_S_EQ,
    INET_DIAG_REQ_BYTECODE,
    MAX_SIZE,
    PORT_COMPARISONS,
    Assembler,
    HostCond,
    Instruction,
    Label,
    MarkCond,
    decode_instruction,
    decode_program,
    encode_argument,
    encode_instruction,
)
from socklb.wire.netlink import encode_attribute
from socklb.wire.request import TCPDIAG_GETSOCK, InetDiagReq

from .. import bytecode_vm as vm
from ..strategies import u8, u16, u32, u64

_HEADER = Path("/usr/include/linux/inet_diag.h")
_CODES = {name: value for name, value in vars(bytecode).items() if name.startswith("INET_DIAG_BC_")}

# ------------------------------------------------------------------------------------------- instructions

_GOLDEN = {
    "NOP": (Instruction(INET_DIAG_BC_NOP, 4, 8), "00 04 0800"),
    "JMP": (Instruction(INET_DIAG_BC_JMP, 4, 12), "01 04 0c00"),
    "AUTO": (Instruction(INET_DIAG_BC_AUTO, 4, 8), "06 04 0800"),
    "S_EQ": (Instruction(INET_DIAG_BC_S_EQ, 8, 12, 0x1234), "0b 08 0c00 00 00 3412"),
    "S_COND": (
        Instruction(INET_DIAG_BC_S_COND, 16, 20, HostCond(2, 24, ANY_PORT, bytes([10, 1, 2, 3]))),
        "07 10 1400 02 18 0000 ffffffff 0a010203",
    ),
    "D_COND": (
        Instruction(INET_DIAG_BC_D_COND, 28, 32, HostCond(10, 128, 80, bytes(range(16)))),
        "08 1c 2000 0a 80 0000 50000000 000102030405060708090a0b0c0d0e0f",
    ),
    "any host": (Instruction(INET_DIAG_BC_D_COND, 12, 16, HostCond(0, 0, 53, b"")), "08 0c 1000 00 00 0000 35000000"),
    "DEV_COND": (Instruction(INET_DIAG_BC_DEV_COND, 8, 12, 0x01020304), "09 08 0c00 04030201"),
    "MARK_COND": (Instruction(INET_DIAG_BC_MARK_COND, 12, 16, MarkCond(1, 0xFF)), "0a 0c 1000 01000000 ff000000"),
    "CGROUP_COND": (Instruction(INET_DIAG_BC_CGROUP_COND, 12, 16, 0x0102), "0d 0c 1000 0201000000000000"),
}


def _hosts(family: int, size: int) -> st.SearchStrategy[HostCond]:
    return st.builds(HostCond, st.just(family), u8, st.integers(-1, 65535), st.binary(min_size=size, max_size=size))


_arguments: dict[int, st.SearchStrategy[Any]] = {
    **dict.fromkeys(PORT_COMPARISONS, u16),
    **dict.fromkeys(HOST_CONDITIONS, _hosts(0, 0) | _hosts(2, 4) | _hosts(10, 16)),
    INET_DIAG_BC_DEV_COND: u32,
    INET_DIAG_BC_MARK_COND: st.builds(MarkCond, u32, u32),
    INET_DIAG_BC_CGROUP_COND: u64,
}


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    """Any code with an argument of its kind; offsets that are right in most cases."""
    code = draw(st.sampled_from(sorted(_CODES.values())))
    argument = draw(_arguments.get(code, st.none()))
    size = 4 + len(encode_argument(code, argument))
    near = st.sampled_from((size, size, size, size + 4, size + 8)).map(lambda n: min(n, 255))
    return Instruction(code, draw(near | u8), draw(near | st.integers(0, 20).map(lambda n: n * 4) | u16), argument)


programs = st.lists(instructions(), min_size=1, max_size=6).map(
    lambda several: b"".join(map(encode_instruction, several))
)


@pytest.mark.skipif(not _HEADER.exists(), reason="the kernel's headers are not installed")
def test_the_codes_are_those_of_the_header() -> None:
    text = _HEADER.read_text()
    names = re.findall(r"^\s(INET_DIAG_BC_\w+),", text[: text.index("struct inet_diag_hostcond")], re.MULTILINE)
    assert {name: number for number, name in enumerate(names)} == _CODES


class TestInstructions:
    @pytest.mark.skipif("__import__('sys').byteorder != 'little'", reason="golden bytes of a little-endian machine")
    @pytest.mark.parametrize("name", _GOLDEN)
    def test_golden_bytes_both_ways(self, name: str) -> None:
        instruction, golden = _GOLDEN[name]
        assert encode_instruction(instruction).hex() == golden.replace(" ", "")
        assert decode_instruction(bytes.fromhex(golden), 0) == instruction

    @given(st.lists(instructions(), max_size=6))
    def test_round_trip(self, several: list[Instruction]) -> None:
        program = b"".join(map(encode_instruction, several))
        assert [instruction for _, instruction in decode_program(program)] == several

    @given(instructions())
    def test_a_cut_one_is_refused_at_every_length(self, instruction: Instruction) -> None:
        whole = encode_instruction(instruction)
        for length in range(len(whole)):
            with pytest.raises(MalformedMessage) as caught:
                decode_instruction(bytes(3) + whole[:length], 3)
            assert caught.value.offset + int(str(caught.value.got)) == 3 + length

    @given(st.binary(max_size=100))
    def test_any_bytes_are_a_program_or_refused(self, data: bytes) -> None:
        try:
            offsets = [offset for offset, _ in decode_program(data)]
        except MalformedMessage:
            return
        assert offsets == sorted(set(offsets))

    @pytest.mark.parametrize("code", [14, 255])
    def test_an_unknown_code_is_refused_both_ways(self, code: int) -> None:
        with pytest.raises(MalformedMessage):
            decode_instruction(bytes([code, 4, 4, 0]), 0)
        with pytest.raises(ValueError, match=str(code)):
            encode_argument(code, None)


class TestAssembler:
    def test_a_test_falls_through_for_yes_and_goes_to_its_label_for_no(self) -> None:
        program = Assembler()
        later = Label()
        program.test(INET_DIAG_BC_AUTO, None, later)
        program.jump(program.reject)
        program.place(later)
        program.test(INET_DIAG_BC_S_EQ, 80, program.reject)
        assert [i for _, i in decode_program(program.assemble() or b"")] == [
            Instruction(INET_DIAG_BC_AUTO, 4, 8),
            Instruction(INET_DIAG_BC_JMP, 4, 16),
            Instruction(INET_DIAG_BC_S_EQ, 8, 12, 80),
        ]

    @pytest.mark.parametrize("placed", [False, True], ids=["nowhere", "before"])
    def test_a_label_must_be_placed_after_its_use(self, placed: bool) -> None:
        program, label = Assembler(), Label()
        if placed:
            program.place(label)
        program.jump(label)
        with pytest.raises(ValueError, match="label"):
            program.assemble()

    @pytest.mark.parametrize(("surplus", "fits"), [(0, True), (1, False)])
    def test_what_exceeds_an_attribute_is_no_program(self, surplus: int, fits: bool) -> None:
        program = Assembler()
        for _ in range(MAX_SIZE // 4 + surplus):
            program.jump(program.reject)
        assert (program.assemble() is not None) == fits


# -------------------------------------------------------------------------------------------- the kernel


def _kernel_accepts(diag: DiagSocket, program: bytes) -> bool:
    request = InetDiagReq(states=1 << 10).encode() + encode_attribute(INET_DIAG_REQ_BYTECODE, program)
    try:
        for _ in diag.dump(TCPDIAG_GETSOCK, request, "try a program"):
            pass
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def op(code: int, yes: int, no: int) -> bytes:
    """struct inet_diag_bc_op, in the order of this machine."""
    return struct.pack("=BBH", code, yes, no)


@pytest.mark.kernel
class TestTheKernel:
    """DESIGN: a random program is accepted by the verifier if and only if the real kernel accepts it."""

    @given(programs, st.binary(max_size=60))
    def test_accepts_what_the_verifier_accepts(self, program: bytes, noise: bytes) -> None:
        with DiagSocket() as diag:
            for candidate in (program, noise):
                assert _kernel_accepts(diag, candidate) == vm.verify(candidate)

    @pytest.mark.parametrize(
        ("program", "accepted"),
        [
            (op(1, 4, 4), True),  # to the end: accepts every socket
            (op(1, 4, 8), True),  # 4 bytes past the end: rejects every socket
            (op(1, 4, 12), False),  # further past
            (op(1, 0, 4), False),  # would not advance
            (op(1, 4, 4)[:3], False),  # not a multiple of 4
            (op(14, 4, 4), False),  # an unknown code
            (op(7, 12, 12) + bytes.fromhex("02 18 0000 ffffffff"), False),  # a condition that is cut off
            (op(7, 16, 16) + bytes.fromhex("02 21 0000 ffffffff 0a010203"), False),  # a prefix of 33 bits
            (b"", False),
        ],
    )
    def test_the_edges(self, program: bytes, accepted: bool) -> None:
        assert vm.verify(program) == accepted
        with DiagSocket() as diag:
            assert _kernel_accepts(diag, program) == accepted
