"""ConntrackTable against fake kernels, of several releases, that have any entries."""

from __future__ import annotations

import ast
import errno
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import Flow, KernelError, MalformedMessage, NotPermitted, NotSupported
from socklb.conntrack import table
from socklb.conntrack.layout import IPCTNL_MSG_CT_DELETE, IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_NEW, FlowTuple
from socklb.conntrack.scan import ByBackend
from socklb.conntrack.table import ConntrackTable
from socklb.kernel.netlink_socket import BATCH
from socklb.wire.netlink import NLM_F_DUMP_INTR, NLM_F_MULTI, encode_message

from ..fake_kernel import Answer, Datagram, FakeKernel, Request, ack_message, done_message
from .ctnetlink import RELEASES, Entry, FakeConntrack, ends, flows, installed, row, tables, tuples
from .test_layout import GOLDEN

Wanted = frozenset[tuple[int, bytes, int]]

releases = st.sampled_from(RELEASES)
BALANCED = Entry(GOLDEN["BALANCED_V4"])
BACKEND = (6, BALANCED.flow.reply.src, 8080)


V4 = [bytes([10, 0, 0, n]) for n in range(9)]
V6 = [bytes([0xFD, *bytes(14), n]) for n in range(9)]


def many(count: int) -> list[Entry]:
    """Entries to the same backend from many ports."""
    flow = BALANCED.flow
    return [
        Entry(flow._replace(original=flow.original._replace(sport=n), reply=flow.reply._replace(dport=n), id=n))
        for n in range(1, count + 1)
    ]


