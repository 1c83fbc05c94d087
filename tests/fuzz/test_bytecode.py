"""Of a program that the kernel accepts, the package reads the very instructions that the kernel runs."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from socklb import InetSocket
from socklb.wire.bytecode import OP, decode_instruction, encode_instruction

from .. import bytecode_vm as vm
from ..strategies import damaged, sockets

_CODES = {0: (vm.NOP, vm.JMP, vm.AUTO), 4: (vm.S_GE, vm.D_LE, vm.S_EQ, vm.DEV), 8: (vm.MARK, vm.CGROUP)}
_tests = [
    st.tuples(st.sampled_from(codes), st.binary(min_size=size, max_size=size)) for size, codes in _CODES.items()
] + [
    st.tuples(
        st.sampled_from((vm.S_COND, vm.D_COND)),
        st.builds(
            lambda family, prefix_len, port, address: struct.pack("=BBxxi", family, prefix_len, port) + address,
            *(st.just(family), st.integers(0, 8 * size), st.integers(-1, 65535)),
            st.binary(min_size=size, max_size=size),
        ),
    )
    for family, size in ((0, 0), (2, 4), (10, 16))
]


@st.composite
def programs(draw: st.DrawFn) -> bytes:
    """From the last instruction to the first; each jumps to the next one, to the end, or behind it."""
    program = b""
    for code, argument in draw(st.lists(st.one_of(_tests), max_size=5)):
        size = OP.size + len(argument)
        no = draw(st.sampled_from((size, size + len(program), size + len(program) + 4)))
        program = OP.pack(code, size, no) + argument + program
    return program


@given(programs() | damaged(programs()) | st.binary(max_size=60), sockets())
def test_the_decoder_agrees_with_the_verifier_and_every_run_ends(program: bytes, socket: InetSocket) -> None:
    if not vm.verify(program):
        return
    assert 1 <= vm.steps(program, vm.entry_of(socket)) <= len(program) // OP.size
    at = 0
    while at < len(program):
        instruction = decode_instruction(program, at)
        again = encode_instruction(instruction)
        assert decode_instruction(again, 0) == instruction
        assert OP.size <= len(again) <= instruction.yes
        at += instruction.yes
