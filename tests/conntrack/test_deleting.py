"""What can be deleted: one entry, by its tuple, its zone and its id, and never anything else."""

from __future__ import annotations

import errno
from collections.abc import Callable
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import Flow
from socklb.conntrack.layout import IPCTNL_MSG_CT_DELETE, FlowTuple
from socklb.conntrack.scan import Dnated
from socklb.conntrack.table import ConntrackTable
from socklb.wire.netlink import NLM_F_ACK, NLM_F_REQUEST

from ..sockets import without_privilege
from .ctnetlink import (
    ID,
    ORIGINAL,
    ZONE,
    Entry,
    FakeConntrack,
    attribute,
    flow,
    in_zone,
    inverse,
    make,
    message_of,
    tables,
)
from .ctnetlink import tuple_of as encoded
from .test_layout import any_flow
from .test_table import CALLS
from .test_table_real import table as table

SERVICES = {
    "10.96.0.10:53/UDP": ("10.0.0.5:53/UDP", "10.0.0.6:53/UDP"),
    "[fd00:96::10]:80/TCP": ("[fd00::5]:8080/TCP", "[fd00::6]:8080/TCP"),
}
"""Each with two backends."""


class TestWhatIsSent:
    """A DELETE without a tuple empties the whole table, of both families."""

    def check(self, asked: list[Flow], present: list[Entry]) -> None:
        with FakeConntrack(present).installed() as kernel, ConntrackTable() as table:
            try:
                table.delete(asked)
            except (TypeError, ValueError):
                assert kernel.sent == [], "a wrong flow is found before anything is sent"
                return
        sent = [request for batch in kernel.sent for request in batch]
        assert len(sent) == len(asked)
        for request, one in zip(sent, asked):
            assert (request.type, request.flags & ~NLM_F_ACK) == (IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST)
            assert len(one.original.src) == len(one.original.dst) in (4, 16)
            zone = in_zone(ZONE, one.zone)  # without the attribute it is 0
            expected = encoded(ORIGINAL, one.original), *zone, attribute(ID, pack(">I", one.id))
            assert request.payload == message_of(one.original, *expected)

    @given(st.lists(any_flow, max_size=3), tables())
    def test_each_message_names_one_tuple_its_zone_and_its_id_and_nothing_else(
        self, flows: list[Flow], present: list[Entry]
    ) -> None:
        self.check([*flows, *(entry.flow for entry in present)], present)

    @pytest.mark.parametrize("name", [*FlowTuple._fields, "id", "zone"])
    def test_nor_does_one_of_a_flow_that_no_kernel_names(self, name: str) -> None:
        for one in map(flow, SERVICES):
            for value in (None, -1, 0, 1, 255, 256, 65535, 65536, 1 << 32, "ten.", *(bytes(n) for n in range(18))):
                if name in ("id", "zone"):
                    self.check([one._replace(**{name: value})], [])
                else:
                    self.check([one._replace(original=one.original._replace(**{name: value}))], [])

    def test_no_other_call_sends_one(self) -> None:
        public = {name for name, member in vars(ConntrackTable).items() if name[0] != "_" and callable(member)}
        assert public == {*CALLS, "delete"}
        with FakeConntrack([]).installed() as kernel, ConntrackTable() as table:
            for call in CALLS.values():
                call(table)
            table.delete([])
        assert len(kernel.sent) == len(CALLS)
        assert IPCTNL_MSG_CT_DELETE not in {request.type for batch in kernel.sent for request in batch}


class Everything(Dnated):
    def takes(self, flow: Flow) -> bool:
        return True


def entries_in(table: ConntrackTable) -> set[Flow]:
    """But for their time, which may pass between two looks."""
    return {one._replace(expires_s=0) for one in table._flows(0, b"", Everything())}


@pytest.mark.kernel
class TestForReal:
    """Of each service three entries that only zones tell apart, one of them of its original direction, and another."""

    @pytest.fixture
    def present(self, table: ConntrackTable) -> list[Flow]:
        for service, (a, b) in SERVICES.items():
            make(
                Entry(flow(service, a)),
                Entry(flow(service, a, zone=7), 7),
                Entry(flow(service, b, zone=8)),
                Entry(flow(service, a, sport=5)),
            )
        return sorted(entries_in(table))

    def test_each_alone(self, table: ConntrackTable, present: list[Flow]) -> None:
        assert len(present) == table.count() == 8
        left = {*present}
        for one in present:
            assert table.delete([one]) == [0]
            left.remove(one)
            assert entries_in(table) == left

    def test_of_a_batch_each_has_its_errno_and_one_that_is_gone_takes_nothing_with_it(
        self, table: ConntrackTable, present: list[Flow]
    ) -> None:
        assert table.delete([present[0], present[0], present[1]]) == [0, errno.ENOENT, 0]
        assert entries_in(table) == {*present[2:]}

    @pytest.mark.parametrize(
        "change",
        [
            lambda one: one._replace(id=one.id ^ 1),
            lambda one: one._replace(zone=one.zone ^ 0xFFFF),
            lambda one: one._replace(zone=7 if one.zone == 8 else 8),
            lambda one: one._replace(original=one.original._replace(sport=6)),
            lambda one: one._replace(original=one.original._replace(src=bytes(len(one.original.src)))),
            lambda one: one._replace(original=one.original._replace(protocol=23 - one.protocol)),
            lambda one: one._replace(original=one.original._replace(protocol=0)),
            lambda one: one._replace(original=inverse(one.original)),
        ],
        ids=["id", "zone", "another's-zone", "port", "address", "protocol", "no-protocol", "inverse"],
    )
    def test_one_that_is_another_leaves_all_there(
        self, table: ConntrackTable, present: list[Flow], change: Callable[[Flow], Flow]
    ) -> None:
        assert {*table.delete([change(one) for one in present])} <= {errno.ENOENT, errno.EINVAL}
        assert entries_in(table) == {*present}

    def test_without_privilege_all_stay(self, table: ConntrackTable, present: list[Flow]) -> None:
        """The kernel answers once for a whole send."""

        def delete() -> list[int]:
            with ConntrackTable() as unprivileged:
                return unprivileged.delete(present)

        assert without_privilege(delete) == [errno.EPERM] * 8
        assert entries_in(table) == {*present}
