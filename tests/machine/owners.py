"""The rule by which owners close, disconnect or reuse their sockets while these are being destroyed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import rule

from socklb import InetSocket, Report, SocketFilter, destroy_sockets, dst, sport
from socklb.engine import run as run_module

from ..sockets import socket_of
from .counters import counters
from .endpoints import Netns, peer_of
from .filters import TARGETS
from .machine import SocketMachine, netns_numbers
from .model import BOUND_INACTIVE, LISTEN, ModelFilter, ModelSocket, Options, Verdict
from .world import World

Change = Callable[[World, ModelSocket], None]

_CHANGES: tuple[tuple[str, Change, str], ...] = (
    ("tcp", World.abort, "closed meanwhile"),
    ("tcp", World.disconnect, "disconnected meanwhile"),
    ("tcp", World.disconnect_and_listen, "listening meanwhile"),
    ("udp", World.abort, "closed meanwhile"),
    ("udp", World.disconnect, "disconnected meanwhile"),
)
_IN_DUMP, _AFTER_BATCH, _AFTER_LOOK_UP = _MOMENTS = ("in the dump", "after a batch", "after a look-up")
_BATCH = 2
_targets, _by_peer = st.sampled_from(TARGETS), st.booleans()


class OwnerMachine(SocketMachine):
    @rule(netns=netns_numbers, address=_targets, by_peer=_by_peer)
    def destroy_while_owners_change(self, netns: int, address: str, by_peer: bool) -> None:
        """Every change at every moment: none must depend on what is drawn."""
        for (protocol, change, what), moment in product(_CHANGES, _MOMENTS):
            changed = self._destroy_while(change, moment, self.namespaces[netns], protocol, address, by_peer)
            counters[what] += changed
            self.world.make_room()

    @rule(netns=netns_numbers, address=_targets, by_peer=_by_peer, moment=st.sampled_from(_MOMENTS))
    def destroy_while_owners_close(self, netns: int, address: str, by_peer: bool, moment: str) -> None:
        """A mini-socket with the same cookie is left of each."""
        changed = self._destroy_while(World.close, moment, self.namespaces[netns], "tcp", address, by_peer)
        counters["closed meanwhile"] += changed

    def _destroy_while(
        self, change: Change, moment: str, here: Netns, protocol: str, address: str, by_peer: bool
    ) -> int:
        """How many of some connections have changed meanwhile."""
        port = self.world._port()
        made = self.world.connect_several(here, protocol, address, port, count=2 * _BATCH)
        ports = sorted(one.local_port for one in made)
        filter = ModelFilter(protocol, dst(address, port) if by_peer else sport(ports[0], ports[-1]))
        assert set(made) == set(self.world.model.matching(filter, here.number))
        report, changed = self._run_while(change, moment, here, filter, made)
        self._check_changed(report, filter, made, changed, late_ones=_BATCH if moment == _AFTER_LOOK_UP else 0)
        return len(changed)

    def _run_while(
        self, change: Change, moment: str, here: Netns, filter: ModelFilter, made: list[ModelSocket]
    ) -> tuple[Report, list[ModelSocket]]:
        """All that are still connected at this moment of the run change at once."""
        changed: list[ModelSocket] = []
        seen: set[int] = set()

        def change_all() -> None:
            if not changed:
                changed.extend(one for one in made if peer_of(self.world.real[one])[1])
                for one in changed:
                    change(self.world, one)

        def predicate(row: InetSocket) -> bool:
            if moment == (_AFTER_LOOK_UP if row.cookie in seen else _IN_DUMP):
                change_all()
            seen.add(row.cookie)
            return True

        def audit(record: dict[str, Any]) -> None:
            if moment == _AFTER_BATCH:
                change_all()

        with mock.patch.object(run_module, "BATCH", _BATCH):
            report = destroy_sockets(
                SocketFilter(filter.protocol, filter.condition, predicate=predicate),
                namespaces=here.namespace or "current",
                audit=audit,
            )
        return report, changed

    def _check_changed(
        self,
        report: Report,
        filter: ModelFilter,
        made: list[ModelSocket],
        changed: list[ModelSocket],
        *,
        late_ones: int,
    ) -> None:
        """What has changed is gone, or spared as what it is now, but for those that were looked up before: between
        the look-up of a batch and its destroy only the kernel could tell, which compares nothing but the cookie.
        """
        model, cookies = self.world.model, {one.cookie: one for one in made}
        verdicts = {cookies[socket_of(one).cookie]: Verdict(one.verdict, one.reason) for one in report.outcomes}
        self._check_sums(report.counts, verdicts.values())
        destroyed = [one for one, verdict in verdicts.items() if verdict.verdict == "destroyed"]
        assert set(verdicts) == set(made) == {*changed, *destroyed}
        late = [one for one in changed if one in destroyed]
        assert len(late) <= late_ones, (late, verdicts)
        for one in changed:
            if one not in late:
                is_matched = one in model.sockets and one.state != BOUND_INACTIVE and filter.matches(one)
                spared = model.why_spared(one, filter, Options()) if is_matched else ""
                assert verdicts[one] == (Verdict("skipped", spared) if spared else Verdict("gone", "")), (one, verdicts)
        counters["hit while listening"] += sum(one.state == LISTEN for one in late)
        counters["hit too late"] += len(late)
        self.world.expect_destroyed([self.world.what_is_left_of(one) for one in destroyed])
