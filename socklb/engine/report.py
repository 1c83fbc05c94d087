# SPDX-License-Identifier: MIT
"""What became of the sockets that a run matched."""

from __future__ import annotations

from collections import Counter, namedtuple

from ..kernel import names
from ..states import state_word
from ..wire.address import format_address, format_endpoint, unmapped_packed
from ..wire.reply import InetSocket
from ..wire.request import PROTOCOL_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Protocol, TypeVar

    from ..filters.backend import Backend
    from ..kernel.discovery import UnsearchedNamespace
    from ..kernel.namespaces import NetworkNamespace
    from ..wire.address import IPAddress

    T = TypeVar("T")

    class Flow(Protocol):
        """What the engine has to know of a connection that conntrack keeps: socklb.Flow."""

        @property
        def protocol(self) -> int: ...
        @property
        def src(self) -> IPAddress: ...
        @property
        def sport(self) -> int: ...
        @property
        def dst(self) -> IPAddress: ...
        @property
        def dport(self) -> int: ...
        @property
        def backend(self) -> Backend: ...
        @property
        def id(self) -> int: ...
        @property
        def zone(self) -> int: ...


DESTROYED = "destroyed"
REROUTED = "rerouted"
CLEARED = "cleared"
WOULD_DESTROY = "would_destroy"
GONE = "gone"
SKIPPED = "skipped"
FAILED = "failed"

ACHIEVED = frozenset({DESTROYED, REROUTED, CLEARED, WOULD_DESTROY})
"""Verdicts on what was done, or would have been."""

OFF, DONE, ABSENT, REFUSED = "off", "done", "absent", "not permitted"
"""What became of looking into conntrack."""


class Outcome(namedtuple("Outcome", "packed verdict reason error namespace flow")):
    """The verdict on one socket, or on the conntrack entry of a client.

    `verdict`: "destroyed" (the kernel answered 0), "rerouted" (UDP: the conntrack entry was deleted, the socket lives
    on to another backend), "cleared" (the conntrack entry of a TCP client elsewhere was deleted), "would_destroy" (in a
    dry run: what would have been one of these), "gone" (no longer there or no longer matching: closed by itself, or by
    the end of a connection that this run destroyed), "skipped" (spared) or "failed" (still there). `reason`: why it was
    skipped or failed, or what else is to be known; "" otherwise. `error`: the errno of a failure, or None. `namespace`:
    the NetworkNamespace it was found in. `flow`: the Flow that led to it, where conntrack was used, else None. `socket`
    is None where it is about the entry alone. A socket that was destroyed is shown as it was looked up just before. Of
    its attributes there are its cgroup, and what tells a subflow of MPTCP.

    There may be a million: an outcome holds its socket `packed`, as protocol and row, and unpacks it when asked.
    """

    __slots__ = ()
    packed: bytes | None
    verdict: str
    reason: str
    error: int | None
    namespace: NetworkNamespace
    flow: Flow | None

    def __new__(
        cls,
        socket: InetSocket | None,
        verdict: str,
        reason: str = "",
        error: int | None = None,
        namespace: NetworkNamespace | None = None,
        flow: Flow | None = None,
    ) -> Outcome:
        packed = None if socket is None else bytes((socket.protocol,)) + socket.row
        return super().__new__(cls, packed, verdict, reason, error, namespace, flow)

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.socket, *self[1:])

    def __repr__(self) -> str:
        fields = zip(("socket", *self._fields[1:]), self.__getnewargs__())
        return f"Outcome({', '.join(f'{name}={value!r}' for name, value in fields)})"

    @property
    def socket(self) -> InetSocket | None:
        """What was found."""
        return None if self.packed is None else InetSocket(self.packed[1:], self.packed[0])

    @property
    def client(self) -> InetSocket | Flow:
        """What has the client's addresses and ports: src, sport, dst, dport."""
        found = self.socket or self.flow
        assert found is not None
        return found


class Counts(
    namedtuple("Counts", "destroyed rerouted cleared would_destroy gone skipped failed", defaults=(0, 0, 0, 0, 0, 0, 0))
):
    """How many sockets and flows got which verdict (see Outcome)."""

    __slots__ = ()
    destroyed: int
    rerouted: int
    cleared: int
    would_destroy: int
    gone: int
    skipped: int
    failed: int

    @property
    def matched(self) -> int:
        """The sum of them all."""
        return sum(self)

    def as_dict(self) -> dict[str, int]:
        """Every count by its name, "matched" first."""
        return {"matched": self.matched, **self._asdict()}


class _Sums(namedtuple("_Sums", "lengths total namespaces backends")):
    """The sums of a report, and the numbers of outcomes and namespaces that they were made from."""

    __slots__ = ()
    lengths: tuple[int, int]
    total: Counts
    namespaces: dict[NetworkNamespace, Counts]
    backends: dict[Backend, Counts]