class TestFinding:
    """A filter of the kernel makes it cheaper, and never different: older kernels ignore it, or let nothing pass."""

    @given(tables(), st.frozensets(ends, max_size=8), releases)
    def test_the_flows_to_backends(self, there: list[Entry], wanted: Wanted, release: str) -> None:
        with FakeConntrack(there, release).installed(), ConntrackTable() as table:
            found = table.flows_to(wanted)
            assert table.may_have_zones or not any(entry.flow.zone for entry in there)
        expected = [
            flow
            for flow, _ in there
            if (flow.protocol, flow.reply.src, flow.reply.sport) in wanted
            if (flow.original.dst, flow.original.dport) != (flow.reply.src, flow.reply.sport)
        ]
        assert sorted(found, key=str) == sorted(expected, key=str)

    @given(tables(), st.frozensets(ends, max_size=4), st.sampled_from((0, errno.EINVAL, errno.EOPNOTSUPP)))
    def test_each_comes_once_where_filters_are_ignored_or_refused(
        self, there: list[Entry], wanted: Wanted, refusal: int
    ) -> None:
        kernel = FakeConntrack(there, "4.19.0", refusal=refusal)
        kernel.release = RELEASES[-1]
        with kernel.installed(), ConntrackTable() as table:
            found = [*table.stream_to(wanted)]
        takes = ByBackend(wanted).takes
        assert sorted(found, key=str) == sorted([flow for flow, _ in there if takes(flow)], key=str)

    def test_one_that_is_refused_is_the_last_of_the_process(self) -> None:
        with FakeConntrack([BALANCED], refusal=errno.EINVAL).installed() as kernel:
            for _ in range(2):
                with ConntrackTable() as table:
                    assert table.flows_to({BACKEND}) == table.entries_of([BALANCED.flow.original]) == [BALANCED.flow]
            assert [len(requests[0].payload) > 4 for requests in kernel.sent] == [True, *[False] * 4]

    @given(tables(), st.frozensets(tuples(), max_size=6), releases, st.data())
    def test_the_entries_with_original_tuples_whatever_their_zone(
        self, there: list[Entry], others: frozenset[FlowTuple], release: str, data: st.DataObject
    ) -> None:
        known = (
            st.frozensets(st.sampled_from([entry.flow.original for entry in there])) if there else st.just(frozenset())
        )
        originals = others | data.draw(known)
        with FakeConntrack(there, release).installed(), ConntrackTable() as table:
            found = table.entries_of(originals)
        assert sorted(found, key=str) == sorted([flow for flow, _ in there if flow.original in originals], key=str)

    @given(tables(), st.lists(flows, max_size=4))
    def test_the_entry_that_a_flow_is_now_and_the_entry_of_replies(
        self, there: list[Entry], others: list[Flow]
    ) -> None:
        asked = [entry.flow for entry in there] + others
        with FakeConntrack(there).installed(), ConntrackTable() as table:
            now = table.get(asked)
            of_replies = table.get_replies([flow.reply for flow in asked])
        by_original = {(flow.original, flow.zone): flow for flow, _ in there}
        assert now == [by_original.get((flow.original, flow.zone)) for flow in asked]
        by_reply = {flow.reply: flow for flow, zone in there if not zone}
        assert of_replies == [by_reply.get(flow.reply) for flow in asked]

    @given(tables())
    def test_all_that_are_translated(self, there: list[Entry]) -> None:
        with FakeConntrack(there).installed(), ConntrackTable() as table:
            assert table.count() == len(there)
            assert list(table.dnated()) == [flow for flow, _ in there if flow.is_dnated]

    def test_an_entry_whose_replies_have_the_tuple_is_another_one(self) -> None:
        flow = BALANCED.flow
        backwards = flow._replace(original=flow.reply, reply=flow.original)
        with FakeConntrack([BALANCED]).installed(), ConntrackTable() as table:
            assert table.get([backwards, flow]) == [None, flow]
            assert table.get_replies([flow.original, flow.reply]) == [None, flow]

    def test_two_with_the_same_id_are_two(self) -> None:
        twins = [entry._replace(flow=entry.flow._replace(id=1)) for entry in many(2)]
        with FakeConntrack(twins).installed(), ConntrackTable() as table:
            assert len(table.flows_to({BACKEND})) == 2

    @pytest.mark.parametrize(
        ("wanted", "dumps"),
        [
            ([], 0),
            ([(6, V4[0], 80), (17, V4[0], 53), (17, V4[0], 54)], 1),  # one address
            ([(6, V4[0], 80), (6, V6[0], 80), (17, V6[0], 53)], 3),  # an address, two ports
            ([(6, V4[n], 80 + n) for n in range(4)], 4),
            ([(6, V4[n], 80) for n in range(5)], 1),  # one port
            ([(6, one, 80) for one in V4 + V6], 2),
            ([(6, V4[n], 80 + n) for n in range(5)], 1),  # everything
        ],
    )
    def test_few_are_asked_for_one_by_one(self, wanted: list[tuple[int, bytes, int]], dumps: int) -> None:
        for release, expected in ((RELEASES[-1], dumps), ("5.15.0", min(dumps, 1))):
            with FakeConntrack([], release).installed() as kernel, ConntrackTable() as table:
                assert table.flows_to(wanted) == []
                assert len(kernel.sent) == expected
                assert table.may_have_zones == all(len(requests[0].payload) > 4 for requests in kernel.sent)

    @pytest.mark.parametrize("release", ["5", "six.eight", "5.x", ""])
    def test_a_kernel_whose_release_says_nothing_is_asked_for_everything(self, release: str) -> None:
        with installed(FakeKernel(FakeConntrack([BALANCED])), release) as kernel, ConntrackTable() as table:
            assert table.flows_to({BACKEND}) == [BALANCED.flow]
            assert len(kernel.sent[0][0].payload) == 4


