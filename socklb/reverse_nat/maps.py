# SPDX-License-Identifier: MIT
"""Cilium's reverse-NAT socket maps: whether the balancer sent a socket to its backend."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_address
from threading import Lock

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
    """One socket by its cookie, the backend that it was sent to, and the service that it had asked for."""

    __slots__ = ()
    cookie: int
    backend_address: IPAddress
    backend_port: int
    service_address: IPAddress
    service_port: int
    rev_nat_index: int


class RevNatMaps:
    """The map of v4 backends and the map of v6 backends, or the one of them that is there. A context manager.

    The maps are LRU: the entry of a long-lived socket may have been evicted. Any number of threads may ask at once, and
    while another one reopens or closes.
    """

    def __init__(self, directory: str, maps: dict[int, BpfMap]) -> None:
        self._directory = directory
        self._maps: dict[int, BpfMap] | None = maps  # by the length of an address; None when closed
        self._lock = Lock()  # held during a look-up, so that nobody closes the map meanwhile

    @classmethod
    def open(cls, directory: str | os.PathLike[str] = DEFAULT_DIRECTORY) -> RevNatMaps:
        """The maps that are pinned in a directory; one of the two may be missing, and counts as empty then.

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
            asked = self._held().get(len(packed))
            return asked is not None and asked.lookup(key.ljust(asked.info.key_size, b"\0")) is not None

    def entries(self) -> Iterator[RevNatEntry]:
        """Every entry, those of v4 backends first, streamed; each once while others come and go (`BpfMap.keys`).

        The iterator has descriptors of its own, closed on exhaustion, close() or error: reopening or closing the maps
        meanwhile does not disturb it.
        """
        with ExitStack() as stack:
            with self._lock:
                own = [stack.enter_context(one.duplicate()) for one in self._held().values()]
            for one in own:
                yield from _entries_of(one)

    def reopen(self) -> None:
        """Open again what is pinned: an agent that is upgraded may have put other maps there, or removed one.

        Raises what `open` raises; the maps stay open as they were then.
        """
        fresh = _open_maps(self._directory)
        try:
            with self._lock:
                fresh, self._maps = self._held(), fresh
        finally:
            _close_all(fresh)  # the old ones; the new ones if somebody closed meanwhile

    def close(self) -> None:
        """Close the maps; asking them raises ValueError then."""
        with self._lock:
            maps, self._maps = self._maps, None
        _close_all(maps or {})

    def _held(self) -> dict[int, BpfMap]:
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
    """4 or 16 bytes; a v4 backend is in the v4 map, whatever the family of the socket."""
    if isinstance(address, str):
        address = ip_address(address)
    elif not isinstance(address, (IPv4Address, IPv6Address)):
        raise TypeError(f"an address is a str or an ipaddress object, not {address!r}")
    return unmapped(address).packed


def _entries_of(one: BpfMap) -> Iterator[RevNatEntry]:
    for key in one.keys():  # noqa: SIM118 - this is not a dict
        value = one.lookup(key)
        if value is not None:  # or it vanished in between
            cookie, backend, port = decode_key(key)
            service, service_port, index = decode_value(value)
            yield RevNatEntry(cookie, ip_address(backend), port, ip_address(service), service_port, index)


def _open_maps(directory: str) -> dict[int, BpfMap]:
    """By the length of an address. Raises ValueError if there is none."""
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
    """The map of this name, None if there is none. Raises NotSupported if it has another layout."""
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
    for one in maps.values():
        one.close()