class Report:
    """What a run did: an outcome for each socket that matched, and their sums.

    `outcomes`: a list of Outcome, in the order of the verdicts. `errors`: {NetworkNamespace: exception}, where the run
    ended early. `unsearched`: namespaces that were seen and could not be searched, as UnsearchedNamespace (path,
    reason, count). `hidden`: a sentence on the processes that were not seen, if there are any. `left_alone`: backends
    on a loopback or link-local address, which is another one in each namespace, that were looked for in the current
    namespace only. `conntrack`: whether conntrack was asked who is balanced to a backend: "done", "off" (not wanted),
    "absent" (this kernel has none), "not permitted" (in some namespace at least). `devices`: {NetworkNamespace: {index:
    name}}, the interfaces where a socket is bound to one.
    `unrecorded`: the outcomes of the batch, of 64 sockets at most, that the audit failed to take; what was still to be
    destroyed then is `failed`, and not offered to it.
    """

    __slots__ = (
        "_backends",
        "_links",
        "_sums",
        "_tried",
        "conntrack",
        "devices",
        "errors",
        "hidden",
        "left_alone",
        "outcomes",
        "unrecorded",
        "unsearched",
    )

    outcomes: list[Outcome]
    errors: dict[NetworkNamespace, BaseException]
    unsearched: list[UnsearchedNamespace]
    hidden: str
    left_alone: tuple[Backend, ...]
    conntrack: str
    devices: dict[NetworkNamespace, dict[int, str]]
    unrecorded: list[Outcome]

    def __init__(self, backends: Iterable[Backend] = ()) -> None:
        # `outcomes` is the only account of verdicts: appending to it cannot be interrupted half way.
        self.outcomes, self.unrecorded, self.errors, self.unsearched = [], [], {}, []
        self.hidden, self.left_alone, self.devices = "", (), {}
        self.conntrack = OFF
        self._backends = _by_endpoint(backends)
        self._links: dict[NetworkNamespace, dict[str, int]] = {}
        self._tried: dict[NetworkNamespace, None] = {}
        self._sums: _Sums | None = None

    def withdraw(self, outcomes: Iterable[Outcome]) -> None:
        """Take back those of these very outcomes that are in the report, for others to stand in their place.

        No outcome is compared with another, for there may be as many as conntrack has entries.
        """
        withdrawn = {id(outcome) for outcome in outcomes}
        self.outcomes[:] = [outcome for outcome in self.outcomes if id(outcome) not in withdrawn]
        self._sums = None

    def add_namespace(self, namespace: NetworkNamespace) -> None:
        """List a namespace in `namespaces`, whether or not a socket matches there."""
        self._tried[namespace] = None

    def note_devices(self, namespace: NetworkNamespace) -> None:
        """Look up the names of its interfaces, and what tells backends apart that differ in their link alone."""
        self.devices[namespace] = names.interface_names(namespace)
        links = {backend.link for several in self._backends.values() if len(several) > 1 for backend in several}
        self._links[namespace] = names.interface_indexes(namespace, links)

    def leave_alone(self, namespaces: Sequence[NetworkNamespace]) -> None:
        """Note that of several namespaces only the current one is searched for the backends that are local to it."""
        if len(namespaces) > 1:
            self.left_alone = tuple(b for several in self._backends.values() for b in several if b.is_local)

    @property
    def counts(self) -> Counts:
        """The sums of the whole run."""
        return self._summed().total

    @property
    def destroyed(self) -> int:
        """How many sockets were destroyed: the kernel answered 0."""
        return self.counts.destroyed

    @property
    def rerouted(self) -> int:
        """How many UDP clients had their conntrack entry deleted: they live on, to another backend."""
        return self.counts.rerouted

    @property
    def cleared(self) -> int:
        """How many TCP clients on other hosts had their conntrack entry deleted."""
        return self.counts.cleared

    @property
    def would_destroy(self) -> int:
        """How many a dry run would have destroyed."""
        return self.counts.would_destroy

    @property
    def gone(self) -> int:
        """How many were no longer there, or no longer matched, when they were to be destroyed."""
        return self.counts.gone

    @property
    def skipped(self) -> int:
        """How many were spared, each with a reason."""
        return self.counts.skipped

    @property
    def failed(self) -> int:
        """How many are still there, each with a reason."""
        return self.counts.failed

    @property
    def matched(self) -> int:
        """How many sockets matched: the sum of all verdicts."""
        return self.counts.matched

    @property
    def namespaces(self) -> dict[NetworkNamespace, Counts]:
        """The sums of each namespace that the run has tried, or still had to when it was stopped."""
        return self._summed().namespaces

    @property
    def backends(self) -> dict[Backend, Counts]:
        """The sums of each backend; empty for a run that was not about backends."""
        return self._summed().backends

    def _summed(self) -> _Sums:
        """Count the outcomes; only if there are more of them, or of namespaces, than the last time."""
        lengths = len(self.outcomes), len(self._tried)
        sums = self._sums
        if sums is None or sums.lengths != lengths:
            outcomes = self.outcomes[: lengths[0]]
            namespaces = _counted(outcomes, self._tried, lambda outcome: outcome.namespace)
            backends = [backend for several in self._backends.values() for backend in several]
            by_backend = _counted(outcomes if backends else (), backends, self.backend_of)
            sums = self._sums = _Sums(lengths, Counts(*map(sum, zip(*namespaces.values()))), namespaces, by_backend)
        return sums

    def device_of(self, outcome: Outcome) -> str | None:
        """The name of the interface that its socket is bound to, None without one."""
        socket = outcome.socket
        return None if socket is None else self.devices.get(outcome.namespace, {}).get(socket.interface)

    def backend_of(self, outcome: Outcome) -> Backend:
        """Which of the backends a client is connected to."""
        if outcome.flow is not None:
            return outcome.flow.backend
        socket = outcome.socket
        assert socket is not None
        return self.peer_of(socket, outcome.namespace)

    def peer_of(self, socket: InetSocket, namespace: NetworkNamespace) -> Backend:
        """Which of the backends is the peer of a socket: on a link-local address also by its interface."""
        several = self._backends[unmapped_packed(socket.dst_packed), socket.dport, PROTOCOL_NAMES[socket.protocol]]
        if len(several) == 1:
            return several[0]
        links = self._links.get(namespace, {})
        return next((backend for backend in several if links.get(backend.link) == socket.interface), several[0])

    def __repr__(self) -> str:
        return f"<Report {' '.join(f'{name}={count}' for name, count in self.counts.as_dict().items())}>"


