"""Network namespaces, and what an application sees of its own socket."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Optional

from socklb import Backend, NetworkNamespace
from socklb.cli.demo.dnat import set_services
from socklb.kernel.namespaces import run_in_netns

from .. import nat_rules, proc_conntrack, world
from ..networks import pinned
from ..proc_net import ProcNet
from ..sockets import add_v6_address, cookie_of, error_of, eventually, pending_error, state_of
from .model import BOUND_INACTIVE, CLOSE, CLOSE_WAIT, ESTABLISHED, Endpoint, IPAddress, ModelFlow, ModelSocket

LINKS = ("left", "right")
LINK_LOCAL = "fe80::5"
ON_LINKS = (LINK_LOCAL, "10.8.0.5")
"""What both links have for addresses."""

_SMALL_TABLE = "64"
_ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


Service = tuple[str, IPAddress, int]  # protocol, address, port


class Netns:
    """A network namespace; `namespace` is None for the current one, which is the last one made."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._make_small_tables()
        world.new_network()
        add_v6_address("fd00::1")
        self._make_links()
        self.interfaces = {name: socket.if_nametoindex(name) for name in ("lo", *LINKS)}
        self._descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._pin = ExitStack()  # so that it is found where all are asked for
        path = self._pin.enter_context(pinned(f"/proc/self/fd/{self._descriptor}", f"machine-{number}"))
        self.namespace: Optional[NetworkNamespace] = NetworkNamespace.from_path(path, name=f"netns {number}")
        self.table = ProcNet()
        self.services: dict[Service, Endpoint] = {}
        self._conntrack = open(proc_conntrack.PATH, encoding="ascii")  # noqa: SIM115 - closed by close()

    @staticmethod
    def _make_small_tables() -> None:
        """A walk costs what the table's size is; before Linux 6.1 it is the machine's."""
        for name in ("tcp_child_ehash_entries", "udp_child_hash_entries"):
            path = f"/proc/sys/net/ipv4/{name}"
            if os.path.exists(path):
                with open(path, "w", encoding="ascii") as file:
                    file.write(_SMALL_TABLE)

    def _make_links(self) -> None:
        """Two, which have the same addresses. Their indexes are not the same in each namespace."""
        first, second = LINKS if self.number % 2 else LINKS[::-1]
        commands = [f"link add {first} type veth peer name {second}"]
        for link in LINKS:
            commands.append(f"link set {link} up")
            commands.extend(f"addr add {address}/24 dev {link}" for address in ON_LINKS)
        commands = [f"{command} nodad" if LINK_LOCAL in command else command for command in commands]
        try:
            made = subprocess.run(
                ["ip", "-batch", "-"], input="\n".join(commands), check=False, capture_output=True, text=True
            )
        except FileNotFoundError:
            world.cannot("there is no ip command to make links with")
        if made.returncode:
            world.cannot(f"no pair of links can be made here: {made.stderr}")

    def close(self) -> None:
        self.table.close()
        self._conntrack.close()
        self._pin.close()
        os.close(self._descriptor)

    def make(self, family: int, kind: int) -> socket.socket:
        made = run_in_netns(self.namespace, lambda: socket.socket(family, kind))
        made.settimeout(5)
        return made

    def balance(self, service: Service, backend: Endpoint) -> None:
        """New flows of the service get there from now on: to itself, they are not translated."""
        if self.services.get(service) != backend:
            self.services[service] = backend
            made = {_backend(*one): _backend(one[0], *to) for one, to in self.services.items()}
            run_in_netns(self.namespace, lambda: set_services(made))

    def flows(self, *, closing: bool = False) -> set[ModelFlow]:
        """What /proc/net/nf_conntrack shows of those that are translated, and open unless `closing`."""
        self._conntrack.seek(0)
        return {
            ModelFlow(self.number, entry.protocol, entry.original, entry.reply[:2])
            for entry in proc_conntrack.entries(self._conntrack.read())
            if entry.is_translated and (closing or not entry.is_closing)
        }

    def forget_services(self) -> None:
        """Nothing is translated any more, nor tracked, and what was is forgotten."""
        if self.services:
            self.services.clear()
            run_in_netns(self.namespace, nat_rules.no_services)
            run_in_netns(self.namespace, proc_conntrack.flush)

    def rows(self) -> Counter[tuple[object, ...]]:
        """What /proc/net shows."""
        return Counter(
            (row.protocol, row.local, row.local_port, row.peer, row.peer_port, row.state, row.is_time_wait, row.inode)
            for row in self.table.rows()
        )


def _backend(protocol: str, address: IPAddress, port: int) -> Backend:
    return Backend(str(address), port, protocol)


def expected_rows(sockets: Iterable[ModelSocket]) -> Counter[tuple[object, ...]]:
    return Counter(
        (one.protocol, *one.ends, one.state, one.is_mini, one.inode) for one in sockets if one.state != BOUND_INACTIVE
    )


def make_namespaces(count: int) -> list[Netns]:
    namespaces = [Netns(number) for number in range(count)]
    namespaces[-1].namespace = None
    return namespaces


def name_of(sock: socket.socket) -> tuple[IPAddress, int]:
    address, port = sock.getsockname()[:2]
    return _without_link(address), port


def _without_link(address: str) -> IPAddress:
    return ip_address(address.partition("%")[0])


def peer_of(sock: socket.socket) -> tuple[IPAddress, int]:
    """The unspecified address and 0 if it has none."""
    try:
        address, port = sock.getpeername()[:2]
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return ip_address("::" if sock.family == socket.AF_INET6 else "0.0.0.0"), 0
    return _without_link(address), port


def model_of(netns: Netns, sock: socket.socket, state: int, *, autobound: bool, cgroup: int) -> ModelSocket:
    return ModelSocket(
        netns.number,
        "tcp" if sock.type == socket.SOCK_STREAM else "udp",
        state,
        *(*name_of(sock), *peer_of(sock)),
        device=_device_of(sock),
        interfaces=netns.interfaces,
        mark=sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) & 0xFFFFFFFF,
        cgroup=cgroup,
        autobound=autobound,
        cookie=cookie_of(sock),
        inode=os.fstat(sock.fileno()).st_ino,
    )


def _device_of(sock: socket.socket) -> int:
    """SO_BINDTOIFINDEX, which needs no name (Linux 5.1)."""
    return sock.getsockopt(socket.SOL_SOCKET, 62)


def abort(sock: socket.socket) -> None:
    """Close it with a reset, if it is open."""
    if sock.fileno() >= 0 and sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    sock.close()


def expect_alive(one: ModelSocket, sock: socket.socket) -> None:
    """No error is pending, and it is in the state, at the address and with the peer that it should have."""
    assert (one, pending_error(sock)) == (one, "")
    if one.protocol == "tcp":
        assert (one, state_of(sock)) == (one, one.reported_state)
    elif one.state == ESTABLISHED:
        assert (one, peer_of(sock)) == (one, (one.peer, one.peer_port))
    assert (one, name_of(sock)) == (one, (one.local, one.local_port))


def expect_tcp_closed(one: ModelSocket, sock: socket.socket, error: str) -> None:
    """The first call reports the error once; then nothing can be sent any more."""
    eventually(lambda: state_of(sock) == CLOSE, f"{one} is closed")
    assert pending_error(sock) == error, one
    assert pending_error(sock) == "", one
    assert error_of(lambda: sock.send(b"x")) == "EPIPE", one


def error_of_reset(one: ModelSocket) -> str:
    """What a socket in this state gets from a reset (tcp_reset())."""
    return "EPIPE" if one.state == CLOSE_WAIT else "ECONNRESET"
