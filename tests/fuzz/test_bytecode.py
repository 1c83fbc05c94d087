"""Of a program that the kernel accepts, the package reads the very instructions that the kernel runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from socklb import InetSocket
from socklb.filters.compiler import compile_condition
from socklb.wire.bytecode import OP, decode_instruction, encode_instruction

from .. import bytecode_vm as vm
from ..filters.trees import conditions
from ..strategies import damaged, sockets
from ..wire.test_bytecode import programs

compiled = conditions.map(lambda condition: compile_condition(condition).programs[0])


@given(compiled | programs | damaged(compiled) | st.binary(max_size=60), sockets())
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
