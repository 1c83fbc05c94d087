"""How sockets change, are destroyed and go, and what their owners must find."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from ipaddress import ip_address

from ..sockets import error_of, eventually, family_of, pending_error, state_of, talk
from .endpoints import (
    Netns,
    abort,
    error_of_reset,
    expect_alive,
    expect_tcp_closed,
    expected_rows,
    name_of,
    peer_of,
)
from .model import (
    BOUND_INACTIVE,
    CLOSE,
    CLOSE_WAIT,
    ESTABLISHED,
    FIN_WAIT2,
    LISTEN,
    LOOPBACK,
    SYN_SENT,
    TIME_WAIT,
    ModelSocket,
)
from .population import Population

MOST = 20

_libc = ctypes.CDLL(None)


class World(Population):
    # ------------------------------------------------------------------------------------------ changing

    def mark(self, one: ModelSocket, mark: int) -> None:
        self.real[one].setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
        one.mark = mark

    def reconnect_udp(self, one: ModelSocket, address: str, port: int) -> None:
        sock = self.real[one]
        address = address.replace("::ffff:", "") if sock.family == socket.AF_INET else address
        # From ::1 to a mapped address, for one, there is no way.
        if family_of(address) == sock.family and not error_of(lambda: sock.connect((address, port))):
            one.state = ESTABLISHED
            (one.local, one.local_port), (one.peer, one.peer_port) = name_of(sock), peer_of(sock)

    def disconnect(self, one: ModelSocket) -> None:
        """The owner of a socket with a port of its own disconnects it, which leaves it there."""
        sock = self.real[one]
        assert _libc.connect(sock.fileno(), bytes(28), 28) == 0  # AF_UNSPEC
        if one.protocol == "udp":
            self._lose_peer(one)
            return
        assert pending_error(sock) == "ECONNRESET"  # so does its other end
        other, one.other_end, one.peer_port = one.other_end, None, 0
        assert other is not None
        expect_tcp_closed(other, self.real[other], error_of_reset(other))
        self._remove(other)
        one.state = BOUND_INACTIVE

    def disconnect_and_listen(self, one: ModelSocket) -> None:
        """A TCP socket that was connected can do so, where it is bound; UDP cannot."""
        self.disconnect(one)
        if one.protocol == "tcp":
            self.real[one].listen(16)
            one.state = LISTEN

    def half_close(self, one: ModelSocket) -> None:
        """One direction of a connection is closed. If the other was before, a mini-socket of the first end is left."""
        other = one.other_end
        if one in self._clogged or one.state not in (ESTABLISHED, CLOSE_WAIT) or other is None:
            return
        sock = self.real[one]
        sock.shutdown(socket.SHUT_WR)
        if one.state == ESTABLISHED:
            _acknowledge_at_once(self.real[other])
            eventually(lambda: state_of(sock) == FIN_WAIT2, "the acknowledgement of the FIN")
            one.state, other.state = FIN_WAIT2, CLOSE_WAIT
            return
        eventually(lambda: state_of(sock) == CLOSE, "the acknowledgement of the last FIN")
        if other.is_owned:
            self._add_of_kernel(other, TIME_WAIT)
            self._remove(other)
        else:
            other.state, other.other_end = TIME_WAIT, None
        self._remove(one)

    def close(self, one: ModelSocket) -> None:
        """As an application does."""
        other = one.other_end
        if one in self._clogged or one.state not in (ESTABLISHED, CLOSE_WAIT, FIN_WAIT2) or other is None:
            self.abort(one)
        elif one.state == CLOSE_WAIT:
            self.half_close(one)
        else:
            if one.state == ESTABLISHED:
                self.half_close(one)  # the kernel keeps the socket itself if the FIN is acknowledged while it is closed
            self.real[one].close()
            self._remove(one)
            mini = self._add_of_kernel(one, FIN_WAIT2)
            mini.other_end, other.other_end = other, mini

    def what_is_left_of(self, one: ModelSocket) -> ModelSocket:
        """Itself, or the mini-socket in its place, which has its cookie."""
        if one in self.real:
            return one
        (mini,) = (other for other in self.model.sockets if (other.netns, other.ends) == (one.netns, one.ends))
        return mini

    def abort(self, one: ModelSocket) -> None:
        """With a reset, which closes the other end as well."""
        other = one.other_end
        if one.state == LISTEN:
            self._abort_connecting_to(one)
        resets = one.reset_with_it is not None
        self._remove(one)
        if other is not None and other in self.model.sockets:
            if other.is_owned and resets:
                expect_tcp_closed(other, self.real[other], error_of_reset(other))
            self._remove(other)

    def _abort_connecting_to(self, listener: ModelSocket) -> None:
        for one in list(self.real):
            is_connecting = one.state == SYN_SENT or (one.other_end is not None and one.other_end.is_request)
            if is_connecting and (one.netns, one.peer_port) == (listener.netns, listener.local_port):
                self.abort(one)

    def _remove(self, one: ModelSocket) -> None:
        """What the kernel alone holds goes by itself."""
        self.model.sockets.remove(one)
        self._clogged.discard(one)
        if one.is_owned:
            abort(self.real.pop(one))

    # ---------------------------------------------------------------------------------------- destroyed

    def expect_destroyed(self, destroyed: Sequence[ModelSocket]) -> None:
        """The owner of each finds its socket destroyed; the other ends are reset, unless they were destroyed too."""
        reset = [one for one in self.model.victims(destroyed) if one not in destroyed]
        for one in destroyed:
            if one.protocol == "udp":
                self._expect_udp_destroyed(one)
            elif one.is_owned:
                expect_tcp_closed(one, self.real[one], "ECONNABORTED")
        for one in reset:
            if one.is_owned:
                expect_tcp_closed(one, self.real[one], error_of_reset(one))
        closed = [one for one in (*destroyed, *reset) if one.protocol == "tcp"]
        for one in closed:
            if one.state == LISTEN:
                self._abort_connecting_to(one)
        for one in closed:
            if one in self.model.sockets:
                if one.other_end is not None:  # it heard nothing, if it is still there
                    one.other_end.other_end = None
                    self._clogged.add(one.other_end)
                self._remove(one)

    def _expect_udp_destroyed(self, one: ModelSocket) -> None:
        """One that has bound its port keeps it, and lives on without a peer."""
        sock = self.real[one]
        assert [pending_error(sock) for _ in range(2)] == ["ECONNABORTED", ""], one
        assert peer_of(sock)[1] == 0, one
        assert name_of(sock)[1] == (0 if one.autobound else one.local_port), one
        if one.state == ESTABLISHED:  # this binds it again, if it has lost its port
            assert error_of(lambda: sock.send(b"x")) == "EDESTADDRREQ", one
        self._lose_peer(one)

    def _lose_peer(self, one: ModelSocket) -> None:
        """As __udp_disconnect() has it."""
        sock = self.real[one]
        if one.autobound:
            self._remove(one)
            return
        one.state, one.device, one.had_peer = CLOSE, 0, True  # __udp_disconnect() forgets the device
        (one.local, one.local_port), one.peer_port = name_of(sock), 0
        if one.version == 4:
            one.peer = ip_address("0.0.0.0")  # a v6 socket keeps the address, and has a port of 0

    # ------------------------------------------------------------------------------------------- checking

    def check(self) -> None:
        """Every owner finds its socket as it should be, data gets through, and the kernel shows nothing else."""
        for one, sock in self.real.items():
            expect_alive(one, sock)
        for one, sock in self.real.items():
            partner = self._partner(one)
            if partner is not None:
                talk(sock, self.real[partner])
                self.note_flow(one)
        for netns in self.namespaces:
            self._check_table(netns)
            self._check_flows(netns)

    def _check_table(self, netns: Netns) -> None:
        expected = expected_rows(one for one in self.model.sockets if one.netns == netns.number)
        seen = netns.rows()
        if seen != expected:
            different = f"missing: {expected - seen}, unexpected: {seen - expected}"
            eventually(lambda: netns.rows() == expected, f"the model of {netns.number}; {different}")

    def _check_flows(self, netns: Netns) -> None:
        """What is translated and open is in conntrack as the model has it."""
        if not any(flow.netns == netns.number for flow in self.model.flows):
            return
        half_closed = [one.wire_ends for one in self.model.sockets if one.state == CLOSE_WAIT]
        expected, seen = {flow for flow in self.model.open_flows() if flow.netns == netns.number}, netns.flows()
        for flow in expected - seen:
            if flow.original in half_closed or (*flow.backend, *flow.original[:2]) in half_closed:
                self.model.flows.remove(flow)  # conntrack has taken a FIN that was sent again for the other side's
                expected.remove(flow)
        if seen != expected:
            eventually(lambda: netns.flows() == expected, f"missing: {expected - seen}, unexpected: {seen - expected}")

    def _partner(self, one: ModelSocket) -> ModelSocket | None:
        """Who answers: the other end of a connection (asked by one of the two), the UDP server of a client."""
        if one.state != ESTABLISHED or one in self._clogged:
            return None
        if one.protocol == "tcp":
            other = one.other_end
            is_asking = other is not None and other.state == ESTABLISHED and one.cookie < other.cookie
            return other if is_asking else None
        address, port = self.answers(one)
        at_peer = self._udp_at(one.netns, port)
        if self._udp_at(one.netns, one.local_port) != [one]:
            return None  # a twin might get the answer
        servers = [
            other
            for other in at_peer
            if other.state == CLOSE and other.local == address and other.device in (0, LOOPBACK)
        ]
        return servers[0] if len(at_peer) == len(servers) == 1 else None

    def _udp_at(self, netns: int, port: int) -> list[ModelSocket]:
        return [one for one in self.real if (one.netns, one.protocol, one.local_port) == (netns, "udp", port)]

    # ---------------------------------------------------------------------------------------------- going

    def make_room(self) -> None:
        """For a connection or two."""
        while len(self.model.sockets) > MOST and self.real:
            self.abort(next(iter(self.real)))

    def clear(self) -> None:
        """All but what TCP keeps for a minute."""
        for sock in self.real.values():
            abort(sock)
        self.real.clear()
        for netns in self.namespaces:
            netns.forget_services()
        self.model.flows.clear()
        self.model.sockets = [one for one in self.model.sockets if one.is_mini and one.state == TIME_WAIT]


def _acknowledge_at_once(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
