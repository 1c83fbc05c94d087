"""Real NAT without root and without tools: a node with pods around it, services, and clients that ask who answers.

The fixture `node` is a network namespace that routes (the current one), between pods that are network namespaces of
their own, pinned under their names. In each pod a process answers on port 8080, over TCP and UDP, with the pod's name.

    node.balance(node.a)                            # the service's endpoints: from now on new flows get there
    client = node.client.connect("udp", VIP4)       # a plain socket, made in the pod; node.host is the node itself
    assert ask(client) == "A"                       # who answers, or what the client got instead: "timeout", an errno
    node.a.die()                                    # nothing leaves it and nothing enters it any more
    node.balance(node.b)                            # the flow that is there stays with A
    assert ask(client, patience=0.2) == "timeout"
    list(find_flows(None))                          # what conntrack has on the node, for the test is in it
    node.client.run(lambda: ...)                    # anything, called in the pod's namespace

pods         client, a, b, outside (another machine; the node's default route leads there)
more         node.nested(): a pod behind `client`, which masquerades; node.tenants(): two pods with equal addresses,
             which conntrack zones 11 and 12 tell apart
services     VIP4, VIP6: as kube-proxy has them, masqueraded for the node itself, for outside, and for the endpoint
             that calls its own service; NODE and 127.0.0.1, port NODE_PORT: always masqueraded;
             NODE and GATEWAY, port PUBLISHED_PORT: never, as Docker does it

With several endpoints a service sends its flows to one after the other, counted for each family and protocol, and for
the node's own apart. Without any it rejects them; before the first `balance` there are no services at all.

Other rules, for whatever network namespace the calling thread is in, are in `nat_rules`; kube-proxy's own, made by its
tools, in `kube_proxy`: node.set_rules = kube_proxy.BALANCERS["nftables"].set_rules. `answering` is for servers of other
names and places, `add_ipvs_entry` for what IPVS leaves in conntrack.
"""

from __future__ import annotations

import errno
import itertools
import os
import selectors
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import ip_interface
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from socklb import Backend, NetworkNamespace
from socklb.cli.demo.dnat import nest, numbers
from socklb.conntrack.layout import (
    CTA_PROTOINFO,
    CTA_PROTOINFO_TCP,
    CTA_PROTOINFO_TCP_STATE,
    CTA_STATUS,
    CTA_TIMEOUT,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    IPCTNL_MSG_CT_NEW,
    FlowTuple,
    encode_tuple,
    request,
)
from socklb.conntrack.table import NETLINK_NETFILTER
from socklb.wire.netlink import encode_attribute

from . import nat_rules, rtnetlink, world
from .children import Child
from .nat_rules import Service
from .networks import Network, pinned_networks
from .sockets import Sockets, family_of

VIP4, VIP6 = "10.96.0.10", "fd00:96::10"
NODE, GATEWAY = "192.168.50.1", "10.244.1.1"
PORT, BACKEND_PORT, NODE_PORT, PUBLISHED_PORT = 80, 8080, 30080, 8888
TENANT = "10.66.0.2"

