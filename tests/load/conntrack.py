"""A node with pods on which a backend dies again and again: who is cut, and which entries of conntrack go.

python -m tests.load.conntrack [--repetitions 200] [--seed 1]

In each repetition clients of every kind connect, several of each, to A and to B; one of the two is terminated, with or
without `external`, by the call or by the loop. Then every client is asked, and the entries of every network namespace
are compared with those of before. What must happen is said in plain words here, without the package.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from random import Random
from typing import NamedTuple
from unittest import mock

from .. import package_under_test, world

if __name__ == "__main__":
    package_under_test.bind()

from socklb import (
    Backend,
    BackendTable,
    Report,
    SocketFilter,
    TerminationLoop,
    destroy_sockets,
    discover_namespaces,
    sport,
    terminate_connections,
)
from socklb.termination import terminate as terminating

from ..children import allow_descriptors
from ..nat import BACKEND_PORT, GATEWAY, NODE, NODE_PORT, PORT, PUBLISHED_PORT, TENANT, VIP4, VIP6, Node, Pod, ask
from ..proc_conntrack import PATH, Entry, entries, flush
from ..sockets import pending_error, reset_on_close

_PROTOCOLS = ("tcp", "udp")
_SPARED, _CUT = "lives", {"tcp": "ECONNABORTED", "udp": "rerouted"}


class Client(NamedTuple):
    """`backend`: who answered it. `to`: where one without a peer sends to. `tenant`: the port of a pair of tenants."""

    kind: str
    protocol: str
    sock: socket.socket
    backend: str
    to: tuple[str, int] | None = None
    tenant: int = 0

    def ask(self) -> str:
        return ask(self.sock, self.to, patience=5)


class Twin(NamedTuple):
    """Both ends of a connection in another namespace, with the addresses and ports of a client on the node."""

    client: socket.socket
    server: socket.socket

    @property
    def is_alive(self) -> bool:
        with suppress(OSError):
            self.server.send(b"x")
            return self.client.recv(1) == b"x"
        return False


class Soak:
    """The node, and what was counted: among it what must not be, see `wrong`."""

    def __init__(self, node: Node, seed: int) -> None:
        allow_descriptors()
        self._node, self._random = node, Random(seed)
        self._inner, self._tenants = node.nested(), node.tenants()
        self._pods = {"A": node.a, "B": node.b}
        self._everywhere = [node.host, node.client, node.a, node.b, node.outside, self._inner, *self._tenants]
        self._port = 20_000
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        """Clients that died and had to live, or the other way round, and entries that were deleted, or left."""

    # ------------------------------------------------------------------------------------------- clients

    def _kinds(self) -> dict[str, Callable[[str], socket.socket]]:
        node = self._node
        ways: dict[str, tuple[Pod, str, int]] = {
            "pod": (node.client, VIP4, PORT),
            "pod v6": (node.client, VIP6, PORT),
            "pod mapped": (node.client, f"::ffff:{VIP4}", PORT),
            "pod node port": (node.client, NODE, NODE_PORT),
            "pod published port": (node.client, GATEWAY, PUBLISHED_PORT),
            "node": (node.host, VIP4, PORT),
            "node v6": (node.host, VIP6, PORT),
            "node node port": (node.host, NODE, NODE_PORT),
            "node loopback": (node.host, "127.0.0.1", NODE_PORT),
            "nested": (self._inner, VIP4, PORT),
            "outside": (node.outside, NODE, NODE_PORT),
        }
        return {kind: lambda protocol, way=way: way[0].connect(protocol, *way[1:]) for kind, way in ways.items()}  # type: ignore[misc]

    def _connect(self) -> Iterator[Client]:
        """Each kind once or twice for each backend, in any order."""
        plan = [
            (kind, make, protocol, name)
            for kind, make in self._kinds().items()
            for protocol in _PROTOCOLS
            for name in self._pods
            for _ in range(self._random.randint(1, 2))
        ]
        self._random.shuffle(plan)
        for name in self._pods:  # rules are made twice, and not for each client
            self._node.balance(self._pods[name])
            for kind, make, protocol, of in plan:
                if of == name:
                    sock = make(protocol)
                    yield Client(kind, protocol, sock, ask(sock))
            without_peer = self._node.client.unconnected("udp", socket.AF_INET)
            yield Client("pod without peer", "udp", without_peer, ask(without_peer, (VIP4, PORT)), (VIP4, PORT))
            itself = self._pods[name].connect("tcp", VIP4)
            yield Client("itself", "tcp", itself, ask(itself))
        for protocol in _PROTOCOLS:
            for _ in range(3):
                self._port += 1
                for tenant in self._tenants:
                    self._node.balance(self._pods[self._random.choice("AB")])
                    sock = tenant.connect(protocol, VIP4, source=(TENANT, self._port))
                    yield Client("tenant", protocol, sock, ask(sock), tenant=self._port)

    def _connecting(self, victim: str) -> Client:
        """One that knocks in vain at a backend that is dead."""
        self._node.balance(self._pods[victim])
        sock = self._node.client.unconnected("tcp", socket.AF_INET)
        sock.setblocking(False)
        sock.connect_ex((VIP4, PORT))
        return Client("connecting", "tcp", sock, victim)

    def _twins(self, clients: list[Client]) -> Iterator[Twin]:
        pod = self._node.b
        for client in clients:
            if (client.kind, client.protocol) == ("node loopback", "tcp"):
                listener = pod.unconnected("tcp", socket.AF_INET)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("127.0.0.1", NODE_PORT))
                listener.listen()
                sock = pod.connect("tcp", "127.0.0.1", NODE_PORT, source=client.sock.getsockname())
                server = listener.accept()[0]
                listener.close()
                yield Twin(sock, server)

    # --------------------------------------------------------------------------------------------- model

    @staticmethod
    def _fate(client: Client, clients: list[Client], victim: str, external: bool) -> str:
        """What it must find when it is asked: "lives" (with its backend), "rerouted" (to the other one), an errno."""
        if client.backend != victim:
            return _SPARED
        if client.protocol == "tcp" and client.kind == "outside":
            return "ECONNRESET" if external else _SPARED
        if client.protocol == "tcp" and client.tenant:
            pair = [one for one in clients if (one.tenant, one.protocol) == (client.tenant, "tcp")]
            return _CUT["tcp"] if all(one.backend == victim for one in pair) else _SPARED
        return _CUT[client.protocol]

    def _is_spared(self, entry: Entry, clients: list[Client], victim: str, external: bool) -> bool:
        """Whether an entry must be there afterwards. Outside and tenants are known by their addresses."""
        pod = self._pods[victim]
        if entry.reply[:2] not in ((ip_address(pod.v4), BACKEND_PORT), (ip_address(pod.v6), BACKEND_PORT)):
            return True
        if not entry.is_translated or entry.protocol == "udp":
            return not entry.is_translated
        if entry.original[0] == ip_address(self._node.outside.v4):
            return not external
        if entry.original[0] == ip_address(TENANT):
            pair = [one for one in clients if (one.tenant, one.protocol) == (entry.original[1], "tcp")]
            return any(one.backend != victim for one in pair)
        return False

    # -------------------------------------------------------------------------------------------- doing

    def repeat(self) -> None:
        """Once."""
        victim, external, by_loop = self._random.choice("AB"), self._random.random() < 0.5, self._random.random() < 0.5
        other = self._pods["B" if victim == "A" else "A"]
        is_dead = self._random.random() < 0.7
        clients = list(self._connect())
        assert {client.backend for client in clients} == {*self._pods}
        twins = list(self._twins(clients))
        if is_dead:
            self._pods[victim].die()
            clients.append(self._connecting(victim))
        self._node.balance(other)
        before = self._entries()
        report = self._terminate(victim, external=external, by_loop=by_loop)
        after = self._entries()
        self._pods[victim].revive()
        self._check_entries(before, after, lambda entry: self._is_spared(entry, clients, victim, external))
        for client in clients:
            fate = self._fate(client, clients, victim, external)
            self._check_client(client, fate, {"lives": client.backend, "rerouted": other.name}.get(fate, fate))
        for twin in twins:
            self._check("wrong deaths", not twin.is_alive, f"twin {twin.client}")
            self.counts["twins live"] += 1
        self._check("failures", bool(report.failed or report.errors), f"{report.outcomes}")
        self.counts["repetitions"] += 1
        self.counts[f"by the {'loop' if by_loop else 'call'}{', external' if external else ''}"] += 1
        for sock in (*(client.sock for client in clients), *(sock for twin in twins for sock in twin)):
            if sock.type == socket.SOCK_STREAM:
                reset_on_close(sock)
            sock.close()
        for (
            pod
        ) in self._pods.values():  # who was dead has not heard that its clients are gone, and would know them still
            destroy_sockets(SocketFilter("tcp", sport(BACKEND_PORT)), namespaces=pod.namespace)
        for pod in self._everywhere:
            pod.run(flush)

    def _terminate(self, victim: str, *, external: bool, by_loop: bool) -> Report:
        pod = self._pods[victim]
        backends = [Backend(address, BACKEND_PORT, each) for address in (pod.v4, pod.v6) for each in _PROTOCOLS]
        places = [one for one in discover_namespaces() if one != self._node.outside.namespace]
        if not by_loop:
            with mock.patch.object(terminating, "LOOKS", (0, 0)):  # its rules do not lag
                return terminate_connections(backends, namespaces=places, external=external)
        table, reports = BackendTable(), list[Report]()
        table.replace((backend,) for backend in backends)
        table.replace(())
        loop = TerminationLoop(
            table,
            namespaces=places,
            external=external,
            second_pass=None,
            on_pass=lambda done: reports.append(done.report) if done.report else None,
        )
        loop.stop()  # after the batch at hand
        loop.run()
        (report,) = reports
        return report

    def _entries(self) -> list[set[Entry]]:
        """Of each namespace, those of connections that have not ended: these go by themselves."""
        return [{entry for entry in pod.run(_read) if not entry.is_closing} for pod in self._everywhere]

    def _check_entries(
        self, before: list[set[Entry]], after: list[set[Entry]], is_spared: Callable[[Entry], bool]
    ) -> None:
        """TCP's state may have gone on: a reset, that of a socket that was destroyed, ends the entries on its way."""
        for pod, was, now in zip(self._everywhere, before, after):
            there = {entry._replace(state="") for entry in pod.run(_read)}
            for entry in was:
                self.counts["entries"] += 1
                is_there = entry in now or entry._replace(state="") in there
                if is_spared(entry) or pod is not self._node.host:
                    self._check("wrong deletes", not is_there, f"{pod.name} {entry}")
                else:
                    self.counts["entries deleted"] += 1
                    self._check("entries left", is_there, f"{pod.name} {entry}")

    def _check_client(self, client: Client, fate: str, expected: str) -> None:
        seen = pending_error(client.sock) if client.kind == "connecting" else client.ask()
        self.counts[f"{client.protocol} {fate}"] += 1
        what = "wrong deaths" if fate == _SPARED else "not cut"
        self._check(what, seen != expected, f"{client}: {seen}, not {expected}")

    def _check(self, what: str, is_wrong: bool, which: str) -> None:
        self.counts[what] += is_wrong
        if is_wrong:
            self.wrong.append(f"{what}: {which}")


def _read() -> list[Entry]:
    with open(PATH, encoding="ascii") as file:
        return entries(file.read())


def soak(node: Node, repetitions: int, seed: int) -> Soak:
    made = Soak(node, seed)
    for _ in range(repetitions):
        made.repeat()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if not world.enter():
        sys.exit(f"no new namespaces here: {world.why_none}")
    began = time.monotonic()
    with ExitStack() as undo:
        done = soak(undo.enter_context(Node()), options.repetitions, options.seed)
    print(f"{time.monotonic() - began:.0f} s; " + ", ".join(f"{count} {what}" for what, count in done.counts.items()))
    sys.exit("\n".join(done.wrong) or 0)


if __name__ == "__main__":
    main()
