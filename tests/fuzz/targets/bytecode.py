"""Any bytes as a program for the kernel: the verifier says yes or no, and what it accepts ends, on every socket.

Of what it accepts, the package's own decoder reads each instruction where the verifier saw one.
"""

from __future__ import annotations

from socklb.wire.bytecode import OP, decode_instruction, encode_instruction

from ... import bytecode_vm as vm
from ..sockets import SOCKETS


def check(data: bytes) -> None:
    if not vm.verify(data):
        return
    for socket in SOCKETS:
        for autobound in (False, True):
            entry = vm.entry_of(socket, autobound=autobound)
            assert vm.run(data, entry) in (False, True)
            assert 1 <= vm.steps(data, entry) <= len(data) // OP.size
    at = 0
    while at < len(data):
        instruction = decode_instruction(data, at)
        again = encode_instruction(instruction)
        assert decode_instruction(again, 0) == instruction
        assert OP.size <= len(again) <= instruction.yes
        at += instruction.yes