_NOT_HERE = (errno.EPERM, errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_PODS = {  # networks of 24 and 64 bits; the node's address there ends with 1
    "client": ("10.244.1.2", "fd00:244:1::2"),
    "A": ("10.244.2.2", "fd00:244:2::2"),
    "B": ("10.244.3.2", "fd00:244:3::2"),
    "outside": ("192.168.50.2", "fd00:50::2"),
}
_ROUTING = {
    "ipv4/ip_forward": 1,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv4/conf/all/route_localnet": 1,
    "ipv6/conf/all/forwarding": 1,
}
_NO_DAD = {"ipv6/conf/all/accept_dad": 0, "ipv6/conf/default/accept_dad": 0}


def set_sysctls(values: Mapping[str, int]) -> None:
    """Of the calling thread's network namespace: those below /proc/sys/net."""
    for name, value in values.items():
        Path("/proc/sys/net", name).write_text(str(value), encoding="ascii")


def _gateway(address: str) -> str:
    """10.244.1.1/24 of 10.244.1.2/24"""
    network = ip_interface(address).network
    return f"{network[1]}/{network.prefixlen}"


class Pod(Network):
    """A network namespace, its addresses, and a maker of clients in it."""

    def __init__(self, network: Network, name: str, v4: str = "", v6: str = "") -> None:
        super().__init__(network.namespace, network.sockets)
        self.name, self.v4, self.v6 = name, v4, v6

    def connect(
        self, protocol: str, address: str, port: int = PORT, *, source: tuple[str, int] | None = None
    ) -> socket.socket:
        """A connected socket; of AF_INET6 also for a mapped address ("::ffff:...")."""
        client = self.unconnected(protocol, family_of(address), source=source)
        client.connect((address, port))
        return client

    def unconnected(self, protocol: str, family: int, *, source: tuple[str, int] | None = None) -> socket.socket:
        """A socket, bound to a source if there is one."""
        client = self.make(lambda sockets: sockets.make(family, _KINDS[protocol]))
        if source is not None:
            client.bind(source)
        return client

    def servers(self, port: int) -> list[socket.socket]:
        """Of both protocols and families, at any address."""

        def servers_of(sockets: Sockets) -> Iterator[socket.socket]:
            for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                for kind in _KINDS.values():
                    server = sockets.make(family, kind)
                    if family == socket.AF_INET6:
                        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    server.bind((any_address, port))
                    if kind == socket.SOCK_STREAM:
                        server.listen(128)
                    yield server

        return self.make(lambda sockets: list(servers_of(sockets)))

    def die(self) -> None:
        """As a machine that is switched off: nothing leaves it and nothing enters it, not even a reset."""
        self.run(nat_rules.drop_all)

    def revive(self) -> None:
        self.run(nat_rules.drop_nothing)


class Node:
    """The network namespace of the calling thread, as a node; it is to have nothing in it yet. A context manager.

    `set_rules` is what `balance` makes the rules by.
    """

    def __init__(self) -> None:
        self.set_rules: Callable[[Iterable[Service]], None] = nat_rules.set_rules

    def __enter__(self) -> Node:
        with ExitStack() as undo:
            self._undo = undo
            here = Network(NetworkNamespace.current(), undo.enter_context(Sockets()))
            self.host = Pod(here, "host", NODE)
            set_sysctls({**_ROUTING, **_NO_DAD})
            pods = [self._add_pod(name, v4, v6) for name, (v4, v6) in _PODS.items()]
            self.client, self.a, self.b, self.outside = pods
            for pod in pods:
                self._link(self.host, pod)
            for default, gateway in (("0.0.0.0/0", self.outside.v4), ("::/0", self.outside.v6)):
                rtnetlink.add_route(default, via=gateway)
            servers = {server: pod.name for pod in pods for server in pod.servers(BACKEND_PORT)}
            undo.enter_context(answering(servers))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _add_pod(self, name: str, v4: str, v6: str = "") -> Pod:
        (network,) = self._undo.enter_context(pinned_networks(name))
        return Pod(network, name, v4, v6)

    def _link(self, router: Pod, pod: Pod) -> None:
        """A network of the two, in which the router has the first address and is the pod's gateway."""
        link = f"to-{pod.name}"
        networks = [(f"{pod.v4}/24", "0.0.0.0/0")] + ([(f"{pod.v6}/64", "::/0")] if pod.v6 else [])

        def near() -> None:
            descriptor = os.open(pod.namespace.path, os.O_RDONLY)
            rtnetlink.add_veth(link, "eth0", descriptor)
            os.close(descriptor)
            rtnetlink.bring_up(link)
            for address, _ in networks:
                rtnetlink.add_address(link, _gateway(address))

        def far() -> None:
            rtnetlink.bring_up("eth0")
            for address, default in networks:
                rtnetlink.add_address("eth0", address)
                rtnetlink.add_route(default, via=_gateway(address))
            rtnetlink.wait_until_up("eth0")

        pod.run(lambda: set_sysctls(_NO_DAD))
        router.run(near)
        pod.run(far)
        router.run(lambda: rtnetlink.wait_until_up(link))

    def balance(self, *pods: Pod, masquerade_all: bool = False) -> None:
        """New flows get to these pods, in turn."""

        def service(address: str, port: int, masquerade: str) -> Iterator[Service]:
            for protocol in _KINDS:
                addresses = [pod.v6 if ":" in address else pod.v4 for pod in pods]
                backends = tuple(Backend(each, BACKEND_PORT, protocol) for each in addresses)
                yield Service(Backend(address, port, protocol), backends, masquerade)

        places = [
            *((address, PORT, "all" if masquerade_all else "strangers") for address in (VIP4, VIP6)),
            *((address, NODE_PORT, "all") for address in (NODE, "127.0.0.1")),
            *((address, PUBLISHED_PORT, "nobody") for address in (NODE, GATEWAY)),
        ]
        self.set_rules(each for place in places for each in service(*place))

    def nested(self) -> Pod:
        """A pod behind `client`, which masquerades, as Docker in Docker does."""
        inner = self._add_pod("inner", "172.17.0.2")
        self.client.run(lambda: set_sysctls(_ROUTING))
        self._link(self.client, inner)
        self.client.run(lambda: nat_rules.masquerade(bytes([172, 17]), "eth0"))
        return inner

    def tenants(self) -> tuple[Pod, Pod]:
        """Two pods with the same address, of the zones 11 and 12; A and B see 10.66.1.11 and 10.66.1.12."""
        tenants = {zone: self._add_pod(f"tenant{zone}", TENANT) for zone in (11, 12)}
        rules = []
        for zone, tenant in tenants.items():
            self._link(self.host, tenant)
            rtnetlink.add_route(TENANT, link=f"to-{tenant.name}", table=zone)
            rtnetlink.add_rule(mark=zone, table=zone)
            rules.append(nat_rules.Tenant(f"to-{tenant.name}", zone, bytes([10, 66, 1, zone])))
        nat_rules.set_tenants(rules, [f"to-{pod.name}" for pod in (self.a, self.b)])
        return tenants[11], tenants[12]


@pytest.fixture
def node(network: None) -> Iterator[Node]:
    """A node without services, in a fresh network namespace."""
    with ExitStack() as undo:
        try:
            made = undo.enter_context(Node())
            nat_rules.set_rules([])
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            world.cannot(f"no NAT: {error}")
        yield made


def add_ipvs_entry(original: FlowTuple, reply: FlowTuple) -> None:
    """On the node, an entry as IPVS leaves it (ip_vs_nfct.c): another one replies, and no bit says so.

    Nothing is translated by it.
    """
    status, timeout = numbers(0xA, first=CTA_STATUS), numbers(300, first=CTA_TIMEOUT)  # IPS_CONFIRMED, _SEEN_REPLY
    established = nest(CTA_PROTOINFO, nest(CTA_PROTOINFO_TCP, encode_attribute(CTA_PROTOINFO_TCP_STATE, b"\3")))
    attributes = encode_tuple(CTA_TUPLE_ORIG, original) + encode_tuple(CTA_TUPLE_REPLY, reply) + status + timeout
    attributes += established if original.protocol == socket.IPPROTO_TCP else b""
    family = socket.AF_INET if len(original.src) == 4 else socket.AF_INET6
    rtnetlink.order(IPCTNL_MSG_CT_NEW, rtnetlink.NEW, request(family, attributes), subsystem=NETLINK_NETFILTER)


@contextmanager
def answering(servers: Mapping[socket.socket, str]) -> Iterator[Child]:
    """Meanwhile a process has these sockets, TCP listeners and bound UDP sockets, and answers with their names."""
    with Child(lambda pipe: _serve(servers, pipe)) as child:
        for server in servers:
            server.close()
        yield child


def _serve(servers: Mapping[socket.socket, str], pipe: Connection) -> None:
    """Until the other end of the pipe is closed."""
    selector = selectors.DefaultSelector()
    selector.register(pipe, selectors.EVENT_READ)
    for server, name in servers.items():
        server.setblocking(True)
        selector.register(server, selectors.EVENT_READ, name)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                return
            assert isinstance(key.fileobj, socket.socket)
            _answer(key.fileobj, key.data, selector)


def _answer(server: socket.socket, name: str, selector: selectors.BaseSelector) -> None:
    if server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        selector.register(server.accept()[0], selectors.EVENT_READ, name)
        return
    try:
        question, sender = server.recvfrom(1024)
        answer = b"".join(b"%s %s\n" % (name.encode(), line) for line in question.splitlines())
        if server.type == socket.SOCK_DGRAM:
            server.sendto(answer, sender)
        elif question:
            server.send(answer)
        else:
            raise EOFError
    except (OSError, EOFError):
        if server.type == socket.SOCK_STREAM:
            selector.unregister(server)
            server.close()


_numbers = itertools.count(1)


def ask(client: socket.socket, to: tuple[str, int] | None = None, *, patience: float = 30) -> str:
    """Who answers a client: a name, "EOF", "timeout" or the name of an errno; `to`: where one without a peer asks."""
    question = f"{next(_numbers)}\n"
    client.settimeout(patience)
    answers = b""
    try:
        if to is None:
            client.send(question.encode())
        else:
            client.sendto(question.encode(), to)
        while not answers.endswith(f" {question}".encode()):  # one to a question before may come late
            received = client.recv(1024)
            if not received:
                return "EOF"
            answers += received
    except socket.timeout:
        return "timeout"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return answers.decode().splitlines()[-1].split()[0]
