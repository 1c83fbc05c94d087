"""`socklb flows`: which clients conntrack has balanced to a backend, and which processes these are."""

from __future__ import annotations

import os
import socket
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pytest

from socklb import Backend, find_flows
from socklb.cli.demo.dnat import set_services
from socklb.kernel.processes import command_name

from ..capabilities import Capability, with_only
from ..children import Child, questions
from ..nat import BACKEND_PORT, PORT, VIP4, VIP6, Node, Pod, ask
from ..networks import pinned_networks
from ..sockets import Sockets
from .runner import Preexec, drop_privilege, run, run_on_terminal
from .test_netns import loop_among_the_pins

pytestmark = pytest.mark.kernel

ABSENT = """
def refuse(self): raise module(".errors").NotSupported(22, "no conntrack: CONFIG_NF_CT_NETLINK")
module(".conntrack.table").ConntrackTable.count = refuse
"""


def text(pod: Pod, protocol: str) -> str:
    return f"{pod.v4}:{BACKEND_PORT}/{protocol.upper()}"


def balanced(sockets: Sockets, number: int = 2) -> int:
    """Without a node: a client whom NAT on loopback leads to 127.0.0.2:8080/UDP; its port."""
    set_services({Backend("127.0.0.9", 80, "udp"): Backend(f"127.0.0.{number}", 8080, "udp")})
    client = sockets.udp("127.0.0.9", 80)
    client.send(b"?")
    return int(client.getsockname()[1])


class TestWhichFlows:
    def test_those_of_the_backends_or_all_that_are_balanced(self, node: Node) -> None:
        clients = {}
        for pod in (node.a, node.b):
            node.balance(pod)
            for protocol in ("tcp", "udp"):
                client = clients[text(pod, protocol)] = node.client.connect(protocol, VIP4)
                assert ask(client) == pod.name
        direct = node.client.connect("tcp", node.a.v4, BACKEND_PORT)
        assert ask(direct) == "A"
        ports = {backend: client.getsockname()[1] for backend, client in clients.items()}
        for asked in ([], [text(node.a, "tcp"), text(node.b, "udp")], ["10.244.2.2:81/TCP"]):
            result = run("flows", "--json", *asked)
            found = {flow["backend"]: flow["sport"] for flow in result.json["flows"]}
            expected = {backend: port for backend, port in ports.items() if not asked or backend in asked}
            assert (result.code, result.err, found) == (0, "", expected)

    def test_a_record(self, node: Node) -> None:
        node.balance(node.b)
        client = node.client.connect("tcp", VIP6)
        assert ask(client) == "B"
        (flow,) = find_flows(None)
        (row,) = run("flows", "--json").json["flows"]
        expires = row.pop("expires_s")
        assert row == {
            "namespace": "current",
            "protocol": "tcp",
            "src": node.client.v6,
            "sport": client.getsockname()[1],
            "dst": VIP6,
            "dport": PORT,
            "backend": f"[{node.b.v6}]:{BACKEND_PORT}/TCP",
            "state": "ESTABLISHED",
            "zone": 0,
            "conntrack_id": flow.id,
        }
        assert flow.expires_s is not None
        assert expires <= flow.expires_s

    def test_in_every_namespace_each_with_its_zone(self, node: Node, sockets: Sockets) -> None:
        node.balance(node.a)
        for tenant in node.tenants():
            assert ask(tenant.connect("tcp", VIP4, source=("", 40_000))) == "A"
        with pinned_networks("web") as (web,):
            web.make(balanced)
            rows = run("flows", "--json").json["flows"]
            lines = run("flows").out.splitlines()[1:]
        told = [("current", 11, "ESTABLISHED"), ("current", 12, "ESTABLISHED"), ("web", 0, None)]
        assert sorted((row["namespace"], row["zone"], row["state"]) for row in rows) == told
        ends = sorted(line.partition(":80")[2].split(None, 1)[1] for line in lines)
        assert ends == ["current, zone 11", "current, zone 12", "web"]

    def test_a_loopback_address_is_another_one_in_each(self, sockets: Sockets) -> None:
        with pinned_networks("web") as (web,):
            here, there = balanced(sockets), web.make(balanced)
            everywhere = run("flows", "--json", "127.0.0.2:8080/UDP")
            named = run("flows", "--json", "--netns", "web", "127.0.0.2:8080/UDP")
        assert [flow["sport"] for flow in everywhere.json["flows"]] == [here]
        assert [flow["sport"] for flow in named.json["flows"]] == [there]
        assert "in the current namespace alone" in everywhere.err
        assert (everywhere.code, named.code, named.err) == (0, 0, "")


