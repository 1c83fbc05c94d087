"""The socket to ctnetlink: what can be deleted, what is asked, and what becomes of answers that are lost or refused."""

from __future__ import annotations

import ast
import errno
from collections.abc import Iterator
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import Flow, NotSupported
from socklb.conntrack.layout import IPCTNL_MSG_CT_DELETE, FlowTuple
from socklb.conntrack.table import ConntrackTable
from socklb.wire.netlink import NLM_F_ACK, NLM_F_REQUEST

from .. import world
from ..fake_kernel import Request
from ..test_layers import MODULES
from .ctnetlink import (
    ID,
    ORIGINAL,
    ZONE,
    Entry,
    FakeConntrack,
    attribute,
    in_zone,
    inverse,
    make,
    message_of,
    tables,
    tuple_of,
)
from .entries import flow
from .test_layout import any_flow

SERVICES = {
    "10.96.0.10:53/UDP": ("10.0.0.5:53/UDP", "10.0.0.6:53/UDP"),
    "[fd00::10]:80/TCP": ("[fd00::5]:8080/TCP", "[fd00::6]:8080/TCP"),
}

# ---------------------------------------------------------------------------------------------- deleting


def sent_to_delete(flows: list[Flow], present: list[Entry]) -> list[Request]:
    """Every message that is sent when these are to be deleted, also if that raises."""
    with FakeConntrack(present).installed() as kernel, ConntrackTable() as table:
        try:
            table.delete(flows)
        except (TypeError, ValueError):
            assert kernel.sent == [], "a wrong flow is found before anything is sent"
        return [request for batch in kernel.sent for request in batch]


class TestNothingElseIsDeleted:
    """A DELETE without a tuple empties the whole table, of both families: none can be sent without one tuple, its zone
    and its id.
    """

    @given(st.lists(any_flow, max_size=3), tables())
    def test_each_message_names_one_tuple_its_zone_and_its_id_and_nothing_else(
        self, flows: list[Flow], present: list[Entry]
    ) -> None:
        self.check([*flows, *(entry.flow for entry in present)], present)

    @pytest.mark.parametrize("name", [*FlowTuple._fields, "id", "zone"])
    def test_nor_does_one_of_a_flow_that_no_kernel_names(self, name: str) -> None:
        for service in SERVICES:
            one = flow(service)
            for value in (None, -1, 0, 1, 255, 256, 65535, 65536, 1 << 32, "ten.", *(bytes(n) for n in range(18))):
                if name in ("id", "zone"):
                    self.check([one._replace(**{name: value})], [])
                else:
                    self.check([one._replace(original=one.original._replace(**{name: value}))], [])

    def check(self, asked: list[Flow], present: list[Entry]) -> None:
        sent = sent_to_delete(asked, present)
        assert len(sent) in (0, len(asked))
        for request, one in zip(sent, asked):
            assert (request.type, request.flags & ~NLM_F_ACK) == (IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST)
            assert len(one.original.src) == len(one.original.dst) in (4, 16)
            zone = in_zone(ZONE, one.zone)  # without the attribute it is 0
            expected = tuple_of(ORIGINAL, one.original), *zone, attribute(ID, pack(">I", one.id))
            assert request.payload == message_of(one.original, *expected)

    @given(tables(), st.data())
    def test_an_entry_dies_only_by_its_own_tuple_zone_and_id(self, present: list[Entry], data: st.DataObject) -> None:
        flows = [entry.flow for entry in present]
        strangers = [one._replace(id=one.id ^ 1) for one in flows] + [one._replace(zone=one.zone ^ 1) for one in flows]
        asked = data.draw(st.lists(st.sampled_from(flows + strangers), max_size=6)) if flows else []
        kernel = FakeConntrack(present)
        with kernel.installed(), ConntrackTable() as table:
            codes = table.delete(asked)
        doomed = {(one.original, one.zone, one.id) for one in asked}
        assert kernel.entries == [
            entry for entry in present if (entry.flow.original, entry.flow.zone, entry.flow.id) not in doomed
        ]
        assert set(codes) <= {0, errno.ENOENT}
        assert codes.count(0) == len(present) - len(kernel.entries)

    def test_no_other_call_sends_one(self) -> None:
        one = Entry(flow("10.96.0.10:80/TCP", "10.0.0.5:8080/TCP"))
        source = (one.flow.protocol, one.flow.reply.src, one.flow.reply.sport)
        calls = {
            "count": lambda table: table.count(),
            "dnated": lambda table: list(table.dnated()),
            "flows_to": lambda table: table.flows_to([source]),
            "entries_of": lambda table: table.entries_of([one.flow.original]),
            "get": lambda table: table.get([one.flow]),
            "get_replies": lambda table: table.get_replies([one.flow.reply]),
            "delete": lambda table: table.delete([]),
        }
        public = {name for name in vars(ConntrackTable) if name[0] != "_" and callable(vars(ConntrackTable)[name])}
        assert public == set(calls)
        kernel = FakeConntrack([one])
        with kernel.installed() as sent_to, ConntrackTable() as table:
            for call in calls.values():
                call(table)
        assert kernel.entries == [one]
        assert len(sent_to.sent) == len(calls) - 1
        assert IPCTNL_MSG_CT_DELETE not in {request.type for batch in sent_to.sent for request in batch}

    def test_the_type_of_the_message_is_used_in_one_place(self) -> None:
        """And in the debug log, which names it. Its payload is made in one place, for that one."""
        used: dict[str, list[str]] = {"IPCTNL_MSG_CT_DELETE": [], "delete_request": [], "_SUBSYSTEM": []}
        orders = []
        for module, path in MODULES.items():
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in used:
                    used[node.id].append(module)
                if isinstance(node, ast.Attribute) and node.attr in used:
                    used[node.attr].append(module)
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._order":
                    orders.append(ast.unparse(node))
        assert used == {
            "IPCTNL_MSG_CT_DELETE": ["conntrack.describe", "conntrack.table"],
            "delete_request": ["conntrack.table"],
            "_SUBSYSTEM": ["conntrack.layout"] * 4,
        }
        assert [order for order in orders if "CT_" in order] == [
            "self._order(IPCTNL_MSG_CT_DELETE, batch, 'delete entries of conntrack')"
        ]