class TestDeleting:
    """By the original tuple, its zone, and the id: what has another one is another entry, and stays."""

    @given(tables(), st.data())
    def test_what_is_named_goes_and_all_else_stays(self, there: list[Entry], data: st.DataObject) -> None:
        known = [entry.flow for entry in there]
        chosen = data.draw(st.lists(st.sampled_from(known), unique=True) if known else st.just([]))
        with FakeConntrack(there).installed(), ConntrackTable() as table:
            assert table.delete(chosen) == [0] * len(chosen)
            assert {now for now in table.get(known) if now is not None} == {*known} - {*chosen}

    @given(tables(), st.lists(flows, min_size=1))
    def test_nothing_goes_that_differs_in_tuple_zone_or_id(self, there: list[Entry], asked: list[Flow]) -> None:
        kernel = FakeConntrack(there)
        named = {(*key, flow.id) for flow, zone in there for key in ((flow.original, flow.zone), (flow.reply, zone))}
        others = [flow for flow in asked if (flow.original, flow.zone, flow.id) not in named]
        with kernel.installed(), ConntrackTable() as table:
            assert table.delete(others) == [errno.ENOENT] * len(others)
        assert kernel.entries == there

    def test_many_go_in_few_sends(self) -> None:
        there = many(2 * BATCH + 1)
        kernel = FakeConntrack(there)
        with kernel.installed() as fake, ConntrackTable() as table:
            assert table.delete([entry.flow for entry in there]) == [0] * len(there)
            assert [len(requests) for requests in fake.sent] == [BATCH, BATCH, 1]
        assert kernel.entries == []

    def test_one_that_a_lost_answer_says_nothing_of_counts_as_deleted(self) -> None:
        kernel = FakeConntrack([BALANCED])
        lost: list[BaseException] = [OSError(errno.ENOBUFS, "lost")]

        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            answers = kernel(requests)
            return [lost.pop()] if lost else answers

        with installed(FakeKernel(answer)), ConntrackTable() as table:
            assert table.delete([BALANCED.flow]) == [0]
            assert table.delete([BALANCED.flow]) == [errno.ENOENT]

    def test_there_is_no_other_way_to_delete(self) -> None:
        """The type of the message is used once, for payloads of `delete_request`; the log only names it."""
        folder = Path(table.__file__).parent
        uses = {
            str(path.relative_to(folder.parent)): sum(
                isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id == "IPCTNL_MSG_CT_DELETE"
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            )
            for path in folder.parent.rglob("*.py")
        }
        assert {name: count for name, count in uses.items() if count} == {
            "conntrack/table.py": 1,
            "conntrack/describe.py": 1,
        }
        source = Path(table.__file__).read_text(encoding="utf-8")
        assert source.count("self._order(") == source.count("batches([delete_request(flow) for flow in flows])") == 1

    @given(st.lists(flows, max_size=4), st.frozensets(ends, max_size=6), releases)
    def test_no_question_deletes(self, asked: list[Flow], wanted: Wanted, release: str) -> None:
        with FakeConntrack([], release).installed() as kernel, ConntrackTable() as table:
            table.flows_to(wanted)
            table.entries_of([flow.original for flow in asked])
            table.get(asked)
            table.get_replies([flow.reply for flow in asked])
            table.count()
            [*table.dnated()]
        assert IPCTNL_MSG_CT_DELETE not in {request.type for requests in kernel.sent for request in requests}


