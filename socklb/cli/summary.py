# SPDX-License-Identifier: MIT
"""Sockets counted by state and by peer (`list --summary`)."""

from __future__ import annotations

from collections import Counter

from ..states import state_word
from ..wire.address import format_address, format_endpoint, unmapped_packed
from ..wire.request import PROTOCOL_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ..wire.reply import InetSocket

_PEERS = 10
_ROW = "{:5} {:47} {:>8}"


class Summary:
    """The sums of sockets. What it keeps grows with the number of different peers, and not with that of sockets.

    A peer is an address and a protocol: the clients of a server all have ports of their own. A v4-mapped address is the
    v4 one.
    """

    def __init__(self) -> None:
        self._states: Counter[tuple[int, int]] = Counter()
        self._peers: Counter[tuple[int, bytes]] = Counter()
        self._ports: dict[tuple[int, bytes], int] = {}  # 0: several

    def add(self, sockets: Iterable[InetSocket]) -> None:
        for socket in sockets:
            self._states[socket.protocol, socket.state] += 1
            if port := socket.dport:
                peer = socket.protocol, unmapped_packed(socket.dst_packed)
                self._peers[peer] += 1
                if self._ports.setdefault(peer, port) != port:
                    self._ports[peer] = 0

    def record(self) -> dict[str, Any]:
        return {
            "total": sum(self._states.values()),
            "states": [
                {"protocol": PROTOCOL_NAMES[protocol], "state": state_word(state), "sockets": count}
                for (protocol, state), count in sorted(self._states.items())
            ],
            "peers": [
                {
                    "protocol": PROTOCOL_NAMES[peer[0]],
                    "address": format_address(peer[1]),
                    "port": self._ports[peer] or None,
                    "sockets": count,
                }
                for peer, count in self._most()
            ],
            "other_peers": max(0, len(self._peers) - _PEERS),
        }

    def lines(self) -> Iterator[str]:
        yield _ROW.format("Netid", "State", "Sockets")
        for (protocol, state), count in sorted(self._states.items()):
            yield _ROW.format(PROTOCOL_NAMES[protocol], state_word(state), count)
        yield _ROW.format("total", "", sum(self._states.values()))
        if self._peers:
            yield ""
            yield _ROW.format("Netid", "Peer:Port", "Sockets")
        for peer, count in self._most():
            protocol, address = peer
            yield _ROW.format(PROTOCOL_NAMES[protocol], format_endpoint(address, self._ports[peer] or "*"), count)
        if len(self._peers) > _PEERS:
            rest = sum(self._peers.values()) - sum(count for _, count in self._most())
            yield _ROW.format("", f"{len(self._peers) - _PEERS} other peers", rest)

    def _most(self) -> list[tuple[tuple[int, bytes], int]]:
        return self._peers.most_common(_PEERS)
