"""The clients of services, which conntrack has balanced to backends: what must become of them, in plain Python."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from socklb import Backend
from socklb.filters.conditions import EVERYTHING

from .model import TIME_WAIT, Ends, Model, ModelFilter, ModelFlow, ModelSocket, Options, Verdict

NO_SOCKET = "no local socket"
ELSEWHERE = "another namespace has the same connection, to a backend that lives"
ANSWERED_HERE = "a local socket answers it: it is not the balanced one"
SEVERAL = "the same connection is in more namespaces than conntrack has it to this backend"


def backend_of(flow: ModelFlow) -> Backend:
    return Backend(str(flow.backend[0]), flow.backend[1], flow.protocol)


class Cut(NamedTuple):
    """What a call must do to flows: the verdict on each socket or entry, and the entries that it must delete."""

    verdicts: dict[ModelSocket | ModelFlow, Verdict]
    deleted: list[ModelFlow]


def expected_cut(model: Model, gone: Mapping[int, Collection[Backend]], options: Options) -> Cut:
    """`gone`: in each namespace that is searched, the backends that count as gone there."""
    cut = Cut({}, [])
    searched = [flow for flow in model.open_flows() if flow.netns in gone]
    doomed = [flow for flow in searched if backend_of(flow) in gone[flow.netns]]
    for flow in doomed:
        if flow.protocol == "udp":
            cut.verdicts[flow] = Verdict("rerouted", "")
            cut.deleted.append(flow)
            continue
        is_local = flow.original[0].is_loopback
        same = [flow] if is_local else [other for other in searched if other.original == flow.original]
        where = [flow.netns] if is_local else gone
        clients = _clients(model, flow.original, where)
        reason = SEVERAL if len(clients) > len(same) else ""
        if any(other not in doomed for other in same):
            reason = ELSEWHERE
        if _clients(model, _inverse(flow.original), where):
            reason = ANSWERED_HERE
        for one in clients:
            why = model.why_spared(one, ModelFilter("tcp", EVERYTHING), Options()) or reason
            verdict = Verdict("skipped", why) if why else Verdict("destroyed", "")
            cut.verdicts[one] = Verdict("gone", "") if one.is_mini else verdict
        client = _client_of(flow, same, clients)
        if client is None and not (reason and clients):
            cut.verdicts[flow] = Verdict("skipped", NO_SOCKET)
        elif client is not None and cut.verdicts[client].verdict == "destroyed":
            cut.deleted.append(flow)
    if options.dry_run:
        for who, verdict in cut.verdicts.items():
            if verdict.verdict in ("destroyed", "rerouted"):
                cut.verdicts[who] = Verdict("would_destroy", "")
        cut.deleted.clear()
    return cut


def _inverse(ends: Ends) -> Ends:
    source, sport, destination, dport = ends
    return destination, dport, source, sport


def _clients(model: Model, ends: Ends, where: Collection[int]) -> list[ModelSocket]:
    """Those whose packets have these addresses and ports."""
    return [
        one
        for one in model.sockets
        if (one.protocol, one.wire_ends) == ("tcp", ends) and one.netns in where and one.state != TIME_WAIT
    ]


def _client_of(flow: ModelFlow, same: list[ModelFlow], clients: list[ModelSocket]) -> ModelSocket | None:
    """That of its own namespace; clients of namespaces that have no such flow are those of flows without any."""
    homes = {one.netns: one for one in clients}
    strangers = [one for one in clients if one.netns not in {other.netns for other in same}]
    homeless = [other for other in same if other.netns not in homes]
    return homes.get(flow.netns) or dict(zip(homeless, strangers)).get(flow)