Call = Callable[[ConntrackTable], object]
CALLS: dict[str, Call] = {
    "count": lambda table: table.count(),
    "dnated": lambda table: [*table.dnated()],
    "flows_to": lambda table: table.flows_to({BACKEND}),
    "stream_to": lambda table: [*table.stream_to({BACKEND})],
    "entries_of": lambda table: table.entries_of([BALANCED.flow.original]),
    "get": lambda table: table.get([BALANCED.flow]),
    "get_replies": lambda table: table.get_replies([BALANCED.flow.reply]),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def refusing(code: int, text: bytes = b"") -> Answer:
    return lambda requests: [ack_message(request, code, ((1, text),) if text else ()) for request in requests]


class TestErrors:
    @each_call
    @pytest.mark.parametrize(
        ("code", "kind", "says"),
        [
            (
                errno.EPERM,
                NotPermitted,
                r"^\S+ .*entries of conntrack: not permitted: .*CAP_NET_ADMIN in the user namesp",
            ),
            (
                errno.EINVAL,
                NotSupported,
                r"entries of conntrack: .*CONFIG_NF_CT_NETLINK \(or: modprobe nf_conntrack_net",
            ),
            (errno.EOPNOTSUPP, NotSupported, "CONFIG_NF_CT_NETLINK"),
            (errno.ENOMEM, KernelError, r"entries of conntrack: Cannot allocate memory \(why\)$|memory$"),
        ],
    )
    def test_what_the_kernel_answers(self, call: Call, code: int, kind: type[KernelError], says: str) -> None:
        with installed(FakeKernel(refusing(code, b"why\0"))), ConntrackTable() as table:
            with pytest.raises(kind, match=says) as caught:
                call(table)
            assert (caught.value.errno, type(caught.value)) == (code, kind)

    def test_a_deletion_that_fails_is_no_error_of_the_others(self) -> None:
        with installed(FakeKernel(refusing(errno.EBUSY))), ConntrackTable() as table:
            assert table.delete([BALANCED.flow] * 2) == [errno.EBUSY] * 2

    def test_one_refusal_answers_all_messages_of_a_send(self) -> None:
        refused = FakeKernel(lambda requests: [ack_message(requests[0], errno.EPERM)])
        with installed(refused), ConntrackTable() as table:
            assert table.delete([BALANCED.flow] * 3) == [errno.EPERM] * 3
            with pytest.raises(NotPermitted):
                table.get([BALANCED.flow] * 3)

    def test_statistics_that_are_not_found_are_no_count(self) -> None:
        refused = installed(FakeKernel(refusing(errno.ENOENT)))
        with refused, ConntrackTable() as table, pytest.raises(KernelError, match="count the entries of conntrack"):
            table.count()

    def test_a_kernel_without_nfnetlink(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(*_: object) -> socket.socket:
            raise OSError(errno.EPROTONOSUPPORT, "socket")

        monkeypatch.setattr(table, "open_netlink", absent)
        with pytest.raises(NotSupported, match=r"CONFIG_NETFILTER_NETLINK \(or: modprobe nf_conntrack_netlink\)"):
            ConntrackTable()

    @each_call
    def test_silence_is_a_timeout(self, call: Call) -> None:
        with installed(FakeKernel(lambda requests: [])), ConntrackTable() as table:
            with pytest.raises(KernelError, match="within 10 seconds") as caught:
                call(table)
            assert caught.value.errno == errno.ETIMEDOUT

    @each_call
    def test_nonsense_closes_the_socket(self, call: Call) -> None:
        def cut(requests: Sequence[Request]) -> Iterable[Datagram]:
            (request,) = requests
            type = IPCTNL_MSG_CT_NEW if request.type == IPCTNL_MSG_CT_GET else request.type
            return [encode_message(type, NLM_F_MULTI, request.sequence, BALANCED.payload[:110])]  # within its replies

        with installed(FakeKernel(cut)) as kernel, ConntrackTable() as table:
            with pytest.raises(MalformedMessage):
                call(table)
            assert kernel.sockets[0].closed


class TestInterruptedDumps:
    """Rows that come again are the same flows."""

    @pytest.mark.parametrize("wanted", [{BACKEND}, {(6, b"\x0a\0\0\1", 80)}])
    def test_a_dump_during_which_the_table_changed_is_repeated(self, wanted: Any) -> None:
        """Also where nothing was found in it."""
        first = [True]

        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            (request,) = requests
            flags = NLM_F_MULTI | (NLM_F_DUMP_INTR if first.pop() else 0) if first else NLM_F_MULTI
            return [row(request, BALANCED), row(request, BALANCED, flags), done_message(request)]

        with installed(FakeKernel(answer)) as kernel, ConntrackTable() as table:
            assert table.flows_to(wanted) == [BALANCED.flow] * (wanted == {BACKEND})
            assert len(kernel.sent) == 2

    def test_a_datagram_that_was_lost_is_no_end(self) -> None:
        lost: list[BaseException] = [OSError(errno.ENOBUFS, "lost")]

        def answer(requests: Sequence[Request]) -> Iterable[Datagram]:
            (request,) = requests
            return [row(request, BALANCED), *([lost.pop()] if lost else []), done_message(request)]

        with installed(FakeKernel(answer)) as kernel, ConntrackTable() as table:
            assert table.entries_of([BALANCED.flow.original]) == [BALANCED.flow]
            assert len(kernel.sent) == 2


def test_each_datagram_is_a_line_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    flow = BALANCED.flow
    with caplog.at_level(logging.DEBUG, "socklb"), FakeConntrack([BALANCED]).installed(), ConntrackTable() as table:
        assert table.count() == 1
        assert table.delete([flow]) == [0]
    asked, counted, killed, done = caplog.messages
    assert asked == "-> seq 1 IPCTNL_MSG_CT_GET_STATS: family 0, 0 bytes of attributes"
    assert counted == "<- seq 1 IPCTNL_MSG_CT_GET_STATS: 1 entries"
    assert killed == f"-> seq 2 IPCTNL_MSG_CT_DELETE: tcp 10.1.0.2:40000 -> 10.96.0.10:80 zone 0 id {flow.id:#x}"
    assert done == "<- seq 2 NLMSG_ERROR: errno 0"