@pytest.fixture
def table(network: None) -> Iterator[ConntrackTable]:
    """In a fresh network namespace."""
    try:
        made = ConntrackTable()
    except NotSupported as error:
        world.cannot(str(error))
    with made:
        yield made


def all_entries(table: ConntrackTable) -> set[Flow]:
    """As they are now, but for their time."""
    found = table._flows(0, b"", Everything())
    return {one._replace(expires_s=0) for one in found}


class Everything:
    def may_be_in(self, datagram: bytes) -> bool:
        return True

    def wants(self, datagram: bytes, message: int) -> bool:
        return True

    def takes(self, flow: Flow) -> bool:
        return True


@pytest.mark.kernel
class TestDeletingForReal:
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
        return sorted(all_entries(table))

    def test_each_alone(self, table: ConntrackTable, present: list[Flow]) -> None:
        assert len(present) == table.count() == 8
        left = set(present)
        for one in present:
            assert table.delete([one]) == [0]
            left.remove(one)
            assert all_entries(table) == left

    def test_of_a_batch_each_has_its_errno_and_one_that_is_gone_takes_nothing_with_it(
        self, table: ConntrackTable, present: list[Flow]
    ) -> None:
        assert table.delete([present[0], present[0], present[1]]) == [0, errno.ENOENT, 0]
        assert all_entries(table) == {*present[2:]}

    @pytest.mark.parametrize(
        "change",
        [
            lambda one: one._replace(id=one.id ^ 1),
            lambda one: one._replace(id=0),
            lambda one: one._replace(zone=one.zone ^ 0xFFFF),
            lambda one: one._replace(zone=7 if one.zone == 8 else 8),
            lambda one: one._replace(original=one.original._replace(sport=6)),
            lambda one: one._replace(original=one.original._replace(src=bytes(len(one.original.src)))),
            lambda one: one._replace(original=one.original._replace(protocol=23 - one.protocol)),
            lambda one: one._replace(original=one.original._replace(protocol=1)),
            lambda one: one._replace(original=one.original._replace(protocol=0)),
            lambda one: one._replace(original=inverse(one.original)),
        ],
        ids=["id", "no-id", "zone", "another's-zone", "port", "address", "protocol", "icmp", "no-protocol", "inverse"],
    )
    def test_one_that_is_another_leaves_all_there(
        self, table: ConntrackTable, present: list[Flow], change: object
    ) -> None:
        codes = table.delete([change(one) for one in present])  # type: ignore[operator]
        assert set(codes) <= {errno.ENOENT, errno.EINVAL}
        assert all_entries(table) == {*present}
