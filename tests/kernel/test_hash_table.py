"""Whether the table of connections is so small that chains in it are long, and what follows from that."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from socklb import KernelError, NetworkNamespace, SocketFilter, destroy_sockets, dport
from socklb.kernel import hash_table
from socklb.kernel.diag import DiagSocket

from .. import this_kernel, world
from ..networks import networks
from ..sockets import Sockets

SIZE_OF_CHILDREN = Path("/proc/sys/net/ipv4/tcp_child_ehash_entries")


@pytest.mark.kernel
def test_a_table_of_ones_own(network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one chain alone, where the kernel lets go of its lock behind 16 rows: they are asked for twice."""
    assert not hash_table.is_small()
    this_kernel.needs(SIZE_OF_CHILDREN.exists, "has one table for all namespaces", since=(6, 1))
    SIZE_OF_CHILDREN.write_text("1")
    world.new_network()
    assert hash_table.is_small()
    dumps: list[str] = []
    usual = DiagSocket.dump

    def noted(diag: DiagSocket, type: int, request: bytes, doing: str, *, may_repeat_rows: bool = False) -> object:
        dumps.append(doing)
        return usual(diag, type, request, doing, may_repeat_rows=may_repeat_rows)

    monkeypatch.setattr(DiagSocket, "dump", noted)
    for count, expected in ((15, 1), (16, 2)):
        with Sockets() as sockets:
            for _ in range(count):
                sockets.tcp("127.0.0.2", 9000)
            dumps.clear()
            assert destroy_sockets(SocketFilter("tcp", dport(9000))).destroyed == count
            assert len(dumps) == expected


@pytest.mark.kernel
def test_of_another_namespace(network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked there; where that is no longer possible the table is taken for small."""
    asked: list[NetworkNamespace] = []

    def is_small() -> bool:
        asked.append(NetworkNamespace.current())
        raise KernelError(errno.ENOENT, "vanished")

    monkeypatch.setattr(hash_table, "is_small", is_small)
    with networks(3) as nets:
        one, *others = (net.namespace for net in nets)
        for net in nets:
            net.make(lambda sockets: [sockets.tcp("127.0.0.2", 9000) for _ in range(16)])
        for namespaces in (one, others):
            assert destroy_sockets(SocketFilter("tcp", dport(9000)), namespaces=namespaces).failed == 0
        assert sorted(found.inode for found in asked) == sorted(net.namespace.inode for net in nets for _ in range(2))


def test_where_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for content in (None, "", "-262144", "x"):
        path = tmp_path / "entries"
        if content is not None:
            path.write_text(content)
        monkeypatch.setattr(hash_table, "_ENTRIES", str(path))
        assert not hash_table.is_small()
