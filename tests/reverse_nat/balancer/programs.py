"""The programs of the balancer, and what they keep in maps.

Each runs for a socket of the cgroup, and lets its call go on in any case. On connect (and on a datagram that is sent to
an address) a service's address is rewritten to its backend's and the socket is recorded; when the socket is released,
its records go.

A socket has at most two records, each in a slot: where it is CONNECTED, and where it SENT its last datagram without
being connected there. What is in a slot is kept by cookie, for when a socket is released the kernel may have forgotten
where it was connected to. A new connection empties both slots.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from .assembler import (
    DW,
    FP,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R8,
    Code,
    H,
    W,
    address_on_stack,
    assemble,
    call,
    copy,
    jump,
    jump_if_equal,
    jump_unless_equal,
    jump_unless_equal_32,
    leave,
    load,
    load_map,
    move,
    move_number,
    store,
    store_number,
)
from .ebpf import BPF_PROG_TYPE_CGROUP_SOCK, BPF_PROG_TYPE_CGROUP_SOCK_ADDR

# Helpers: enum bpf_func_id.
_MAP_LOOKUP_ELEM, _MAP_UPDATE_ELEM, _MAP_DELETE_ELEM, _GET_SOCKET_COOKIE = 1, 2, 3, 46

# Places in the context of connect and sendmsg: struct bpf_sock_addr.
_USER_IP4 = 4
_USER_IP6 = 8
_USER_PORT = 24
_PROTOCOL = 36

_MAPPED = int.from_bytes(b"\0\0\xff\xff", sys.byteorder, signed=True)  # the third word of ::ffff:a.b.c.d

# Slots, and their place on the stack: a key of `Family.slots` is a cookie and one of these, 8 bytes each.
_CONNECTED, _SENT = 0, 1
_SLOT_KEY = -16
SLOT_KEY_SIZE = 16
# Below it, with room for v6: a service's address, port and protocol; a record's key and value.
_SERVICE = -40
_KEY = -72
_VALUE = -96


class Family(NamedTuple):
    """The maps of one family of addresses, as descriptors, and the size of such an address.

    services: {address, port be16, protocol u16} -> {backend's address, port be16, rev_nat_index u16}
    reverse: {cookie u64, backend's address, port be16, padding} -> {service's address, port be16, rev_nat_index u16}
    slots: {cookie u64, slot u64} -> a key of `reverse`
    """

    name: str
    address_size: int
    services: int
    reverse: int
    slots: int

    @property
    def service_size(self) -> int:
        """Of key and value of `services`, and of the value of `reverse`."""
        return self.address_size + 4

    @property
    def key_size(self) -> int:
        """Of the key of `reverse`: struct ipv4_revnat_tuple, ipv6_revnat_tuple of Cilium's bpf/lib/sock.h."""
        return 16 if self.address_size == 4 else 32


class Kind(NamedTuple):
    """Where a program runs: of enum bpf_prog_type and enum bpf_attach_type."""

    type: int
    attach_type: int


KINDS = {
    "connect4": Kind(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, 10),
    "connect6": Kind(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, 11),
    "sendmsg4": Kind(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, 14),
    "sendmsg6": Kind(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, 15),
    "sock_release": Kind(BPF_PROG_TYPE_CGROUP_SOCK, 34),
}


def programs(v4: Family, v6: Family) -> dict[str, bytes]:
    """By the names of `KINDS`."""
    forget_sent = [*_forget(v4, _SENT), *_forget(v6, _SENT)]
    forget_all = [*forget_sent, *_forget(v4, _CONNECTED), *_forget(v6, _CONNECTED)]
    return {
        "connect4": _program(forget_all, _balance(v4, _USER_IP4)),
        "connect6": _program(forget_all, _balance6(v4, v6)),
        "sendmsg4": _program(_balance(v4, _USER_IP4, forget_sent)),
        "sendmsg6": _program(_balance(v6, _USER_IP6, forget_sent)),  # the kernel takes a mapped address to sendmsg4
        "sock_release": _program(forget_all),
    }


def program_that_allows() -> bytes:
    """The smallest of any kind, to see whether a kernel takes that kind."""
    return assemble(leave(1))


def _program(*parts: Code) -> bytes:
    """R6 is the context, R7 the cookie, which is the first half of the slot's key too."""
    return assemble(
        [
            move(R6, R1),
            call(_GET_SOCKET_COOKIE),
            move(R7, R0),
            store(DW, FP, _SLOT_KEY, R7),
            *(statement for part in parts for statement in part),
            "done",
            *leave(1),
        ]
    )


def _balance6(v4: Family, v6: Family) -> Code:
    """A v4 service of a v6 socket is one of v4: in the last word of ::ffff:a.b.c.d, the other three stay."""
    return [
        load(W, R1, R6, _USER_IP6),
        jump_unless_equal(R1, 0, "not mapped"),
        load(W, R1, R6, _USER_IP6 + 4),
        jump_unless_equal(R1, 0, "not mapped"),
        load(W, R1, R6, _USER_IP6 + 8),
        jump_unless_equal_32(R1, _MAPPED, "not mapped"),
        *_balance(v4, _USER_IP6 + 12),
        jump("done"),
        "not mapped",
        *_balance(v6, _USER_IP6),
    ]


def _balance(family: Family, address: int, before: Code = ()) -> Code:
    """If the address at this place of the context is a service's: make it the backend's, and record the socket.

    `before` is done before a record is made, and leaves on the stack which slot that is for.
    """
    size = family.address_size
    return [
        *copy(FP, _SERVICE, R6, address, size),
        load(W, R1, R6, _USER_PORT),  # network order, in the lower half
        store(H, FP, _SERVICE + size, R1),
        load(W, R1, R6, _PROTOCOL),
        store(H, FP, _SERVICE + size + 2, R1),
        *_call_on_map(_MAP_LOOKUP_ELEM, family.services, _SERVICE),
        jump_if_equal(R0, 0, "done"),
        move(R8, R0),  # the backend
        # the key
        store(DW, FP, _KEY, R7),
        *copy(FP, _KEY + 8, R8, 0, size),
        *(store_number(W, FP, _KEY + at, 0) for at in range(8 + size, family.key_size, 4)),
        load(H, R1, R8, size),
        store(H, FP, _KEY + 8 + size, R1),
        # the value
        *copy(FP, _VALUE, FP, _SERVICE, size),
        load(H, R1, FP, _SERVICE + size),
        store(H, FP, _VALUE + size, R1),
        load(H, R1, R8, size + 2),
        store(H, FP, _VALUE + size + 2, R1),
        # the address
        *copy(R6, address, R8, 0, size),
        load(H, R1, R8, size),
        store(W, R6, _USER_PORT, R1),
        *_record(family, before),
    ]


def _record(family: Family, before: Code) -> Code:
    """A socket that has this very record already has it in one of its slots, and keeps it there."""
    known = f"{family.name} known"
    return [
        *_call_on_map(_MAP_LOOKUP_ELEM, family.reverse, _KEY),
        jump_unless_equal(R0, 0, known),
        *before,
        *_update(family.slots, _SLOT_KEY, _KEY),
        known,
        *_update(family.reverse, _KEY, _VALUE),
    ]


def _forget(family: Family, slot: int) -> Code:
    """Empty a slot: with it goes the record whose key is there."""
    empty = f"{family.name} slot {slot} empty"
    return [
        store_number(DW, FP, _SLOT_KEY + 8, slot),
        *_call_on_map(_MAP_LOOKUP_ELEM, family.slots, _SLOT_KEY),
        jump_if_equal(R0, 0, empty),
        *load_map(R1, family.reverse),
        move(R2, R0),
        call(_MAP_DELETE_ELEM),
        *_call_on_map(_MAP_DELETE_ELEM, family.slots, _SLOT_KEY),
        empty,
    ]


def _update(map: int, key: int, value: int) -> Code:
    return [*address_on_stack(R3, value), move_number(R4, 0), *_call_on_map(_MAP_UPDATE_ELEM, map, key)]


def _call_on_map(helper: int, map: int, key: int) -> Code:
    """key is its place on the stack."""
    return [*load_map(R1, map), *address_on_stack(R2, key), call(helper)]