class TestProcesses:
    """`-p`: those that hold the socket with the client's own addresses, in whatever namespace."""

    def of(self, client: socket.socket | int, *words: str, preexec: Preexec = None) -> tuple[Any, str]:
        """Of a client, or what had its port: as JSON and as text."""
        port = client if isinstance(client, int) else client.getsockname()[1]
        result, lines = (run("flows", "-p", *more, *words, preexec=preexec) for more in (["--json"], []))
        (row,) = (row for row in result.json["flows"] if row["sport"] == port)
        (line,) = (line for line in lines.out.splitlines() if f":{port} " in line)
        return row["processes"], line.partition(": ")[2]

    def test_all_that_hold_it(self, node: Node) -> None:
        node.balance(node.a)
        client = node.client.connect("tcp", f"::ffff:{VIP4}")
        assert ask(client) == "A"
        with Child(lambda pipe: list(questions(pipe))) as other:
            pids = sorted((os.getpid(), other.pid))
            name, fd = command_name(os.getpid()), client.fileno()
            processes, shown = self.of(client)
        assert processes == [{"pid": pid, "name": name, "uid": os.getuid(), "fds": [fd]} for pid in pids]
        assert shown == "users:(" + ",".join(f'("{name}",pid={pid},fd={fd})' for pid in pids) + ")"

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_behind_a_further_nat(self, node: Node, protocol: str) -> None:
        """The balancer knows the client by the address, and perhaps the port, of the pod that masquerades it."""
        node.balance(node.a)
        client = node.nested().connect(protocol, VIP4)
        assert ask(client) == "A"
        (flow,) = find_flows(None)
        processes, _ = self.of(flow.sport)
        own = {"pid": os.getpid(), "name": command_name(os.getpid()), "uid": os.getuid(), "fds": [client.fileno()]}
        assert processes == [own]

    def test_an_unconnected_socket_is_not_found_by_its_addresses(self, node: Node) -> None:
        node.balance(node.a)
        client = node.client.unconnected("udp", socket.AF_INET)
        assert ask(client, (VIP4, PORT)) == "A"
        assert self.of(client) == ([], "no local socket")

    def test_one_that_nobody_holds_any_more(self, node: Node) -> None:
        node.balance(node.a)
        client = node.client.connect("tcp", VIP4)
        assert ask(client) == "A"
        node.a.die()
        port = client.getsockname()[1]
        client.close()
        assert self.of(port) == ([], "no owner")

    def test_one_that_may_not_be_seen(self, node: Node) -> None:
        node.balance(node.a)
        client = node.client.connect("udp", VIP4)
        assert ask(client) == "A"
        blind = with_only(Capability.CAP_NET_ADMIN, Capability.CAP_SYS_ADMIN)
        words = ("--netns", "current", "--netns", "client")
        assert self.of(client, *words, preexec=blind) == (None, "unseen")

    def test_a_loopback_source_is_another_one_in_each_namespace(self, sockets: Sockets) -> None:
        """Who has a socket with the same addresses in another one is another client."""
        with pinned_networks("web") as (web,):

            def twin(theirs: Sockets, port: int) -> None:
                client = theirs.make(socket.AF_INET, socket.SOCK_DGRAM)
                client.bind(("127.0.0.1", port))
                client.connect(("127.0.0.9", 80))

            def hold_a_twin(pipe: Connection) -> None:
                for port in questions(pipe):
                    pipe.send(web.make(partial(twin, port=port)))

            with Child(hold_a_twin) as other:
                other.ask(balanced(sockets))
                (row,) = run("flows", "-p", "--json").json["flows"]
        assert [process["pid"] for process in row["processes"]] == [os.getpid()]


