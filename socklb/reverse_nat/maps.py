# SPDX-License-Identifier: MIT
"""Did the balancer send this socket to its backend? Cilium's reverse-NAT socket maps know."""

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
from .layout import BPF_MAP_TYPE_LRU_HASH, SHAPES, ReverseSkKey, decode_key, decode_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import NamedTuple, Union

    from .layout import MapShape

    IPAddress = Union[IPv4Address, IPv6Address]

DEFAULT_DIRECTORY = "/sys/fs/bpf/tc/globals"
"""Where Cilium pins its maps."""

if TYPE_CHECKING:

    class RevNatEntry(NamedTuple):
        """One socket, the backend that it was sent to, and the service that it had asked for."""

        cookie: int
        backend_address: IPAddress
        backend_port: int
        service_address: IPAddress
        service_port: int
        rev_nat_index: int

else:
    RevNatEntry = namedtuple(
        "RevNatEntry", "cookie backend_address backend_port service_address service_port rev_nat_index"
    )


class RevNatMaps:
    """The map of v4 backends and the map of v6 backends, or the one of them that is there. A context manager.

    The maps are LRU: of a socket that lives long the entry may have been driven out. Any number of threads may ask at
    once, and while another one reopens or closes.
    """

    def __init__(self, directory: str, maps: dict[int, BpfMap]) -> None:
        self._directory = directory
        self._maps: dict[int, BpfMap] | None = maps  # by the length of an address; None when closed
        self._lock = Lock()  # held while a map is asked, so that nobody closes it meanwhile

    @classmethod
    def open(cls, directory: str | os.PathLike[str] = DEFAULT_DIRECTORY) -> RevNatMaps:
        """The maps that are pinned in a directory; one of the two may be missing, and contains nothing then.

        Raises ValueError if the directory is missing, has neither map, or has something else by one of their names;
        NotPermitted; NotSupported for a map of unknown layout, and if this kernel or this Python has no bpf(2).
        """
        path = os.fspath(directory)
        return cls(path, _open_maps(path))

    def contains(self, cookie: int, address: IPAddress | str, port: int) -> bool:
        """Whether the balancer sent the socket with this cookie to this backend.

        A v4-mapped address means the v4 one. Raises ValueError or TypeError for what is no address, cookie or port.
        """
        packed = _packed(address)
        key = ReverseSkKey(cookie, packed, port).encode()
        with self._lock:
            asked = self._held().get(len(packed))
            return asked is not None and asked.lookup(key.ljust(asked.info.key_size, b"\0")) is not None

    def entries(self) -> Iterator[RevNatEntry]:
        """Every entry, those of v4 backends first, streamed; each once while others come and go (`BpfMap.keys`).

        It is read through descriptors of its own, closed on exhaustion, close() or error: who reopens or closes the
        maps meanwhile does not disturb it.
        """
        with ExitStack() as stack:
            with self._lock:
                own = [stack.enter_context(one.duplicate()) for one in self._held().values()]
            for one in own:
                yield from _entries_of(one)

    def reopen(self) -> None:
        """Look again at what is pinned: an agent that is upgraded may have put other maps there, or taken one away.

        Raises what `open` raises; the maps as they were stay open then.
        """
        fresh = _open_maps(self._directory)
        try:
            with self._lock:
                fresh, self._maps = self._held(), fresh
        finally:
            _close_all(fresh)  # those from before; the new ones if somebody closed meanwhile

    def close(self) -> None:
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
    for key in one.keys():  # noqa: SIM118 - it is no dict
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
        for shape in SHAPES:
            opened = _open_map(directory, shape)
            if opened is not None:
                maps[shape.address_size] = opened
    except BaseException:
        _close_all(maps)
        raise
    if not maps:
        names = " nor ".join(shape.name for shape in SHAPES)
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


def _open_map(directory: str, shape: MapShape) -> BpfMap | None:
    """The map of this shape, None if there is none. Raises NotSupported if it has another one."""
    try:
        opened = BpfMap.open(os.path.join(directory, shape.name))
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    info = opened.info
    fits = info.key_size in shape.key_sizes and info.value_size == shape.value_size
    if info.type == BPF_MAP_TYPE_LRU_HASH and fits:
        return opened
    opened.close()
    raise NotSupported(
        errno.EOPNOTSUPP,
        f"{opened.path}: this layout is not known: expected type {BPF_MAP_TYPE_LRU_HASH} (LRU hash), keys of "
        f"{' or '.join(map(str, shape.key_sizes))} bytes and values of {shape.value_size}, got type {info.type}, keys "
        f"of {info.key_size} and values of {info.value_size}",
    )


def _close_all(maps: dict[int, BpfMap]) -> None:
    for one in maps.values():
        one.close()
