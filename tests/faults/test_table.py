"""No public name is left out of the table of calls."""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import Any

import pytest

import socklb

from .table import CALLS, DRIVEN_BY, NO_NETLINK


def test_whatever_opens_a_netlink_socket_has_a_row() -> None:
    public = {name for name in socklb.__all__ if callable(getattr(socklb, name))}
    assert public == DRIVEN_BY.keys() | NO_NETLINK.keys()
    assert not DRIVEN_BY.keys() & NO_NETLINK.keys()


@pytest.mark.parametrize(("name", "row"), DRIVEN_BY.items(), ids=DRIVEN_BY)
def test_the_row_goes_through_it(name: str, row: str) -> None:
    driven: Any = getattr(socklb, name)
    code: CodeType = getattr(driven, "run", driven).__code__
    seen: set[CodeType] = set()

    def see(frame: FrameType, *_: object) -> None:
        seen.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        CALLS[row].against(lambda usual: usual)
    finally:
        sys.setprofile(before)
    assert code in seen
