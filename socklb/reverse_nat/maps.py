# SPDX-License-Identifier: MIT
"""Look-ups in Cilium's reverse-NAT socket maps: did the balancer send a socket to its backend?"""

from __future__ import annotations

import errno
import os
from _thread import allocate_lock
from collections import namedtuple
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..errors import KernelError, NotSupported
from ..wire.address import unmapped
from .bpf import BpfMap, bpf_error
from .layout import BPF_MAP_TYPE_LRU_HASH, LAYOUTS, ReverseSkKey, decode_key, decode_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from ..wire.address import IPAddress
    from .layout import MapLayout

DEFAULT_DIRECTORY = "/sys/fs/bpf/tc/globals"
"""Where Cilium pins its maps."""


class RevNatEntry(
    namedtuple("RevNatEntry", "cookie backend_address backend_port service_address service_port rev_nat_index")
):
    """An entry: the cookie of a socket, the backend that it was sent to, and the service that it had asked for."""

    __slots__ = ()
    cookie: int
    backend_address: IPAddress
    backend_port: int
    service_address: IPAddress
    service_port: int
    rev_nat_index: int


class RevNatMaps:
    """The map of v4 backends and the map of v6 backends; one of them may be missing. A context manager.

    The maps are LRU: the entry of a long-lived socket may have been evicted. Any number of threads may use them at
    once, also while one reopens or closes them.
    """

    def __init__(self, directory: str, maps: dict[int, BpfMap]) -> None:
        self._directory = directory
        self._maps: dict[int, BpfMap] | None = maps  # by the length of an address; None when closed
        self._lock = allocate_lock()  # held during a look-up: meanwhile no other thread may close the map

    @classmethod
    def open(cls, directory: str | os.PathLike[str] = DEFAULT_DIRECTORY) -> RevNatMaps:
        """The maps that are pinned in a directory. If one of the two is missing, it counts as empty.

        Raises ValueError if the directory is missing, has neither map, or has something else under one of their names;
        NotPermitted; NotSupported for a map of unknown layout, and if this kernel or this Python has no bpf(2).
        """
        path = os.fspath(directory)
        return cls(path, _open_maps(path))

    def contains(self, cookie: int, address: IPAddress | str, port: int) -> bool:
        """Whether the balancer sent the socket with this cookie to this backend.

        A v4-mapped address counts as its v4 address. Raises ValueError or TypeError for a wrong argument.
        """
        packed = _packed(address)
        key = ReverseSkKey(cookie, packed, port).encode()
        with self._lock:
            bpf_map = self._open_now().get(len(packed))
            return bpf_map is not None and bpf_map.lookup(key.ljust(bpf_map.info.key_size, b"\0")) is not None

    def entries(self) -> Iterator[RevNatEntry]:
        """Each entry once, those of v4 backends first, streamed; others may come and go meanwhile.

        The iterator has descriptors of its own, closed when it is exhausted, closed (`close()`) or raises: reopening or
        closing the maps does not affect it.
        """
        with ExitStack() as stack:
            with self._lock:
                duplicates = [stack.enter_context(bpf_map.duplicate()) for bpf_map in self._open_now().values()]
            for bpf_map in duplicates:
                yield from _entries_of(bpf_map)

    def reopen(self) -> None:
        """Open what is pinned now: an agent that was upgraded may have replaced a map, or removed one.

        Raises what `open` raises; then the maps that are open stay in use.
        """
        unused = _open_maps(self._directory)
        try:
            with self._lock:
                unused, self._maps = self._open_now(), unused
        finally:
            _close_all(unused)  # the old ones, or the new ones if another thread closed the maps meanwhile

    def close(self) -> None:
        """Close the maps. Whatever uses them later raises ValueError."""
        with self._lock:
            maps, self._maps = self._maps, None
        _close_all(maps or {})

    def _open_now(self) -> dict[int, BpfMap]:
        if self._maps is None:
            raise ValueError(f"the reverse-NAT maps of {self._directory} are closed")
        return self._maps

    def __enter__(self) -> RevNatMaps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _packed(address: IPAddress | str) -> bytes:
    """4 or 16 bytes: a v4 backend is in the v4 map, also for a v6 socket."""
    if isinstance(address, str):
        address = ip_address(address)
    elif not isinstance(address, (IPv4Address, IPv6Address)):
        raise TypeError(f"an address is a str or an ipaddress object, not {address!r}")
    return unmapped(address).packed


def _entries_of(bpf_map: BpfMap) -> Iterator[RevNatEntry]:
    for key, value in bpf_map.items():
        cookie, backend, port = decode_key(key)
        service, service_port, index = decode_value(value)
        yield RevNatEntry(cookie, ip_address(backend), port, ip_address(service), service_port, index)


def _open_maps(directory: str) -> dict[int, BpfMap]:
    """The maps that are there, by the length of their addresses. Raises ValueError if there is none."""
    _check_directory(directory)
    maps: dict[int, BpfMap] = {}
    try:
        for layout in LAYOUTS:
            opened = _open_map(directory, layout)
            if opened is not None:
                maps[layout.address_size] = opened
    except BaseException:
        _close_all(maps)
        raise
    if not maps:
        names = " nor ".join(layout.name for layout in LAYOUTS)
        raise ValueError(f"no reverse-NAT map in {directory}: neither {names} is pinned there")
    return maps


def _check_directory(directory: str) -> None:
    try:
        os.stat(os.path.join(directory, ""))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"no directory {directory}: reverse-NAT maps are where a balancer pins them, on a mounted bpffs"
        ) from None
    except OSError as error:
        raise bpf_error(error.errno or 0, f"look into {directory}") from None


def _open_map(directory: str, layout: MapLayout) -> BpfMap | None:
    """The map of this layout's name, None if there is none. Raises NotSupported if it has another layout."""
    try:
        opened = BpfMap.open(os.path.join(directory, layout.name))
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    info = opened.info
    fits = info.key_size in layout.key_sizes and info.value_size == layout.value_size
    if info.type == BPF_MAP_TYPE_LRU_HASH and fits:
        return opened
    opened.close()
    raise NotSupported(
        errno.EOPNOTSUPP,
        f"{opened.path}: unknown layout: expected type {BPF_MAP_TYPE_LRU_HASH} (LRU hash), keys of "
        f"{' or '.join(map(str, layout.key_sizes))} bytes and values of {layout.value_size}, got type {info.type}, "
        f"keys of {info.key_size} and values of {info.value_size}",
    )


def _close_all(maps: dict[int, BpfMap]) -> None:
    for bpf_map in maps.values():
        bpf_map.close()
