"""Real sockets for tests on the real kernel: connections of every kind and state, closed when the test ends.

world = Sockets()                       # or the fixture `sockets`
client, server = world.tcp("127.0.0.2", 9000)
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pickle
import resource
import socket
import struct
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import active_count
from types import TracebackType
from typing import TypeVar

from socklb import InetSocket, Outcome

from . import world

T = TypeVar("T")

_BIG = 1 << 20


def add_v6_address(address: str) -> None:
    """One more address for loopback, in the calling thread's network namespace."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as any_socket:
        loopback = socket.if_nametoindex("lo")
        request = struct.pack("16sIi", socket.inet_pton(socket.AF_INET6, address), 128, loopback)
        fcntl.ioctl(any_socket, 0x8916, request)
        # A work queue makes it ready (addrconf_dad_work()), on loopback too.
        eventually(lambda: not error_of(lambda: any_socket.bind((address, 0, 0, loopback))), f"an address {address}")


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def cookie_of(sock: socket.socket) -> int:
    """SO_COOKIE: the number that the kernel knows the socket by."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0])


def state_of(sock: socket.socket) -> int:
    """The state of a TCP socket, the first byte of TCP_INFO."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that the kernel does on its own; not a measurement."""
    for attempt in range(2000):  # 20 s: on a slow machine
        if condition():
            return
        time.sleep(0.001 if attempt < 20 else 0.01)
    raise AssertionError(f"never happened: {what}")


def no_thread_lingers() -> None:
    """join() returns a little before the kernel's thread has ended: until then it keeps a namespace that it moved to,
    whoever discovers namespaces finds it there, and a fork is warned of.
    """
    with suppress(FileNotFoundError):  # without /proc nobody sees them
        eventually(lambda: len(os.listdir("/proc/self/task")) <= active_count(), "only threads that are at work")


def error_of(call: Callable[[], object]) -> str:
    """The name of the errno that a call ends with, "" if with none."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    return ""


def pending_error(sock: socket.socket) -> str:
    """The name of the errno that SO_ERROR gives (and takes away), "" if none."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode[code] if code else ""


def reset_on_close(sock: socket.socket) -> None:
    """Let close() send a reset: nothing lingers, and the address is free for the next one at once."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def talk(client: socket.socket, server: socket.socket) -> None:
    """Data gets through between two sockets, both ways: they are alive."""
    client.send(b"?")
    question, sender = server.recvfrom(1)
    assert question == b"?"
    if server.type == socket.SOCK_STREAM:
        server.send(b"!")
    else:
        server.sendto(b"!", sender)
    assert client.recv(1) == b"!"


def in_child(function: Callable[[], T], prepare: Callable[[], object] = lambda: None) -> T:
    """What a function returns in a forked child that has prepared itself; an error there is an error here."""
    no_thread_lingers()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            prepare()
            answer = pickle.dumps((function(), ""))
        except BaseException:
            answer = pickle.dumps((None, traceback.format_exc()))
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    result: T
    result, error = pickle.loads(answer)
    assert not error, error
    return result


def without_privilege(function: Callable[[], T]) -> T:
    """What a function returns in a child that has no capability in this network namespace."""
    return in_child(function, world.drop_privilege)


def leave_descriptors(count: int) -> None:
    """In this process so many more files can be opened."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    for one in taken[:count]:
        os.close(one)


@contextmanager
def reused_pid(pid: int) -> Iterator[None]:
    """A process that has just ended; another one in this test world has its number meanwhile."""
    time.sleep(2 / os.sysconf("SC_CLK_TCK"))  # it may not begin in the same tick of the clock
    with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as last:
        last.write(str(pid - 1))
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert process.pid == pid
        yield


