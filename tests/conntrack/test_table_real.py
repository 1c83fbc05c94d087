"""ConntrackTable on the real kernel."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from socklb import Flow, NotPermitted
from socklb.conntrack.layout import IPS_DST_NAT, FlowTuple
from socklb.conntrack.table import ConntrackTable, is_loose

from .. import world
from ..sockets import without_privilege
from .ctnetlink import Entry, inverse, make
from .test_layout import TCP, UDP6

pytestmark = pytest.mark.kernel

SEEN = 0xE  # SEEN_REPLY, ASSURED, CONFIRMED
TCP6 = tuple(one._replace(protocol=6) for one in UDP6)
UDP = tuple(one._replace(protocol=17) for one in TCP)


def entry(original: FlowTuple, reply: FlowTuple, *, zone: int = 0, reply_zone: int = 0, status: int = SEEN) -> Entry:
    state = 3 if original.protocol == 6 else None
    return Entry(Flow(original, reply, status, state, 600, 0, zone), reply_zone)


def balanced(pair: tuple[FlowTuple, ...], port: int = 0, **options: int) -> Entry:
    """Translated by the kernel, from this port."""
    original, reply = pair
    port = port or original.sport
    return entry(original._replace(sport=port), reply._replace(dport=port), status=SEEN | IPS_DST_NAT, **options)


def ends_of(*pairs: tuple[FlowTuple, ...]) -> set[tuple[int, bytes, int]]:
    return {(reply.protocol, reply.src, reply.sport) for _, reply in pairs}


ALL = (TCP, UDP, TCP6, UDP6)
IN_ZONES = [
    entry(UDP[0], UDP[1]._replace(dport=1), zone=7),  # the replies of this one are in no zone, nor are those of UDP
    entry(UDP[0]._replace(sport=2), UDP[1]._replace(dport=2), reply_zone=7),
    entry(*UDP6, zone=7, reply_zone=7),
]


@pytest.fixture
def table(network: None) -> Iterator[ConntrackTable]:
    with ConntrackTable() as opened:
        yield opened


def tuples_of(flows: list[Flow]) -> list[tuple[FlowTuple, FlowTuple, int]]:
    return sorted((flow.original, flow.reply, flow.zone) for flow in flows)


def test_what_was_made_is_read(table: ConntrackTable) -> None:
    assert (table.count(), list(table.dnated()), table.flows_to(ends_of(TCP))) == (0, [], [])
    made = [balanced(TCP), balanced(UDP6), entry(*TCP6)]
    make(*made, entry(UDP[0], inverse(UDP[0])))
    assert table.count() == 4
    flows = list(table.dnated())
    assert tuples_of(flows) == tuples_of([one.flow for one in made])
    assert {(flow.protocol, flow.is_by_ipvs, flow.state) for flow in flows} == {
        *((6, False, "ESTABLISHED"), (17, False, ""), (6, True, "ESTABLISHED"))
    }
    assert all(0 < (flow.expires_s or 0) <= 600 for flow in flows)
    assert len({flow.id for flow in flows}) == 3


@pytest.mark.parametrize("release", ["", "5.10.0-32-amd64"])
def test_flows_are_found_by_few_backends_and_by_many(
    table: ConntrackTable, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    """By an address, by ports, and in one dump of everything; some of the others differ in one thing alone."""
    if release:
        monkeypatch.setattr("socklb.conntrack.table._has_reply_filters", lambda: False)
    others = [
        balanced((original, other), port)
        for original, reply in ALL
        for port, other in ((1, reply._replace(sport=9)), (2, reply._replace(src=reply.src[:-1] + b"\x63")))
    ]
    wanted = [balanced(pair) for pair in ALL]
    make(*wanted, *others)
    for chosen in ([TCP], [UDP6], [TCP, UDP6], [TCP6, UDP6], list(ALL)):
        expected = tuples_of([one.flow for one, pair in zip(wanted, ALL) if pair in chosen])
        few = ends_of(*chosen)
        ports = few | {(6, bytes([10, 9, 9, n]), 8080) for n in range(9)}
        many = few | {(6, bytes([10, 9, 9, n]), 8000 + n) for n in range(9)}
        for ends in (few, ports, many):
            assert tuples_of(table.flows_to(ends)) == expected


def test_a_dump_of_many_datagrams_is_whole(table: ConntrackTable) -> None:
    make(*(balanced(pair, port) for pair in ALL for port in range(1, 501)))
    assert len(table.flows_to(ends_of(TCP6))) == len(table.flows_to(ends_of(TCP))) == 500
    assert len(table.flows_to({*ends_of(*ALL), *((6, bytes([10, 9, 9, n]), n) for n in range(9))})) == 2000
    assert not table.may_have_zones
    assert len(table.entries_of([TCP[0]._replace(sport=port) for port in range(401, 601)])) == 100


class TestZones:
    """An entry is in a zone, or one direction of it is; the same tuple in another zone is another entry."""

    def test_each_is_found_and_asked_for_and_deleted_in_its_own(self, table: ConntrackTable) -> None:
        first, second, third = IN_ZONES
        here = entry(*UDP)
        make(*IN_ZONES, here)
        ends = {*ends_of(UDP, UDP6), *((6, bytes([10, 9, 9, n]), n) for n in range(9))}
        found = table.flows_to(ends)
        assert tuples_of(found) == tuples_of([one.flow for one in (*IN_ZONES, here)])
        assert [flow.zone for flow in sorted(found)] == [one.flow.zone for one in sorted((*IN_ZONES, here))]
        assert table.may_have_zones
        assert [now and (now.original, now.zone, now.id) for now in table.get(found)] == [
            (flow.original, flow.zone, flow.id) for flow in found
        ]
        twins = table.entries_of([UDP[0]])
        assert tuples_of(twins) == tuples_of([first.flow, here.flow])
        in_zone = next(flow for flow in twins if flow.zone)
        assert table.delete([in_zone._replace(zone=3), in_zone._replace(zone=0)]) == [errno.ENOENT] * 2
        assert table.count() == 4
        assert table.delete([in_zone]) == [0]
        assert tuples_of(table.flows_to(ends)) == tuples_of([second.flow, third.flow, here.flow])
        assert table.delete(table.flows_to(ends)) == [0, 0, 0]
        assert table.count() == 0

    def test_the_entries_of_few_tuples_are_found_in_all_by_filters(self, table: ConntrackTable) -> None:
        for pair in (UDP, UDP6):
            make(entry(*pair), entry(*pair, zone=1, reply_zone=1), entry(pair[0], pair[1]._replace(dport=1), zone=2))
            make(balanced(pair, 9))
            make(entry(*(one._replace(src=one.src[:-1] + b"\x63") for one in pair), zone=3, reply_zone=3))
            assert [flow.zone for flow in sorted(table.entries_of([pair[0]]), key=lambda flow: flow.zone)] == [0, 1, 2]


def test_entries_are_found_by_their_replies(table: ConntrackTable) -> None:
    make(balanced(TCP), balanced(UDP6), entry(*UDP, reply_zone=7))
    tcp, udp6, other_zone, none = table.get_replies([TCP[1], UDP6[1], UDP[1], TCP[0]])
    assert tcp is not None
    assert udp6 is not None
    assert (tcp.original, udp6.original) == (TCP[0], UDP6[0])
    assert (other_zone, none) == (None, None)


class TestDeleting:
    """A mistake would empty the table: whatever is not named stays."""

    @pytest.fixture
    def made(self, table: ConntrackTable) -> list[Flow]:
        make(*(balanced(pair, port) for pair in ALL for port in range(1, 51)))
        return list(table.dnated())

    def test_what_is_gone_already_takes_nobody_with_it(self, table: ConntrackTable, made: list[Flow]) -> None:
        chosen = made[::2]
        assert table.delete(chosen) == [0] * 100
        assert table.delete(chosen) == [errno.ENOENT] * 100
        assert {flow.id for flow in table.dnated()} == {flow.id for flow in made[1::2]}

    def test_what_has_another_id_is_another_one(self, table: ConntrackTable, made: list[Flow]) -> None:
        changed = [flow._replace(id=flow.id ^ 1) for flow in made] + [flow._replace(id=0) for flow in made]
        assert table.delete(changed) == [errno.ENOENT] * 400
        assert table.count() == 200

    def test_what_no_entry_has_takes_nobody_with_it(self, table: ConntrackTable, made: list[Flow]) -> None:
        flow = made[0]
        for size in (4, 16):
            for protocol in (0, 1, 6, 17, 255):
                nowhere = FlowTuple(protocol, bytes(size), 0, bytes(size), 0)
                assert table.delete([flow._replace(original=nowhere)])[0] in (errno.ENOENT, errno.EINVAL)
        assert table.count() == 200

    def test_no_wrong_argument_reaches_the_kernel(self, table: ConntrackTable, made: list[Flow]) -> None:
        flow = made[0]
        for wrong in (flow._replace(original=flow.original._replace(src=b"", dst=b"")), flow._replace(id=None)):
            with pytest.raises(ValueError, match=r"^id None|packed addresses"):
                table.delete([made[1], wrong])
        assert table.count() == 200


def test_without_privilege_it_says_which_is_needed(network: None) -> None:
    def refused() -> str:
        with ConntrackTable() as table, pytest.raises(NotPermitted) as caught:
            table.flows_to({*ends_of(TCP)})
        with ConntrackTable() as table, pytest.raises(NotPermitted):
            table.count()
        return str(caught.value)

    assert "CAP_NET_ADMIN" in without_privilege(refused)


def test_it_is_of_the_namespace_that_it_was_opened_in(table: ConntrackTable) -> None:
    make(balanced(TCP))

    world.new_network()
    with ConntrackTable() as elsewhere:
        assert (table.count(), elsewhere.count()) == (1, 0)


def test_the_log_shows_each_entry(table: ConntrackTable, caplog: pytest.LogCaptureFixture) -> None:
    make(balanced(TCP))
    with caplog.at_level(logging.DEBUG, "socklb"), ConntrackTable() as opened:
        (flow,) = opened.flows_to(ends_of(TCP))
        assert opened.delete([flow]) == [0]
    lines = [line.partition(" status")[0] for line in caplog.messages]
    named = f"tcp 10.1.0.2:40000 -> 10.96.0.10:80 zone 0 id {flow.id:#x}"
    assert any(line.endswith(f"IPCTNL_MSG_CT_NEW: {named} replies 10.244.2.2:8080 -> 10.1.0.2:40000") for line in lines)
    assert any(line.endswith(f"IPCTNL_MSG_CT_DELETE: {named}") for line in lines)


def test_whether_connections_are_picked_up_in_their_midst(table: ConntrackTable) -> None:
    for number in (0, 1):
        Path("/proc/sys/net/netfilter/nf_conntrack_tcp_loose").write_text(str(number), encoding="ascii")
        assert is_loose() == bool(number)
    with mock.patch("builtins.open", side_effect=FileNotFoundError):
        assert not is_loose()