class TestTable:
    WIDEST = """
from ipaddress import ip_address
layout = module(".conntrack.layout")
def flow(reply, expires):
    end = ip_address("255.255.255.255").packed
    original = layout.FlowTuple(6, end, 65535, end, 65534)
    return layout.Flow(original, layout.FlowTuple(6, reply, 65533, end, 65535), 0, 3, expires, 1, 0)
module(".cli.flows").find_flows = lambda *_, **__: (
    flow(ip_address(reply).packed, expires) for reply, expires in (("254.255.255.255", 432000), ("fe80::1", None)))
"""

    @pytest.mark.parametrize(("columns", "lines"), [(80, 6), (0, 6), (119, 6), (120, 3)])
    def test_fits_a_terminal(self, network: None, columns: int, lines: int) -> None:
        """The longest v4 addresses and the longest state do, with two rows for each flow where it is narrow."""
        shown = run_on_terminal("flows", stream="stdout", columns=columns, patch=self.WIDEST)
        rows = shown.out.splitlines()
        assert (shown.code, len(rows)) == (0, lines)
        assert max(map(len, rows)) <= (columns or 80)
        first = "tcp ESTABLISHED 432000s 255.255.255.255:65535 255.255.255.255:65534"
        second = "254.255.255.255:65533 current"
        assert " ".join(shown.out.split()).replace("to ", "").replace("in ", "").count(f"{first} {second}") == 1
        assert " - " in rows[-1 - (lines == 6)]

    def test_is_only_a_header_where_nothing_is_balanced(self, network: None) -> None:
        result = run("flows")
        assert (result.code, result.err) == (0, "")
        assert result.out.split() == [
            "Netid",
            "State",
            "Expires",
            "Client:Port",
            "Service:Port",
            "Backend:Port",
            "Netns",
        ]
        assert run("flows", "--json").json == {"flows": []}


class TestExitCodes:
    """1 some namespaces failed, 2 bad input, 3 no conntrack, 4 not permitted."""

    @pytest.mark.parametrize(
        ("code", "preexec", "patch", "error"),
        [(3, None, ABSENT, "CONFIG_NF_CT_NETLINK"), (4, drop_privilege, "", "CAP_NET_ADMIN")],
        ids=["absent", "not permitted"],
    )
    def test_conntrack_cannot_be_asked(
        self, network: None, code: int, preexec: Preexec, patch: str, error: str
    ) -> None:
        with pinned_networks("web"):
            result = run("flows", "--json", preexec=preexec, patch=patch)
            assert (result.code, result.json["flows"]) == (code, [])
            assert error in result.json["error"]
            assert result.err == f"socklb: {result.json['error']}\n"
            assert run("flows", preexec=preexec, patch=patch) == (code, "", result.err)

    def test_a_namespace_that_cannot_be_looked_at(self, sockets: Sockets) -> None:
        port = balanced(sockets)
        with pinned_networks("web"), loop_among_the_pins():
            result = run("flows", "--json")
            assert run("flows", "--readable-only").code == 0
        assert (result.code, [row["sport"] for row in result.json["flows"]]) == (1, [port])
        assert [one["path"] for one in result.json["unsearched"]] == ["/run/netns/loop"]
        assert result.err == f"socklb: {result.json['error']}\n"

    @pytest.mark.parametrize(
        ("word", "error"),
        [
            ("10.0.0.1:80", "names no protocol"),
            ("[fe80::1%lo]:80/TCP", "without their link"),
        ],
    )
    def test_what_is_no_backend(self, network: None, word: str, error: str) -> None:
        result = run("flows", "--json", word)
        assert (result.code, result.out, error in result.err) == (2, "", True)
