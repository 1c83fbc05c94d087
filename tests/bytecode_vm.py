"""The kernel's verifier and interpreter in Python: inet_diag_bc_audit(), inet_diag_bc_run(), net/ipv4/inet_diag.c.

Written from the kernel's source, not from the assembler: it imports nothing of the package but the socket.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from socklb import InetSocket

NOP, JMP, S_GE, S_LE, D_GE, D_LE, AUTO, S_COND, D_COND, DEV, MARK, S_EQ, D_EQ, CGROUP = range(14)

_ADDRESS_SIZES = {0: 0, 2: 4, 10: 16}
_FIXED_SIZES = {
    NOP: 4, JMP: 4, AUTO: 4, DEV: 8, MARK: 12, CGROUP: 12,
    S_GE: 8, S_LE: 8, D_GE: 8, D_LE: 8, S_EQ: 8, D_EQ: 8,
}  # fmt: skip


class Entry(NamedTuple):
    """struct inet_diag_entry: what a program sees of a socket."""

    family: int
    src: bytes
    dst: bytes
    sport: int
    dport: int
    interface: int
    mark: int
    cgroup_id: int
    autobound: bool


def entry_of(socket: InetSocket, *, autobound: bool = False) -> Entry:
    attributes = socket.attributes
    return Entry(
        socket.family,
        socket.src_packed,
        socket.dst_packed,
        socket.sport,
        socket.dport,
        socket.interface,
        attributes.get("mark", 0),
        attributes.get("cgroup_id", 0),
        autobound,
    )


def verify(program: bytes) -> bool:
    """Whether the kernel accepts it (from a caller with CAP_NET_ADMIN: MARK is EPERM otherwise)."""
    if not program or len(program) & 3:  # every step is a multiple of 4, so the end would never be reached
        return False
    at = 0
    while at < len(program):
        left = len(program) - at
        smallest = _smallest_size(program, at)
        if smallest is None:
            return False
        code, yes, no = struct.unpack_from("=BBH", program, at)
        if code != NOP:
            if no < smallest or no > left + 4 or no & 3:
                return False
            if no < left and not _is_reached(program, at + no):
                return False
        if yes < smallest or yes > left + 4 or yes & 3:
            return False
        at += yes
    return at == len(program)


def _smallest_size(program: bytes, at: int) -> int | None:
    """The size of the instruction there with its argument; None if it is cut off or invalid."""
    left = len(program) - at
    code = program[at]
    if code in _FIXED_SIZES:
        size = _FIXED_SIZES[code]
        return size if left >= size else None
    if code not in (S_COND, D_COND) or left < 12:
        return None
    family, prefix_len = program[at + 4], program[at + 5]
    if family not in _ADDRESS_SIZES:
        return None
    size = 12 + _ADDRESS_SIZES[family]
    return size if left >= size and prefix_len <= 8 * _ADDRESS_SIZES[family] else None


def _is_reached(program: bytes, target: int) -> bool:
    """valid_cc(): whether following `yes` from the start leads there."""
    at = 0
    while at < target:
        yes = program[at + 1]
        if yes < 4 or yes & 3:
            return False
        at += yes
    return at == target


def run(program: bytes, entry: Entry) -> bool:
    """Whether a verified program lets the socket through. Offsets only grow, so it ends."""
    *_, end = _path(program, entry)
    return end == len(program)


def steps(program: bytes, entry: Entry) -> int:
    """How many instructions that takes."""
    return len(list(_path(program, entry))) - 1


def _path(program: bytes, entry: Entry) -> Iterator[int]:
    """The offsets that a socket reaches, the last of them at the end or past it."""
    at = 0
    yield at
    while at < len(program):
        _, yes, no = struct.unpack_from("=BBH", program, at)
        at += yes if _passes(program, at, entry) else no
        yield at


def _passes(program: bytes, at: int, entry: Entry) -> bool:
    code = program[at]
    if code in (NOP, JMP):
        return code == NOP
    if code == AUTO:
        return entry.autobound
    if code in (S_COND, D_COND):
        return _passes_host(program, at + 4, entry, source=code == S_COND)
    if code == DEV:
        return bool(struct.unpack_from("=I", program, at + 4)[0] == entry.interface)
    if code == MARK:
        mark, mask = struct.unpack_from("=II", program, at + 4)
        return bool(entry.mark & mask == mark)
    if code == CGROUP:
        return bool(struct.unpack_from("=Q", program, at + 4)[0] == entry.cgroup_id)
    port = int(struct.unpack_from("=H", program, at + 6)[0])
    of_entry = entry.sport if code in (S_GE, S_LE, S_EQ) else entry.dport
    return {S_GE: of_entry >= port, S_LE: of_entry <= port, S_EQ: of_entry == port}[
        {D_GE: S_GE, D_LE: S_LE, D_EQ: S_EQ}.get(code, code)
    ]


def _passes_host(program: bytes, at: int, entry: Entry, *, source: bool) -> bool:
    family, prefix_len, port = struct.unpack_from("=BB2xi", program, at)
    if port not in (-1, entry.sport if source else entry.dport):
        return False
    wanted = program[at + 8 : at + 8 + _ADDRESS_SIZES[family]]
    address = entry.src if source else entry.dst
    if family not in (0, entry.family):
        if entry.family != 10 or family != 2 or address[:12] != bytes(10) + b"\xff\xff":
            return False
        return _share_prefix(address[12:], wanted, prefix_len)
    return prefix_len == 0 or _share_prefix(address, wanted, prefix_len)


def _share_prefix(one: bytes, other: bytes, length: int) -> bool:
    shift = len(one) * 8 - length
    return int.from_bytes(one, "big") >> shift == int.from_bytes(other, "big") >> shift
