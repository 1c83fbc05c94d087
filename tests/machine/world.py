"""The machine's world: how its sockets change, die and go, and what their owners must find."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from ..sockets import error_of, eventually, family_of, pending_error, state_of, talk
from .endpoints import (
    Place,
    abort,
    assert_alive,
    assert_tcp_dead,
    error_of_reset,
    expected_rows,
    name_of,
    peer_of,
)
from .model import (
    CLOSE,
    CLOSE_WAIT,
    ESTABLISHED,
    FIN_WAIT2,
    LISTEN,
    SYN_SENT,
    TIME_WAIT,
    Inhabitant,
    unmapped,
)
from .population import Population

MOST = 20


class World(Population):
    # ------------------------------------------------------------------------------------------ changing

    def mark(self, one: Inhabitant, mark: int) -> None:
        self.sockets[one].setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
        one.mark = mark

    def reconnect_udp(self, one: Inhabitant, address: str, port: int) -> None:
        sock = self.sockets[one]
        address = address.replace("::ffff:", "") if sock.family == socket.AF_INET else address
        # From ::1 to a mapped address, for one, there is no way.
        if family_of(address) == sock.family and not error_of(lambda: sock.connect((address, port))):
            one.state = ESTABLISHED
            (one.local, one.local_port), (one.peer, one.peer_port) = name_of(sock), peer_of(sock)

    def half_close(self, one: Inhabitant) -> None:
        """One direction of a connection is closed; both, and it is over but for a mini-socket where it closed first."""
        other = one.other_end
        if one in self._fed or one.state not in (ESTABLISHED, CLOSE_WAIT) or other is None:
            return
        sock = self.sockets[one]
        sock.shutdown(socket.SHUT_WR)
        if one.state == ESTABLISHED:
            _acknowledge(self.sockets[other])
            eventually(lambda: state_of(sock) == FIN_WAIT2, "the acknowledgement of the FIN")
            one.state, other.state = FIN_WAIT2, CLOSE_WAIT
            return
        eventually(lambda: state_of(sock) == CLOSE, "the acknowledgement of the last FIN")
        if other.is_owned:
            self._ownerless_of(other, TIME_WAIT)
            self._leave(other)
        else:
            other.state, other.other_end = TIME_WAIT, None
        self._leave(one)

    def close(self, one: Inhabitant) -> None:
        """As an application does."""
        other = one.other_end
        if one in self._fed or one.state not in (ESTABLISHED, CLOSE_WAIT, FIN_WAIT2) or other is None:
            self.abort(one)
        elif one.state == CLOSE_WAIT:
            self.half_close(one)
        else:
            self.sockets[one].close()
            self._leave(one)
            _acknowledge(self.sockets[other])
            other.state = CLOSE_WAIT
            mini = self._ownerless_of(one, FIN_WAIT2)
            mini.other_end, other.other_end = other, mini

    def abort(self, one: Inhabitant) -> None:
        """With a reset, which the other end hears; then that one goes too."""
        other = one.other_end
        if one.state == LISTEN:
            self._send_home(one)
        heard = one.hears_of_it() is not None
        self._leave(one)
        if other is not None and other in self.model.inhabitants:
            if other.is_owned and heard:
                assert_tcp_dead(other, self.sockets[other], error_of_reset(other))
            self._leave(other)

    def _send_home(self, listener: Inhabitant) -> None:
        """Who still knocks at a listener that goes gives up."""
        for one in list(self.sockets):
            is_waiting = one.state == SYN_SENT or (one.other_end is not None and one.other_end.is_request)
            if is_waiting and (one.place, one.peer_port) == (listener.place, listener.local_port):
                self.abort(one)

    def _leave(self, one: Inhabitant) -> None:
        """What is the kernel's alone goes by itself."""
        self.model.inhabitants.remove(one)
        self._fed.discard(one)
        if one.is_owned:
            abort(self.sockets.pop(one))

    # ---------------------------------------------------------------------------------------------- dying

    def bury(self, destroyed: Sequence[Inhabitant], may_be_gone: Iterable[Inhabitant]) -> None:
        """These were destroyed, says the report: each of their owners sees it, and so does who was to be told of it."""
        victims = [one for one in may_be_gone if one not in destroyed]
        for one in destroyed:
            if one.protocol == "udp":
                self._bury_udp(one)
            elif one.is_owned:
                assert_tcp_dead(one, self.sockets[one], "ECONNABORTED")
        for one in victims:
            if one.is_owned:
                assert_tcp_dead(one, self.sockets[one], error_of_reset(one))
        dead = [one for one in (*destroyed, *victims) if one.protocol == "tcp"]
        for one in dead:
            if one.state == LISTEN:
                self._send_home(one)
        for one in dead:
            if one in self.model.inhabitants:
                self._part(one)
                self._leave(one)

    def _bury_udp(self, one: Inhabitant) -> None:
        """A port of its own choice stays its own: then it lives on, without a peer."""
        sock = self.sockets[one]
        assert [pending_error(sock) for _ in range(2)] == ["ECONNABORTED", ""], one
        assert peer_of(sock)[1] == 0, one
        assert name_of(sock)[1] == (0 if one.autobound else one.local_port), one
        if one.state == ESTABLISHED:  # this binds it again, if it has lost its port
            assert error_of(lambda: sock.send(b"x")) == "EDESTADDRREQ", one
        if one.autobound:
            self._leave(one)
            return
        one.state, one.device = CLOSE, 0  # __udp_disconnect() forgets the device
        (one.local, one.local_port), one.peer_port = name_of(sock), 0
        if one.version == 4:
            one.peer = ip_address("0.0.0.0")  # a v6 socket keeps the address, and has a port of 0

    def _part(self, one: Inhabitant) -> None:
        """Who outlives the other end was told nothing, and knows nothing."""
        other = one.other_end
        if other is not None:
            other.other_end = None
            self._fed.add(other)

    # ------------------------------------------------------------------------------------------- checking

    def check(self) -> None:
        """Every owner finds its socket as it should be, data gets through, and the kernel shows nothing else."""
        for one, sock in self.sockets.items():
            assert_alive(one, sock)
        for one, sock in self.sockets.items():
            partner = self._partner(one)
            if partner is not None:
                talk(sock, self.sockets[partner])
        for place in self.places:
            self._check_table(place)

    def _check_table(self, place: Place) -> None:
        expected = expected_rows([one for one in self.model.inhabitants if one.place == place.number])
        seen = place.rows()
        if seen != expected:
            different = f"not there: {expected - seen}, too many: {seen - expected}"
            eventually(lambda: place.rows() == expected, f"what the model says of {place.number}; {different}")

    def _partner(self, one: Inhabitant) -> Inhabitant | None:
        """Who answers: the other end of a connection (asked by one of the two), the UDP server of a client."""
        if one.state != ESTABLISHED or one in self._fed:
            return None
        if one.protocol == "tcp":
            other = one.other_end
            is_asking = other is not None and other.state == ESTABLISHED and one.cookie < other.cookie
            return other if is_asking else None
        at_it = self._udp_at(one.place, one.peer_port)
        if self._udp_at(one.place, one.local_port) != [one]:
            return None  # a twin might get the answer
        servers = [other for other in at_it if other.state == CLOSE and other.local == unmapped(one.peer)]
        return servers[0] if len(at_it) == len(servers) == 1 else None

    def _udp_at(self, place: int, port: int) -> list[Inhabitant]:
        return [one for one in self.sockets if (one.place, one.protocol, one.local_port) == (place, "udp", port)]

    # ---------------------------------------------------------------------------------------------- going

    def make_room(self) -> None:
        """For a connection or two."""
        while len(self.model.inhabitants) > MOST:
            owned = [one for one in self.model.inhabitants if one.is_owned]
            if not owned:
                return
            self.abort(owned[0])

    def clear(self) -> None:
        for sock in self.sockets.values():
            abort(sock)
        self.sockets.clear()
        self.model.inhabitants = [one for one in self.model.inhabitants if one.is_mini and one.state == TIME_WAIT]


def _acknowledge(sock: socket.socket) -> None:
    """At once, what would be acknowledged a little later."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