def _counted(outcomes: Sequence[Outcome], keys: Iterable[T], key: Callable[[Outcome], T]) -> dict[T, Counts]:
    """The sums of the outcomes of each key."""
    verdicts: dict[T, Counter[str]] = {one: Counter() for one in keys}
    for outcome in outcomes:
        verdicts[key(outcome)][outcome.verdict] += 1
    return {one: Counts(**counter) for one, counter in verdicts.items()}


def _by_endpoint(backends: Iterable[Backend]) -> dict[tuple[bytes, int, str], list[Backend]]:
    """Several have one endpoint if their link-local addresses differ in nothing but the link."""
    found: dict[tuple[bytes, int, str], list[Backend]] = {}
    for backend in dict.fromkeys(backends):
        found.setdefault((backend.address.packed, backend.port, backend.protocol), []).append(backend)
    return found


def socket_record(socket: InetSocket, device: str | None) -> dict[str, Any]:
    """A socket as JSON has it: addresses as text, the state by name, `device` the name of its interface."""
    return {
        "protocol": PROTOCOL_NAMES[socket.protocol],
        "state": state_word(socket.state),
        **_endpoints(socket.src_packed, socket.sport, socket.dst_packed, socket.dport),
        "interface": socket.interface,
        "device": device,
        "cookie": socket.cookie,
        "uid": socket.uid,
        "inode": socket.inode,
        "cgroup_id": socket.attributes.get("cgroup_id"),
        "timer": socket.timer,
        "retransmits": socket.retransmits,
        "expires_ms": socket.expires_ms,
    }


_OF_A_SOCKET = "interface device cookie uid inode cgroup_id timer retransmits expires_ms"


def _endpoints(src: IPAddress | bytes, sport: int, dst: IPAddress | bytes, dport: int) -> dict[str, Any]:
    return {"src": format_address(src), "sport": sport, "dst": format_address(dst), "dport": dport}


def outcome_record(outcome: Outcome, target: dict[str, Any], device: str | None, dry_run: bool) -> dict[str, Any]:
    """An outcome as JSON has it. `target` names what the socket was matched by: {"filter": ...} or {"backend": ...}."""
    socket, flow = outcome.socket, outcome.flow
    if socket is None:
        elsewhere = outcome.client
        ends = _endpoints(elsewhere.src, elsewhere.sport, elsewhere.dst, elsewhere.dport)
        client = {"protocol": PROTOCOL_NAMES[elsewhere.protocol], "state": None, **ends}
        client.update(dict.fromkeys(_OF_A_SOCKET.split()))
    else:
        client = socket_record(socket, device)
    if flow is not None:
        client["service"] = format_endpoint(flow.dst, flow.dport)
        client["conntrack_id"], client["zone"] = flow.id, flow.zone
    return {
        "namespace": outcome.namespace.name,
        **target,
        "dry_run": dry_run,
        **client,
        "outcome": outcome.verdict,
        "reason": outcome.reason,
        "error": outcome.error,
    }
