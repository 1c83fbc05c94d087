"""Output that holds nobody up; `watch` shows the rest of it."""

from __future__ import annotations

from socklb.cli.outlet import ROOM, Outlet


def test_what_nobody_reads_is_not_missed() -> None:
    lost: list[int] = []
    outlet = Outlet(None, lost.append)
    for _ in range(ROOM + 1):
        outlet.print("a line")
    outlet.close()
    assert lost == []
