"""The fixtures `balancer` and `clients`: skipped where there can be no balancer, with the reason."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import pytest

from ... import world
from ...sockets import Sockets, add_v6_address
from . import ebpf
from .balancer import Balancer
from .cgroup import new_cgroup
from .clients import BACKENDS, V6, Clients
from .programs import KINDS, program_that_allows

_ALL_IDS = ["0", "0", str(0xFFFFFFFF)]  # uid_map of the initial user namespace


@pytest.fixture
def balancer(network: None) -> Iterator[Balancer]:
    """A balancer without services, in a fresh network namespace."""
    refuse(why_not())
    with Balancer() as made:
        yield made


@pytest.fixture
def clients(balancer: Balancer, sockets: Sockets) -> Clients:
    """A maker of its clients; the addresses of the v6 backends are there."""
    for address in BACKENDS[V6]:
        add_v6_address(address)
    return Clients(balancer, sockets)


def refuse(why: str) -> None:
    """Skip a test if there is a reason why there can be no balancer; fail it where root must have one."""
    if not why:
        return
    if is_root():
        world.cannot(f"no balancer: {why}")
    pytest.skip(f"no balancer: {why}")


def is_root() -> bool:
    """Whether this is root of the machine. In the test world everybody is root of a user namespace, at least."""
    return os.geteuid() == 0 and _in_initial_user_namespace()


def _in_initial_user_namespace() -> bool:
    with open("/proc/self/uid_map", encoding="ascii") as lines:
        return lines.read().split() == _ALL_IDS


def why_not() -> str:
    """Why there can be no balancer here, "" if there can."""
    if not ebpf.system_call():
        return f"the number of bpf(2) on {platform.machine()} is not known here"
    if not _in_initial_user_namespace():
        return "it needs root: this is a user namespace, and bpf(2) needs capabilities in the initial one"
    try:
        with new_cgroup() as directory:
            _try_kinds(directory)
    except OSError as error:
        return str(error)
    return "" if _has_bpffs() else "this kernel has no bpffs"


def _try_kinds(directory: str) -> None:
    """Raises OSError if the kernel, or a program of somebody else on a cgroup above, does not let a program in."""
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name, kind in KINDS.items():
            program = ebpf.load_program(kind.type, kind.attach_type, program_that_allows(), name)
            try:
                ebpf.attach(group, program, kind.attach_type)
            finally:
                os.close(program)
    finally:
        os.close(group)


def _has_bpffs() -> bool:
    with open("/proc/filesystems", encoding="ascii") as lines:
        return any(line.split()[-1] == "bpf" for line in lines)
