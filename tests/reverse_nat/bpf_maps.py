"""BPF maps for tests on the real kernel, pinned in a bpffs of the test world's own mount namespace.

maps.lru("cilium_lb4_reverse_sk", 16, 8)      # of the fixture `maps`
maps.put("cilium_lb4_reverse_sk", key, value)

It needs root, and not in a user namespace: a test is skipped without, with the reason.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import pytest

from .. import world
from .balancer import ebpf
from .balancer.fixture import is_root


def descriptors() -> list[str]:
    """The open descriptors of this process."""
    return os.listdir("/proc/self/fd")


_EXIT = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
_BPF_PROG_TYPE_SOCKET_FILTER = 1


class Maps:
    """Makes maps by name in `directory`, puts entries in and takes them out. Nothing is left of it in the end."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._undo = ExitStack()
        self.directory = tempfile.mkdtemp(prefix="bpf-", dir="/run")
        self._undo.callback(os.rmdir, self.directory)
        try:
            world.mount("bpf", self.directory)
        except BaseException:
            self._undo.close()
            raise
        self._undo.callback(world.unmount, self.directory)

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def lru(self, name: str, key_size: int, value_size: int, entries: int = 1000) -> str:
        return self.make(name, ebpf.BPF_MAP_TYPE_LRU_HASH, key_size, value_size, entries)

    def make(self, name: str, type: int, key_size: int, value_size: int, entries: int = 1000) -> str:
        """Pin a new map by this name, in place of what was pinned there; the path of the pin."""
        return self._pin(name, ebpf.create_map(type, key_size, value_size, entries))

    def make_program(self, name: str) -> str:
        """Pin a program by this name; the path of the pin."""
        return self._pin(name, ebpf.load_program(_BPF_PROG_TYPE_SOCKET_FILTER, 0, _EXIT, "nothing"))

    def _pin(self, name: str, descriptor: int) -> str:
        self.remove(name)
        self._descriptors[name] = descriptor
        self._undo.callback(os.close, descriptor)
        ebpf.pin(descriptor, self.path(name))
        return self.path(name)

    def remove(self, name: str) -> None:
        """Remove the pin, if there is one; the map lives as long as it is open somewhere."""
        Path(self.path(name)).unlink(missing_ok=True)

    def put(self, name: str, key: bytes, value: bytes) -> None:
        ebpf.update(self._descriptors[name], key, value)

    def delete(self, name: str, key: bytes) -> None:
        """Whether or not it is there."""
        with suppress(FileNotFoundError):
            ebpf.delete(self._descriptors[name], key)

    def __enter__(self) -> Maps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()


@pytest.fixture
def maps() -> Iterator[Maps]:
    """A maker of BPF maps."""
    if not is_root():
        pytest.skip("BPF maps need root outside of any user namespace")
    try:
        made = Maps()
        made.lru("try", 8, 8)
        made.remove("try")
    except OSError as error:
        world.cannot(f"no BPF maps: {error}")
    with made:
        yield made