@contextmanager
def left_behind() -> Iterator[int]:
    """Move to a fresh network namespace; the one before stays alive with a process in it, whose id is given."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as inhabitant:
        world.new_network()
        yield inhabitant.pid


def socket_of(outcome: Outcome) -> InetSocket:
    """Of an outcome that is about a socket."""
    assert outcome.socket is not None
    return outcome.socket


_DROP_ALL = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)  # classic BPF: return 0
_SO_ATTACH_FILTER = 26


def deafen(sock: socket.socket) -> None:
    """It gets no more packets, and so answers none: for its peer, its host has gone."""
    program = struct.pack("HP", 1, ctypes.addressof(_DROP_ALL))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


class Sockets:
    """Makes sockets, and closes them all in the end."""

    def __init__(self) -> None:
        self._made: list[socket.socket] = []
        self._servers: dict[tuple[int, str, int], socket.socket] = {}

    def __enter__(self) -> Sockets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for made in self._made:
            made.close()

    def make(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return self.keep(socket.socket(family, kind, protocol))

    def keep(self, made: socket.socket) -> socket.socket:
        """Close it with the others in the end."""
        self._made.append(made)
        made.settimeout(5)
        return made

    # ------------------------------------------------------------------------------------------------ TCP

    def listen(self, address: str, port: int, *, backlog: int = 128, reuse_port: bool = False) -> socket.socket:
        """A listening socket; a mapped address ("::ffff:...") makes a v4 listener, for that is where it leads."""
        address = address.replace("::ffff:", "")
        listener = self.make(family_of(address), socket.SOCK_STREAM)
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((address, port))
        listener.listen(backlog)
        return listener

    def tcp(self, address: str, port: int, *, source: str | None = None) -> tuple[socket.socket, socket.socket]:
        """(client, server) of an established connection; the listener is made once for each address and port."""
        key = (socket.SOCK_STREAM, address.replace("::ffff:", ""), port)
        if key not in self._servers:
            self._servers[key] = self.listen(address, port)
        client = self.make(family_of(address), socket.SOCK_STREAM)
        if source is not None:
            client.bind((source, 0))
        client.connect((address, port))
        return client, self.keep(self._servers[key].accept()[0])

    # ------------------------------------------------------------------------------------------------ UDP

    def udp(self, address: str, port: int) -> socket.socket:
        """A connected UDP socket; nobody needs to be at the other end."""
        client = self.make(family_of(address), socket.SOCK_DGRAM)
        client.connect((address, port))
        return client

    def udp_pair(self, address: str, port: int) -> tuple[socket.socket, socket.socket]:
        """(client, server): the server is bound, not connected, and made once for each address and port."""
        where = address.replace("::ffff:", "")
        key = (socket.SOCK_DGRAM, where, port)
        if key not in self._servers:
            self._servers[key] = self.udp_bound(where, port)
        return self.udp(address, port), self._servers[key]

    def udp_bound(self, address: str, port: int, *, reuse_port: bool = False) -> socket.socket:
        bound = self.make(family_of(address), socket.SOCK_DGRAM)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((address, port))
        return bound

    # ------------------------------------------------------------------------------------- states of TCP

    def syn_sent(self, address: str, port: int) -> socket.socket:
        """A client that knocks in vain: the listener's queue is full, so its SYN is dropped."""
        self.listen(address, port, backlog=0)
        for _ in range(2):
            client = self._connecting(address, port)
        return client

    def syn_recv(self, address: str, port: int) -> tuple[socket.socket, socket.socket]:
        """(client, listener): the connection waits for its first data, and is a request socket as long."""
        listener = self.listen(address, port)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 60)
        return self._connecting(address, port), listener

    def _connecting(self, address: str, port: int) -> socket.socket:
        client = self.make(family_of(address), socket.SOCK_STREAM)
        client.setblocking(False)
        code = client.connect_ex((address, port))
        assert code in (0, errno.EINPROGRESS), errno.errorcode[code]
        return client

    def fin_wait1(self, address: str, port: int) -> tuple[socket.socket, socket.socket]:
        """(client, server): the client's FIN waits behind data that the server does not take."""
        client, server = self.tcp(address, port)
        fill(client)
        client.shutdown(socket.SHUT_WR)
        return client, server

    def fin_wait2(self, address: str, port: int) -> tuple[socket.socket, socket.socket]:
        """(client, server): the client has closed its half, the server (then CLOSE_WAIT) has not."""
        client, server = self.tcp(address, port)
        client.shutdown(socket.SHUT_WR)
        _acknowledged(client)
        return client, server

    def last_ack(self, address: str, port: int) -> tuple[socket.socket, socket.socket]:
        """(client, server): the client was closed by the server, and its own FIN waits behind data."""
        client, server = self.tcp(address, port)
        fill(client)
        server.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        client.shutdown(socket.SHUT_WR)
        return client, server

    def closing(self, address: str, port: int) -> tuple[socket.socket, socket.socket]:
        """(client, server): both closed, the client's FIN still waits behind data."""
        client, server = self.fin_wait1(address, port)
        server.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        return client, server

    def time_wait(self, address: str, port: int) -> tuple[str, int]:
        """The client closed first; what is left of it is a mini-socket. Its local address and port."""
        client, server = self.tcp(address, port)
        local: tuple[str, int] = client.getsockname()[:2]
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.close()
        assert client.recv(1) == b""
        client.close()
        return local

    def orphaned_fin_wait2(self, address: str, port: int) -> tuple[tuple[str, int], socket.socket]:
        """The client is closed, the server is not: a mini-socket whose substate is FIN_WAIT2. (its address, server)."""
        client, server = self.fin_wait2(address, port)
        local: tuple[str, int] = client.getsockname()[:2]
        client.close()
        return local, server


def _acknowledged(client: socket.socket) -> None:
    """The acknowledgement of a FIN may be delayed; before it comes, the socket is in FIN_WAIT1."""
    eventually(lambda: state_of(client) == 5, "FIN_WAIT2")


def fill(sock: socket.socket) -> None:
    """Send until nothing more goes out: the peer does not read."""
    timeout = sock.gettimeout()
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(_BIG))
    except BlockingIOError:
        pass
    finally:
        sock.settimeout(timeout)
