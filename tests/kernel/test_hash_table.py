"""Whether the table of connections is so small that chains in it are long, and what follows from that."""

from __future__ import annotations

from pathlib import Path

import pytest

from socklb import SocketFilter, destroy_sockets, dport
from socklb.kernel import hash_table
from socklb.kernel.diag import DiagSocket

from .. import this_kernel, world
from ..sockets import Sockets

SIZE_OF_CHILDREN = Path("/proc/sys/net/ipv4/tcp_child_ehash_entries")


@pytest.mark.kernel
def test_a_table_of_ones_own(network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one chain alone, where the kernel lets go of its lock after 16 rows: they are asked for twice."""
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
    for count, expected in ((16, 1), (17, 2)):
        with Sockets() as sockets:
            for _ in range(count):
                sockets.tcp("127.0.0.2", 9000)
            dumps.clear()
            assert destroy_sockets(SocketFilter("tcp", dport(9000))).destroyed == count
            assert len(dumps) == expected


def test_where_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for content in (None, "", "-262144", "x"):
        path = tmp_path / "entries"
        if content is not None:
            path.write_text(content)
        monkeypatch.setattr(hash_table, "_ENTRIES", str(path))
        assert not hash_table.is_small()
