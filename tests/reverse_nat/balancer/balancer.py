"""The balancer: services, the programs at work on a cgroup, and what they recorded."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from contextlib import AbstractContextManager, ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import NamedTuple

from ... import world
from . import ebpf
from .cgroup import inside, new_cgroup
from .programs import KINDS, SLOT_KEY_SIZE, Family, programs

REVERSE_NAMES = ("cilium_lb4_reverse_sk", "cilium_lb6_reverse_sk")
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_SERVICES = 1024  # so many services
_SLOTS = 1 << 18  # and slots; memory is taken when they are


class Record(NamedTuple):
    """An entry of the reverse-NAT maps: the balancer sent this socket to this backend of this service."""

    cookie: int
    backend: str
    backend_port: int
    service: str
    service_port: int
    rev_nat_index: int


class Balancer:
    """Sends sockets of its `cgroup` that connect to a service to the service's backend.

    Both reverse-NAT maps, LRU hashes of `entries` each, are pinned in `directory`, in a bpffs of this mount namespace.
    In the end nothing of it is left.
    """

    def __init__(self, *, entries: int = 1 << 14) -> None:
        self.entries = entries
        self.directory = ""
        self.cgroup = ""  # a directory, too
        self.families: dict[int, Family] = {}  # its maps, by the IP version
        self._indices: dict[tuple[str, int, str], int] = {}  # rev_nat_index of a service, kept when it is removed
        self._undo = ExitStack()

    def __enter__(self) -> Balancer:
        with ExitStack() as undo:
            self.families = {4: self._make_maps(undo, 4, 4), 6: self._make_maps(undo, 6, 16)}
            self.directory = _mount_bpffs(undo)
            for family, name in zip(self.families.values(), REVERSE_NAMES):
                ebpf.pin(family.reverse, os.path.join(self.directory, name))
            self.cgroup = undo.enter_context(new_cgroup())
            self._attach_programs(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    # -------------------------------------------------------------------------------------------------- services

    def set_service(self, address: str, port: int, protocol: str, backend_address: str, backend_port: int) -> None:
        """From now on a service leads to this backend; sockets that were sent to another one stay there."""
        service, backend = ip_address(address), ip_address(backend_address)
        if service.version != backend.version:
            raise ValueError(f"{backend} cannot be a backend of {service}: it is of another family")
        index = self._indices.setdefault((str(service), port, protocol), len(self._indices) + 1)
        family = self.families[service.version]
        value = backend.packed + struct.pack("!H", backend_port) + struct.pack("=H", index)
        ebpf.update(family.services, _service_key(service, port, protocol), value)

    def remove_service(self, address: str, port: int, protocol: str) -> None:
        """From now on its address is as good as any other. Raises FileNotFoundError if there is no such service."""
        service = ip_address(address)
        ebpf.delete(self.families[service.version].services, _service_key(service, port, protocol))

    # --------------------------------------------------------------------------------------------------- clients

    def clients(self) -> AbstractContextManager[None]:
        """Meanwhile this process is in the cgroup: the sockets that it makes there are balanced for good."""
        return inside(self.cgroup)

    def records(self) -> list[Record]:
        """What both maps hold, in the order of cookies."""
        return sorted(
            _decode(key, value, family.address_size)
            for family in self.families.values()
            for key, value in ebpf.items(family.reverse, family.key_size, family.service_size).items()
        )

    def evict(self, record: Record) -> None:
        """What happens to the record of a long-lived socket when its map, which is LRU, is full."""
        backend = ip_address(record.backend)
        family = self.families[backend.version]
        key = struct.pack("=Q", record.cookie) + backend.packed + struct.pack("!H", record.backend_port)
        ebpf.delete(family.reverse, key.ljust(family.key_size, b"\0"))

    # ------------------------------------------------------------------------------------------- what it is made of

    def _make_maps(self, undo: ExitStack, version: int, address_size: int) -> Family:
        def make(type: int, key_size: int, value_size: int, entries: int, flags: int = 0) -> int:
            descriptor = ebpf.create_map(type, key_size, value_size, entries, flags)
            undo.callback(os.close, descriptor)
            return descriptor

        layout = Family(f"v{version}", address_size, -1, -1, -1)
        key_size, service_size = layout.key_size, layout.service_size
        return layout._replace(
            services=make(ebpf.BPF_MAP_TYPE_HASH, service_size, service_size, _SERVICES),
            reverse=make(ebpf.BPF_MAP_TYPE_LRU_HASH, key_size, service_size, self.entries),
            slots=make(ebpf.BPF_MAP_TYPE_HASH, SLOT_KEY_SIZE, key_size, _SLOTS, ebpf.BPF_F_NO_PREALLOC),
        )

    def _attach_programs(self, undo: ExitStack) -> None:
        group = os.open(self.cgroup, os.O_RDONLY | os.O_DIRECTORY)
        undo.callback(os.close, group)
        for name, code in programs(self.families[4], self.families[6]).items():
            kind = KINDS[name]
            program = ebpf.load_program(kind.type, kind.attach_type, code, name)
            undo.callback(os.close, program)
            ebpf.attach(group, program, kind.attach_type)
            undo.callback(ebpf.detach, group, program, kind.attach_type)


def _mount_bpffs(undo: ExitStack) -> str:
    """A directory like Cilium's in a bpffs; at the top of one there may be something already (bpf_preload)."""
    point = tempfile.mkdtemp(prefix="bpf-", dir="/run")
    undo.callback(os.rmdir, point)
    world.mount("bpf", point)
    undo.callback(world.unmount, point)
    directory = os.path.join(point, "tc", "globals")
    os.makedirs(directory)
    return directory


def _service_key(address: IPv4Address | IPv6Address, port: int, protocol: str) -> bytes:
    return address.packed + struct.pack("!H", port) + struct.pack("=H", _PROTOCOLS[protocol])


def _decode(key: bytes, value: bytes, address_size: int) -> Record:
    """struct ipv4_revnat_tuple and ipv4_revnat_entry, or those of ipv6, of Cilium's bpf/lib/sock.h."""
    (cookie,) = struct.unpack_from("=Q", key)
    backend, (backend_port,) = key[8 : 8 + address_size], struct.unpack_from("!H", key, 8 + address_size)
    service, (service_port,) = value[:address_size], struct.unpack_from("!H", value, address_size)
    (index,) = struct.unpack_from("=H", value, address_size + 2)
    return Record(cookie, str(ip_address(backend)), backend_port, str(ip_address(service)), service_port, index)
