"""Behind a real balancer: who was sent to a backend that is gone is cut, and reconnects to one that lives."""

from __future__ import annotations

import sys

import pytest

from socklb import Backend, Counts, NetworkNamespace, RevNatMaps, live_cookies, terminate_connections

from ..cli.runner import run
from ..reverse_nat.balancer import ebpf
from ..reverse_nat.balancer.clients import BACKEND_PORT, CASES, PORT, Case, Clients
from ..sockets import cookie_of, error_of, pending_error, socket_of

pytestmark = pytest.mark.kernel

ABORTED = "ECONNABORTED"
NO_ENTRY = "no reverse-NAT entry"


def gone(case: Case) -> Backend:
    return Backend(case.backends[0], BACKEND_PORT, case.protocol)


@pytest.mark.parametrize("case", CASES, ids=str)
class TestABackendThatGoes:
    """`rev_nat`: only sockets that the balancer itself sent there, the others skipped with the reason."""

    def test_its_clients_are_cut_and_reach_a_live_one(self, clients: Clients, case: Case) -> None:
        goes, stays = case.backends
        clients.set_service(case, stays)
        other = clients.connect(case)
        clients.set_service(case, goes)
        doomed = [clients.connect(case) for _ in range(3)]
        direct = clients.connect(case, goes, BACKEND_PORT)
        clients.set_service(case, stays)

        with RevNatMaps.open(clients.balancer.directory) as maps:
            report = terminate_connections([gone(case)], namespaces="current", rev_nat=maps)

        assert report.counts == Counts(destroyed=3, skipped=1)
        (spared,) = (outcome for outcome in report.outcomes if outcome.verdict == "skipped")
        assert (socket_of(spared).cookie, spared.reason) == (cookie_of(direct), NO_ENTRY)
        assert [pending_error(client) for client in doomed] == [ABORTED] * 3
        clients.assert_reaches(other, case, stays)
        assert pending_error(direct) == ""

        for client in doomed:
            client.close()
        assert {record.cookie for record in clients.balancer.records()} == {cookie_of(other)}
        for _ in doomed:
            clients.assert_reaches(clients.connect(case), case, stays)

    def test_the_command(self, clients: Clients, case: Case) -> None:
        clients.set_service(case, case.backends[0])
        balanced, direct = clients.connect(case), clients.connect(case, case.backends[0], BACKEND_PORT)
        maps = ("--rev-nat", "--rev-nat-dir", clients.balancer.directory)
        said = run("terminate", "--netns", "current", *maps, "--json", str(gone(case))).json
        assert {row["cookie"]: row["outcome"] for row in said["sockets"]} == {
            cookie_of(balanced): "destroyed",
            cookie_of(direct): "skipped",
        }
        assert (pending_error(balanced), pending_error(direct)) == (ABORTED, "")

    def test_without_the_maps_the_socket_alone_decides(self, clients: Clients, case: Case) -> None:
        clients.set_service(case, case.backends[0])
        both = clients.connect(case), clients.connect(case, case.backends[0], BACKEND_PORT)
        terminate_connections([gone(case)], namespaces="current")
        assert [pending_error(client) for client in both] == [ABORTED, ABORTED]

    def test_an_evicted_entry_spares_and_says_so(self, clients: Clients, case: Case) -> None:
        """They are LRU: entries of long-lived sockets get evicted."""
        clients.set_service(case, case.backends[0])
        client = clients.connect(case)
        (record,) = clients.balancer.records()
        clients.balancer.evict(record)
        with RevNatMaps.open(clients.balancer.directory) as maps:
            report = terminate_connections([gone(case)], namespaces="current", rev_nat=maps)
        assert [(o.verdict, o.reason) for o in report.outcomes] == [("skipped", NO_ENTRY)]
        assert pending_error(client) == ""


class TestEntries:
    """What the maps hold, and which of it is stale."""

    def test_entries_are_what_the_balancer_recorded(self, clients: Clients) -> None:
        for case in CASES:
            clients.set_service(case, case.backends[0])
        held = [clients.connect(case) for case in CASES]
        with RevNatMaps.open(clients.balancer.directory) as maps:
            entries = sorted((e[0], str(e[1]), e[2], str(e[3]), e[4], e[5]) for e in maps.entries())
        assert entries == [tuple(record) for record in clients.balancer.records()]
        assert {entry[0] for entry in entries} == {cookie_of(client) for client in held}

    def test_stale_are_those_whose_socket_lives_in_no_namespace(self, clients: Clients) -> None:
        case = CASES[0]
        clients.set_service(case, case.backends[0])
        living = clients.connect(case)
        family = clients.balancer.families[4]
        (key,) = ebpf.items(family.reverse, family.key_size, family.service_size)
        value = ebpf.items(family.reverse, family.key_size, family.service_size)[key]
        cookie = 0xFFFF_FFFF_0000
        ebpf.update(family.reverse, cookie.to_bytes(8, sys.byteorder) + key[8:], value)
        words = ("rev-nat", "--rev-nat-dir", clients.balancer.directory)
        assert [entry["cookie"] for entry in run(*words, "--stale", "--json").json["entries"]] == [cookie]
        assert len(run(*words, "--json").json["entries"]) == 2
        assert {cookie_of(living)} <= live_cookies([NetworkNamespace.current()])
        lines = run(*words).out.splitlines()
        assert [line.split()[2] for line in lines[1:]] == [f"{case.service}:{PORT}"] * 2

    def test_a_closed_client_leaves_no_entry(self, clients: Clients) -> None:
        case = CASES[0]
        clients.set_service(case, case.backends[0])
        clients.connect(case).close()
        assert run("rev-nat", "--rev-nat-dir", clients.balancer.directory, "--json").json == {"entries": []}


def test_a_datagram_client_that_was_cut_has_no_peer_any_more(clients: Clients) -> None:
    """Connected UDP: every later send gives EDESTADDRREQ, until it connects again."""
    case = next(case for case in CASES if case.protocol == "udp")
    clients.set_service(case, case.backends[0])
    client = clients.connect(case)
    terminate_connections([gone(case)], namespaces="current")
    assert (pending_error(client), error_of(lambda: client.send(b"x"))) == (ABORTED, "EDESTADDRREQ")
    clients.set_service(case, case.backends[1])
    client.connect((case.service, PORT))
    clients.assert_reaches(client, case, case.backends[1])
